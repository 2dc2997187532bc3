"""Runs a binary several times in one fresh process (binaries share names of flags, so that one process holds one of them):
python -m tests.evaluation.binary_process basic_tf.export '[["--model_dir=...", ...], ...]'. The last line is a JSON list: of
each run its exit code, what it printed and what it said as errors.
"""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path


def main(name: str, runs: list[list[str]]) -> None:
    """Runs each list of flags."""
    binary = importlib.import_module(name)
    results = []
    for arguments in runs:
        binary.FLAGS.unparse_flags()
        for flag in binary.FLAGS.flags_by_module_dict()[name]:
            flag.unparse()
        binary.FLAGS([name, *arguments])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = binary.main([name])
        results.append([code, out.getvalue(), err.getvalue()])
    print(json.dumps(results))


def run(name: str, runs: list[list[str]]) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of each run of the binary."""
    command = [sys.executable, "-m", "tests.evaluation.binary_process", name, json.dumps(runs)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise AssertionError(done.stderr)
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
