"""Runs one stage from start, warm start or resumption to its end, on orbit's Controller.

How a stage starts; the order matters:
1. its own newest whole checkpoint, if there is one: resume;
2. else the stage's `warm_start`: weights of an earlier stage or run;
3. else from scratch: initial values follow from the seed and the parameter's path.

What a checkpoint needs is small, because everything else follows from (seed, step): weights, slots, the average, the
step. The batch, its augmentation and the dropout masks of step k are the same whether the run was interrupted or not.
"""

import contextlib
import io
import os
import time
from collections.abc import Iterator

import numpy as np
import orbit
import tensorflow as tf
from absl import logging

from basic_tf.monitoring import flops, metrics_log, profile, progress
from basic_tf.parallel import runtime as runtime_lib
from basic_tf.training import checkpoints, finished, frozen_features, preemption
from basic_tf.training.stage_run import Options, StageRun, built, checkpoint_folder, is_finished
from basic_tf.training.stages import ConfigurationError, Stage
from basic_tf.training.trainer import Trainer


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
    None. at_start: called with the StageRun under the stage's summary writer, for what TensorBoard shows from the
    beginning.
    """
    folder = os.path.join(run_folder, stage.name)
    if _has_ended(stage, folder, options):
        return
    with stop:
        run = built(stage, folder, runtime, options)
        metadata = run.restore()
        if runtime.host == 0:
            finished.remove(folder)  # of a run that was to end earlier
        if metadata:
            print(
                f"stage {stage.name}: resumed at step {int(run.global_step):,} of {run.total_steps:,}",
                flush=True,
            )
        else:
            report = run.warm_start(run_folder)
            print("\n".join(report.lines()) if report else f"stage {stage.name}: from scratch", flush=True)
        if frozen_features.provide(run, stop):
            run.task.given_features = True
        _train(run, (metadata or {}).get("clock"), stop, evaluator, at_start)
    if runtime.host == 0:
        run.mark_finished()
    runtime.any_host([False])  # the others must not look for what the first host has not written yet


def _has_ended(stage: Stage, folder: str, options: Options) -> bool:
    """Whether there is nothing left to train, which is then said. Asked before anything is built: it costs nothing."""
    mark = finished.read(folder)
    if mark is None:
        return False
    if mark.seed is not None:
        finished.check_seed(folder, mark.seed, options)
    if mark.ends(options.train_steps):
        print(f"stage {stage.name}: finished at step {mark.step:,}", flush=True)
        return True
    return False


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
        run.guard,
    )
    line = progress.ProgressLine(
        run.total_steps,
        stage.batch_size,
        2.0 * run.task.multiply_adds_per_example(set(run.trained)),
        flops.gemm_rate(os.path.join(os.path.dirname(run.folder), "matrix_rate.json")) if chief else None,
        name=stage.name,
        unit=run.task.unit,
        shown=run.task.shown,
        state=clock,
        **({} if chief else {"stream": None}),
    )
    # One host writes; the others have the same figures.
    log = (
        metrics_log.MetricsLog(os.path.join(run.folder, "metrics.jsonl"), resumed_step=int(run.global_step))
        if chief
        else metrics_log.NoLog()
    )
    profiler = profile.Profiler(
        run.options.profile_steps if chief else None, run.folder, run.options.steps_per_loop
    )

    def report_evaluation(figures: dict[str, float]) -> None:
        log.write(int(run.global_step), figures, kind="evaluation")

    evaluator = make_evaluator(run, report_evaluation) if make_evaluator else None
    saved_at = {"step": int(run.global_step), "time": time.monotonic()}
    reported = {"step": int(run.global_step)}

    def refuse_broken_loss(output) -> None:
        if run.guard is not None:
            run.guard.check(int(run.global_step), float(output["loss"]), stage.name)
        elif not np.isfinite(float(output["loss"])):
            raise FloatingPointError(
                f"stage {stage.name}: the loss is {float(output['loss'])} at step {int(run.global_step)}; the last "
                f"checkpoint is at step {saved_at['step']}. Lower the learning rate, or raise the warm-up"
            )

    def report(output) -> None:
        step = int(run.global_step)
        profiler.after_step(step)
        # A loop of several steps may pass over the multiple itself.
        due = step // stage.summary_steps > reported["step"] // stage.summary_steps or step == run.total_steps
        reported["step"] = step
        if due or run.guard is not None:
            refuse_broken_loss(output)
        if not due:
            return
        metrics = {name: float(value) for name, value in output.items()}
        metrics["learning_rate"] = float(run.schedule(step - 1))
        metrics |= run.batches.scalars(step)
        speeds = line.update(step, metrics, trainer.take_data_wait())
        log.write(step, metrics | speeds)
        output.update(metrics | speeds)

    def save_if_due(output) -> None:
        step = int(run.global_step)
        due = (
            step == run.total_steps
            or (stage.checkpoint_steps and step - saved_at["step"] >= stage.checkpoint_steps)
            or time.monotonic() - saved_at["time"] >= stage.checkpoint_seconds
        )
        # Hosts have clocks and signals of their own: what one of them wants, all do at the same step.
        stopping, due = runtime.any_host([stop.requested is not None, bool(due)])
        if (stopping or due) and step != saved_at["step"]:
            refuse_broken_loss(output)  # a checkpoint of broken weights would be resumed from for ever
            with line.pause("saving"):
                run.save(line.state())
            saved_at.update(step=step, time=time.monotonic())
        if stopping and step < run.total_steps:
            raise preemption.Stopped(
                f"stage {stage.name}: {stop.requested or 'another host was told to stop'} at step {step:,} of "
                f"{run.total_steps:,}; saved. Run the same command again to go on"
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
            summary_dir=run.folder if chief else None,
            summary_interval=None,
            eval_summary_dir=os.path.join(run.folder, "evaluation") if chief else None,
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
            step, every = int(run.global_step), stage.evaluate_steps
            due = step == run.total_steps or bool(step and every and step % every == 0)
            if runtime.any_host([due and not log.has(step, "evaluation")])[0]:
                controller.evaluate()  # killed after this step, before its evaluation had ended
            for until in _evaluation_steps(step, run.total_steps, every):
                controller.train(until, checkpoint_at_completion=False)
                controller.evaluate()


def _evaluation_steps(step: int, total: int, every: int) -> Iterator[int]:
    """After which steps to evaluate a run that goes on at `step`: the same as if it had never stopped."""
    while step < total:
        step = min(total, (step // every + 1) * every) if every else total
        yield step


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
    run = built(stage, folder, runtime, options)
    with metrics_log.MetricsLog(os.path.join(folder, "evaluation.jsonl"), resumed_step=None) as log:
        made = evaluator(run, lambda figures: log.write(int(run.global_step), figures, kind="evaluation"))
        if made is None:
            raise ConfigurationError(
                f"stage {stage.name} cannot be evaluated: it trains no dual encoder, or Evaluation.data_dir is not bound"
            )
        writer = tf.summary.create_file_writer(os.path.join(folder, "evaluation"))
        tried, done, count, last_news = -1, -1, 0, time.monotonic()
        while True:
            ended = is_finished(folder)  # asked first: the last checkpoint is there before the mark is
            newest = max(checkpoints.steps(checkpoint_dir), default=-1)
            if newest > tried:
                tried = newest  # it may be damaged: then an older one is restored, perhaps the one that is done already
                if run.restore(training=False) is not None and int(run.global_step) > done:
                    done, count, last_news = int(run.global_step), count + 1, time.monotonic()
                    with writer.as_default(step=done):
                        for name, value in made.evaluate(-1).items():
                            tf.summary.scalar(name, value)
                    print(f"stage {stage.name}: evaluated step {done:,}", flush=True)
            if not continuous and not count:
                raise ConfigurationError(f"{checkpoint_dir} holds no checkpoint; train the stage first")
            if not continuous or ended:
                return count
            if time.monotonic() - last_news > timeout_seconds:
                logging.warning(
                    "no new checkpoint in %s for %.0f s: leaving", checkpoint_dir, timeout_seconds
                )
                return count
            time.sleep(poll_seconds)
