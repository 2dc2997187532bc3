"""Settings that every test shares: TensorFlow's threads from the cores, quiet logs, no accelerator, flags by program."""

import inspect
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import tensorflow as tf
from absl import flags

from basic_tf.machine import cores

# Test processes that run side by side (pytest-xdist) share the cores.
_CORES = max(1, cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
tf.config.threading.set_intra_op_parallelism_threads(_CORES)
tf.config.threading.set_inter_op_parallelism_threads(_CORES)

# Programs are processes of their own and may define flags of one name; tests import several into one process. So the last
# definition of a name wins here, and each test sees the flags of the programs that its file imports, and no others.
_define = flags.FlagValues.__setitem__


def _define_again(self, name, flag):
    self._flags().pop(name, None)
    _define(self, name, flag)


flags.FlagValues.__setitem__ = _define_again


@pytest.fixture(autouse=True)
def flags_of_its_programs(request):
    """Puts aside the flags of programs that the test's file does not import."""
    by_module = flags.FLAGS.flags_by_module_dict()
    programs = {name for name in by_module if name.split(".")[0] in ("basic_tf", "tools")}
    imported = {
        value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        for value in vars(request.module).values()
    }
    current = flags.FLAGS._flags()
    before = dict(current)
    if programs & imported:
        current.clear()
        for name, defined in by_module.items():
            if name not in programs or name in imported:
                current.update({flag.name: flag for flag in defined})
    yield
    current.clear()
    current.update(before)
