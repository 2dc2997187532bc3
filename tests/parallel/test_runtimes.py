"""The real train.py on every runtime: the losses of one device, checkpoints that move, errors of one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from basic_tf.training import checkpoints, preemption, stage_run
from tests import tiny_data
from tools import bench_runtimes, bench_sharding

TINIEST = [
    "--gin_param=CoAtNetTable.stem = (1, 8)",
    "--gin_param=CoAtNetTable.stages = (('mbconv', 1, 8), ('attention', 1, 16))",
    "--gin_param=TextTransformer.width = 16",
    "--gin_param=joint/Contrastive.microbatch = 4",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data.make(str(tmp_path_factory.mktemp("data")))


def train(data, folder, runtime, dtype="float64", steps=3, more=(), timeout=1800):
    arguments = bench_runtimes.command(
        data, str(folder), dtype, steps, *bench_runtimes.flags_of(runtime), *more
    )
    processes = bench_runtimes.start(arguments, runtime)
    errors = bench_runtimes.wait(processes, timeout)
    return [process.returncode for process in processes], errors


def curve(data, folder, runtime, **options):
    codes, errors = train(data, folder, runtime, **options)
    assert not any(codes), errors
    return bench_runtimes.losses(str(folder))


@pytest.fixture(scope="module")
def tiniest(data, tmp_path_factory):
    return curve(data, tmp_path_factory.mktemp("one"), "one_device", more=TINIEST)


@pytest.mark.parametrize("runtime", ["mirrored_2", pytest.param("dtensor_2x2", marks=pytest.mark.slow)])
def test_three_steps_equal_one_device(data, tiniest, tmp_path, runtime):
    found = curve(data, tmp_path, runtime, more=TINIEST)
    assert len(found) == 3
    np.testing.assert_allclose(found, tiniest, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_twenty_steps_equal_one_device(data, tmp_path, dtype):
    reference = curve(data, tmp_path / "one_device", "one_device", dtype=dtype, steps=20)
    worse = {}
    for runtime in bench_runtimes.RUNTIMES[1:]:
        found = curve(data, tmp_path / runtime, runtime, dtype=dtype, steps=20)
        difference = bench_runtimes.differences(reference, found)
        held = (
            difference["worst_relative"] <= 1e-9
            if dtype == "float64"
            else difference["first_relative"] <= 1e-5 and difference["last_relative"] <= 1e-3
        )
        if not held:
            worse[runtime] = difference
    assert not worse


def last(folder):
    return checkpoints.load_latest(stage_run.checkpoint_folder(os.path.join(folder, "joint")))


def keep_only(folder, step: int):
    """Makes a finished run one that was killed after the checkpoint of `step`."""
    os.remove(os.path.join(folder, "joint", "finished.json"))
    own = stage_run.checkpoint_folder(os.path.join(folder, "joint"))
    for other in checkpoints.steps(own):
        if other != step:
            shutil.rmtree(os.path.join(own, f"step-{other:09d}"))


@pytest.mark.slow
def test_checkpoints_move_between_runtimes(data, tmp_path):
    """One device -> two replicas -> a 2 x 2 mesh -> two workers -> one device: the same curve and the same arrays."""
    saving = [*TINIEST, "--gin_param=Stage.checkpoint_steps = 2", "--gin_param=Stage.keep_checkpoints = 9"]
    folder = tmp_path / "run"
    reference = curve(data, folder, "one_device", steps=10, more=saving)
    expected = last(str(folder))
    for step, runtime in ((2, "mirrored_2"), (4, "dtensor_2x2"), (6, "multi_worker_2"), (8, "one_device")):
        keep_only(str(folder), step)
        np.testing.assert_allclose(
            curve(data, folder, runtime, steps=10, more=saving), reference, rtol=1e-9, err_msg=runtime
        )
        found = last(str(folder))
        assert found.step == 10 and found.arrays.keys() == expected.arrays.keys()
        for path, array in expected.arrays.items():
            np.testing.assert_allclose(
                found.arrays[path], array, rtol=1e-6, atol=1e-9, err_msg=f"{runtime} {path}"
            )


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--runtime=dtensor", "--mesh=4by2"], "--mesh=4x2"),
        pytest.param(
            ["--runtime=dtensor", "--mesh=4x2", "--logical_devices=6"],
            "needs 8 devices, but there are 6",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--runtime=dtensor", "--mesh=2x1", "--mode=train_and_eval"],
            "continuous_eval",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--runtime=dtensor", "--mesh=3x1"],
            "16 cannot be divided among 3 replicas",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--runtime=mirrored", "--logical_devices=3"], "cannot be divided among 3", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--runtime=dtensor", "--mesh=2x1", "--gin_param=joint/Contrastive.microbatch = 3"],
            "microbatch = 3 does not divide the 8 rows of a replica",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--runtime=dtensor", "--mesh=2x2", "--gin_param=joint/Rule.pattern = 'image_towr/.*'"],
            "image_towr",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--runtime=dtensor", "--mesh=2x3", "--gin_param=joint/Rule.layout = ('model',)"],
            "dimensions",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--runtime=multi_worker"], "TF_CONFIG", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_work_is_one_line(data, tmp_path, flags, message):
    arguments = bench_runtimes.command(data, str(tmp_path), "float32", 2, *flags)
    environment = bench_runtimes.environment()
    environment.pop("TF_CONFIG", None)
    done = subprocess.run(
        arguments,
        cwd=bench_runtimes.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert message in lines[-1] and lines[-1].startswith("train: ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_one_line(data, tmp_path):
    assert curve(data, tmp_path, "one_device", steps=2, more=TINIEST)
    os.remove(tmp_path / "joint" / "finished.json")
    os.remove(tmp_path / "config.gin")
    codes, errors = train(data, tmp_path, "dtensor_2x1", steps=2)
    assert codes == [1]
    assert errors[0].splitlines()[-1].startswith("train: ") and "is of another model" in errors[0]


def wait_for_checkpoint(folder, processes, seconds=900):
    deadline = time.monotonic() + seconds
    while not checkpoints.steps(stage_run.checkpoint_folder(os.path.join(folder, "joint"))):
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("victim,number", [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_lost_worker_stops_the_others_and_the_run_resumes(data, tmp_path, victim, number):
    more = [*TINIEST, "--gin_param=Stage.checkpoint_steps = 5", "--gin_param=Stage.checkpoint_seconds = 1e9"]
    steps = 300
    arguments = bench_runtimes.command(
        data, str(tmp_path), "float64", steps, *bench_runtimes.flags_of("multi_worker_2"), *more
    )
    processes = bench_runtimes.start(arguments, "multi_worker_2")
    wait_for_checkpoint(str(tmp_path), processes)
    processes[victim].send_signal(number)
    begin = time.monotonic()
    error = processes[1 - victim].communicate(timeout=120)[1]
    processes[victim].communicate(timeout=120)
    assert time.monotonic() - begin < 60
    assert processes[1 - victim].returncode == preemption.EXIT_STOPPED
    lines = [line for line in error.splitlines() if line.strip()]
    if number == signal.SIGKILL:
        assert "another worker of this run is gone" in lines[-1] and "Traceback" not in error
        assert lines[-1].startswith("train: ")
    else:
        assert "another host was told to stop" in error
    before = last(str(tmp_path)).step
    assert before % 5 == 0 or number == signal.SIGTERM
    resumed = curve(data, tmp_path, "multi_worker_2", steps=steps, more=more)
    assert len(resumed) == steps and last(str(tmp_path)).step == steps


@pytest.mark.slow
def test_weights_and_slots_fall_with_the_model_axis():
    done = subprocess.run(
        [sys.executable, "tools/bench_sharding.py"],
        cwd=bench_runtimes.ROOT,
        env=bench_runtimes.environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    for axis, row in result["per_device"].items():
        assert 1.0 <= row["of_ideal"] <= 1.1, (axis, row)
    for axis, row in result["small_model"].items():
        for kind in ("weights", "slots"):
            assert row["planned"][kind] == row["real"][kind], (axis, kind)


def test_planned_bytes_add_up():
    """One sharded kernel, one bias that stays whole: 4 bytes a weight; momentum 2, factors and full moments 4."""
    from basic_tf.optimization.update_rule import UpdateRule
    from basic_tf.towers.layers import WeightSpec

    class Model:
        compute_dtype = "float32"

        @staticmethod
        def specs():
            return [WeightSpec("a/kernel", (40, 64), "normal"), WeightSpec("a/bias", (64,), "zeros")]

    row = bench_sharding.planned(Model, 4, 100, UpdateRule())
    assert row["weights"] == 4 * 40 * 64 // 4 + 4 * 64
    # The kernel is cut along its 64 columns: the row factors [40] lose that axis and stay whole.
    assert row["slots"] == 2 * 40 * 64 // 4 + 4 * 40 + 4 * 64 // 4 + (2 + 4) * 64
