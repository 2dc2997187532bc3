"""Runs one stage from start, warm start or resumption to its end, on orbit's Controller.

How a stage starts; the order matters:
1. its own newest whole checkpoint, if there is one: resume;
2. else the stage's `warm_start`: weights of an earlier stage or run;
3. else from scratch: initial values follow from the seed and the parameter's path.

What a checkpoint needs is small, because everything else follows from (seed, step): weights, slots, the average, the
step. The batch, its augmentation and the dropout masks of step k are the same whether the run was interrupted or not.
"""

import contextlib
import dataclasses
import io
import json
import os
import time
import zlib

import numpy as np
import orbit
import tensorflow as tf
from absl import logging

from basic_tf.monitoring import flops, metrics_log, profile, progress
from basic_tf.parallel import runtime as runtime_lib
from basic_tf.training import checkpoints, preemption, warm_start
from basic_tf.training.stages import ConfigurationError, Stage
from basic_tf.training.trainer import Trainer

_FINISHED = "finished.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line decides for every stage. train_steps overrides each stage's duration."""

    seed: int = 0
    steps_per_loop: int = 1
    train_steps: int | None = None
    profile_steps: str | None = None


def stage_seed(seed: int, name: str) -> int:
    """Each stage draws from streams of its own."""
    return (seed << 32) ^ zlib.crc32(name.encode())


def checkpoint_folder(stage_folder: str) -> str:
    """Where a stage keeps its checkpoints."""
    return os.path.join(stage_folder, "checkpoints")


def is_finished(stage_folder: str) -> bool:
    """Whether the stage has reached its last step and saved it."""
    return tf.io.gfile.exists(os.path.join(stage_folder, _FINISHED))


def trained_arrays(checkpoint: checkpoints.Checkpoint, averaged: bool = True) -> dict[str, np.ndarray]:
    """The model's arrays by parameter path; with `averaged`, averaged weights take the place of the last ones."""
    arrays = _under(checkpoint.arrays, "parameters/")
    if averaged:
        slots = _under(checkpoint.arrays, "average/")
        arrays.update({path.removesuffix("/average"): value for path, value in slots.items()})
    return arrays


def _under(arrays: dict, prefix: str) -> dict:
    return {path.removeprefix(prefix): value for path, value in arrays.items() if path.startswith(prefix)}


class StageRun:
    """One stage, built and ready: model, optimizer, input, the variables that a checkpoint holds."""

    def __init__(self, stage: Stage, folder: str, runtime: runtime_lib.Runtime, options: Options):
        self.stage, self.folder, self.runtime, self.options = stage, folder, runtime, options
        self.seed = stage_seed(options.seed, stage.name)
        self.batches = stage.batches(seed=self.seed, batch_size=stage.batch_size)
        runtime.rows_per_replica(stage.batch_size)
        self.total_steps = options.train_steps or stage.train.to_steps(
            stage.batch_size, self.batches.source.count
        )
        if self.total_steps < 1:
            raise ConfigurationError(
                f"stage {stage.name} lasts {self.total_steps} steps; Stage.train must give at least one"
            )
        self.global_step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
        with runtime.scope():
            self.task = stage.task(self.batches.source.metadata)
            parameters = self.task.parameters()
            trainable = {path: variable for path, variable in parameters.items() if variable.trainable}
            resolved = stage.rules.resolve(trainable)
            self.trained = {path: v for path, v in trainable.items() if not resolved[path].frozen}
            if not self.trained:
                raise ConfigurationError(
                    f"stage {stage.name} trains nothing: its rules freeze every parameter"
                )
            self.schedule = stage.schedule(total_steps=self.total_steps)
            self.optimizer = stage.optimizer(self.schedule, rules=resolved)
            self.optimizer.build(self.trained)
            self.average = None
            if stage.weight_average is not None:
                self.average = stage.weight_average()
                self.average.build(self.trained)
        self.parameters = parameters

    def state(self) -> dict[str, tf.Variable]:
        """Every variable of a checkpoint by path."""
        state = {f"parameters/{path}": variable for path, variable in self.parameters.items()}
        state.update({f"optimizer/{path}": variable for path, variable in self.optimizer.slots().items()})
        if self.average is not None:
            state.update({f"average/{path}": variable for path, variable in self.average.slots().items()})
        return state | {"step": self.global_step}

    @contextlib.contextmanager
    def averaged_weights(self):
        """Inside, the model holds the averaged weights (if the stage keeps an average); afterwards its own again."""
        if self.average is None:
            yield
            return
        own = {path: np.array(variable) for path, variable in self.trained.items()}
        try:
            for path, value in self.average.averaged(int(self.global_step)).items():
                self.trained[path].assign(value)
            yield
        finally:
            for path, value in own.items():
                self.trained[path].assign(value)

    def save(self, clock: dict) -> str:
        """Writes a checkpoint of the present state; refuses if the replicas have drifted apart."""
        state = self.state()
        spread = self.runtime.replica_spread({path: _plain(variable) for path, variable in state.items()})
        if spread:
            worst = max(spread, key=spread.get)
            raise RuntimeError(
                f"replicas differ at step {int(self.global_step)}: {len(spread)} variables, most {worst} by "
                f"{spread[worst]:.3g}; the checkpoint was not written. This is a bug in a step that assigns in a replica"
            )
        arrays = {path: np.asarray(variable) for path, variable in state.items()}
        return checkpoints.save(
            checkpoint_folder(self.folder),
            int(self.global_step),
            arrays,
            {"stage": self.stage.name, "seed": self.options.seed, "clock": clock},
            keep=self.stage.keep_checkpoints,
        )

    def restore(self) -> dict | None:
        """Resumes from the newest whole checkpoint and returns its metadata; None if there is none."""
        checkpoint = checkpoints.load_latest(checkpoint_folder(self.folder))
        if checkpoint is None:
            return None
        if checkpoint.metadata["seed"] != self.options.seed:
            raise ConfigurationError(
                f"{checkpoint.path} was trained with --seed={checkpoint.metadata['seed']}, this run has "
                f"--seed={self.options.seed}; use the same seed or another --model_dir"
            )
        if checkpoint.step > self.total_steps:
            raise ConfigurationError(
                f"{checkpoint.path} is at step {checkpoint.step}, beyond the {self.total_steps} steps of this run; "
                "train for longer or use another --model_dir"
            )
        checkpoints.assign(checkpoint.arrays, self.state(), checkpoint.path)
        return checkpoint.metadata

    def warm_start(self, run_folder: str) -> warm_start.Report | None:
        """Takes the weights that the stage's WarmStart names; None where the stage starts from scratch."""
        spec = self.stage.warm_start
        if spec is None:
            return None
        folder = spec.stage if "/" in spec.stage else os.path.join(run_folder, spec.stage)
        checkpoint = checkpoints.load_latest(checkpoint_folder(folder))
        if checkpoint is None:
            raise ConfigurationError(
                f"stage {self.stage.name} warm-starts from {folder}, which holds no checkpoint; train that stage first"
            )
        arrays = trained_arrays(checkpoint, spec.averaged)
        report = warm_start.apply(self.parameters, arrays, spec.fresh, spec.ignored, checkpoint.path)
        if self.average is not None:
            # The average was built on the initial weights; it starts anew from those just loaded.
            for path, slot in self.average.slots().items():
                slot.assign(tf.cast(self.trained[path.removesuffix("/average")], slot.dtype))
        return report


def _plain(variable) -> tf.Variable:
    return variable if isinstance(variable, tf.Variable) else variable.value


def _built(stage: Stage, folder: str, runtime: runtime_lib.Runtime, options: Options) -> StageRun:
    """The stage, built. What a user's numbers or paths make impossible is a ConfigurationError of one line."""
    try:
        return StageRun(stage, folder, runtime, options)
    except ConfigurationError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        # gin appends where it was ("In call to configurable ..."); the first lines say what is wrong.
        words = " ".join(str(error).split("\n  In call to configurable")[0].split())
        raise ConfigurationError(f"stage {stage.name}: {words}") from error


class _ToLog(io.TextIOBase):
    """Where orbit's print lines go: people watch the progress line, the log keeps orbit's account."""

    def write(self, text: str) -> int:
        if text.strip():
            logging.debug("orbit: %s", text.strip())
        return len(text)


def run_stage(
    stage: Stage,
    run_folder: str,
    runtime: runtime_lib.Runtime,
    options: Options,
    stop: preemption.StopRequest,
    evaluator=None,
    at_start=None,
) -> None:
    """Trains a stage to its end. Raises preemption.Stopped after saving when a signal asked for it.

    evaluator: called with the StageRun and a function that logs a dict of figures, returns an orbit.AbstractEvaluator or
    None. at_start: called once with the
    StageRun and a summary writer, for what TensorBoard shows from the beginning.
    """
    folder = os.path.join(run_folder, stage.name)
    if is_finished(folder):
        logging.info("stage %s is finished; nothing to do", stage.name)
        return
    run = _built(stage, folder, runtime, options)
    metadata = run.restore()
    if metadata:
        print(
            f"stage {stage.name}: resumed at step {int(run.global_step):,} of {run.total_steps:,}", flush=True
        )
    else:
        report = run.warm_start(run_folder)
        print("\n".join(report.lines()) if report else f"stage {stage.name}: from scratch", flush=True)
    with stop:
        _train(run, (metadata or {}).get("clock"), stop, evaluator, at_start)
    with tf.io.gfile.GFile(os.path.join(folder, _FINISHED), "w") as file:
        file.write(json.dumps({"step": int(run.global_step)}))


def _train(run: StageRun, clock: dict | None, stop: preemption.StopRequest, make_evaluator, at_start) -> None:
    stage, runtime = run.stage, run.runtime
    chief = runtime.host == 0
    trainer = Trainer(
        run.task,
        run.trained,
        run.optimizer,
        run.average,
        lambda host, hosts: run.batches.dataset(int(run.global_step), host, hosts),
        runtime,
        run.seed,
        run.global_step,
    )
    line = progress.ProgressLine(
        run.total_steps,
        stage.batch_size,
        2.0 * run.task.multiply_adds_per_example(set(run.trained)),
        flops.gemm_rate(os.path.join(os.path.dirname(run.folder), "matrix_rate.json")),
        name=stage.name,
        unit=run.task.unit,
        shown=run.task.shown,
        state=clock,
        **({} if chief else {"stream": None}),
    )
    log = metrics_log.MetricsLog(os.path.join(run.folder, "metrics.jsonl"), resumed_step=int(run.global_step))
    profiler = profile.Profiler(run.options.profile_steps, run.folder)

    def report_evaluation(figures: dict[str, float]) -> None:
        log.write(int(run.global_step), figures, kind="evaluation")

    evaluator = make_evaluator(run, report_evaluation) if make_evaluator else None
    saved_at = {"step": int(run.global_step), "time": time.monotonic()}

    def report(output) -> None:
        step = int(run.global_step)
        profiler.after_step(step)
        if step % stage.summary_steps and step != run.total_steps:
            return
        metrics = {name: float(value) for name, value in output.items()}
        if not np.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"stage {stage.name}: the loss is {metrics['loss']} at step {step}; the last checkpoint is at step "
                f"{saved_at['step']}. Lower the learning rate, or raise the warm-up"
            )
        metrics["learning_rate"] = float(run.schedule(step - 1))
        speeds = line.update(step, metrics, trainer.take_data_wait())
        log.write(step, metrics | speeds)
        output.update(metrics | speeds)

    def save_if_due(output) -> None:
        del output
        step = int(run.global_step)
        due = (
            stop.requested is not None
            or step == run.total_steps
            or (stage.checkpoint_steps and step - saved_at["step"] >= stage.checkpoint_steps)
            or time.monotonic() - saved_at["time"] >= stage.checkpoint_seconds
        )
        if due and chief and step != saved_at["step"]:
            with line.pause("saving"):
                run.save(line.state())
            saved_at.update(step=step, time=time.monotonic())
        if stop.requested is not None and step < run.total_steps:
            raise preemption.Stopped(
                f"stage {stage.name}: {stop.requested} at step {step:,} of {run.total_steps:,}; saved. "
                "Run the same command again to go on"
            )

    def paused_evaluation(evaluate):
        def wrapped(steps=-1):
            with line.pause("evaluating"):
                return evaluate(steps)

        return wrapped

    with contextlib.ExitStack() as stack:
        stack.callback(line.close)
        stack.callback(log.close)
        stack.callback(profiler.close)
        controller = orbit.Controller(
            global_step=run.global_step,
            trainer=trainer,
            evaluator=evaluator,
            steps_per_loop=run.options.steps_per_loop,
            strategy=runtime.strategy,
            summary_dir=run.folder,
            summary_interval=None,
            eval_summary_dir=os.path.join(run.folder, "evaluation"),
            train_actions=[report, save_if_due],
        )
        if at_start is not None:
            with controller.summary_manager.summary_writer().as_default():
                at_start(run)
        stack.enter_context(contextlib.redirect_stdout(_ToLog()))
        if evaluator is None:
            controller.train(run.total_steps, checkpoint_at_completion=False)
        else:
            controller.evaluate = paused_evaluation(controller.evaluate)
            controller.train_and_evaluate(run.total_steps, eval_interval=stage.evaluate_steps or None)


def evaluate_stage(
    stage: Stage,
    run_folder: str,
    runtime: runtime_lib.Runtime,
    options: Options,
    evaluator,
    continuous: bool = False,
    timeout_seconds: float = 3600.0,
    poll_seconds: float = 5.0,
) -> int:
    """Evaluates a stage's newest checkpoint, or with `continuous` each new one until the stage is finished.

    Ends quietly after `timeout_seconds` without a new checkpoint. The figures go to `evaluation.jsonl` and to the same
    TensorBoard folder as those of train_and_eval. Returns how many checkpoints were evaluated; ConfigurationError if the
    stage cannot be evaluated or, without `continuous`, has no checkpoint.
    """
    folder = os.path.join(run_folder, stage.name)
    checkpoint_dir = checkpoint_folder(folder)
    run = _built(stage, folder, runtime, options)
    with metrics_log.MetricsLog(
        os.path.join(folder, "evaluation.jsonl"), resumed_step=run.total_steps
    ) as log:
        made = evaluator(run, lambda figures: log.write(int(run.global_step), figures, kind="evaluation"))
        if made is None:
            raise ConfigurationError(
                f"stage {stage.name} cannot be evaluated: it trains no dual encoder, or Evaluation.data_dir is not bound"
            )
        writer = tf.summary.create_file_writer(os.path.join(folder, "evaluation"))
        done, count, last_news = -1, 0, time.monotonic()
        while True:
            finished = is_finished(folder)  # asked first: the last checkpoint is there before the mark is
            newest = max(checkpoints.steps(checkpoint_dir), default=-1)
            if newest > done:
                metadata = run.restore()
                if metadata is not None:
                    done, count, last_news = int(run.global_step), count + 1, time.monotonic()
                    with writer.as_default(step=done):
                        for name, value in made.evaluate(-1).items():
                            tf.summary.scalar(name, value)
                    print(f"stage {stage.name}: evaluated step {done:,}", flush=True)
            if not continuous and not count:
                raise ConfigurationError(f"{checkpoint_dir} holds no checkpoint; train the stage first")
            if not continuous or finished:
                return count
            if time.monotonic() - last_news > timeout_seconds:
                logging.warning(
                    "no new checkpoint in %s for %.0f s: leaving", checkpoint_dir, timeout_seconds
                )
                return count
            time.sleep(poll_seconds)
