"""Batches of a frozen image tower's features in place of pictures: stage 2 without running the image tower again.

A feature dataset (tools/prepare_features.py) has the records of a dataset of pictures in the same order, with the same
captions and labels; instead of the encoded picture each holds float16 [V, D], the tower's features of V views of it: the
whole picture first, then augmented ones. `metadata["features"]` says views, width, and which checkpoint made them.
"""

import numpy as np
import tensorflow as tf

from basic_tf.data.batches import ContrastiveBatches
from basic_tf.data.examples import parse_example
from basic_tf.data.mixture import MixedSource
from basic_tf.data.usable_records import RecordError, texts_of
from basic_tf.randomness import bits_numpy, step_key_numpy

FEATURES = "features"
_READ_AT_ONCE = 1024


def described(source) -> dict:
    """What `metadata["features"]` says; of a mixture, what its parts agree on. ValueError for a dataset of pictures."""
    if isinstance(source, MixedSource):
        found = [described(part) for part in source.parts]
        if any((one["views"], one["width"]) != (found[0]["views"], found[0]["width"]) for one in found):
            raise ValueError(
                f"the parts of the mixture hold features of different shapes: {', '.join(source.names)}"
            )
        return found[0]
    facts = source.metadata.get(FEATURES)
    if not facts:
        raise ValueError(
            f"{source.metadata.get('name', 'the dataset')!r} holds pictures, not features; "
            "make features of it with tools/prepare_features.py"
        )
    return facts


def decoded(payload: bytes, views: int, width: int) -> np.ndarray:
    """float16 [V, D] out of the bytes that stand in the picture's place. RecordError if their number is another."""
    if len(payload) != 2 * views * width:
        raise RecordError("features of another size")
    return np.frombuffer(payload, np.float16).reshape(views, width)


class FeatureBatches(ContrastiveBatches):
    """Batches as `ContrastiveBatches`, but `images` is float32 [B, D]: one view's features, drawn by the hash.

    The model's image tower must be frozen: a stage that trains it is refused. All features are held in memory. The
    augmentation is not applied (its views were made beforehand); evaluation takes its output size from it.
    """

    gives_features = True

    def __init__(self, source, tokenizer, augmentation, batch_size: int, seed: int, **options):
        """As `ContrastiveBatches`, of a feature dataset, or a mixture of such."""
        super().__init__(source, tokenizer, augmentation, batch_size, seed, **options)
        facts = described(source)
        self.views, self.width = int(facts["views"]), int(facts["width"])
        self.features = np.zeros((source.count, self.views, self.width), np.float16)
        self.record_texts = [None] * source.count
        names: dict[str, int] = {}
        self._groups = np.arange(source.count, dtype=np.int64) + source.count
        for start in range(0, source.count, _READ_AT_ONCE):
            indices = np.arange(start, min(start + _READ_AT_ONCE, source.count))
            for index, payload in zip(indices.tolist(), source.read(indices)):
                try:
                    self._load(index, payload, names)
                except ValueError as error:
                    self._damage.note(index, error)
        usable = np.array([texts is not None for texts in self.record_texts])
        if not usable.any():
            raise ValueError(f"none of the {source.count:,} records can be used: {self.damage}")
        good = np.flatnonzero(usable)
        self._replacement = good[np.searchsorted(good, np.arange(source.count)) % good.size]

    def _load(self, index: int, payload: bytes | None, names: dict[str, int]) -> None:
        if payload is None:
            raise RecordError("damaged record")
        record = parse_example(payload)
        features = decoded(record.image, self.views, self.width)
        if not np.isfinite(features).all():
            raise RecordError("features that are not finite")
        texts = texts_of(record, index, self.source)
        self._check(texts)
        self.features[index], self.record_texts[index] = features, texts
        if texts.captions:
            self._groups[index] = names.setdefault(texts.captions[0].casefold(), len(names))

    def at(self, step: int, host: int = 0, hosts: int = 1) -> dict[str, np.ndarray]:
        """The rows of one host of the batch of a step; a pure function of (seed, step)."""
        rows = self._host_rows(host, hosts)
        key = step_key_numpy(self.seed, int(step))
        examples = np.arange(host * rows, (host + 1) * rows, dtype=np.int32)
        _, wanted = self.order.indices(int(step) * self.batch_size + host * rows, rows)
        used = self._replacement[wanted]
        words = bits_numpy(key, examples, "features/view", 1)[:, 0]
        views = (words.astype(np.uint64) * self.views) >> np.uint64(32)
        images = self.features[used, views.astype(np.int64)].astype(np.float32)
        texts = [self.record_texts[index] for index in used]
        batch = {"images": images, "record": used.astype(np.int64), "examples": examples}
        return batch | self._targets(key, examples, texts)

    def scalars(self, step: int) -> dict[str, float]:
        """Beside what a mixture says: the other pairs of the last batch whose first caption is a pair's own, mean per pair.

        The first caption is the name of the concept, so those are false negatives.
        """
        _, wanted = self.order.indices((int(step) - 1) * self.batch_size, self.batch_size)
        counts = np.unique(self._groups[self._replacement[wanted]], return_counts=True)[1]
        per_pair = float((counts * (counts - 1)).sum() / self.batch_size)
        return {**super().scalars(step), "false_negatives_per_pair": per_pair}

    def _signature(self, rows):
        signature = super()._signature(rows)
        return signature | {"images": tf.TensorSpec((rows, self.width), tf.float32)}
