"""Trains one stage or the whole recipe.

    python -m basic_tf.train --gin_file=gin/runs/demo.gin --model_dir=runs/demo --mode=train_and_eval

What happens, in this order:
1. The gin files and bindings are read and checked; anything unknown or impossible is one line, before anything heavy.
2. The runtime is made: devices, threads, replicas.
3. What can be tried cheaply is tried for all stages: data, tokenizer, models, batches, sources of warm starts, tests.
4. Each stage of the recipe in turn: finished stages are passed over, an interrupted one resumes, others warm-start.
5. With --mode=eval or continuous_eval, the checkpoints of one stage (--stage, or the last) are evaluated instead.

Exit codes: 0 finished; 1 the run cannot work as configured, or failed; 75 stopped by SIGTERM or SIGINT after saving, or
because another worker is gone (the same command goes on).
"""

import os
import sys
import time
import traceback

from absl import app, flags, logging

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Run folder: checkpoints, logs, results. Local or gs://.")
_MODE = flags.DEFINE_enum(
    "mode", "train_and_eval", ["train", "eval", "train_and_eval", "continuous_eval"], "What to do."
)
_GIN_FILE = flags.DEFINE_multi_string("gin_file", None, "Gin files, read in this order; see gin/runs/.")
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], 'Gin bindings that override the files, e.g. "Stage.batch_size = 64".'
)
_STAGE = flags.DEFINE_string("stage", None, "Only this stage of the recipe (default: all in order).")
_RUNTIME = flags.DEFINE_enum(
    "runtime", "one_device", ["one_device", "mirrored", "multi_worker", "tpu", "dtensor"], "Where it runs."
)
_TPU = flags.DEFINE_string("tpu", None, "Name or address of the TPU for --runtime=tpu; `local` on a TPU VM.")
_LOGICAL_DEVICES = flags.DEFINE_integer(
    "logical_devices", None, "CPU devices that stand in for GPUs (mirrored) or accelerators (dtensor)."
)
_MESH = flags.DEFINE_string(
    "mesh",
    None,
    "Devices on the batch axis x devices that share each weight, for --runtime=dtensor, e.g. 4x2 (or Mesh.shape in gin).",
)
_SHARD_OVER = flags.DEFINE_enum(
    "shard_over",
    None,
    ["batch", "model"],
    "The axis of the mesh that cuts weights (or Mesh.shard_over in gin).",
)
_TRAIN_STEPS = flags.DEFINE_integer(
    "train_steps",
    None,
    "Ends every stage that runs after so many steps; fewer than the recipe's are the first steps of its schedule.",
    1,
)
_STEPS_PER_LOOP = flags.DEFINE_integer(
    "steps_per_loop", 1, "Steps between visits to the host (TPU: a few hundred).", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Everything random follows from it.", 0, 2**31 - 1)
_THREADS = flags.DEFINE_integer(
    "threads", None, "CPU threads for TensorFlow (default: the cores of this process).", 1
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "`FIRST,LAST`: writes a trace of these steps for TensorBoard."
)
_EVAL_TIMEOUT = flags.DEFINE_float(
    "eval_timeout", 3600.0, "continuous_eval: seconds without a new checkpoint before it ends."
)

flags.mark_flags_as_required(["model_dir", "gin_file"])

# Which runtimes read a flag: given for another, it would do nothing, and the run would not be the one that was meant.
_READERS = (
    (_TPU, ("tpu",)),
    (_LOGICAL_DEVICES, ("mirrored", "dtensor")),
    (_MESH, ("dtensor",)),
    (_SHARD_OVER, ("dtensor",)),
)


def main(argv: list[str]) -> None:
    """Reads the configuration, then trains or evaluates."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags, e.g. --model_dir=runs/demo")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    # Imports below cost seconds; flags are checked before.
    from basic_tf import configurables, runs
    from basic_tf.monitoring import profile
    from basic_tf.parallel import runtime as runtime_lib
    from basic_tf.parallel import strategies
    from basic_tf.training import checkpoints, loop, preemption, stage_run, stages

    runtime, code = None, 0
    try:
        for flag, readers in _READERS:
            if flag.value is not None and _RUNTIME.value not in readers:
                raise runtime_lib.DeviceError(
                    f"--{flag.name}={flag.value} has no meaning for --runtime={_RUNTIME.value}; use --runtime="
                    f"{' or '.join(readers)}, or leave it out"
                )
        if _PROFILE_STEPS.value:
            try:
                profile.parse_steps(_PROFILE_STEPS.value)
            except ValueError as error:
                raise stages.ConfigurationError(str(error)) from error
        configurables.parse(_GIN_FILE.value, _GIN_PARAM.value)
        recipe = configurables.recipe()
        recipe.check()
        chosen = [recipe.stage(_STAGE.value)] if _STAGE.value else recipe.stages
        strategies.use_all_cores(_THREADS.value)
        if _RUNTIME.value == "dtensor":
            if _MODE.value != "train":
                raise runtime_lib.DeviceError(
                    f"--runtime=dtensor trains and does not evaluate (--mode={_MODE.value}); use --mode=train, and "
                    "beside it --mode=continuous_eval --runtime=one_device in a process of its own"
                )
            from basic_tf.optimization import rules
            from basic_tf.parallel import mesh

            shape = configurables.mesh_shape(_MESH.value, _SHARD_OVER.value)
            runtime = mesh.create(shape, rules.default_layout, _LOGICAL_DEVICES.value)
        else:
            runtime = strategies.create(_RUNTIME.value, _TPU.value, _LOGICAL_DEVICES.value)
        options = stage_run.Options(
            _SEED.value, _STEPS_PER_LOOP.value, _TRAIN_STEPS.value, _PROFILE_STEPS.value
        )
        if _MODE.value in ("train", "train_and_eval"):
            # Every host: what one of them cannot work with, the others would wait for.
            left = runs.check(chosen, _MODEL_DIR.value, runtime, options)
            if _MODE.value == "train_and_eval" and any(map(configurables.is_contrastive, left)):
                configurables.Evaluation().check()
        if _MODE.value in ("train", "train_and_eval") and runtime.host == 0:
            runs.describe(_MODEL_DIR.value, configurables.config_text(), options)

        if _MODE.value in ("eval", "continuous_eval"):
            loop.evaluate_stage(
                chosen[-1],
                _MODEL_DIR.value,
                runtime,
                options,
                configurables.Evaluation().of,
                _MODE.value == "continuous_eval",
                _EVAL_TIMEOUT.value,
            )
        else:
            stop = preemption.StopRequest()
            evaluator = configurables.Evaluation().of if _MODE.value == "train_and_eval" else None
            shown = configurables.show_configuration
            for stage in chosen:
                loop.run_stage(stage, _MODEL_DIR.value, runtime, options, stop, evaluator, shown)
    except preemption.Stopped as stopped:
        code = preemption.EXIT_STOPPED
        print(stopped, file=sys.stderr)
    except (
        configurables.GinError,
        checkpoints.CheckpointError,
        stages.ConfigurationError,
        runtime_lib.DeviceError,
        FloatingPointError,
    ) as error:
        logging.debug("details", exc_info=True)
        code = 1
        print(f"train: {error}", file=sys.stderr)
    except Exception as error:
        if not _is_worker(runtime):
            raise
        if strategies.is_lost_worker(error):
            code = preemption.EXIT_STOPPED
            reason = str(error.message).splitlines()[0][:200]
            print(
                f"train: another worker of this run is gone ({type(error).__name__}: {reason}); restart all workers "
                "with the same command: they resume from the last checkpoint",
                file=sys.stderr,
            )
        else:
            code = 1
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_worker(runtime):
        # At once: TensorFlow's shutdown of a cluster waits for workers that have left, and its collectives hang after one
        # was lost. But another worker may still be fetching what the last collective gave.
        time.sleep(1.0 if runtime else 0.0)
        os._exit(code)
    sys.exit(code)


def _is_worker(runtime) -> bool:
    """Whether this process is one of several of the run, or was about to become one."""
    return runtime.hosts > 1 if runtime else _RUNTIME.value == "multi_worker"


if __name__ == "__main__":
    app.run(main)
