"""What accumulation in the optimizer's slots costs and saves, against gradient buffers (docs/slot_accumulation.md).

State: bytes of weights, slots, the gradient buffer and what the accumulation carries instead, for BASIC-S, M and L, from
the towers' specs. Drift: the same training run (both towers from scratch, real pictures and captions) with exact
gradients and with each form of accumulation: losses, and the distance of the weights. Memory: high-water mark (VmHWM) of
a process that trains a large text tower, with one inter-op thread, and the time of its step.

    make demo                                                      # once: the drift part reads data/emoji
    python tools/bench_slot_accumulation.py --output_dir=docs      # everything, about half an hour on two cores
    python tools/bench_slot_accumulation.py --parts=state,memory   # a part

Settings of the drift part that are in --work_dir already are not run again. The last line is one JSON object.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS
flags.DEFINE_list("parts", ["state", "drift", "memory"], "What to measure.")
flags.DEFINE_string("output_dir", None, "Where slot_accumulation.png goes; none: no plot.")
flags.DEFINE_string("work_dir", None, "Where the drift runs leave their results; none: a temporary folder.")
flags.DEFINE_list("settings", [], "Only these settings of the drift part (default: all).")
flags.DEFINE_integer("steps", 200, "Steps of each drift run.")
flags.DEFINE_integer("batch", 64, "Pairs of each drift run.")
flags.DEFINE_integer("microbatch", 8, "Pairs of a microbatch there.")
flags.DEFINE_integer("threads", 2, "TensorFlow's threads.")
flags.DEFINE_string("measure", None, "For the processes of this tool: drift/<setting> or memory/<form>.")

# setting: (form of accumulation or None, factor of the microbatch, dtype of the momentum, what the plot calls it)
SETTINGS = {
    "exact": (None, 1, "float32", "exact"),
    "exact_other_microbatch": (None, 4, "float32", "exact, other microbatch (rounding)"),
    "uncorrected": ("uncorrected", 1, "float32", "uncorrected"),
    "pieces": ("pieces", 1, "float32", "corrected by 4 pieces"),
    "sketch": ("sketch", 1, "float32", "sketch, K = 16"),
    "exact_bfloat16": (None, 1, "bfloat16", "exact, bfloat16 momentum"),
    "sketch_bfloat16": ("sketch", 1, "bfloat16", "sketch, bfloat16 momentum"),
}
MIB = 1024.0 * 1024.0


def _bindings(form: str | None, microbatch: int, momentum: str) -> list[str]:
    return [
        "finetune/Stage.warm_start = None",
        "Stage.weight_average = None",
        f"Stage.batch_size = {FLAGS.batch}",
        f"finetune/Contrastive.microbatch = {microbatch}",
        f"finetune/Contrastive.accumulate_in_slots = {form!r}",
        # BatchNorm in groups would depend on the microbatch; and 'frozen' statistics do not suit fresh weights.
        "finetune/CoAtNet.batch_norm = 'layer'",
        # Smaller than the demo's, so that seven runs take minutes.
        "xs/CoAtNetTable.stem = (1, 16)",
        "xs/CoAtNetTable.stages = (('mbconv', 1, 32), ('mbconv', 1, 64), ('attention', 1, 128))",
        "finetune/Schedule.peak = 1e-3",
        f"AdaFactorW.momentum_dtype = '{momentum}'",
    ]


def _weights(run) -> np.ndarray:
    return np.concatenate([np.asarray(v, np.float32).ravel() for v in run.trained.values()])


def _drift(setting: str) -> None:
    """Trains; leaves losses [steps] and weights [checkpoints, parameters] in the work folder."""
    import tensorflow as tf

    from basic_tf import configurables
    from basic_tf.parallel import strategies
    from basic_tf.training import stage_run
    from basic_tf.training.trainer import Trainer

    form, factor, momentum, _ = SETTINGS[setting]
    strategies.use_all_cores(FLAGS.threads)
    configurables.parse(["gin/runs/demo.gin"], _bindings(form, factor * FLAGS.microbatch, momentum))
    stage = configurables.recipe().stage("finetune")
    options = stage_run.Options(train_steps=FLAGS.steps)
    run = stage_run.built(stage, FLAGS.work_dir, strategies.create("one_device"), options)
    trainer = Trainer(
        run.task, run.trained, run.optimizer, None,
        lambda host, hosts: run.batches.dataset(0, host, hosts), run.runtime, run.seed, run.global_step,
    )  # fmt: skip
    losses, weights, at = [], [_weights(run)], [0]
    start = time.perf_counter()
    for step in range(1, FLAGS.steps + 1):
        losses.append(float(trainer.train(tf.constant(1))["loss"]))
        if step in (1, 2, 5, 10) or step % max(FLAGS.steps // 10, 1) == 0:
            weights.append(_weights(run))
            at.append(step)
        if step % 20 == 0:
            rate = step / (time.perf_counter() - start)
            left = (FLAGS.steps - step) / rate
            print(
                f"{setting} {step}/{FLAGS.steps}  loss {losses[-1]:.3f}  {rate:.2f} steps/s  {left:.0f} s left",
                flush=True,
            )
    path = Path(FLAGS.work_dir, f"{setting}.npz")
    np.savez(path.with_suffix(".part.npz"), losses=losses, weights=np.stack(weights), at=at)
    path.with_suffix(".part.npz").rename(path)


def _high_water_mark() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    raise OSError("/proc/self/status has no VmHWM: this tool measures memory on Linux only")


def _memory(form: str) -> None:
    """One process: MiB at the high-water mark and seconds a step, as JSON."""
    import tensorflow as tf

    from basic_tf import randomness
    from basic_tf.contrastive.gradients import contrastive_gradients
    from basic_tf.optimization.adafactorw import AdaFactorW
    from basic_tf.towers.coatnet import CoAtNet
    from basic_tf.towers.coatnet_table import CoAtNetTable
    from basic_tf.towers.dual_encoder import DualEncoder
    from basic_tf.towers.text_transformer import TextTransformer

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    pairs, tokens, vocabulary = 16, 16, 8000
    image = CoAtNet(
        CoAtNetTable((1, 16), (("mbconv", 1, 32), ("attention", 1, 64)), head_dim=32),
        image_size=32,
        batch_norm="layer",
    )
    text = TextTransformer(vocabulary_size=vocabulary, length=tokens, width=1024, layers=5, heads=16)
    model = DualEncoder(image, text, embedding_dim=256)
    parameters = {path: v for path, v in model.parameters().items() if v.trainable}
    optimizer = AdaFactorW(1e-4)
    optimizer.build(parameters)
    variables = list(parameters.values())
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (pairs, 32, 32, 3), np.uint8))
    ids = tf.constant(rng.integers(1, vocabulary, (pairs, tokens)), tf.int32)

    def one_step(step):
        sink = None if form == "buffers" else optimizer.accumulation(variables, step, correction=form)
        found = contrastive_gradients(
            model,
            images,
            ids,
            4,
            noise_key=randomness.step_key(0, step),
            variables=variables,
            accumulator=sink,
        )
        if sink is None:
            optimizer.apply(found.gradients, variables, step=step)
        else:
            sink.apply(found.gradients)
        return found.loss

    function = tf.function(one_step, autograph=False)
    before = _high_water_mark()
    times = []
    for step in range(3):
        start = time.perf_counter()
        loss = float(function(tf.constant(step)))
        times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "form": form,
                "parameters": sum(v.shape.num_elements() for v in variables),
                "weights_mib": sum(4 * v.shape.num_elements() for v in variables) / MIB,
                "before_mib": before,
                "peak_mib": _high_water_mark(),
                "seconds": min(times[1:]),
                "loss": loss,
            }
        )
    )


def _child(what: str) -> str:
    """Runs a part in a process of its own and returns its last line; its other lines pass through."""
    command = [sys.executable, __file__, f"--measure={what}"]
    command += [
        f"--{name}={getattr(FLAGS, name)}" for name in ("steps", "batch", "microbatch", "threads", "work_dir")
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    last = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    if process.returncode:
        raise RuntimeError(f"{what} failed with exit code {process.returncode}")
    return last


def state_rows() -> list[dict]:
    """Bytes for each size of BASIC; nothing is allocated."""
    from basic_tf.optimization import slot_accumulation
    from basic_tf.optimization.adafactorw import AdaFactorW
    from basic_tf.towers import coatnet, dual_encoder, text_transformer

    rows = []
    for size, variant in (("S", "coatnet_0"), ("M", "coatnet_3"), ("L", "coatnet_7")):
        text = text_transformer.TextTransformer(f"basic_{size.lower()}")
        specs = dual_encoder.DualEncoder(coatnet.CoAtNet(variant), text).specs()
        shapes = {spec.path: tuple(spec.shape) for spec in specs if spec.trainable}
        optimizer = AdaFactorW(1e-3)
        weights = sum(4 * int(np.prod(shape)) for shape in shapes.values())
        slots = optimizer.state_bytes(shapes)
        carried = slot_accumulation.state_bytes(optimizer.rule, shapes)
        rows.append(
            {
                "model": f"BASIC-{size}",
                "parameters": weights // 4,
                "weights_mib": weights / MIB,
                "slots_mib": slots / MIB,
                "slots_of_weights": slots / weights,
                "gradient_buffer_mib": weights / MIB,
                "sketches_mib": carried["sketches"] / MIB,
                "exact_sums_mib": carried["sums"] / MIB,
                "carried_of_weights": sum(carried.values()) / weights,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def drift_rows() -> dict[str, dict]:
    """Runs what is missing; then each setting against `exact`."""
    if not Path(ROOT, "data/emoji/train.json").exists():
        raise FileNotFoundError("data/emoji/train.json is missing; `make demo` prepares it")
    for setting in FLAGS.settings or SETTINGS:
        if not Path(FLAGS.work_dir, f"{setting}.npz").exists():
            _child(f"drift/{setting}")
    rows, exact = {}, dict(np.load(Path(FLAGS.work_dir, "exact.npz")))
    moved = np.linalg.norm(exact["weights"] - exact["weights"][0], axis=1)[1:]
    norms = np.linalg.norm(exact["weights"], axis=1)[1:]
    for setting in SETTINGS:
        path = Path(FLAGS.work_dir, f"{setting}.npz")
        if not path.exists():
            continue
        run = dict(np.load(path))
        distance = np.linalg.norm(run["weights"] - exact["weights"], axis=1)[1:]
        rows[setting] = {
            "loss_of_last_20": float(np.mean(run["losses"][-20:])),
            "loss_difference": float(np.mean(run["losses"][-20:]) - np.mean(exact["losses"][-20:])),
            "at": run["at"][1:].tolist(),
            "distance_of_moved": (distance / moved).tolist(),
            "distance_of_weights": (distance / norms).tolist(),
            "losses": [round(float(loss), 4) for loss in run["losses"]],
        }
        short = {k: rows[setting][k] for k in ("loss_of_last_20", "loss_difference")}
        print(
            json.dumps(
                {"setting": setting, **short, "distance_of_moved": rows[setting]["distance_of_moved"][-1]}
            ),
            flush=True,
        )
    return rows


def plot(rows: dict[str, dict], path: str) -> None:
    """Losses and drift against the step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), dpi=90)
    for setting, row in rows.items():
        label, style = SETTINGS[setting][3], "--" if "bfloat16" in setting else "-"
        losses = np.convolve(row["losses"], np.ones(10) / 10, "valid")
        (line,) = left.plot(np.arange(10, 10 + len(losses)), losses, style, label=label, lw=1.2)
        if setting != "exact":
            right.plot(
                row["at"],
                row["distance_of_moved"],
                style,
                color=line.get_color(),
                label=label,
                lw=1.2,
                marker=".",
            )
    left.set(
        xlabel="step",
        ylabel="contrastive loss, mean of 10 steps",
        title=f"batch {FLAGS.batch}, microbatch {FLAGS.microbatch}",
    )
    right.set(
        xlabel="step",
        ylabel="|W - W exact| / |W exact - W start|",
        yscale="log",
        title="drift from the exact form",
    )
    left.legend(fontsize=7)
    right.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(_) -> None:
    """Runs the parts."""
    if FLAGS.measure:
        part, name = FLAGS.measure.split("/")
        {"drift": _drift, "memory": _memory}[part](name)
        return
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        FLAGS.work_dir = FLAGS.work_dir or temporary
        os.makedirs(FLAGS.work_dir, exist_ok=True)
        if "state" in FLAGS.parts:
            result["state"] = state_rows()
        if "memory" in FLAGS.parts:
            result["memory"] = [json.loads(_child(f"memory/{form}")) for form in ("buffers", "sketch")]
        if "drift" in FLAGS.parts:
            rows = drift_rows()
            if FLAGS.output_dir:
                plot(rows, os.path.join(FLAGS.output_dir, "slot_accumulation.png"))
            for row in rows.values():
                row.pop("losses")
            result["drift"] = rows
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
