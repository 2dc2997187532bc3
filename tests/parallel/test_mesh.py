"""The DTensor mesh: its shape, its variables and input, the loss on it. Devices are fixed once a process, hence programs."""

import subprocess
import sys
from pathlib import Path

import pytest

from basic_tf.contrastive import global_view
from basic_tf.parallel import mesh, runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shape", ["", "4", "4x", "0x2", "2x-1", "2x2x2", "two"])
def test_a_mesh_that_is_none_is_said(shape):
    with pytest.raises(runtime.DeviceError, match=r"batch x model .* --mesh=4x2"):
        mesh.MeshShape(shape)


def test_shape_of_a_mesh():
    shape = mesh.MeshShape("4x2")
    assert (shape.batch, shape.model, shape.devices, shape.shards) == (4, 2, 8, 2)
    assert mesh.MeshShape("4x2", shard_over="batch").shards == 4
    with pytest.raises(runtime.DeviceError, match="shard_over"):
        mesh.MeshShape("4x2", shard_over="rows")


def test_blocks_of_columns_divide_the_batch_and_stay_small():
    assert global_view.column_block(65536, 1024, 2048) == 65536  # 64 rows a device: all columns at once
    assert global_view.column_block(65536, 1, 2048) == 256
    assert global_view.column_block(30, 2, (1, 7)) == 6
    assert global_view.column_block(13, 1, (4, 5)) == 1


@pytest.mark.parametrize("axis,held", [("model", 4), pytest.param("batch", 1, marks=pytest.mark.slow)])
def test_on_a_mesh(axis, held):
    command = [sys.executable, "-m", "tests.parallel.on_mesh", axis]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(done.stdout.split()) == held
