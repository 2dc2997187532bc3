"""Says what a stage needs before it is launched: parameters, FLOPs, bytes per device, and what fits in memory.

    python -m basic_tf.plan --gin_file=gin/models/basic_l.gin --batch=65536 --mesh=64x1 --shard_over=batch \\
        --device=accelerator --memory_limit_gib=16

No weight is built and no data is read: the gin files are enough. Without a recipe in them the model is planned as one
contrastive stage that trains everything. How the memory model works, and what it leaves out: docs/planner.md.

What happens, in this order:
1. The gin files and bindings are read and checked.
2. Parameters are summed over the specs, FLOPs over the blocks.
3. Each distinct block is traced symbolically, and the buffers of a step are followed through its phases.
4. With --memory_limit_gib: the largest microbatch that fits, for each remat policy, and a recommendation.

Exit codes: 0 planned; 1 the configuration cannot work; 2 nothing fits the limit.
"""

import json
import os
import re
import sys

from absl import app, flags, logging

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", None, "Gin files, read in this order; see gin/runs/ and gin/models/."
)
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "Gin bindings that override the files.")
_STAGE = flags.DEFINE_string("stage", None, "Stage of the recipe (default: the last).")
_BATCH = flags.DEFINE_integer("batch", None, "Pairs in a batch, in place of the stage's batch_size.", 1)
_MICROBATCH = flags.DEFINE_integer(
    "microbatch", None, "Rows in memory at once on a device, in place of the task's.", 1
)
_REMAT = flags.DEFINE_enum(
    "remat",
    None,
    ["none", "norms_and_activations", "blocks"],
    "Policy of both towers, in place of their own.",
)
_RUNTIME = flags.DEFINE_enum(
    "runtime",
    None,
    ["one_device", "mirrored", "multi_worker", "tpu", "dtensor"],
    "Where it runs (default: follows --mesh).",
)
_MESH = flags.DEFINE_string(
    "mesh", "1x1", "BATCHxMODEL: devices that share the batch, times devices that see the same rows of it."
)
_SHARD_OVER = flags.DEFINE_enum(
    "shard_over",
    "model",
    ["batch", "model"],
    "The axis of the mesh that cuts weights, as for basic_tf.train.",
)
_DEVICE = flags.DEFINE_enum(
    "device",
    None,
    ["cpu", "accelerator"],
    "Whether input and runtime share the device's memory (default: not on a tpu).",
)
_LIMIT = flags.DEFINE_float(
    "memory_limit_gib", None, "Memory of one device in GiB; asks for a recommendation.", 0.0
)
_CLASSES = flags.DEFINE_integer(
    "classes", 1000, "Classes of a classification stage (the data would tell).", 1
)
_JSON = flags.DEFINE_bool("json", False, "Prints one JSON object instead of tables.")

flags.mark_flags_as_required(["gin_file"])


class PlanError(ValueError):
    """Flags that do not fit together; one line."""


def _setting(stage, task, modules):
    """The Setting that the flags describe."""
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", _MESH.value)
    if not size:
        raise PlanError(f"--mesh={_MESH.value} is not BATCHxMODEL, such as 8x4")
    batch_axis, model_axis = map(int, size.groups())
    over_batch = _SHARD_OVER.value == "batch"
    on_mesh = model_axis > 1 or (over_batch and batch_axis > 1)
    runtime = _RUNTIME.value or ("dtensor" if on_mesh else "one_device" if batch_axis == 1 else "mirrored")
    if runtime == "one_device" and batch_axis * model_axis > 1:
        raise PlanError(
            f"--runtime=one_device has one device, --mesh={_MESH.value} has {batch_axis * model_axis}"
        )
    if runtime in ("mirrored", "multi_worker", "tpu") and on_mesh:
        raise PlanError(
            f"--runtime={runtime} keeps whole weights on every device; cut weights need --runtime=dtensor"
        )
    pairs = _BATCH.value or stage.batch_size
    if pairs % batch_axis:
        raise PlanError(
            f"a batch of {pairs} pairs cannot be divided among the {batch_axis} devices of the batch axis"
        )
    rows, microbatch = pairs // batch_axis, task.microbatch
    if microbatch and rows % microbatch:
        raise PlanError(f"{rows} rows on each device cannot be cut into microbatches of {microbatch}")
    host = (_DEVICE.value or ("accelerator" if runtime == "tpu" else "cpu")) == "cpu"
    tile = getattr(task, "tile", 2048)
    return modules.Setting(
        pairs=pairs,
        microbatch=microbatch,
        remat=_REMAT.value,
        batch_axis=batch_axis,
        model_axis=model_axis,
        shard_over=_SHARD_OVER.value,
        host=host,
        runtime_bytes=modules.process_bytes() if host else 0,
        tile=tile[0] if isinstance(tile, tuple) else tile,
    )


def main(argv: list[str]) -> None:
    """Plans and prints."""
    if len(argv) > 1:
        raise app.UsageError(
            f"what is {argv[1]!r}? All arguments are flags, e.g. --gin_file=gin/models/basic_s.gin"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.WARNING)
    # Imports below cost seconds; flags are checked before.
    from basic_tf import configurables
    from basic_tf.optimization import rules
    from basic_tf.planning import compute, recommendation, report, step_memory, subject
    from basic_tf.training import stages

    try:
        configurables.parse(_GIN_FILE.value, _GIN_PARAM.value)
        if configurables.describes_recipe():
            recipe = configurables.recipe()
            stage = recipe.stage(_STAGE.value) if _STAGE.value else recipe.stages[-1]
        else:
            stage = configurables.model_alone()
        task, planned = subject.describe(stage, _CLASSES.value, _MICROBATCH.value)
        setting = _setting(stage, task, step_memory)
        plan = step_memory.step_memory(planned, setting)
        candidates, chosen = [], None
        message = f"The step needs {plan.peak / recommendation.GIB:.2f} GiB on each device, most in: {plan.peak_phase}."
        for option in ("apply_by_block", "accumulate_in_slots"):
            if getattr(task, option, None):
                message += f" Without {option}, which saves gradients and is not planned."
        if _LIMIT.value is not None:
            limit = int(_LIMIT.value * recommendation.GIB)
            candidates = recommendation.recommend(planned, setting, limit)
            chosen = recommendation.choice(candidates)
            if chosen:
                message += (
                    f" For {_LIMIT.value:g} GiB: microbatch = {chosen.microbatch}, remat = '{chosen.remat}' "
                    f"({chosen.plan.peak / recommendation.GIB:.2f} GiB)."
                )
            else:
                remedy = recommendation.remedy(planned, setting, limit)
                message = f"nothing fits {_LIMIT.value:g} GiB: {remedy}"
        recomputed = {
            name
            for name, tower in planned.towers.items()
            if (setting.remat or tower.remat) == "blocks" and planned.trains(name)
        }
        found = compute.flops(task, set(planned.trained), setting, recomputed)
        result = report.as_json(stage.name, planned, setting, plan, found, candidates, chosen, message)
    except (configurables.GinError, stages.ConfigurationError, rules.RuleError, ValueError) as error:
        logging.debug("details", exc_info=True)
        print(f"plan: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(1)
    if _JSON.value:
        print(json.dumps(result))
    else:
        report.show(result, plan)
    if _LIMIT.value is not None and not chosen:
        print(f"plan: {message}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
