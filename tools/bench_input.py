r"""Measures the input pipeline alone, beside the rate of decoding only; with --train_steps, its part in a training run.

  taskset -c 0 python tools/bench_input.py --output_sizes=32,48 --batch_size=512
  python tools/bench_input.py --output_sizes=32 --train_steps=60        (needs data/emoji: make data)

Everything is made here: small PNGs (64 px) for the cached road and, out of shards on disk, for the road that decodes
each when it is needed (`icons_...`: what 300,000 icons take that are not kept decoded); photograph-like JPEGs
(500 x 375) for the per-example road at 224 px. Each figure is the best of --repeats runs; `..._cpu_ms` is the processor
time of one picture in that run: times a training run's pictures per second, it is the share of a core that its input
takes. The last line printed is one JSON object; `road_224_share` is the per-example road's rate as a share of decoding
the same files whole with tf.io.decode_jpeg, the median over turns of both. `train_...` are the first steps of the demo's
stages 1 and 3: their speed, the share of the time in which they waited for data, and the share of all cores' time that the
input takes at that speed, as measured alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import app, flags

from basic_tf.data.batches import LabelledBatches
from basic_tf.data.examples import serialize_example
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.memory import InMemorySource
from basic_tf.data.records import RecordSource, RecordWriter
from basic_tf.machine import cores

ROOT = Path(__file__).resolve().parents[1]
_SIZES = flags.DEFINE_list("output_sizes", ["32", "48"], "Output sizes of the cached road.")
_BATCH = flags.DEFINE_integer("batch_size", 512, "Pictures per batch of the cached road.", lower_bound=1)
_SMALL = flags.DEFINE_integer("small_pictures", 2048, "Number of 64 px PNGs.", lower_bound=1)
_LARGE = flags.DEFINE_integer("large_pictures", 256, "Number of 500 x 375 JPEGs.", lower_bound=1)
_TURN = flags.DEFINE_integer("turn", 1536, "JPEGs of one timed run of the 224 px road.", lower_bound=1)
_TRAIN_STEPS = flags.DEFINE_integer("train_steps", 0, "Steps of two of the demo's stages; 0: none.", 0)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of which the best counts.", lower_bound=1)

# What a small run from scratch uses: geometry and colours all on.
STRONG = {
    "scale": (0.8, 1.2),
    "aspect": (0.85, 1.18),
    "rotation": 15.0,
    "translation": 0.05,
    "gain": 0.2,
    "saturation": 0.3,
    "recolour_probability": 0.3,
    "grey_probability": 0.1,
    "invert_probability": 0.1,
}


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: flat shapes, gradients and fine grain, so that a codec has something to
    do.
    """
    y, x = np.mgrid[:height, :width]
    result = np.stack(
        [127 + 60 * np.sin(rng.uniform(0.01, 0.1) * x + rng.uniform(0, 6) * y / height)] * 3, -1
    )
    for _ in range(6):
        top, left = rng.integers(0, height * 3 // 4), rng.integers(0, width * 3 // 4)
        bottom, right = top + rng.integers(4, height // 2), left + rng.integers(4, width // 2)
        result[top:bottom, left:right] = rng.integers(0, 256, 3)
    if height > 100:
        result = result + rng.normal(0, 12, result.shape)
    return np.clip(result, 0, 255).astype(np.uint8)


def source(encoded: list[bytes]) -> InMemorySource:
    """The pictures as a dataset of ten classes."""
    examples = [serialize_example(image, ["a picture"], [i % 10]) for i, image in enumerate(encoded)]
    return InMemorySource(examples, {"label_names": [str(i) for i in range(10)]})


def written(folder: str, small: InMemorySource) -> RecordSource:
    """The same records in shards on disk."""
    with RecordWriter(folder, "small", shards=2) as writer:
        for payload in small.read(np.arange(small.count)):
            writer.write(payload)
        return RecordSource.open(writer.finish(label_names=small.metadata["label_names"]))


def rate(run: Callable[[], int]) -> tuple[float, float]:
    """Pictures per second of the fastest run and its processor milliseconds a picture; `run` returns how many it made."""
    run()
    best = (0.0, 0.0)
    for _ in range(_REPEATS.value):
        start, used = time.perf_counter(), time.process_time()
        made = run()
        seconds, used = time.perf_counter() - start, time.process_time() - used
        best = max(best, (round(made / seconds, 1), round(1000 * used / made, 4)))
    return best


def dataset_rate(batches: LabelledBatches, steps: int) -> tuple[float, float]:
    """`rate` of what comes out of `dataset`, after its first batches."""
    elements = iter(batches.dataset(parallel_batches=cores()))

    def run():
        return sum(len(next(elements)["record"].numpy()) for _ in range(steps))

    return rate(run)


def road_224(encoded: list[bytes]) -> dict[str, float]:
    """The per-example road to 224 px beside decoding alone, in turns, so that a slow moment of the machine meets both.

    Each turn has iterators of its own, dropped before the other's clock runs: what one reads ahead takes no time of
    the other's. The share is the median over the turns; rates and processor times are of the fastest.
    """
    decoding = tf.data.Dataset.from_tensor_slices(encoded)
    decoding = decoding.map(lambda image: tf.io.decode_jpeg(image, 3), num_parallel_calls=cores()).repeat()
    rows = min(64, len(encoded))
    batches = LabelledBatches(source(encoded), ImageAugmentation(224, flip=True), rows, 1)
    steps = max(1, _TURN.value // rows)
    found = {"decode_only": [], "road_224": []}
    for _ in range(_REPEATS.value):
        for name, dataset, pull, count in (
            ("decode_only", decoding, lambda image: 1, steps * rows),
            (
                "road_224",
                batches.dataset(parallel_batches=cores()),
                lambda b: len(b["record"].numpy()),
                steps,
            ),
        ):
            elements = iter(dataset)
            for _ in range(max(8, count // 4)):  # more than is read ahead
                next(elements)
            start, used = time.perf_counter(), time.process_time()
            made = sum(pull(next(elements)) for _ in range(count))
            seconds, used = time.perf_counter() - start, time.process_time() - used
            found[name].append((made / seconds, 1000 * used / made))
            del elements
            time.sleep(0.3)  # what was being made when it was dropped
    figures = {}
    for name, runs in found.items():
        figures[f"{name}_per_s"], figures[f"{name}_cpu_ms"] = round(max(runs)[0], 1), round(max(runs)[1], 4)
    shares = [road[0] / decode[0] for decode, road in zip(found["decode_only"], found["road_224"])]
    figures["road_224_share"] = round(float(np.median(shares)), 3)
    figures["road_224_shares"] = [round(share, 3) for share in sorted(shares)]
    return figures


def trained() -> dict[str, float]:
    """Figures of the first steps of stages 1 and 3 of the demo, and of their batches alone."""
    from basic_tf import configurables

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage, params in (("pretrain", []), ("finetune", ["finetune/Stage.warm_start = None"])):
            command = [sys.executable, "-m", "basic_tf.train", "--gin_file=gin/runs/demo.gin", f"--stage={stage}",
                       f"--model_dir={folder}/{stage}_run", "--mode=train", f"--train_steps={_TRAIN_STEPS.value}",
                       *(f"--gin_param={param}" for param in params)]  # fmt: skip
            configurables.parse([str(ROOT / "gin/runs/demo.gin")], params)
            made = configurables.recipe().stage(stage)
            alone, cpu_ms = dataset_rate(made.batches(seed=0, batch_size=made.batch_size), 8)
            figures[f"demo_{stage}_per_s"], figures[f"demo_{stage}_cpu_ms"] = alone, cpu_ms
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
            lines = [
                json.loads(line)
                for line in Path(folder, f"{stage}_run", stage, "metrics.jsonl").read_text().splitlines()
            ]
            last = lines[-1]
            speed = next(value for name, value in last.items() if name.endswith("_per_second"))
            figures[f"train_{stage}_per_s"] = round(speed, 1)
            figures[f"train_{stage}_data_wait"] = round(last["data_wait_share"], 4)
            figures[f"train_{stage}_input_share_of_cpu"] = round(speed * cpu_ms / 1000 / cores(), 4)
            print(f"training, stage {stage}: {figures}", flush=True)
    return figures


def main(argv):
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    rng = np.random.default_rng(0)
    figures = {"cores": cores(), "batch_size": _BATCH.value}

    small = source([tf.io.encode_png(picture(rng, 64, 64)).numpy() for _ in range(_SMALL.value)])
    batch = min(_BATCH.value, small.count)
    for size in map(int, _SIZES.value):
        for name, options in {"plain": {"scale": (0.8, 1.0)}, "strong": STRONG}.items():
            start = time.perf_counter()
            batches = LabelledBatches(small, ImageAugmentation(size, **options), batch, 1, cache_decoded=True)
            figures["cache_fill_per_s"] = round(small.count / (time.perf_counter() - start), 1)
            road = f"cached_{size}_{name}"
            figures[f"{road}_per_s"], figures[f"{road}_cpu_ms"] = dataset_rate(batches, 8)
            print(
                f"cached road, {size} px, {name}: {figures[f'cached_{size}_{name}_per_s']:,} /s", flush=True
            )

        with tempfile.TemporaryDirectory() as folder:
            on_disk = written(folder, small)
            batches = LabelledBatches(on_disk, ImageAugmentation(size, **STRONG), batch, 1)
            road = f"icons_{size}"
            figures[f"{road}_per_s"], figures[f"{road}_cpu_ms"] = dataset_rate(batches, 4)
            print(f"64 px PNGs on disk, {size} px: {figures[f'{road}_per_s']:,} /s", flush=True)

    encoded = [tf.io.encode_jpeg(picture(rng, 375, 500), quality=90).numpy() for _ in range(_LARGE.value)]
    figures |= road_224(encoded)
    print(
        f"per-example road, 500 x 375 JPEG to 224 px: {figures['road_224_per_s']:,} /s, "
        f"decode only {figures['decode_only_per_s']:,} /s",
        flush=True,
    )
    if _TRAIN_STEPS.value:
        os.chdir(ROOT)  # gin files and data are named from there
        figures |= trained()
    print(json.dumps(figures))


if __name__ == "__main__":
    app.run(main)
