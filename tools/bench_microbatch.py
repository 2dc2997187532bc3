"""What the exact gradient costs: two passes, rematerialisation policies, graph size and memory.

    python tools/bench_microbatch.py                     # all three parts, minutes
    python tools/bench_microbatch.py --parts=cost        # or one: cost, graph, memory

cost: seconds per pair of Algorithm 1 over several microbatches, against a plain step (one forward and one
backward pass, activations kept) on one microbatch of the same size. All forms are timed in turn in one process;
a ratio is the median over rounds. In theory 4/3 for two passes, 5/3 with whole blocks recomputed as well, and
(4N - 1) / 3N with the last microbatch kept (`reuse_last`).
graph: nodes and tracing seconds for several numbers of microbatches.
memory: the high-water mark of a fresh process (VmHWM, one inter-op thread) over what it held before the step.

The towers are those of a gin file. The last line is one JSON object.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS
PARTS = ("cost", "graph", "memory")
REMATS = ("none", "blocks", "norms_and_activations")
flags.DEFINE_list("parts", list(PARTS), "Which of cost, graph, memory.")
flags.DEFINE_multi_string("gin_file", ["gin/models/basic_xs.gin"], "The towers (Encoders).")
flags.DEFINE_multi_string("gin_param", [], "Bindings over the gin files.")
flags.DEFINE_integer("microbatch", 128, "Pairs embedded at once.")
flags.DEFINE_integer("microbatches", 4, "Microbatches of one step in the parts cost and memory.")
flags.DEFINE_list("graph_microbatches", ["8", "16", "32"], "Numbers of microbatches of the part graph.")
flags.DEFINE_integer("rounds", 7, "Rounds of the part cost; each times every form once.")
flags.DEFINE_enum("clock", "wall", ["wall", "cpu"], "Wall time, or CPU time (for a busy machine).")
flags.DEFINE_string("measure", None, "For the processes of this tool: FORM,REMAT.")


def build(remat: str):
    """The dual encoder of the gin files, built."""
    import gin
    from basic_tf import configurables

    bindings = [f"CoAtNet.remat = '{remat}'", f"TextTransformer.remat = '{remat}'", *FLAGS.gin_param]
    configurables.parse(FLAGS.gin_file, bindings)
    model = gin.get_configurable("Encoders")()
    model.build()
    return model


def batch(model, pairs: int):
    """Random (images uint8, token ids) of a model's sizes."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (pairs, *model.image_tower.image_size, 3), np.uint8)
    ids = rng.integers(1, model.text_tower.vocabulary_size, (pairs, model.text_tower.length))
    return tf.constant(images), tf.constant(ids, tf.int32)


def step(model, microbatch: int, reuse_last: bool = False, tile: int = 2048):
    """A traced step: (loss, a number that depends on every gradient, so that none is pruned away)."""
    import tensorflow as tf

    from basic_tf import randomness
    from basic_tf.contrastive.gradients import contrastive_gradients

    def run(images, token_ids):
        found = contrastive_gradients(
            model, images, token_ids, microbatch, noise_key=randomness.step_key(0, 0), reuse_last=reuse_last,
            tile=tile,
        )  # fmt: skip
        return found.loss, tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32)) for g in found.gradients])

    return tf.function(run, autograph=False)


def seconds(function, *arguments) -> float:
    """Of one call, until its results are there, on the clock of --clock."""
    clock = time.process_time if FLAGS.clock == "cpu" else time.perf_counter
    start = clock()
    float(function(*arguments)[1])
    return clock() - start


def cost() -> dict:
    """Every form against the plain step, alternating."""
    size, count = FLAGS.microbatch, FLAGS.microbatches
    forms = {}
    for remat in REMATS:
        model = build(remat)
        forms[f"one_pass_{remat}"] = step(model, size), batch(model, size), 1
        forms[f"two_passes_{remat}"] = step(model, size), batch(model, size * count), count
        if remat == "none":
            forms["reuse_last_none"] = step(model, size, True), batch(model, size * count), count
    for name, (function, inputs, _) in forms.items():
        start = time.perf_counter()
        seconds(function, *inputs)
        print(
            f"{name}: traced and run once in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True
        )
    times = {name: [] for name in forms}
    for round_ in range(FLAGS.rounds):
        order = list(forms.items())
        for name, (function, inputs, parts) in order if round_ % 2 else order[::-1]:
            times[name].append(seconds(function, *inputs) / parts)
        print(f"round {round_ + 1}/{FLAGS.rounds}", file=sys.stderr, flush=True)
    plain = times["one_pass_none"]
    theory = {
        "one_pass_none": 1.0,
        "one_pass_blocks": 4 / 3,
        "two_passes_none": 4 / 3,
        "two_passes_blocks": 5 / 3,
        "reuse_last_none": (4 * count - 1) / (3 * count),
    }
    rows = []
    for name, own in times.items():
        ratios = [mine / base for mine, base in zip(own, plain)]
        row = {
            "form": name,
            "pairs_per_second": size / statistics.median(own),
            "milliseconds_per_microbatch": 1e3 * statistics.median(own),
            "against_plain": statistics.median(ratios),
            "against_plain_fastest": min(own) / min(plain),
            "theory": theory.get(name),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    found = {row["form"]: row["against_plain"] for row in rows}
    return {
        "two_passes_against_plain": found["two_passes_none"],
        "two_passes_with_block_remat_against_plain": found["two_passes_blocks"],
        "reuse_last_against_two_passes": found["reuse_last_none"] / found["two_passes_none"],
        "cost": rows,
    }


def graph() -> dict:
    """Nodes of the graph and seconds of tracing against the number of microbatches."""
    model, rows = build("none"), []
    for count in map(int, FLAGS.graph_microbatches):
        inputs = batch(model, count * FLAGS.microbatch)
        # Tiles of one microbatch: a loss of few tiles has some nodes less.
        function = step(model, FLAGS.microbatch, tile=FLAGS.microbatch)
        clock = time.process_time if FLAGS.clock == "cpu" else time.perf_counter
        start = clock()
        definition = function.get_concrete_function(*inputs).graph.as_graph_def()
        rows.append(
            {
                "microbatches": count,
                "nodes": len(definition.node) + sum(len(f.node_def) for f in definition.library.function),
                "tracing_seconds": clock() - start,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {"graph_nodes_equal": len({row["nodes"] for row in rows}) == 1, "graph": rows}


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}: this tool measures memory on Linux only")


def measure(form: str, remat: str) -> dict:
    """Peak memory of one form in this process. 'whole' keeps the activations of the whole batch, as a plain
    step over it must."""
    size, count = FLAGS.microbatch, FLAGS.microbatches
    model = build(remat)
    inputs = batch(model, size * count)
    function = step(model, size * count if form == "whole" else size, form == "reuse_last")
    function.get_concrete_function(*inputs)  # tracing is not the step's memory
    before = _status_mib("VmRSS")
    seconds(function, *inputs)
    peak = _status_mib("VmHWM")
    return {"form": form, "remat": remat, "step_mib": peak - before, "process_mib": peak}


def memory() -> dict:
    """Peak memory of each policy, with and without microbatches, each in a fresh process."""
    rows = []
    settings = [*itertools.product(("whole", "two_passes"), REMATS), ("reuse_last", "none")]
    for number, (form, remat) in enumerate(settings, 1):
        command = [sys.executable, __file__, f"--measure={form},{remat}"]
        command += [f"--{name}={FLAGS[name].value}" for name in ("microbatch", "microbatches")]
        command += [f"--gin_file={x}" for x in FLAGS.gin_file] + [f"--gin_param={x}" for x in FLAGS.gin_param]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"measuring {form} with remat {remat} failed:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        print(f"memory {number}/{len(settings)}", file=sys.stderr, flush=True)
    return {"memory": rows}


def main(_) -> None:
    """Runs the parts and prints them."""
    unknown = [part for part in FLAGS.parts if part not in PARTS]
    if unknown:
        raise app.UsageError(f"--parts has {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    import tensorflow as tf

    from basic_tf.machine import cores

    os.chdir(ROOT)  # gin files include each other from here
    tf.config.threading.set_intra_op_parallelism_threads(cores())
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if FLAGS.measure:
        print(json.dumps(measure(*FLAGS.measure.split(","))))
        return
    summary = {
        "towers": FLAGS.gin_file,
        "bindings": FLAGS.gin_param,
        "clock": FLAGS.clock,
        "microbatch": FLAGS.microbatch,
        "microbatches": FLAGS.microbatches,
    }
    for part in FLAGS.parts:
        summary |= {"cost": cost, "graph": graph, "memory": memory}[part]()
    print(json.dumps(summary))


if __name__ == "__main__":
    app.run(main)
