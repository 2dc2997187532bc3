"""Floating-point operations of a step: the matrix products and convolutions, a multiply-add as two."""


def flops(task, trained: set[str], pairs: int, replicas: int, recomputed: set[str]) -> dict[str, float]:
    """FLOPs of one forward pass of each tower, of a step for each pair, of the loss, and of a whole step of the batch.

    task: a training task; its own count of a step per pair is taken. trained: parameter paths. pairs: B, the global
    batch. recomputed: names of the trained towers that run again in the backward pass (remat 'blocks').
    """
    model = task.model
    forward = {
        name: 2.0 * sum(getattr(model, name).multiply_adds().values())
        for name in ("image_tower", "text_tower")
        if hasattr(model, name)
    }
    per_pair = 2.0 * task.multiply_adds_per_example(trained) + sum(forward[name] for name in recomputed)
    width = getattr(model, "embedding_dim", 0)
    loss = 8.0 * pairs * pairs * width  # four products of B x B x D in all
    return {
        **{f"{name}_forward": value for name, value in forward.items()},
        "step_per_pair": per_pair,
        "loss": loss,
        "step": per_pair * pairs + loss,
        "step_per_device": (per_pair * pairs + loss) / replicas,
    }
