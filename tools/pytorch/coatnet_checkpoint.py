"""A converted CoAtNet as a checkpoint folder, and the gin bindings that go with it."""

import os

import tensorflow as tf

from basic_tf.towers.coatnet import CoAtNet
from basic_tf.training import checkpoints, stage_run
from tools.pytorch import timm_coatnet, weights


def bindings(source: timm_coatnet.Source, image_size: int, epsilons: str, output: str) -> list[str]:
    """The gin bindings of a tower that computes with these weights."""
    rows = [f"CoAtNet.variant = '{source.name}'"]
    if source.name is None:
        stages = tuple(tuple(stage)[: 3 if stage.stride == 2 else 4] for stage in source.table.stages)
        rows = [
            "CoAtNet.variant = @CoAtNetTable()",
            f"CoAtNetTable.stem = {source.table.stem}",
            f"CoAtNetTable.stages = {stages}",
            f"CoAtNetTable.head_dim = {source.table.head_dim}",
        ]
    rows += [
        f"CoAtNet.image_size = {image_size}",
        "CoAtNet.downsample = 'depthwise'",
        "CoAtNet.mbconv_pool = 'average'",
        "CoAtNet.attention_pool = 'average'",
    ]
    if source.classes is not None and not source.pre_logits:
        rows.append("CoAtNet.pre_logits = False")
    if epsilons == "timm":
        rows += ["CoAtNet.batch_norm_epsilon = 1e-5", "CoAtNet.layer_norm_epsilon = 1e-6"]
    return [*rows, f"contrastive/WarmStart.stage = '{output if '/' in output else './' + output}'"]


def write(weights_path: str, output: str, image_size: int, key: str | None = None) -> dict:
    """Converts a file and writes the checkpoint; returns the figures, with `source` (timm_coatnet.Source)."""
    folder = stage_run.checkpoint_folder(output)
    if checkpoints.steps(folder):
        raise weights.WeightsError(
            f"{output} holds a checkpoint already; name another --output, or delete it"
        )
    state = weights.read(weights_path, key)
    source = timm_coatnet.described(state)
    tower = CoAtNet(source.table, image_size, num_classes=source.classes, pre_logits=source.pre_logits)
    account = timm_coatnet.converted(state, tower)
    arrays = {f"parameters/image_tower/{path}": array for path, array in account.arrays.items()}
    tf.io.gfile.makedirs(output)
    path = checkpoints.save(
        folder, 0, arrays, {"stage": "image_tower", "source": os.path.basename(weights_path)}
    )
    return {
        "source": source,
        "variant": source.name,
        "image_size": image_size,
        "parameters": sum(spec.size for spec in tower.specs() if spec.trainable),
        "used": len(account.used),
        "ignored": len(account.ignored),
        "zero": len(account.zero),
        "resized": len(account.resized),
        "checkpoint": path,
    }
