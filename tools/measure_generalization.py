"""Measures the generalisation gap of a trained run, and the terms of our bound on it (docs/theory.md).

    python tools/measure_generalization.py --model_dir=runs/demo

Embeds pairs of --train and --test (each picture with one of its captions, drawn from --seed) and writes
`<model_dir>/generalization.json`: the three gaps at each of --batches, the first-order bias of the estimators, and the
bound's terms. With --distinct=concept (a kind of label of the training set) at most one training pair of a label is taken:
a pool that holds a concept twice has false negatives, and the test pairs have none. The last line is the JSON.
"""

import json
import math
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "A run folder of basic_tf.train.", required=True)
_STAGE = flags.DEFINE_string("stage", None, "The stage of the run (default: the last that has a checkpoint).")
_TRAIN = flags.DEFINE_string("train", "data/emoji/train.json", "The training set's json.")
_TEST = flags.DEFINE_string("test", "data/emoji/retrieval.json", "Pairs that were not trained on.")
_DISTINCT = flags.DEFINE_string(
    "distinct", "concept", "Label kind of which a pool holds each once; '' for all."
)
_BATCHES = flags.DEFINE_list("batches", ["16", "32", "64", "128", "256"], "Batch sizes B.")
_POOL = flags.DEFINE_integer("pool", 8192, "Most pairs in a reference pool.", 2)
_PARTITIONS = flags.DEFINE_integer("partitions", 8, "Random partitions into pools that are averaged.", 1)
_PAIRS = flags.DEFINE_integer("pairs", 8192, "Most pairs that are embedded of each set.", 2)
_SEED = flags.DEFINE_integer("seed", 0, "Of captions, pairs and partitions.", 0)
_BITS = 32  # of a stored weight


def embedded_pairs(encoder, path: str, distinct: str, pairs: int, seed: int):
    """Unit rows (images, texts) of up to `pairs` pairs."""
    import numpy as np

    from basic_tf.data.groups import label_groups
    from basic_tf.data.records import RecordSource, parse_example

    source = RecordSource.open(path)
    rng = np.random.default_rng(seed)
    order = rng.permutation(source.count)
    if distinct:
        groups = label_groups(source, distinct)[order]
        order = order[np.sort(np.unique(groups, return_index=True)[1])]
    examples = [
        parse_example(payload) for payload in source.read(np.sort(order[:pairs])) if payload is not None
    ]
    examples = [example for example in examples if example.captions]
    captions = [example.captions[rng.integers(len(example.captions))] for example in examples]
    return encoder.encode_image_bytes([example.image for example in examples]), encoder.encode_text(captions)


def bound(model, inverse_temperature: float, pairs: int, batch: int) -> dict:
    """Decimal logarithms of the bound's terms: for all encoders of this architecture, and for fixed encoders."""
    from basic_tf.contrastive.generalization_bound import bound_terms

    counts = {"image": 0, "text": 0}
    for spec in model.specs():
        counts["image" if spec.path.startswith("image") else "text"] += math.prod(spec.shape)
    sizes = [count * _BITS * math.log(2) for count in counts.values()]
    found = {}
    for name, classes in (("all_encoders", sizes), ("fixed_encoders", (0.0, 0.0))):
        terms = bound_terms(inverse_temperature, pairs, batch, *classes)
        found[name] = {
            term: value / math.log(10) if math.isfinite(value) else None
            for term, value in vars(terms).items()
        } | {"total": terms.total_log10}
    return {"weights": counts, "bits_of_a_weight": _BITS, "delta": 0.05, "log10": found}


def measure(
    model,
    encoder,
    train: str,
    test: str,
    distinct: str,
    batches: list[int],
    pool: int,
    partitions: int,
    pairs: int,
    seed: int,
) -> dict:
    """Everything that generalization.json says, but for the run's name."""
    import dataclasses

    from basic_tf.contrastive import generalization
    from basic_tf.data import records

    s = 1 / encoder.temperature
    trained = embedded_pairs(encoder, train, distinct, pairs, seed)
    tested = embedded_pairs(encoder, test, "", pairs, seed)
    sides = {
        "train": {"path": train, "pairs": len(trained[0]), "distinct": distinct or None},
        "test": {"path": test, "pairs": len(tested[0])},
    }
    gaps = [
        dataclasses.asdict(generalization.gaps(trained, tested, s, batch, pool, partitions, seed))
        for batch in sorted(batches)
    ]
    bias = {
        name: dataclasses.asdict(generalization.bias_terms(*rows, s))
        for name, rows in (("train", trained), ("test", tested))
    }
    count, batch = records.RecordSource.open(train).count, max(batches)
    bounds = {"pairs": count, "batch": batch} | bound(model, s, count, batch)
    return {"inverse_temperature": s, **sides, "gaps": gaps, "bias": bias, "bound": bounds}


def main(argv: list[str]) -> int:
    """Loads the run, measures, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    from basic_tf import runs
    from basic_tf.data import records
    from basic_tf.evaluation.encoder import ModelEncoder
    from basic_tf.training.checkpoints import CheckpointError

    try:
        loaded = runs.load(_MODEL_DIR.value, stage=_STAGE.value)
        result = {"run": _MODEL_DIR.value, "stage": loaded.stage, "step": int(loaded.step)} | measure(
            loaded.model,
            ModelEncoder(loaded.model, loaded.tokenizer, loaded.view),
            _TRAIN.value,
            _TEST.value,
            _DISTINCT.value,
            [int(text) for text in _BATCHES.value],
            _POOL.value,
            _PARTITIONS.value,
            _PAIRS.value,
            _SEED.value,
        )
    except (ValueError, OSError, CheckpointError, records.DamagedDataError) as error:
        print(f"measure_generalization: {error}", file=sys.stderr)
        return 2
    text = json.dumps(result)
    with open(os.path.join(_MODEL_DIR.value, "generalization.json"), "w") as file:
        file.write(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    app.run(main)
