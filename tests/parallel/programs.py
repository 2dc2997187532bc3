"""Programs of this project as a user starts them, for the tests of this folder."""

import subprocess
import sys

from tools import train_processes


def output_of(*arguments: str, timeout: float) -> str:
    """Runs `python ARGUMENTS` without accelerators; its standard output. Fails with what it said if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=train_processes.ROOT,
        env=train_processes.environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
