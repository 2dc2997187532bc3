"""The optimizer and the weight average on a DTensor mesh and on replicas equal one device."""

import pathlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "kind,momentum",
    [
        ("dtensor", "bfloat16"),
        ("mirrored", "float32"),
        pytest.param("dtensor", "float32", marks=pytest.mark.slow),
        pytest.param("mirrored", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_equals_one_device(kind, momentum):
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.optimization.on_devices", kind, momentum]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count(kind) > 15  # it did compare
