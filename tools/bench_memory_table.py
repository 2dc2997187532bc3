"""Peak memory of a training step, and its time, in the forms that BASIC goes through: the table of docs/memory.md.

    python tools/bench_memory_table.py                                 # everything planned, nothing measured
    python tools/bench_memory_table.py --towers=xs --measured=xs       # BASIC-XS planned and measured

Forms, each with what the one before has: `plain` (one forward and one backward pass over the batch), `remat` (blocks),
`algorithm_1` (microbatches), `slots` (gradients go into the optimizer's slots). `sharded` is algorithm_1 with weights,
slots and gradient sums cut over a mesh whose devices share the batch. Planned: basic_tf.planning, for an accelerator and
for a process on a CPU. Measured: real steps (task, optimizer, trainer) on random pictures in a process of its own, one
inter-op thread; the high-water mark (VmHWM), imports included, and the fastest step but the first. The logical devices of
`sharded` share one process, so its mark is that of all devices together.

The last line is one JSON object.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from absl import app, flags  # noqa: E402 (after the project's root is on the path)

GIB = 1 << 30
# towers: (pairs, microbatch); the mesh of `sharded` has 4 devices.
TOWERS = {"xs": (512, 64), "s": (16, 2), "m": (16, 2), "l": (16, 2)}
DEVICES = 4


@dataclasses.dataclass(frozen=True)
class Form:
    """What a step does to save memory."""

    remat: str = "none"
    microbatches: bool = False
    slots: bool = False
    sharded: bool = False


FORMS = {
    "plain": Form(),
    "remat": Form("blocks"),
    "algorithm_1": Form("blocks", True),
    "slots": Form("blocks", True, slots=True),
    "sharded": Form("blocks", True, sharded=True),
}

FLAGS = flags.FLAGS
flags.DEFINE_list("towers", list(TOWERS), "Which of xs, s, m, l (gin/models/basic_*.gin).")
flags.DEFINE_list("measured", [], "Of these, which to measure as well.")
flags.DEFINE_list("forms", list(FORMS), f"Which of {', '.join(FORMS)}.")
flags.DEFINE_integer("steps", 4, "Measured steps.", 2)
flags.DEFINE_string("measure", None, "Internal: TOWERS,FORM to measure in this process.")


def stage_of(towers: str, form: Form):
    """A contrastive stage over random pictures."""
    from basic_tf import configurables
    from basic_tf.optimization import schedules
    from tools.random_batches import RandomBatches

    pairs, microbatch = TOWERS[towers]
    bindings = [
        f"CoAtNet.remat = '{form.remat}'",
        f"TextTransformer.remat = '{form.remat}'",
        f"Contrastive.microbatch = {microbatch if form.microbatches else None}",
        f"Contrastive.accumulate_in_slots = {'sketch' if form.slots else None!r}",
    ]
    configurables.parse([str(ROOT / f"gin/models/basic_{towers}.gin")], bindings)
    model = configurables.Encoders()
    sizes = model.image_tower.image_size[0], model.text_tower.length, model.text_tower.vocabulary_size
    return dataclasses.replace(
        configurables.model_alone(),
        batches=functools.partial(RandomBatches, *sizes),
        batch_size=pairs,
        train=schedules.Duration(steps=10),
        schedule=functools.partial(schedules.Schedule, peak=1e-4),
    )


def planned(towers: str, form: Form, host: bool) -> int:
    """The most bytes on one device."""
    from basic_tf.optimization import slot_accumulation
    from basic_tf.planning import step_memory, subject

    task, found = subject.describe(stage_of(towers, form), 1)
    setting = step_memory.Setting(
        TOWERS[towers][0],
        task.microbatch,
        batch_axis=DEVICES if form.sharded else 1,
        shard_over="batch" if form.sharded else "model",
        host=host,
        waiting_batches=1,
        runtime_bytes=step_memory.process_bytes() if host else 0,
    )
    plan = step_memory.step_memory(found, setting)
    if not form.slots:
        return plan.peak
    shapes = {spec.path: tuple(spec.shape) for spec in found.specs if spec.path in found.trained}
    carried = sum(slot_accumulation.state_bytes(found.rule, shapes).values())
    return max(plan.total(phase) - causes["gradients"] for phase, causes in plan.phases.items()) + carried


def measured(towers: str, form: Form) -> dict:
    """Trains some steps in this process."""
    import tensorflow as tf

    from basic_tf.machine import cores
    from basic_tf.optimization import rules
    from basic_tf.parallel import mesh, strategies
    from basic_tf.planning.step_memory import status_bytes
    from basic_tf.training import stage_run, trainer

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(cores())
    stage = stage_of(towers, form)
    if form.sharded:
        runtime = mesh.create(mesh.MeshShape(f"{DEVICES}x1", shard_over="batch"), rules.default_layout)
    else:
        runtime = strategies.create("one_device")
    run = stage_run.built(stage, "", runtime, stage_run.Options(train_steps=10))
    train = trainer.Trainer(
        run.task, run.trained, run.optimizer, None, lambda *hosts: run.batches.dataset(0, *hosts), runtime, run.seed,
        run.global_step,
    )  # fmt: skip
    times = []
    for _ in range(FLAGS.steps):
        start = time.perf_counter()
        loss = float(train.train(tf.constant(1))["loss"])
        times.append(time.perf_counter() - start)
    return {"peak": status_bytes("VmHWM"), "seconds": min(times[1:]), "first_step": times[0], "loss": loss}


def _in_a_process(towers: str, form: str) -> dict:
    command = [sys.executable, __file__, f"--measure={towers},{form}", f"--steps={FLAGS.steps}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {form} of {towers} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(_) -> None:
    """Plans, measures, prints the rows of the table."""
    if FLAGS.measure:
        towers, form = FLAGS.measure.split(",")
        print(json.dumps(measured(towers, FORMS[form])))
        return
    for flag, known in (("towers", TOWERS), ("measured", TOWERS), ("forms", FORMS)):
        if unknown := set(getattr(FLAGS, flag)) - set(known):
            raise app.UsageError(f"--{flag}={','.join(sorted(unknown))}: expected some of {', '.join(known)}")
    rows = []
    print(
        "| towers | pairs, microbatch | form | planned, accelerator | planned, CPU | measured, CPU | s / step |"
    )
    for towers in FLAGS.towers:
        for name in FLAGS.forms:
            form = FORMS[name]
            row = {
                "towers": towers,
                "form": name,
                "pairs": TOWERS[towers][0],
                "microbatch": TOWERS[towers][1] if form.microbatches else None,
                "planned_accelerator": planned(towers, form, False),
                # A process holds all logical devices of a mesh: the plan is of one device.
                "planned_cpu": None if form.sharded else planned(towers, form, True),
                "measured": _in_a_process(towers, name) if towers in FLAGS.measured else None,
            }
            rows.append(row)
            found = row["measured"] or {}
            gib = [row["planned_accelerator"], row["planned_cpu"], found.get("peak")]
            cells = [f"{value / GIB:.2f}" if value else "" for value in gib]
            seconds = f"{found['seconds']:.2f}" if found else ""
            print(
                f"| {towers} | {row['pairs']}, {row['microbatch'] or 'all'} | {name} | {' | '.join(cells)} | {seconds} |",
                flush=True,
            )
    print(json.dumps({"devices_of_the_mesh": DEVICES, "rows": rows}))


if __name__ == "__main__":
    app.run(main)
