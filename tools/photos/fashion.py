"""Fashion-MNIST: 70,000 grey photographs of clothes, 28 px, in ten classes."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tools.sources import debian
from tools.sources.rasters import png
from tools.sources.rows import BadRow, LabelTable, Picture, Row

FASHION = debian.Deb(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "MIT",
)
NAMES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_DTYPES = {8: np.dtype("u1")}


def read_idx(data: bytes) -> np.ndarray:
    """The array of an IDX file of bytes (MNIST's format): magic, number of axes, sizes, values. ValueError."""
    zero, kind, axes = struct.unpack(">HBB", data[:4])
    sizes = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    if zero or kind not in _DTYPES or len(data) != 4 + 4 * axes + int(np.prod(sizes)):
        raise ValueError(f"no whole IDX file of bytes: {len(data)} bytes, sizes {sizes}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(sizes)


class Fashion:
    """One half, "train" or "t10k", as rows: dark on white, like a shop's photograph (the files are light on black)."""

    def __init__(self, deb: Path, half: str):
        parts = {
            name.rpartition("/")[2]: content for name, content in debian.files(deb) if name.endswith(".gz")
        }
        try:
            self._pictures = read_idx(gzip.decompress(parts[f"{half}-images-idx3-ubyte.gz"]))
            self._labels = read_idx(gzip.decompress(parts[f"{half}-labels-idx1-ubyte.gz"]))
        except (KeyError, OSError, EOFError) as error:
            raise ValueError(f"{deb} lacks the {half} half of Fashion-MNIST ({error!r})") from error
        self._half, self.total, self.labels = half, len(self._labels), LabelTable(list(NAMES))

    def rows(self, pictures: bool = True) -> Iterator[Row | BadRow]:
        """All pictures in the order of the file."""
        for number, (picture, label) in enumerate(zip(self._pictures, self._labels.tolist(), strict=True)):
            where = {"file": f"{FASHION.file_name}: {self._half}", "row": number}
            encoded = png(Image.fromarray(255 - picture))
            yield Row(where, Picture(encoded), (NAMES[label],), (label,), f"{self._half}/{number}")

    @staticmethod
    def described_classes() -> list[dict]:
        """The classes as evaluation reads them."""
        return [{"name": name, "described": name, "keywords": ["clothes"], "code": name} for name in NAMES]
