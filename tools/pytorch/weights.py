"""Reads .safetensors and .pth files into NumPy arrays without PyTorch.

A .pth file (torch.save since PyTorch 1.6) is a zip archive of a pickle and raw storages. A pickle may run any code
when an ordinary unpickler reads it; ours knows the few names that tensors are made of, each bound to a function of
this module, and refuses every other. Nothing of the file is imported or called.
"""

import collections
import io
import math
import pickle
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np
import tensorflow as tf

from basic_tf.training import checkpoints

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_INSIDE = ("state_dict", "model", "model_state_dict", "state_dict_ema")
_ZIP = b"PK\x03\x04"


class WeightsError(ValueError):
    """A file of weights that cannot be read; one line says why and what to do."""


class _Kind(NamedTuple):
    dtype: type


class _Other:
    """Stands for objects that hold settings, such as argparse.Namespace: kept out of sight, never run."""

    def __init__(self, *_):
        pass


def read(path: str, key: str | None = None) -> dict[str, np.ndarray]:
    """Name -> array of a file of weights, in the order of the file; local or gs://.

    key: the entry that holds the state dict, where the file is a dict of several things; None finds it.
    Raises WeightsError for a file that is neither format, is damaged, or holds something else.
    """
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise WeightsError(f"there is no file {path}")
    with tf.io.gfile.GFile(path, "rb") as file:
        data = file.read()
    if data[:4] == _ZIP:
        return _state_dict(_unpickled(data, path), path, key)
    # One safetensors file in 32 begins with a pickle's first byte: it is the length of its header.
    if not _looks_like_safetensors(data) and (data[:1] == b"\x80" or data[257:262] == b"ustar"):
        raise WeightsError(
            f"{path} is in the format of PyTorch before 1.6; load it there and torch.save it again, or write .safetensors"
        )
    if key is not None:
        raise WeightsError(
            f"{path} is a safetensors file: it has no entries to choose from (got key {key!r})"
        )
    try:
        return checkpoints.decode(data)
    except Exception as error:  # safetensors has one exception class for everything, and dtypes are ours
        raise WeightsError(f"{path} is neither a PyTorch zip file nor a safetensors file: {error}") from error


def _looks_like_safetensors(data: bytes) -> bool:
    """Eight bytes of length, then a JSON object of that length."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _unpickled(data: bytes, path: str):
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        names = archive.namelist()
        (pickled,) = [name for name in names if name.rsplit("/", 1)[-1] == "data.pkl"]
        root = pickled.removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder").strip() if f"{root}byteorder" in names else b"little"
        if order != b"little":
            raise WeightsError(f"{path} was written by a big-endian machine; save it again on a common one")
        return _Tensors(io.BytesIO(archive.read(pickled)), archive, root).load()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # whatever is wrong with foreign bytes, the file cannot be used
        raise WeightsError(
            f"{path} is no PyTorch file of weights: {type(error).__name__}: {error}"
        ) from error


class _Tensors(pickle.Unpickler):
    """An unpickler that can make dicts, lists, numbers, strings and arrays, and nothing else."""

    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file, encoding="utf-8")
        self._archive, self._root = archive, root
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str):
        if module == "torch" and name in _STORAGES:
            return _Kind(_STORAGES[name])
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("argparse", "Namespace"): _Other,
            ("torch", "Size"): tuple,
        }
        if (module, name) not in known:
            raise WeightsError(
                f"the file holds an object of {module}.{name}, which is not among weights; save model.state_dict() alone"
            )
        return known[module, name]

    def persistent_load(self, reference):
        _, kind, number, _, count = reference
        if not isinstance(kind, _Kind) or not str(number).isalnum():
            raise WeightsError(f"a storage of the kind {kind!r} cannot be read")
        if number not in self._storages:
            raw = self._archive.read(f"{self._root}data/{number}")
            if len(raw) != count * np.dtype(kind.dtype).itemsize:
                raise WeightsError(f"storage {number} has {len(raw)} bytes, its header says {count} elements")
            self._storages[number] = np.frombuffer(raw, kind.dtype)
        return self._storages[number]


def _tensor(storage, offset, shape, strides, *_) -> np.ndarray:
    """A view of a storage; strides count elements. Everything is checked: the numbers come from the file."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, np.ndarray) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise WeightsError("a tensor's description is damaged")
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    if last >= storage.size or math.prod(shape) > storage.size:
        raise WeightsError("a tensor reaches beyond its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _parameter(data, *_):
    return data


def _state_dict(content, path: str, key: str | None) -> dict[str, np.ndarray]:
    """The dict of arrays in what a file holds."""
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected a state dict")
    if key is None and not _is_state_dict(content):
        key = next((name for name in _INSIDE if _is_state_dict(content.get(name))), None)
        if key is None:
            raise WeightsError(
                f"{path} holds no state dict among its entries {', '.join(map(str, content))}; name one"
            )
    if key is not None:
        if not _is_state_dict(content.get(key)):
            raise WeightsError(
                f"{path}: the entry {key!r} is no state dict; it has {', '.join(map(str, content))}"
            )
        content = content[key]
    return {name.removeprefix("module."): array for name, array in content.items()}


def _is_state_dict(value) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(v, np.ndarray) for v in value.values())
