"""The planner's peak against the memory that training really takes.

    python tools/bench_planner.py                         # all settings, on two idle cores about ten minutes
    python tools/bench_planner.py --settings=text,frozen  # some of them

Each setting is planned here and measured in a process of its own: real steps of a stage (task, optimizer, trainer) on random
pictures, one inter-op thread; memory is the high-water mark of the process (VmHWM), imports included. The last line is one
JSON object: per setting the plan, the measurement and their ratio; `worst` is the largest |plan / measured - 1|.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

FLAGS = flags.FLAGS
GIB = 1 << 30
BAR = 0.10
SMALL_TEXT = {"layers": 1, "width": 256, "heads": 4, "vocabulary_size": 4000}
# Narrow: many bytes of activations for few operations. Names say what dominates; all of them peak at 2 GiB or more.
NARROW = {
    "stem": (2, 32),
    "stages": (("mbconv", 2, 32), ("mbconv", 2, 48), ("attention", 2, 96), ("attention", 1, 160)),
}
SETTINGS = {
    "narrow": {"image": {"variant": NARROW, "image_size": 96}, "text": SMALL_TEXT, "batch": 128},
    "narrow_microbatch": {
        "image": {"variant": NARROW, "image_size": 96}, "text": SMALL_TEXT, "batch": 256, "microbatch": 128,
    },
    "narrow_blocks": {
        "image": {"variant": NARROW, "image_size": 96}, "text": SMALL_TEXT, "batch": 384, "remat": "blocks",
    },
    "narrow_norms": {
        "image": {"variant": NARROW, "image_size": 96}, "text": SMALL_TEXT, "batch": 192,
        "remat": "norms_and_activations",
    },
    "narrow_ghost": {
        "image": {"variant": NARROW, "image_size": 96, "batch_norm": "ghost", "ghost_size": 32}, "text": SMALL_TEXT,
        "batch": 192, "microbatch": 96,
    },
    "coatnet_0": {"image": {"image_size": 64}, "text": SMALL_TEXT, "batch": 96, "microbatch": 96},
    "coatnet_0_large_pictures": {"image": {"image_size": 224}, "text": SMALL_TEXT, "batch": 16, "microbatch": 8},
    "text": {"image": {"variant": NARROW, "image_size": 32}, "text": {"variant": "basic_s"}, "batch": 32, "microbatch": 16},
    "text_blocks": {
        "image": {"variant": NARROW, "image_size": 32}, "text": {"variant": "basic_s", "layers": 2}, "batch": 192,
        "microbatch": 96, "remat": "blocks",
    },
    "frozen": {
        "image": {"image_size": 64}, "text": {"variant": "basic_s", "layers": 2}, "batch": 96, "microbatch": 48,
        "frozen": True,
    },
    "classifier": {"image": {"variant": NARROW, "image_size": 64}, "classes": 30_000, "batch": 256},
}  # fmt: skip

flags.DEFINE_list("settings", list(SETTINGS), f"Which of {', '.join(SETTINGS)}.")
flags.DEFINE_integer("steps", 2, "Training steps of each setting.")
flags.DEFINE_string("measure", None, "Internal: runs this setting in this process.")


def stage_of(setting: dict):
    """The training stage of a setting, on random pictures."""
    import tensorflow as tf

    from basic_tf.optimization import adafactorw, rules, schedules
    from basic_tf.towers import coatnet, coatnet_table, dual_encoder, text_transformer
    from basic_tf.training import stages, tasks
    from tools.random_batches import RandomBatches

    class RandomLabels(RandomBatches):
        """Pictures with a label each."""

        class source:
            """What a stage asks of its source."""

            count, metadata = 1 << 30, {"label_names": [str(n) for n in range(setting.get("classes", 0))]}

        def dataset(self, first_step: int, host: int, hosts: int):
            """The same batch without end."""
            batch = next(iter(super().dataset(first_step, host, hosts)))
            del batch["token_ids"]
            batch["labels"] = tf.one_hot(batch["examples"], setting["classes"])
            return tf.data.Dataset.from_tensors(batch).repeat()

    remat, side = setting.get("remat", "none"), setting["image"]["image_size"]
    options = dict(setting["image"])
    if isinstance(options.get("variant"), dict):
        options["variant"] = coatnet_table.CoAtNetTable(**options["variant"])

    def model():
        image = coatnet.CoAtNet(remat=remat, **options)
        text = text_transformer.TextTransformer(remat=remat, **setting["text"])
        return dual_encoder.DualEncoder(image, text)

    if "classes" in setting:
        tower = functools.partial(coatnet.CoAtNet, remat=remat, **options)
        task = functools.partial(tasks.Classification, image_tower=tower)
        batches = functools.partial(RandomLabels, side, 1, 2)
    else:
        task = functools.partial(tasks.Contrastive, model=model)
        length, vocabulary = setting["text"].get("length", 64), setting["text"].get("vocabulary_size", 32000)
        batches = functools.partial(RandomBatches, side, length, vocabulary)
    frozen = [rules.Rule("image_tower/.*", frozen=True)] if setting.get("frozen") else []
    return stages.Stage(
        name="bench",
        task=functools.partial(task, microbatch=setting.get("microbatch")),
        batches=batches,
        batch_size=setting["batch"],
        train=schedules.Duration(steps=10),
        optimizer=adafactorw.AdaFactorW,
        schedule=functools.partial(schedules.Schedule, peak=1e-3),
        rules=rules.RuleTable([*frozen, rules.Rule(".*")]),
    )


def measured(name: str) -> dict:
    """Trains some steps here: the high-water mark and what led to it."""
    import tensorflow as tf

    from basic_tf import configurables  # noqa: F401 (what a training process has imported)
    from basic_tf.machine import cores
    from basic_tf.parallel import strategies
    from basic_tf.planning.step_memory import status_bytes
    from basic_tf.training import stage_run, trainer

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(cores())
    stage = stage_of(SETTINGS[name])
    imported = status_bytes("VmRSS")
    run = stage_run.built(stage, "", strategies.create("one_device"), stage_run.Options(train_steps=10))
    built = status_bytes("VmRSS")
    train = trainer.Trainer(
        run.task, run.trained, run.optimizer, run.average, lambda *hosts: run.batches.dataset(0, *hosts), run.runtime,
        run.seed, run.global_step,
    )  # fmt: skip
    marks = []
    for _ in range(FLAGS.steps):
        float(train.train(tf.constant(1))["loss"])
        marks.append(status_bytes("VmHWM"))
    return {"imported": imported, "built": built, "high_water_marks": marks}


def planned(name: str):
    """The planner's StepMemory of a setting."""
    from basic_tf import configurables  # noqa: F401
    from basic_tf.planning import step_memory, subject

    setting = SETTINGS[name]
    task, found = subject.describe(stage_of(setting), setting.get("classes", 1))
    return step_memory.step_memory(
        found,
        step_memory.Setting(
            setting["batch"], task.microbatch, waiting_batches=1, runtime_bytes=step_memory.process_bytes()
        ),
    )


def main(_) -> None:
    """Measures and compares."""
    if FLAGS.measure:
        print(json.dumps(measured(FLAGS.measure)))
        return
    unknown = set(FLAGS.settings) - set(SETTINGS)
    if unknown:
        raise app.UsageError(
            f"--settings={','.join(sorted(unknown))}: expected some of {', '.join(SETTINGS)}"
        )
    rows = []
    for name in FLAGS.settings:
        command = [sys.executable, __file__, f"--measure={name}", f"--steps={FLAGS.steps}"]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"measuring {name} failed:\n{done.stderr[-2000:]}")
        found, plan = json.loads(done.stdout.splitlines()[-1]), planned(name)
        peak = max(found["high_water_marks"])
        row = {
            "setting": name, **SETTINGS[name], "planned": plan.peak, "measured": peak, "ratio": plan.peak / peak,
            "peak_phase": plan.peak_phase, "causes": plan.phases[plan.peak_phase], **found,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:18s} planned {plan.peak / GIB:5.2f} GiB, measured {peak / GIB:5.2f} GiB ({row['ratio'] - 1:+.1%}), "
            f"most in {plan.peak_phase}",
            flush=True,
        )
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(json.dumps({"worst": worst, "bar": BAR, "within_bar": worst <= BAR, "rows": rows}))


if __name__ == "__main__":
    app.run(main)
