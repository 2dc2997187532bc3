"""train.py on any runtime of this machine, as processes: their command line, environment and end.

A runtime has a name: one_device, mirrored_N, multi_worker_N, dtensor_BxM (weights cut over the model axis) or
dtensor_BxM_batch (over the batch axis). Accelerators are logical CPU devices, workers are processes on localhost.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "one_device"


def flags_of(runtime: str) -> list[str]:
    """The flags of train.py for a runtime by name."""
    if runtime == REFERENCE:
        return ["--runtime=one_device"]
    if runtime.startswith("dtensor_") and runtime.endswith("_batch"):
        return [*flags_of(runtime.removesuffix("_batch")), "--shard_over=batch"]
    kind, _, size = runtime.rpartition("_")
    if kind == "mirrored":
        return ["--runtime=mirrored", f"--logical_devices={size}"]
    if kind == "multi_worker":
        return ["--runtime=multi_worker"]
    if kind == "dtensor":
        return ["--runtime=dtensor", f"--mesh={size}"]
    raise ValueError(
        f"runtime {runtime!r} is not one_device, mirrored_N, multi_worker_N, dtensor_BxM or dtensor_BxM_batch"
    )


def workers_of(runtime: str) -> int:
    """Processes of a runtime by name."""
    return int(runtime.rpartition("_")[2]) if runtime.startswith("multi_worker") else 1


def environment(**more: str) -> dict[str, str]:
    """No accelerators, no greetings, no cluster."""
    own = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return own | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | more


def _environments(workers: int) -> list[dict[str, str]]:
    if workers == 1:
        return [environment()]
    sockets = [socket.socket() for _ in range(workers)]
    for own in sockets:
        own.bind(("localhost", 0))
    cluster = {"worker": [f"localhost:{own.getsockname()[1]}" for own in sockets]}
    for own in sockets:
        own.close()
    return [
        environment(TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}))
        for index in range(workers)
    ]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended. seconds: from the start of the run; peak_mib: the most memory it held."""

    code: int
    output: str
    errors: str
    seconds: float
    peak_mib: int

    @property
    def last_line(self) -> str:
        """Of its errors."""
        return next((line for line in reversed(self.errors.splitlines()) if line.strip()), "")


class Processes:
    """The processes of one run: one for each worker."""

    def __init__(self, arguments: Sequence[str], runtime: str, show: bool = False):
        """arguments: of train.py beside those that choose the runtime (they win). show: their words go to this terminal."""
        stream = None if show else subprocess.PIPE
        command = [sys.executable, "-m", "basic_tf.train", *flags_of(runtime), *arguments]
        self._begin = time.monotonic()
        self._processes = [
            subprocess.Popen(command, cwd=ROOT, env=own, stdout=stream, stderr=stream, text=True)
            for own in _environments(workers_of(runtime))
        ]
        self._ended: list[Ended | None] = [None] * len(self._processes)
        self._followers = [
            threading.Thread(target=self._follow, args=(index,), daemon=True)
            for index in range(len(self._processes))
        ]
        for follower in self._followers:
            follower.start()

    def _follow(self, index: int) -> None:
        process, texts = self._processes[index], ["", ""]

        def read(k, stream):
            texts[k] = stream.read() if stream else ""

        readers = [
            threading.Thread(target=read, args=(k, stream), daemon=True)
            for k, stream in enumerate((process.stdout, process.stderr))
        ]
        for reader in readers:
            reader.start()
        _, status, usage = os.wait4(process.pid, 0)  # Popen.wait would not say how much memory it held
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - self._begin
        for reader in readers:
            reader.join()
        self._ended[index] = Ended(process.returncode, *texts, seconds, usage.ru_maxrss >> 10)

    @property
    def running(self) -> bool:
        """Whether all of them are."""
        return all(ended is None for ended in self._ended)

    def signal(self, number: int, worker: int = 0) -> float:
        """Sends one a signal; returns the seconds from the start of the run."""
        if self._ended[worker] is None:
            os.kill(self._processes[worker].pid, number)
        return time.monotonic() - self._begin

    def wait_for(self, worker: int, seconds: float) -> Ended:
        """Waits for one. Raises TimeoutError after `seconds`, when it has ended all."""
        self._followers[worker].join(seconds)
        if self._ended[worker] is None:
            self.wait(0.0)
        return self._ended[worker]

    def wait(self, seconds: float) -> list[Ended]:
        """Waits for all. Raises TimeoutError after `seconds`, when it has ended those that are left."""
        deadline = time.monotonic() + seconds
        for follower in self._followers:
            follower.join(max(0.0, deadline - time.monotonic()))
        late = [index for index, ended in enumerate(self._ended) if ended is None]
        for index in late:
            os.kill(self._processes[index].pid, signal.SIGKILL)
        for follower in self._followers:
            follower.join()
        if late:
            words = " | ".join(ended.errors[-2000:] for ended in self._ended)
            raise TimeoutError(f"workers {late} had not ended after {seconds:g} s: {words}")
        return self._ended


def joint_arguments(
    data: str, folder: str, dtype: str, steps: int, bindings: Sequence[str] = ()
) -> list[str]:
    """Joint training of a small BASIC (tests/training/joint.gin) on the data of tests/tiny_data.py."""
    own = [f"TRAIN='{data}/train.json'", f"MODEL='{data}/tokenizer.model'", f"DTYPE='{dtype}'"]
    if dtype == "float64":
        own.append("AdaFactorW.momentum_dtype=None")  # bfloat16 momentum would round the differences up
    return [
        "--gin_file=tests/training/joint.gin",
        f"--model_dir={folder}",
        "--mode=train",
        f"--train_steps={steps}",
        *(f"--gin_param={binding}" for binding in (*own, *bindings)),
    ]
