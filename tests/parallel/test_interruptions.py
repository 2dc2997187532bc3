"""Workers that die, runs that are told to stop: the others end soon, and the resumed run ends where a whole one does."""

import dataclasses
import json
import os
import signal
import time

import pytest

from basic_tf.training import preemption
from tests.parallel.programs import output_of
from tools import train_processes

slow = pytest.mark.slow
SAVING = ("Stage.checkpoint_steps = 5", "Stage.checkpoint_seconds = 1e9")


def at_a_checkpoint(run, processes, seconds=300):
    deadline = time.monotonic() + seconds
    while not run.checkpoint_steps():
        assert processes.running and time.monotonic() < deadline
        time.sleep(0.05)


@slow
@pytest.mark.parametrize(
    "victim,number",
    [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGTERM), (1, signal.SIGSTOP)],
)
def test_a_lost_worker_stops_the_others_and_the_run_resumes(run, victim, number):
    long = dataclasses.replace(run, steps=60, bindings=(*run.bindings, *SAVING))
    processes = long.start("multi_worker_2")
    at_a_checkpoint(long, processes)
    sent = processes.signal(number, victim)
    other = processes.wait_for(1 - victim, 120)
    if number == signal.SIGSTOP:  # it hangs: only its heartbeat is missed
        processes.signal(signal.SIGKILL, victim)
    ended = processes.wait(120)
    assert other.seconds - sent < (60 if number == signal.SIGSTOP else 20)
    assert other.code == preemption.EXIT_STOPPED, other.errors
    if number == signal.SIGTERM:
        assert "another host was told to stop" in other.last_line
        assert ended[victim].code == preemption.EXIT_STOPPED and "SIGTERM" in ended[victim].last_line
    else:
        assert other.last_line.startswith("train: another worker of this run is gone"), other.errors
        assert "Traceback" not in other.errors
    step = long.last().step
    assert 0 < step < 60 and (step % 5 == 0 or number == signal.SIGTERM)
    print(f"the other worker ended {other.seconds - sent:.1f} s after the signal")
    assert len(long.losses("multi_worker_2")) == 60 and long.last().step == 60


@slow
@pytest.mark.parametrize("runtime", ["mirrored_2", "multi_worker_2", "dtensor_2x1"])
def test_runs_interrupted_at_random_steps_end_where_a_whole_one_does(run, tmp_path, runtime):
    """Bit for bit: every array of the last checkpoint and every loss. SIGKILL and SIGTERM, each at a step of its own."""
    arguments = train_processes.joint_arguments(
        run.data, "unused", "float32", 90, [*run.bindings, "Stage.checkpoint_steps = 7"]
    )
    own = [a for a in arguments if a.startswith(("--gin_file", "--gin_param"))]
    own += ["--gin_param=Duration.steps = 90", f"--folder={tmp_path}", f"--runtime={runtime}"]
    own += ["--kills=3", "--signal=ANY", "--wait_steps=3,25", f"--seed={os.getpid()}"]
    found = json.loads(output_of("tools/chaos.py", *own, timeout=1800).splitlines()[-1])
    assert found["signals"] == 3 and found["different"] == 0 and found["compared"] > 90
