"""Near-duplicates of evaluation pictures: a perceptual hash finds candidates, structural similarity decides.

BASIC removes training pictures that are too similar to an evaluation picture (basic_paper section 3: a structural
similarity of 0.5 or more, remembered with medium confidence; how its candidates are found is not known).
"""

import collections
import functools
import threading
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from basic_tf.data.decoding import PictureError, decode, resize
from basic_tf.data.examples import parse_example
from basic_tf.data.records import RecordSource
from tools.sources.rows import FILTERED, BadRow

SIDE = 64  # pictures are compared as grey squares of this side
_HASH_SIDE, _BITS_SIDE = 32, 8
_WINDOW, _SIGMA, _K1, _K2, _RANGE = 11, 1.5, 0.01, 0.03, 255.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_READ_AT_ONCE = 256


def grey_square(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [SIDE, SIDE]: luma, stretched to a square."""
    return np.rint(resize(picture, SIDE, SIDE) @ _LUMA).astype(np.uint8)


def perceptual_hash(grey: np.ndarray) -> np.uint64:
    """64 bits of a grey square: which of the 8 x 8 lowest frequencies of its cosine transform are above their median.

    Scaling, compression, and changes of brightness and contrast leave most of them as they are.
    """
    small = cv2.resize(grey, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:_BITS_SIDE, :_BITS_SIDE].reshape(-1)
    bits = low > np.median(low[1:])  # the first is the mean, and large in any picture
    return np.packbits(bits).view(np.uint64)[0]


def distances(hash: np.uint64, others: np.ndarray) -> np.ndarray:
    """uint8 [M]: in how many bits each of `others`, uint64 [M], differs."""
    return np.bitwise_count(np.bitwise_xor(others, hash))


@functools.cache
def _gaussian(side: int) -> np.ndarray:
    """float64 [side - 10, side]: the window's weights, moved along one axis."""
    weights = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    places = side - _WINDOW + 1
    matrix = np.zeros((places, side))
    for place in range(places):
        matrix[place, place : place + _WINDOW] = weights
    return matrix


def structural_similarity(picture: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [N]: the mean SSIM of a grey picture [S, S] and each of `others` [N, S, S], S at least 11, values 0..255.

    Wang, Bovik, Sheikh, Simoncelli 2004, equation 13: windows of 11 x 11 with Gaussian weights of deviation 1.5, wholly
    inside the picture, K1 = 0.01, K2 = 0.03.
    """
    window = _gaussian(picture.shape[0])

    def mean(values):
        return window @ values @ window.T

    x, y = picture.astype(np.float64), others.astype(np.float64)
    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2))


class EvaluationPictures:
    """The pictures of evaluation sets, in memory as grey squares (4 kB each); asked by several threads."""

    def __init__(
        self,
        paths: Sequence[str],
        similarity: float = 0.5,
        distance: int = 12,
        candidates: int = 64,
        report: Callable[[str], None] = print,
    ):
        """paths: jsons or patterns of shards. similarity: SSIM from which a picture is a near-duplicate. distance:
        largest number of differing bits of a candidate. candidates: the nearest so many are compared.
        """
        if not 0 < similarity <= 1 or not 0 <= distance <= 64:
            raise ValueError(
                f"similarity must lie in (0, 1], distance in [0, 64], got {similarity}, {distance}"
            )
        self.similarity, self.distance, self.candidates = similarity, distance, candidates
        self._names: list[tuple[str, str]] = []
        squares = []
        for path in paths:
            source, broken = RecordSource.open(path), 0
            for start in range(0, source.count, _READ_AT_ONCE):
                for payload in source.read(np.arange(start, min(start + _READ_AT_ONCE, source.count))):
                    try:
                        record = parse_example(payload or b"")
                        squares.append(grey_square(decode(record.image)))
                    except (PictureError, ValueError):
                        broken += 1
                        continue
                    self._names.append((path, record.id))
            report(f"{path}: {source.count - broken:,} evaluation pictures, {broken:,} unreadable")
        if not squares:
            raise ValueError(f"there is no evaluation picture in {', '.join(paths)}")
        self._squares = np.stack(squares)
        self._hashes = np.array([perceptual_hash(square) for square in self._squares])
        self._removed: collections.Counter[str] = collections.Counter()
        self._best: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()

    def most_similar(self, picture: np.ndarray) -> tuple[float, int, int] | None:
        """(SSIM, differing bits, number) of the candidate most similar to a picture uint8 [H, W, 3]; None without one."""
        square = grey_square(picture)
        bits = distances(perceptual_hash(square), self._hashes)
        near = np.flatnonzero(bits <= self.distance)
        if not near.size:
            return None
        near = near[np.argsort(bits[near], kind="stable")[: self.candidates]]
        values = structural_similarity(square, self._squares[near])
        best = int(values.argmax())
        return float(values[best]), int(bits[near[best]]), int(near[best])

    def refuse_likeness(self, picture: np.ndarray) -> None:
        """Raises BadRow if the picture is a near-duplicate."""
        found = self.most_similar(picture)
        if found is None:
            return
        value, bits, number = found
        path, name = self._names[number]
        with self._lock:
            self._best[int(np.clip(value * 10, 0, 9))] += 1
            if value >= self.similarity:
                self._removed[path] += 1
        if value >= self.similarity:
            where = {"of": path, "of_id": name, "ssim": round(value, 4), "bits": bits}
            raise BadRow(
                "near-duplicate", f"of {name or f'picture {number}'}, SSIM {value:.3f}", where, FILTERED
            )

    def as_json(self) -> dict:
        """What was compared and found. best_candidates: how many pictures have their best one at SSIM 0.0-0.1, ..."""
        return {
            "similarity": self.similarity,
            "distance": self.distance,
            "evaluation_pictures": len(self._names),
            "removed": dict(self._removed),
            "best_candidates": {f"{n / 10:.1f}": self._best[n] for n in range(10)},
        }
