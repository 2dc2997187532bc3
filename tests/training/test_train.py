"""train.py as people run it: a whole recipe, stopping and killing, and its one-line errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from basic_tf.training import checkpoints, preemption, stage_run
from tests import tiny_data

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("pretrain", "contrastive", "finetune")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data.make(str(tmp_path_factory.mktemp("data")))


def command(data, model_dir, *flags, params=()):
    bindings = [f"TRAIN='{data}/train.json'", f"MODEL='{data}/tokenizer.model'", *params]
    return [
        sys.executable,
        "-m",
        "basic_tf.train",
        "--gin_file=tests/training/tiny.gin",
        f"--model_dir={model_dir}",
        "--mode=train",
        *(f"--gin_param={binding}" for binding in bindings),
        *flags,
    ]


def run(*arguments, **options):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments, **options),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """An uninterrupted run of all three stages, with evaluation."""
    folder = str(tmp_path_factory.mktemp("whole"))
    done = run(data, folder, "--mode=train_and_eval", params=[f"EVAL='{data}'"])
    assert done.returncode == 0, done.stderr
    return folder, done


def last_arrays(folder, stage):
    return checkpoints.load_latest(stage_run.checkpoint_folder(os.path.join(folder, stage)))


def test_the_whole_recipe_runs_and_says_what_it_took_over(whole_run):
    folder, done = whole_run
    for stage in STAGES:
        assert stage_run.is_finished(os.path.join(folder, stage))
    assert "ignored     2 parameters  image_tower/head" in done.stdout or "image_tower/head" in done.stdout
    assert "fresh" in done.stdout and "text_tower" in done.stdout
    for name in ("config.gin", "versions.json", "tokenizer.model"):
        assert os.path.exists(os.path.join(folder, name))
    lines = [json.loads(line) for line in Path(folder, "finetune", "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert "zero_shot/in_distribution/top1" in [line for line in lines if line["kind"] == "evaluation"][-1]


def test_stage_two_leaves_the_image_tower_alone_and_stage_three_does_not(whole_run):
    folder, _ = whole_run
    first, second, third = (stage_run.trained_arrays(last_arrays(folder, stage)) for stage in STAGES)
    tower = [path for path in second if path.startswith("image_tower/")]
    assert tower
    for path in tower:
        np.testing.assert_array_equal(first[path], second[path])
    assert any(not np.array_equal(second[path], third[path]) for path in tower)
    assert any(not np.array_equal(second[p], third[p]) for p in second if p.startswith("text_tower/"))


def test_fewer_steps_are_the_first_ones_of_the_whole_run(data, whole_run, tmp_path):
    done = run(data, str(tmp_path), "--stage=pretrain", "--train_steps=2")
    assert done.returncode == 0, done.stderr
    kept = ("step", "loss", "precision_at_1", "learning_rate")
    whole, cut = (
        [
            {name: line[name] for name in kept}
            for line in map(json.loads, Path(folder, "pretrain", "metrics.jsonl").read_text().splitlines())
        ]
        for folder in (whole_run[0], tmp_path)
    )
    assert len(cut) == 2 and cut == whole[:2]


def test_a_finished_run_returns_at_once(data, whole_run):
    folder, _ = whole_run
    again = run(data, folder, "--mode=train_and_eval", params=[f"EVAL='{data}'"])
    assert again.returncode == 0
    assert "pretrain 1/6" not in again.stderr


def test_a_stage_can_be_evaluated_afterwards(data, whole_run):
    folder, _ = whole_run
    done = run(data, folder, "--mode=continuous_eval", "--stage=finetune", params=[f"EVAL='{data}'"])
    assert done.returncode == 0, done.stderr
    assert "evaluated step 6" in done.stdout
    trained = [
        json.loads(line) for line in Path(folder, "finetune", "metrics.jsonl").read_text().splitlines()
    ][-1]
    later = [
        json.loads(line) for line in Path(folder, "finetune", "evaluation.jsonl").read_text().splitlines()
    ][-1]
    assert later == trained
    done = run(data, folder, "--mode=eval", "--stage=pretrain", params=[f"EVAL='{data}'"])
    assert done.returncode == 1 and "trains no dual encoder" in done.stderr


def test_a_broken_loss_stops_the_run_and_is_never_saved(data, tmp_path):
    done = run(data, str(tmp_path), params=["pretrain/Schedule.peak = 1e38", "AdaFactorW.update_clip = None"])
    assert done.returncode == 1
    assert "the loss is" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    arrays = last_arrays(str(tmp_path), "pretrain")
    assert arrays is None or all(np.isfinite(a.astype(np.float64)).all() for a in arrays.arrays.values())


def test_killed_and_stopped_runs_end_with_the_same_weights(data, whole_run, tmp_path):
    """SIGTERM in the first stage, SIGKILL in a later one; every array equal bit for bit."""
    reference, _ = whole_run
    folder = str(tmp_path / "run")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    # The evaluation must not change training: the reference evaluated, this run does not.
    params = [f"EVAL='{data}'"]
    for stage, number in (("pretrain", signal.SIGTERM), ("contrastive", signal.SIGKILL)):
        process = subprocess.Popen(
            command(data, folder, params=params),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 200
        while not checkpoints.steps(stage_run.checkpoint_folder(os.path.join(folder, stage))):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=100)
        # The stage may have ended before the signal came; then the next one stops.
        expected = {signal.SIGTERM: preemption.EXIT_STOPPED, signal.SIGKILL: -signal.SIGKILL}[number]
        assert process.returncode == expected
    done = run(data, folder, params=params)
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        mine, other = last_arrays(folder, stage), last_arrays(reference, stage)
        assert mine.step == other.step == 6
        for path, array in other.arrays.items():
            np.testing.assert_array_equal(mine.arrays[path], array, err_msg=f"{stage}/{path}")


@pytest.mark.slow
def test_a_stage_starts_from_another_run_at_a_larger_picture_size(data, whole_run, tmp_path):
    folder, _ = whole_run
    params = [
        f"finetune/WarmStart.stage = '{folder}/contrastive'",
        "finetune/WarmStart.resized = @ResizedForTower",
        "finetune/CoAtNet.image_size = 48",
        "finetune/ImageAugmentation.output_size = 48",
        f"EVAL = '{data}'",
    ]
    done = run(data, str(tmp_path), "--stage=finetune", "--mode=train_and_eval", params=params)
    assert done.returncode == 0, done.stderr
    assert "resized     1 parameters" in done.stdout
    old, new = (last_arrays(at, stage) for at, stage in ((folder, "contrastive"), (tmp_path, "finetune")))
    table = "parameters/image_tower/stage3/block0/attention/relative_bias"
    assert old.arrays[table].shape == (2, 3, 3) and new.arrays[table].shape == (2, 5, 5)


@pytest.mark.parametrize(
    "flags,params,message",
    [
        (["--gin_file=gin/runs/nothing.gin"], (), "there is no gin file gin/runs/nothing.gin"),
        ([], ["CoAtNet.varaint = 'coatnet_0'"], "varaint"),
        ([], ["Nonsense.value = 1"], "Nonsense"),
        ([], ["Stage.batch_size = 4096"], "batch_size=4096 is larger than the dataset"),
        ([], ["Stage.batch_size = 0"], "batch_size"),
        ([], ["Classification.microbatch = 5"], "microbatch = 5 does not divide the 16 rows of a replica"),
        ([], ["TRAIN = 'nowhere/train.json'"], "nowhere/train.json"),
        ([], ["all/Rule.pattern = 'image_towr/.*'"], "image_towr"),
        (["--profile_steps=abc"], (), "--profile_steps names a first step"),
        (["--mesh=2x1"], (), "--mesh=2x1 has no meaning for --runtime=one_device; use --runtime=dtensor"),
        (["--tpu=local"], (), "--tpu=local has no meaning for --runtime=one_device; use --runtime=tpu"),
        (["--stage=middle"], (), "--stage=middle is not one of pretrain, contrastive, finetune"),
    ],
)
def test_what_cannot_work_is_one_line(data, tmp_path, flags, params, message):
    done = run(data, str(tmp_path), *flags, params=params)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert message in lines[-1] and lines[-1].startswith("train: ")
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("flag", ["--threads=-1", "--seed=4294967296"])
def test_flags_out_of_range_are_refused(data, tmp_path, flag):
    done = run(data, str(tmp_path), flag)
    assert done.returncode == 1 and flag in done.stderr and "Traceback" not in done.stderr


def test_microbatches_and_rematerialisation_change_memory_alone(data, whole_run, tmp_path):
    reference, _ = whole_run
    shutil.copytree(os.path.join(reference, "contrastive"), tmp_path / "contrastive")
    bindings = ["finetune/Contrastive.microbatch = 8", "CoAtNet.remat = 'norms_and_activations'"]
    bindings += ["TextTransformer.remat = 'blocks'"]
    done = run(data, str(tmp_path), "--stage=finetune", params=bindings)
    assert done.returncode == 0, done.stderr
    losses = []
    for folder in (reference, str(tmp_path)):
        lines = Path(folder, "finetune", "metrics.jsonl").read_text().splitlines()
        losses.append([line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"])
    assert len(losses[0]) == 6 and losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
