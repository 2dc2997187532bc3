"""Floating-point operations of a step: the matrix products and convolutions, a multiply-add as two."""

from basic_tf.planning.step_memory import Setting


def flops(task, trained: set[str], setting: Setting, recomputed: set[str]) -> dict[str, float]:
    """FLOPs of one forward pass of each tower, of a step for each pair, of the loss, and of a whole step of the batch.

    task: a training task; its own count of a step per pair is taken. trained: parameter paths. setting: its
    devices along the model axis see the same rows and repeat the arithmetic, so `step_per_device` falls with the batch axis
    alone. recomputed: names of the trained towers that run again in the backward pass (remat 'blocks').
    """
    model, pairs = task.model, setting.pairs
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
        "step_per_device": (per_pair * pairs + loss) / setting.batch_axis,
    }
