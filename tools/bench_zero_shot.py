"""What zero-shot evaluation costs beyond its towers: 10,000 pictures against 1,000 classes in 80 templates.

    python tools/bench_zero_shot.py --model_dir=runs/demo --data_dir=data/emoji
    python tools/bench_zero_shot.py --model_dir=runs/demo --data_dir=data/emoji --pictures=1000 --classes=100 --repeats=1

Times are taken in turn: the towers alone, on decoded pictures and token ids prepared
beforehand, in the evaluation's own batches, one batch at a time and as many at a time as the evaluation has under way
(small towers leave cores idle between their operations, so that is faster); the whole evaluation
(`zero_shot.class_weights` and `zero_shot.evaluate`: reading records, decoding, tokenizing, class weights, scores, ranks,
counts). The towers are those of the faster way to run them: what overlapping gains by filling the cores is not counted as
the evaluation's. Machines differ from minute to minute, so each round compares the evaluation with the towers just before
it, and `over_towers` is the median over the rounds; seconds are the fastest.
Pictures are those of the test sets, over and over; class names are the training labels, two of them twice as in ImageNet.
Memory is the high-water mark (VmHWM) of processes of their own that evaluate a tenth of the pictures, and all of them. The
last line is one JSON object.
"""

import collections
import concurrent.futures
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags

_MODEL_DIR = flags.DEFINE_string("model_dir", "runs/demo", "A run folder of basic_tf.train.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data/emoji", "Test sets, and train.json for the class names.")
_PICTURES = flags.DEFINE_integer("pictures", 10_000, "Pictures.", 10)
_CLASSES = flags.DEFINE_integer("classes", 1000, "Classes, two of them doubles.", 10)
_TEMPLATES = flags.DEFINE_integer("templates", 80, "Templates.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Pictures or sentences a batch, as evaluate.py's.", 1)
_MEMORY = flags.DEFINE_integer("memory", None, "For the processes of this tool: evaluates so many pictures.")


class Pictures:
    """The pictures of the test sets over and over, read when they are asked for."""

    def __init__(self, data_dir: str, classes: int):
        from basic_tf.evaluation import datasets

        self._tests = [datasets.open_test(data_dir, name) for name in datasets.test_names(data_dir)]
        self._classes = classes

    def batches(self, count: int):
        """(encoded pictures, labels, record numbers) until `count` pictures were given."""
        import numpy as np

        given = 0
        for test in itertools.cycle(self._tests):
            for images, labels, records in test.batches():
                left = count - given
                yield images[:left], np.asarray(labels)[:left] % self._classes, records[:left]
                given += len(images[:left])
                if given == count:
                    return


def names_and_templates(data_dir: str, classes: int, templates: int) -> tuple[list[str], list[str]]:
    """Class names, the last two equal to the first two, and templates of about CLIP's length."""
    with open(os.path.join(data_dir, "train.json"), encoding="utf-8") as file:
        labels = json.load(file)["label_names"]
    names = labels[: classes - 2]
    sizes = ("", "small ", "large ", "good ", "bad ", "bright ", "dark ", "cropped ", "close-up ", "clean ")
    kinds = ("photo", "picture", "drawing", "icon", "painting", "sketch", "rendering", "cartoon")
    found = [f"a {size}{kind} of the {{}}." for kind in kinds for size in sizes]
    if templates > len(found) or classes - 2 > len(labels):
        raise ValueError(f"at most {len(found)} templates and {len(labels) + 2} classes")
    return [*names, *names[:2]], found[:templates]


def make():
    """The encoder, the pictures and the prompts."""
    from basic_tf import runs
    from basic_tf.evaluation import prompts
    from basic_tf.evaluation.encoder import ModelEncoder
    from basic_tf.parallel import strategies

    strategies.use_all_cores(None)
    loaded = runs.load(_MODEL_DIR.value)
    encoder = ModelEncoder(loaded.model, loaded.tokenizer, loaded.view, _BATCH.value)
    names, templates = names_and_templates(_DATA_DIR.value, _CLASSES.value, _TEMPLATES.value)
    return loaded, encoder, Pictures(_DATA_DIR.value, len(names)), prompts.class_prompts(names, templates)


def evaluation(encoder, pictures: Pictures, class_prompts, count: int) -> None:
    """What is measured."""
    from basic_tf.evaluation import zero_shot

    weights = zero_shot.class_weights(encoder, class_prompts)
    result = zero_shot.evaluate(encoder, weights, pictures.batches(count))
    if result.examples != count:
        raise AssertionError(f"{result.examples} pictures were counted instead of {count}")


def towers(loaded, encoder, pictures: Pictures, class_prompts, count: int):
    """The towers alone on inputs prepared here: a function of how many batches are under way at a time."""
    import tensorflow as tf

    from basic_tf.serving import decoding

    batch, size = _BATCH.value, encoder.image_size
    encoded = [image for images, _, _ in pictures.batches(count) for image in images]
    texts = [text for own in dict.fromkeys(class_prompts) for text in own]

    def padded(items):
        parts = [items[start : start + batch] for start in range(0, len(items), batch)]
        return [part + [part[0]] * (batch - len(part)) for part in parts]

    view = decoding.evaluation_view(loaded.view)
    decode = tf.function(
        lambda rows: decoding.decode_batch(rows, view), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    pixels = [decode(tf.constant(part)) for part in padded(encoded)]
    ids = [loaded.tokenizer(part) for part in padded(texts)]
    model = loaded.model
    of_pixels = tf.function(
        lambda rows: tf.cast(model.encode_image(rows), tf.float32),
        input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)],
    )
    of_ids = tf.function(
        lambda rows: tf.cast(model.encode_text(rows), tf.float32),
        input_signature=[tf.TensorSpec([None, ids[0].shape[1]], tf.int32)],
    )

    def alone(under_way: int):
        with concurrent.futures.ThreadPoolExecutor(under_way) as pool:
            for _ in pool.map(lambda part: of_pixels(part).numpy(), pixels):
                pass
            for _ in pool.map(lambda part: of_ids(part).numpy(), ids):
                pass

    return alone


def peak_bytes(count: int) -> int:
    """The high-water mark of a process that evaluates so many pictures."""
    command = [sys.executable, __file__, f"--memory={count}"]
    for flag in (_MODEL_DIR, _DATA_DIR, _CLASSES, _TEMPLATES, _BATCH):
        command.append(f"--{flag.name}={flag.value}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return int(done.stdout.split()[-1])


def main(argv: list[str]) -> int:
    """Measures and prints."""
    from basic_tf.evaluation import stream

    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    loaded, encoder, pictures, class_prompts = make()
    if _MEMORY.value:
        evaluation(encoder, pictures, class_prompts, _MEMORY.value)
        status = Path("/proc/self/status").read_text().splitlines()
        print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")))
        return 0
    count = _PICTURES.value
    encoder.encode_text(class_prompts[0])  # tracing is not measured
    encoder.encode_image_bytes(next(pictures.batches(_BATCH.value))[0])
    alone = towers(loaded, encoder, pictures, class_prompts, count)
    seconds = collections.defaultdict(list)
    for _ in range(_REPEATS.value):
        for name, function in (
            ("towers_one_at_a_time", lambda: alone(1)),
            ("towers", lambda: alone(stream.UNDER_WAY)),
            ("evaluation", lambda: evaluation(encoder, pictures, class_prompts, count)),
        ):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    fastest = {name: min(values) for name, values in seconds.items()}
    over = [
        of_all / min(of_towers) - 1
        for of_all, *of_towers in zip(
            seconds["evaluation"], seconds["towers"], seconds["towers_one_at_a_time"], strict=True
        )
    ]
    few, many = peak_bytes(count // 10), peak_bytes(count)
    report = {
        "pictures": count,
        "classes": len(class_prompts),
        "templates": _TEMPLATES.value,
        "seconds": {name: round(value, 3) for name, value in fastest.items()},
        "over_towers": statistics.median(over),
        "over_towers_by_round": over,
        "over_towers_one_at_a_time": fastest["evaluation"] / fastest["towers_one_at_a_time"] - 1,
        "peak_mib": {count // 10: few / 2**20, count: many / 2**20},
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    app.run(main)
