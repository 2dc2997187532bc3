"""Makes a feature dataset: a trained image tower's features in place of a dataset's pictures (basic_tf/data/features.py).

    python tools/prepare_features.py --stage_dir=runs/demo/pretrain --input=data/emoji/train.json --output_dir=data/features

Each picture is embedded whole and in --views - 1 augmented views (the stage's own augmentation, by the hash of --seed).
Training with `FeatureBatches` then needs no image tower. Captions, labels and the order of the records stay. A record that
cannot be used ends the tool: the order would break. The last line is one JSON object.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags

_STAGE_DIR = flags.DEFINE_string(
    "stage_dir", None, "Stage folder of a run, e.g. runs/demo/pretrain.", required=True
)
_INPUT = flags.DEFINE_string("input", None, "Json of the dataset of pictures.", required=True)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the dataset goes.", required=True)
_NAME = flags.DEFINE_string("name", "train", "The new dataset's name.")
_VIEWS = flags.DEFINE_integer("views", 8, "Views of each picture, the whole picture being the first.", 1)
_SHARE = flags.DEFINE_float(
    "share", 1.0, "Only this share of the records, by the hash of their numbers.", 0.0, 1.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the augmented views.", 0)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Pictures at once.", 1)


def run(
    stage_dir: str,
    input_json: str,
    output_dir: str,
    name: str = "train",
    views: int = 8,
    seed: int = 0,
    batch: int = 256,
    share: float = 1.0,
) -> dict:
    """Writes the dataset; returns {path, records, views, width, seconds}. ValueError if a record cannot be used."""
    import time

    import numpy as np
    import tensorflow as tf

    from basic_tf import runs
    from basic_tf.data.decoding import decode, framed
    from basic_tf.data.records import RecordSource, RecordWriter, parse_example, serialize_example
    from basic_tf.data.subset import Subset
    from basic_tf.randomness import step_key_numpy
    from tools.pairs.files import matching
    from tools.sources.places import refuse_overwriting

    begin = time.perf_counter()
    tower, augmentation, checkpoint = runs.load_image_tower(stage_dir)
    source = RecordSource.open(input_json)
    refuse_overwriting(matching([input_json]), output_dir, name)
    source = source if share == 1.0 else Subset(source, stop=share)
    embed = tf.function(lambda images: tower.forward(images)[0], autograph=False)
    side = 2 * augmentation.output_size
    with RecordWriter(output_dir, name) as writer:
        for start in range(0, source.count, batch):
            indices = np.arange(start, min(start + batch, source.count))
            examples = []
            for index, payload in zip(indices.tolist(), source.read(indices)):
                if payload is None:
                    raise ValueError(
                        f"record {index} of {input_json} is damaged: leave it out of the dataset first"
                    )
                examples.append(parse_example(payload))
            pictures = [framed(decode(example.image), side, augmentation.fit) for example in examples]
            rows = indices.astype(np.int32)
            found = []
            for view in range(views):
                how = augmentation if view else augmentation.evaluation()
                choices = how.choices(step_key_numpy(seed, view), rows, central=view == 0)
                warped = how.warp(pictures, choices)
                found.append(embed(tf.constant(warped)).numpy().astype(np.float16))
            features = np.stack(found, axis=1)  # [n, V, D]
            if not np.isfinite(features).all():
                raise ValueError(
                    f"the features of records {start}.. are not finite in float16: another image tower is needed"
                )
            for example, own in zip(examples, features):
                writer.write(serialize_example(own.tobytes(), example.captions, example.labels, example.id))
        kept = {k: v for k, v in source.metadata.items() if k not in ("name", "count", "shards")}
        facts = {
            "views": views,
            "width": int(features.shape[2]),
            "checkpoint": checkpoint,
            "of": input_json,
            "seed": seed,
        }
        path = writer.finish(**kept, features=facts)
    return {"path": path, "records": source.count, **facts, "seconds": round(time.perf_counter() - begin, 1)}


def main(argv: list[str]) -> int:
    """Runs, and says in one line what a person can mend."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    from basic_tf.data.records import DamagedDataError
    from basic_tf.training.checkpoints import CheckpointError

    try:
        figures = run(
            _STAGE_DIR.value,
            _INPUT.value,
            _OUTPUT_DIR.value,
            _NAME.value,
            _VIEWS.value,
            _SEED.value,
            _BATCH.value,
            _SHARE.value,
        )
    except (ValueError, OSError, CheckpointError, DamagedDataError) as error:
        print(f"prepare_features: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    app.run(main)
