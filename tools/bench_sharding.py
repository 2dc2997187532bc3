"""Bytes of weights and optimizer slots on each device, against the size of the model axis.

BASIC-S is planned from its specs, the default layouts and the optimizer's slots; nothing is allocated. The sum is compared
with real DTensor variables on logical CPU devices, one process for each mesh: of a small model with the same block types,
or of the model itself (--real=model; BASIC-S takes 2 to 3 GiB for each mesh, one after the other).

    python tools/bench_sharding.py
    python tools/bench_sharding.py --real=model
    python tools/bench_sharding.py --gin_file=gin/models/basic_m.gin --real=none

The last line is one JSON object: per model axis the bytes per device, planned and real, and `of_ideal`, the ratio to bytes /
axis (1 is ideal).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SMALL = "tests/training/joint.gin"
SMALLEST = 64  # weights below stay whole in the small model, as SMALL binds it

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "gin_file", ["gin/models/basic_s.gin"], "The model: gin files that configure Encoders."
)
flags.DEFINE_string("scope", "", "Gin scope in which Encoders is made.")
flags.DEFINE_multi_integer("model_axis", [1, 2, 4, 8], "Sizes of the model axis.")
flags.DEFINE_enum(
    "real", "small", ["none", "small", "model"], "Which model's real variables to compare with."
)
flags.DEFINE_integer("mesh", None, "Internal: print the bytes of real variables on a mesh 1 x N.")


def planned(model, axis: int, smallest: int, rule) -> dict[str, int]:
    """Bytes per device of the trained weights and of their slots. rule: optimization.update_rule.UpdateRule."""
    from basic_tf.optimization import rules

    weights = slots = 0
    for spec in model.specs():
        cuts = rules.default_layout(spec.path, spec.shape, axis, smallest)
        width = 8 if model.compute_dtype == "float64" else 4
        weights += spec.size * width // (axis if any(cuts) else 1)
        if spec.trainable:
            for slot in rule.slot_specs(spec.path, spec.shape).values():
                cut = any(cuts[kept] for kept in slot.axes)
                slots += slot.bytes // (axis if cut else 1)
    return {"weights": weights, "slots": slots, "total": weights + slots}


def _model(files: list[str], scope: str):
    import gin
    from basic_tf import configurables

    configurables.parse([str(ROOT / file) for file in files], [])
    with gin.config_scope(scope or None):
        return configurables.Encoders()


def small_model_plan(axis: int) -> dict[str, int]:
    """`planned` for the small model, its weights cut into `axis` parts."""
    from basic_tf.optimization.update_rule import UpdateRule

    return planned(_model([SMALL], "joint"), axis, SMALLEST, UpdateRule(factor_min_dim=8))


def _subject(which: str):
    """(makes the model, optimizer options, elements below which a weight stays whole) of --real."""
    from basic_tf.optimization.rules import SMALLEST_SHARDED

    if which == "small":
        return lambda: _model([SMALL], "joint"), {"factor_min_dim": 8}, SMALLEST
    return lambda: _model(FLAGS.gin_file, FLAGS.scope), {}, SMALLEST_SHARDED


def real(which: str, axis: int) -> dict[str, int]:
    """Bytes of a model's variables on the busiest device of a mesh 1 x axis."""
    from basic_tf.optimization import adafactorw, rules
    from basic_tf.parallel import mesh

    make, options, smallest = _subject(which)
    runtime = mesh.create(mesh.MeshShape(f"1x{axis}", smallest), rules.default_layout)
    with runtime.scope():
        parameters = make().parameters()
        optimizer = adafactorw.AdaFactorW(1e-3, **options)
        optimizer.build({path: v for path, v in parameters.items() if v.trainable})
    weights = max(runtime.bytes_per_device(list(parameters.values())))
    slots = max(runtime.bytes_per_device(list(optimizer.slots().values())))
    return {"weights": weights, "slots": slots, "total": weights + slots}


def table(model, rule, axes: list[int], smallest: int) -> dict[int, dict]:
    """Planned bytes per device for each axis, with `of_ideal`: total / (total on one device / axis)."""
    whole = planned(model, 1, smallest, rule)["total"]
    rows = {}
    for axis in axes:
        row = planned(model, axis, smallest, rule)
        rows[axis] = row | {"of_ideal": row["total"] * axis / whole}
    return rows


def main(argv):
    """Plans, compares, prints."""
    del argv
    os.chdir(ROOT)
    if FLAGS.mesh is not None:
        print(json.dumps(real(FLAGS.real, FLAGS.mesh)))
        return
    from basic_tf.optimization.update_rule import UpdateRule

    result = {"model": FLAGS.gin_file, "real_of": FLAGS.real, "per_device": {}, "real": {}}
    make, _, smallest = _subject("model")
    result["per_device"] = table(make(), UpdateRule(), FLAGS.model_axis, smallest)
    for axis, row in result["per_device"].items():
        print(
            f"model axis {axis}: {row['weights'] / 2**20:8.1f} MiB weights, {row['slots'] / 2**20:7.1f} MiB slots, "
            f"{row['of_ideal']:.4f} of 1/{axis}"
        )
    if FLAGS.real == "small":
        make, options, smallest = _subject("small")
        planned_rows = table(make(), UpdateRule(**options), FLAGS.model_axis, smallest)
    else:
        planned_rows = result["per_device"] if FLAGS.real == "model" else {}
    for axis, row in planned_rows.items():
        command = [
            sys.executable,
            __file__,
            f"--mesh={axis}",
            f"--real={FLAGS.real}",
            f"--scope={FLAGS.scope}",
        ]
        command += [f"--gin_file={path}" for path in FLAGS.gin_file]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"mesh 1x{axis} failed: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        result["real"][axis] = {"planned": row, "real": found}
        print(
            f"{FLAGS.real}, mesh 1x{axis}: planned {row['total']:,} bytes, real {found['total']:,}",
            flush=True,
        )
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
