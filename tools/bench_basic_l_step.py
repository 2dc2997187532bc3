"""One optimizer step of BASIC-L, all 3.1B parameters, in one process of at most 22 GiB: time and memory by phase.

    python tools/bench_basic_l_step.py                          # BASIC-L at 224 px, 8 pairs, float32; needs 22 GiB free
    python tools/bench_basic_l_step.py --check --gin_file=gin/models/basic_s.gin

Weights and slots are those of training, the pairs are real (the emoji data), and the loss is computed again after
the update. Memory is the high-water mark of the process (VmHWM). `--check` takes two steps of a smaller model,
with dropout, stochastic depth and ghost BatchNorm, and compares weights and slots with those of the same steps
from whole-model gradients. The last line is one JSON object; `--output` keeps it in a file.
"""

import contextlib
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# TensorFlow's builds with oneDNN keep freed tensors in a pool of their own that only grows; malloc gives them back.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("gin_file", ["gin/models/basic_l.gin"], "The model.")
flags.DEFINE_multi_string("gin_binding", [], "Changes to it, e.g. 'TextTransformer.layers = 2'.")
flags.DEFINE_string("data_dir", "data/emoji", "Pairs: train.json and tokenizer.model (make data).")
flags.DEFINE_integer("pairs", 8, "Pairs of the contrastive batch.")
flags.DEFINE_integer("microbatch", None, "Pairs whose block is recomputed at once; default all.")
flags.DEFINE_string("dtype", "float32", "Keras dtype policy of weights and computation: float32 or bfloat16.")
flags.DEFINE_float("learning_rate", 1e-5, "Of the one step.")
flags.DEFINE_float("limit_gib", 22.0, "The high-water mark that must not be passed.")
flags.DEFINE_bool(
    "check", False, "Compare with whole-model gradients instead; for models that fit both ways."
)
flags.DEFINE_bool("force", False, "Start although less memory is available than the step needs.")
flags.DEFINE_string("output", None, "Keep the JSON object in this file, too.")

GIB = 1024.0**3
SEED = 1


def give_freed_memory_back() -> None:
    """Large blocks straight from the system and back to it, one heap for all threads: freed is really free."""
    libc = ctypes.CDLL(None)
    for option, value in (
        (-3, 1 << 20),
        (-1, 1 << 20),
        (-8, 1),
    ):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
        libc.mallopt(option, value)


def memory(field: str, file: str = "/proc/self/status") -> float:
    """A field of a /proc file in GiB."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / GIB
    raise OSError(f"{file} has no {field}: this tool measures memory on Linux only")


class Phases:
    """Seconds and memory of each phase, printed as they end."""

    def __init__(self):
        self.rows = []
        self._start = time.perf_counter()

    def end(self, name: str, **more) -> None:
        """Ends the phase that began with the last one's end."""
        now = time.perf_counter()
        row = {
            "phase": name,
            "seconds": round(now - self._start, 2),
            "resident_gib": round(memory("VmRSS"), 3),
            "peak_gib": round(memory("VmHWM"), 3),
        } | more
        self._start = now
        self.rows.append(row)
        print(
            f"{name:28s} {row['seconds']:8.1f} s   resident {row['resident_gib']:6.2f} GiB   "
            f"peak so far {row['peak_gib']:6.2f} GiB",
            flush=True,
        )


@contextlib.contextmanager
def progress(text: str, total: int):
    """advance(weights): a live line with rate and time left on a terminal; phases alone are printed elsewhere."""
    from rich import progress as rich_progress

    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.fields[rate]:6.1f}M weights/s"),
        rich_progress.TimeRemainingColumn(),
        transient=True,
        disable=not sys.stdout.isatty(),
    )
    with bar:
        task, done, start = bar.add_task(text, total=total, rate=0.0), 0, time.perf_counter()

        def advance(weights: int) -> None:
            nonlocal done
            done += weights
            rate = done / 1e6 / max(time.perf_counter() - start, 1e-6)
            bar.update(task, completed=done, rate=rate)

        yield advance


def configured_model(bindings: list[str]):
    """The dual encoder of the gin files, without its weights."""
    import gin
    from basic_tf import configurables

    dtype = [f"{tower}.dtype = '{FLAGS.dtype}'" for tower in ("CoAtNet", "TextTransformer")]
    configurables.parse(FLAGS.gin_file, [*dtype, *bindings, *FLAGS.gin_binding])
    return gin.get_configurable("Encoders")()


def build(model) -> None:
    """Creates the weights, block by block."""
    towers = (model.image_tower, model.text_tower)
    with progress("weights", sum(spec.size for tower in towers for spec in tower.specs())) as advance:
        for tower in towers:
            for block in tower.blocks:
                block.create(tower.seed, tower.initializer)
                advance(sum(spec.size for spec in block.specs()))
    model.build()


def real_batch(model, steps: int) -> list[dict]:
    """Batches of pairs; of no two pictures of one concept where the data names its concepts (the emoji do)."""
    import tensorflow as tf

    from basic_tf.data.batches import ContrastiveBatches
    from basic_tf.data.groups import distinct_labels
    from basic_tf.data.images import ImageAugmentation
    from basic_tf.data.records import RecordSource
    from basic_tf.data.tokenizer import Tokenizer

    source = RecordSource.open(f"{FLAGS.data_dir}/train.json")
    batches = ContrastiveBatches(
        source,
        Tokenizer(f"{FLAGS.data_dir}/tokenizer.model", model.text_tower.length),
        ImageAugmentation(model.image_tower.image_size[0]),
        FLAGS.pairs,
        SEED,
        order=distinct_labels if source.metadata.get("label_kinds") else None,
    )
    return [
        {name: tf.constant(batch[name]) for name in ("images", "token_ids", "examples")}
        for batch in map(batches.at, range(steps))
    ]


def enough_memory(model, optimizer) -> tuple[float, float]:
    """(GiB of weights, GiB of slots); leaves with a message if the machine has not enough left for the step."""
    import tensorflow as tf

    specs = model.specs()
    weights = sum(spec.size for spec in specs) * tf.as_dtype(model.variable_dtype).size / GIB
    shapes = {spec.path: spec.shape for spec in specs if spec.trainable}
    slots = optimizer.state_bytes(shapes, model.variable_dtype) / GIB
    # Runtime 0.7; boundary states 0.1 a pair at 224 px; one block, or the update of the largest parameter.
    largest = max(spec.size for spec in specs) * 4 / GIB
    needed = weights + slots + 0.7 + 0.1 * FLAGS.pairs + 8 * largest
    available = memory("MemAvailable", "/proc/meminfo")
    print(
        f"weights {weights:.2f} GiB, slots {slots:.2f} GiB; the step needs about {needed:.1f} GiB, "
        f"{available:.1f} GiB are available",
        flush=True,
    )
    if available < needed and not FLAGS.force:
        sys.exit("bench_basic_l_step: too little memory is available; end other processes (or --force)")
    return weights, slots


def measure() -> dict:
    """The step, phase by phase."""
    import numpy as np
    import tensorflow as tf

    from basic_tf import randomness
    from basic_tf.contrastive.blockwise import contrastive_step_by_block
    from basic_tf.machine import cores
    from basic_tf.optimization.adafactorw import AdaFactorW

    phases = Phases()
    tf.config.threading.set_intra_op_parallelism_threads(cores())
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = configured_model([])
    optimizer = AdaFactorW(FLAGS.learning_rate)
    weights_gib, slots_gib = enough_memory(model, optimizer)
    (batch,) = real_batch(model, 1)
    phases.end("start, and the pairs")
    build(model)
    phases.end("initial weights")
    optimizer.build(model.parameters())
    phases.end("optimizer slots")

    sizes = {path: variable.shape.num_elements() for path, variable in model.parameters().items()}
    trained = optimizer.trained_paths()
    updated, squares, update_seconds, started = [], 0.0, 0.0, set()
    peaks = {}  # the high-water mark whenever it rose: in a block's backward pass, or in an update
    total = sum(sizes[path] for path in trained)
    names = {"image_projection": "forward of both, loss", "text_projection": "backward, image tower"}

    with progress("backward and update", total) as advance:

        def note_peak(where):
            peak = round(memory("VmHWM"), 3)
            if not peaks or peak > list(peaks.values())[-1]:
                peaks[where] = peak

        def apply(gradients):
            nonlocal squares, update_seconds
            ((path, gradient),) = gradients.items()
            part = path.split("/")[0]
            if part in names and part not in started:
                started.add(part)
                phases.end(names[part], update_seconds=round(update_seconds, 2))
                update_seconds = 0.0
            note_peak("before " + path)
            start = time.perf_counter()
            squares += float(tf.reduce_sum(tf.square(tf.cast(gradient, tf.float32))))
            optimizer.apply(gradients, step=0)
            note_peak("update of " + path)
            updated.append(path)
            update_seconds += time.perf_counter() - start
            advance(sizes[path])

        options = {"microbatch": FLAGS.microbatch, "examples": batch["examples"]}
        result = contrastive_step_by_block(
            model, batch["images"], batch["token_ids"], apply, trained,
            noise_key=randomness.step_key(SEED, 0), **options,
        )  # fmt: skip
    phases.end("backward, text tower", update_seconds=round(update_seconds, 2))
    if result.statistics:
        model.update_statistics(result.statistics)
    after = contrastive_step_by_block(model, batch["images"], batch["token_ids"], apply, (), **options)
    phases.end("forward and loss afterwards")
    if sorted(updated) != sorted(trained):
        raise AssertionError(f"{len(updated)} updates for {len(trained)} parameters")
    loss, loss_after = float(result.loss), float(after.loss)
    if not np.isfinite([loss, loss_after, squares]).all():
        raise FloatingPointError(f"loss {loss}, then {loss_after}; squared gradient norm {squares}")
    step_phases = [row for row in phases.rows if row["phase"].startswith(("forward of", "backward"))]
    return {
        "model": FLAGS.gin_file,
        "bindings": FLAGS.gin_binding,
        "parameters": sum(sizes.values()),
        "parameters_updated": sum(sizes[path] for path in updated),
        "pairs": FLAGS.pairs,
        "microbatch": FLAGS.microbatch or FLAGS.pairs,
        "image_size": list(model.image_tower.image_size),
        "dtype": FLAGS.dtype,
        "peak_gib": round(memory("VmHWM"), 3),
        "limit_gib": FLAGS.limit_gib,
        "swapped_gib": memory("VmSwap"),
        "weights_gib": round(weights_gib, 3),
        "slots_gib": round(slots_gib, 3),
        "step_seconds": round(sum(row["seconds"] for row in step_phases), 1),
        "update_seconds": round(sum(row["update_seconds"] for row in step_phases), 1),
        "loss": loss,
        "loss_after": loss_after,
        "gradient_norm": squares**0.5,
        "peak_at": list(peaks)[-1],
        "peaks": dict(list(peaks.items())[-12:]),
        "phases": phases.rows,
    }


def check() -> dict:
    """Two steps block by block, and the same two from whole-model gradients."""
    from basic_tf import randomness
    from basic_tf.contrastive.blockwise import contrastive_step_by_block
    from basic_tf.optimization.adafactorw import AdaFactorW
    from basic_tf.optimization.rules import Rule, RuleTable
    from tests.contrastive.whole_model_update import (
        BEFORE_BATCH_NORM,
        KEY_BIASES,
        largest_difference,
        state_of,
        whole_model_step,
    )

    microbatch = FLAGS.microbatch or FLAGS.pairs // 2
    bindings = [
        "CoAtNet.stochastic_depth = 0.1",
        "CoAtNet.batch_norm = 'ghost'",
        f"CoAtNet.ghost_size = {min(microbatch, 4)}",
        "TextTransformer.dropout = 0.1",
        "TextTransformer.stochastic_depth = 0.1",
    ]
    states, losses = [], []
    for by_block in (True, False):
        model = configured_model(bindings)
        build(model)
        rules = RuleTable([Rule(f"{KEY_BIASES}|{BEFORE_BATCH_NORM}", frozen=True), Rule(".*")])
        optimizer = AdaFactorW(FLAGS.learning_rate, momentum_dtype=None, rules=rules)
        optimizer.build(model.parameters())
        for step, batch in enumerate(real_batch(model, 2)):
            pairs, key = (batch["images"], batch["token_ids"]), randomness.step_key(SEED, step)
            options = {"noise_key": key, "examples": batch["examples"]}
            if by_block:
                result = contrastive_step_by_block(
                    model, *pairs, lambda g, step=step, o=optimizer: o.apply(g, step=step),
                    optimizer.trained_paths(), microbatch, **options,
                )  # fmt: skip
                model.update_statistics(result.statistics)
                losses.append(float(result.loss))
            else:
                losses.append(whole_model_step(model, optimizer, *pairs, step, microbatch, **options))
        states.append(state_of(model, optimizer))
        print(f"{'block by block' if by_block else 'whole model'}: losses {losses[-2:]}", flush=True)
        del model, optimizer
        gc.collect()  # Keras models are cycles of references
    found, expected = states
    parameters = {path for path in expected if "/momentum" not in path and "/second_moment" not in path}
    differences = {
        name: largest_difference({p: found[p] for p in paths}, {p: expected[p] for p in paths})
        for name, paths in (("parameter", parameters), ("slot", set(expected) - parameters))
    }
    return {
        "model": FLAGS.gin_file,
        "parameters": int(sum(found[path].size for path in parameters)),
        "pairs": FLAGS.pairs,
        "microbatch": microbatch,
        "dtype": FLAGS.dtype,
        "losses_by_block": losses[:2],
        "losses_whole_model": losses[2:],
        **{f"max_{name}_error": error for name, (error, _) in differences.items()},
        **{f"worst_{name}": path for name, (_, path) in differences.items()},
    }


def main(_) -> None:
    """Measures or checks, and prints the JSON object."""
    give_freed_memory_back()  # before TensorFlow starts its threads
    report = check() if FLAGS.check else measure()
    text = json.dumps(report)
    if FLAGS.output:
        Path(FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
        Path(FLAGS.output).write_text(json.dumps(report, indent=1) + "\n")
    print(text)
    if report.get("peak_gib", 0.0) > FLAGS.limit_gib:
        sys.exit(f"bench_basic_l_step: the peak of {report['peak_gib']} GiB is above {FLAGS.limit_gib} GiB")


if __name__ == "__main__":
    app.run(main)
