"""Stage 2 without running the frozen image tower again: its features of every picture, from disk.

`Contrastive.cache_features = True` asks for it. It needs a frozen image tower and an augmentation without chance, so that a
picture has one feature; anything else is refused. The features lie in the stage's folder under a key of all that they
depend on (weights, types, view, data), are computed when they are not there, and what was computed survives an interruption.
"""

import dataclasses
import hashlib
import json
import os

import numpy as np
import tensorflow as tf

from basic_tf.data.feature_cache import FeatureCache, picture_check
from basic_tf.monitoring import progress
from basic_tf.parallel import weights
from basic_tf.training import preemption
from basic_tf.training.stages import ConfigurationError

_FORMAT = 1
FOLDER = "image_features"


def provide(run, stop: preemption.StopRequest | None = None) -> FeatureCache | None:
    """Gives a stage that asks for them its features (`Batches.use_features`); computes those that are not on disk.

    run: a stage_run.StageRun whose weights are in place. Raises ConfigurationError where features cannot stand for pictures,
    preemption.Stopped between two blocks.
    """
    if not getattr(run.task, "cache_features", False):
        return None
    _check(run)
    model, batches = run.task.model, run.batches
    cache = FeatureCache(
        os.path.join(run.folder, FOLDER), _key(run), batches.source.count, model.image_tower.output_width
    )
    rows = run.task.microbatch or run.stage.batch_size

    @tf.function
    def features_of(pictures):
        return model.image_features(pictures)[0]

    line = None
    try:
        for number, records in enumerate(cache.missing()):
            if stop is not None and stop.requested is not None:
                raise preemption.Stopped(
                    f"stage {run.stage.name}: {stop.requested} while features were computed; what was computed is kept. "
                    "Run the same command again to go on"
                )
            if line is None:
                blocks = -(-(cache.count - records[0]) // cache.block)
                line = progress.ProgressLine(
                    int(blocks), cache.block, name=f"{run.stage.name}: image features", unit="pictures"
                )
            cache.write(int(records[0]), *_block(batches, features_of, records, rows))
            line.update(min(number + 1, int(blocks)), {})
    finally:
        if line is not None:
            line.close()
    batches.use_features(cache)
    return cache


def _block(batches, features_of, records: np.ndarray, rows: int):
    """(records used, checks of their pictures, features) of one block."""
    used, checks, found = [], [], []
    for start in range(0, len(records), rows):
        some = records[start : start + rows]
        pictures, own, encoded = batches.fixed_pictures(some)
        # Always as many rows as a training step has at once: products of other shapes may round otherwise.
        padded = np.concatenate([pictures, np.repeat(pictures[-1:], rows - len(some), 0)])
        found.append(features_of(padded).numpy()[: len(some)])
        used.append(own)
        checks += [picture_check(picture) for picture in encoded]
    return np.concatenate(used), np.array(checks, np.uint32), np.concatenate(found)


def _check(run) -> None:
    where = f"stage {run.stage.name}: Contrastive.cache_features keeps one feature for each picture, but "
    trained = [path for path in run.trained if path.startswith("image_tower/")]
    if trained:
        raise ConfigurationError(
            f"{where}{len(trained)} weights of the image tower are trained (the first is {trained[0]}); freeze "
            "'image_tower/.*' in a rule, or set it to False"
        )
    varying = list(run.batches.augmentation.varying)
    if run.batches.policy is not None:
        varying.append(type(run.batches.policy).__name__)
    if varying:
        raise ConfigurationError(
            f"{where}each view of a picture is another one ({', '.join(varying)}); bind ImageAugmentation without chance "
            "(scale = (1.0, 1.0) and nothing else but output_size and fit), or set it to False"
        )
    if run.batches.keeps_decoded:
        raise ConfigurationError(
            f"stage {run.stage.name}: Contrastive.cache_features makes decoded pictures in memory useless; set "
            "ContrastiveBatches.cache_decoded to False"
        )
    if run.runtime.name != "one_device":
        raise ConfigurationError(
            f"stage {run.stage.name}: Contrastive.cache_features works on one device; this run has the runtime "
            f"{run.runtime.name}. Use --runtime=one_device, or set it to False"
        )
    if run.task.apply_by_block:
        raise ConfigurationError(
            f"stage {run.stage.name}: Contrastive.apply_by_block runs the image tower block by block and takes no features; "
            "set it or cache_features to False"
        )


def _key(run) -> str:
    """SHA-256 of everything that the features follow from, the pictures themselves aside: those have checks of their own."""
    tower = run.task.model.image_tower
    digest = hashlib.sha256()
    for path, variable in sorted(run.parameters.items()):
        if path.startswith("image_tower/"):
            array = np.ascontiguousarray(weights.logical_array(variable))
            digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
    source = run.batches.source
    facts = {
        "format": _FORMAT,
        "weights": digest.hexdigest(),
        "types": tower.dtype_policy.name,
        "view": dataclasses.asdict(run.batches.augmentation),
        "data": [source.count, source.metadata.get("name"), source.metadata.get("shards")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
