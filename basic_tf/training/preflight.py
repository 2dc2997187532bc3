"""What of a stage's parts does not go together, found from their descriptions alone: nothing is built or read for it."""

from collections.abc import Collection

from basic_tf.optimization import slot_accumulation
from basic_tf.training.stages import ConfigurationError, Stage


def check(stage: Stage, runtime, batches, task, optimizer, trained: Collection[str]) -> None:
    """Raises ConfigurationError, or ValueError in one line, for combinations that cannot work.

    runtime: a parallel.runtime.Runtime. batches, task, optimizer: what the stage's makers made. trained: parameter paths.
    """
    where = f"stage {stage.name}"
    if not trained:
        raise ConfigurationError(f"{where} trains nothing: its rules freeze every parameter")
    task.check_rows(runtime.rows_per_replica(stage.batch_size), trained)
    task.check_devices(runtime)
    _check_pictures(where, batches, task, [path for path in trained if path.startswith("image_tower/")])
    if task.accumulate_in_slots:
        if runtime.name != "one_device":
            raise ConfigurationError(
                f"{where}: Contrastive.accumulate_in_slots works on one device; this run has the runtime {runtime.name}. "
                "Use --runtime=one_device, or set it to None"
            )
        slot_accumulation.check(optimizer, task.accumulate_in_slots)
    if task.apply_by_block and optimizer.global_clip_norm is not None:
        raise ConfigurationError(
            f"{where}: AdaFactorW.global_clip_norm is a norm over all gradients, and Contrastive.apply_by_block never holds "
            "them together; set one of them to None"
        )
    if stage.update_guard is not None:
        _check_guard(where, runtime, task)


def _check_pictures(where: str, batches, task, moved: list[str]) -> None:
    if task.given_features and moved:
        raise ConfigurationError(
            f"{where}: batches of features ({type(batches).__name__}) need a frozen image tower, but {len(moved)} of its "
            "parameters are trained; freeze 'image_tower/.*' in a rule, or read pictures"
        )
    # Of features too: evaluation shows the tower pictures of that size.
    augmentation = getattr(batches, "augmentation", None)
    tower = getattr(task.model, "image_tower", None)
    if augmentation is not None and tower is not None:
        side = augmentation.output_size
        if tuple(tower.image_size) != (side, side):
            raise ConfigurationError(
                f"{where}: CoAtNet.image_size is {' x '.join(map(str, tower.image_size))} pixels, and "
                f"ImageAugmentation.output_size is {side}; make them equal"
            )


def _check_guard(where: str, runtime, task) -> None:
    for option in ("accumulate_in_slots", "apply_by_block"):
        if getattr(task, option):
            raise ConfigurationError(
                f"{where}: {option} uses gradients before all of them are known, so that no update can be passed over; set "
                f"Stage.update_guard or Contrastive.{option} to None"
            )
    if runtime.collectives is not None and runtime.collectives.global_view:
        raise ConfigurationError(
            f"{where}: Stage.update_guard does not work on a mesh yet; set it to None, or use another --runtime than dtensor"
        )
