"""Batches as a pure function of (seed, step): what training and evaluation read.

`Batches.at(step)` needs nothing but its argument, so a run resumed at step k reads what the uninterrupted run
would have, hosts divide each batch by rows, and reading ahead by threads changes nothing. `Batches.dataset`
is the same thing behind tf.data's prefetching.
"""

import collections
import concurrent.futures
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from basic_tf.data.captions import CaptionChoice
from basic_tf.data.examples import parse_example
from basic_tf.data.images import ImageAugmentation, decode, framed, header
from basic_tf.data.mixture import MixedSource, MixtureOrder
from basic_tf.data.order import ExampleOrder
from basic_tf.data.python_calls import mapped
from basic_tf.data.tokenizer import Tokenizer
from basic_tf.randomness import step_key_numpy

_LOGGED_PER_CAUSE = 5
_READ_AT_ONCE = 512


class RecordError(ValueError):
    """A record that cannot be used; `cause` is one of a few short phrases."""

    def __init__(self, cause: str):
        super().__init__(cause)
        self.cause = cause


class _Damage:
    """Counts unusable records by cause and logs the first few of each."""

    def __init__(self):
        self.counts: collections.Counter[str] = collections.Counter()
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def note(self, record: int, error: Exception) -> None:
        with self._lock:
            if record in self._seen:
                return
            self._seen.add(record)
            cause = getattr(error, "cause", "damaged record")
            self.counts[cause] += 1
            if self.counts[cause] <= _LOGGED_PER_CAUSE:
                logging.warning("record %d is skipped: %s", record, error)


class _Texts(collections.namedtuple("_Texts", ["captions", "labels"])):
    """What is kept of a record beside its picture: captions (tuple of str) and label numbers (int64
    array).
    """


def texts_of(record, number: int, source) -> _Texts:
    """The captions and the label numbers of a record of a source."""
    labels = source.relabelled(number, record.labels) if isinstance(source, MixedSource) else record.labels
    return _Texts(tuple(c for c in record.captions if c and not c.isspace()), labels)


class DecodedPictures:
    """All pictures of a source decoded in memory, uint8 [N, side, side, 3], with their captions and labels.

    A record that cannot be used is replaced by the next one that can (`replacement`), wrapping around at the
    end.
    """

    def __init__(
        self,
        source,
        side: int,
        fit: str,
        limit_bytes: int,
        parse: Callable,
        check: Callable[[_Texts], None],
        damage: _Damage,
        pool: concurrent.futures.Executor,
        max_pixels: int,
    ):
        """Reads and decodes everything. MemoryError before anything is read if it takes more than
        limit_bytes.
        """
        needed = source.count * side * side * 3
        if needed > limit_bytes:
            raise MemoryError(
                f"{source.count:,} decoded pictures of {side} x {side} take {needed / 2**30:.2f} GiB, the "
                f"limit is {limit_bytes / 2**30:.2f} GiB: raise cache_limit_bytes, lower cache_side (now "
                f"{side}), or set cache_decoded=False to decode each picture when it is needed"
            )
        self.side = side
        self.pictures = np.empty((source.count, side, side, 3), np.uint8)
        self.texts: list[_Texts | None] = [None] * source.count

        def load(index: int, payload: bytes | None) -> bool:
            try:
                record = _parsed(parse, payload)
                texts = texts_of(record, index, source)
                check(texts)
                self.pictures[index] = framed(decode(record.image, max_pixels), side, fit)
            except ValueError as error:
                damage.note(index, error)
                return False
            self.texts[index] = texts
            return True

        usable = np.empty(source.count, bool)
        for start in range(0, source.count, _READ_AT_ONCE):
            indices = np.arange(start, min(start + _READ_AT_ONCE, source.count))
            usable[indices] = list(pool.map(load, indices.tolist(), source.read(indices)))
        good = np.flatnonzero(usable)
        if not good.size:
            raise ValueError(f"none of the {source.count:,} records can be used: {dict(damage.counts)}")
        following = np.searchsorted(good, np.arange(source.count))
        self.replacement = good[following % good.size]


def _parsed(parse: Callable, payload: bytes | None):
    """The record of a payload. RecordError if it is damaged."""
    if payload is None:
        raise RecordError("damaged record")
    try:
        return parse(payload)
    except Exception as error:  # whatever a parser finds wrong with foreign bytes, the record cannot be used
        raise RecordError(f"unreadable record ({type(error).__name__})") from error


class Batches:
    """What both kinds of training batches share; use `ContrastiveBatches` or `LabelledBatches`.

    A record that cannot be used (damaged in the file, no decodable picture, no text) is replaced by the next
    usable one in the order of the files, so that a batch always has its full, static size and the replacement
    depends neither on hosts nor on what was read before. `damage` counts such records by cause; `record` in a
    batch names the record really used.
    """

    def __init__(
        self,
        source,
        augmentation: ImageAugmentation,
        batch_size: int,
        seed: int,
        *,
        order=None,
        cache_decoded: bool = False,
        cache_side: int | None = None,
        cache_limit_bytes: int = 1 << 30,
        policy: Callable | None = None,
        threads: int | None = None,
        parse: Callable = parse_example,
        max_replacements: int = 100,
        max_pixels: int = 1 << 26,
    ):
        """Arguments of all batches.

        source: count, metadata and read(indices), as `records.RecordSource` and `memory.InMemorySource` have
        them.
        augmentation: what happens to each picture; its output_size is S. batch_size: B, over all hosts.
        order: which record each position holds, or a function of (source, batch_size, seed) that makes such an order;
          default `ExampleOrder(source.count, seed)`, of a mixture `MixtureOrder`.
        cache_decoded: decode all pictures once and keep them, cache_side x cache_side pixels (default: the
        first
          picture's longer side, at least the output's and at most twice that), within cache_limit_bytes.
        policy: a further augmentation of the finished pictures, called with (pictures uint8 [B, S, S, 3], key, examples),
        e.g. `rand_augment.RandAugment`.
        threads: for decoding; default as many as cores. parse: payload -> record; default
        `examples.parse_example`; `functools.partial` of it binds other keys.
        max_replacements: unusable records in a row that are an error.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > source.count:
            raise ValueError(
                f"batch_size={batch_size} is larger than the dataset ({source.count:,} records): a batch "
                "would hold a record twice; choose a smaller batch_size or a larger dataset"
            )
        if order is None:
            order = MixtureOrder if isinstance(source, MixedSource) else ExampleOrder(source.count, seed)
        self.order = order(source, int(batch_size), int(seed)) if callable(order) else order
        if isinstance(source, MixedSource) and not isinstance(self.order, MixtureOrder):
            raise ValueError(
                f"{type(self.order).__name__} knows nothing of the weights of a mixture: leave `order` out (None)"
            )
        if self.order.count != source.count:
            raise ValueError(f"the order is over {self.order.count} records, the source has {source.count}")
        arranged_for = getattr(self.order, "batch_size", None)
        if arranged_for not in (None, batch_size):
            raise ValueError(
                f"the order is arranged for batches of {arranged_for}, but batch_size={batch_size}"
            )
        self.source, self.augmentation, self.policy = source, augmentation, policy
        self.batch_size, self.seed = int(batch_size), int(seed)
        self.threads = threads or cores()
        self._damage = _Damage()
        self._parse = parse
        self._max_replacements = max_replacements
        self._max_pixels = max_pixels
        self._pool = concurrent.futures.ThreadPoolExecutor(self.threads, thread_name_prefix="pictures")
        self._cache = None
        if cache_decoded:
            self._cache = DecodedPictures(
                source,
                cache_side or self._cache_side(),
                augmentation.fit,
                cache_limit_bytes,
                self._parse,
                self._check,
                self._damage,
                self._pool,
                max_pixels,
            )

    @property
    def damage(self) -> dict[str, int]:
        """Number of distinct unusable records met so far, by cause."""
        return dict(self._damage.counts)

    def scalars(self, step: int) -> Mapping[str, float]:
        """What metrics should say of the data before a step: of a mixture, how much each part has given."""
        if isinstance(self.order, MixtureOrder):
            return self.order.scalars(int(step) * self.batch_size)
        return {}

    @property
    def steps_per_epoch(self) -> float:
        """Batches in one epoch of the order; a fraction where batches straddle epochs."""
        return self.order.epoch_length / self.batch_size

    def at(self, step: int, host: int = 0, hosts: int = 1) -> dict[str, np.ndarray]:
        """The rows of one host of the batch of a step: NumPy arrays, a pure function of (seed, step)."""
        rows = self._host_rows(host, hosts)
        key = step_key_numpy(self.seed, int(step))
        examples = np.arange(host * rows, (host + 1) * rows, dtype=np.int32)
        _, wanted = self.order.indices(int(step) * self.batch_size + host * rows, rows)
        choices = self.augmentation.choices(key, examples)
        if self._cache is not None:
            used = self._cache.replacement[wanted]
            images = self.augmentation.warp([self._cache.pictures[index] for index in used], choices)
            texts = [self._cache.texts[index] for index in used]
        else:
            payloads = self.source.read(wanted)
            loaded = self._pool.map(
                lambda row, index, payload: self._cut(index, payload, choices, row),
                range(rows),
                wanted.tolist(),
                payloads,
            )
            used, pictures, texts = zip(*loaded, strict=True)
            images = self.augmentation.finish(np.stack(pictures), choices)
        if self.policy is not None:
            images = self.policy(images, key, examples)
        batch = {"images": images, "record": np.asarray(used, np.int64), "examples": examples}
        return batch | self._targets(key, examples, texts)

    def dataset(
        self,
        first_step: int = 0,
        host: int = 0,
        hosts: int = 1,
        *,
        parallel_batches: int = 2,
        prefetch: int = 2,
        private_threads: int | None = None,
    ) -> tf.data.Dataset:
        """The batches of steps first_step, first_step + 1, ... without end, this host's rows of each.

        parallel_batches: made at once; prefetch: kept ready. private_threads: a thread pool of that size for
        this pipeline, so that it does not crowd the computation's; None shares tf.data's.
        """
        rows = self._host_rows(host, hosts)
        signature = self._signature(rows)
        return mapped(
            tf.data.Dataset.range(first_step, np.iinfo(np.int64).max),
            lambda step: self.at(int(step), host, hosts),
            signature,
            parallel_batches,
            prefetch,
            private_threads,
        )

    def _host_rows(self, host: int, hosts: int) -> int:
        if hosts < 1 or self.batch_size % hosts:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by {hosts} hosts; choose a multiple"
            )
        if not 0 <= host < hosts:
            raise ValueError(f"host must lie in [0, {hosts}), got {host}")
        return self.batch_size // hosts

    def _cache_side(self) -> int:
        """The side of decoded pictures in memory: enough for the output, and no shrinking by more than two
        later.
        """
        size = self.augmentation.output_size
        for start in range(0, self.source.count, _READ_AT_ONCE):
            indices = np.arange(start, min(start + _READ_AT_ONCE, self.source.count))
            for payload in self.source.read(indices):
                try:
                    first = header(_parsed(self._parse, payload).image)
                except ValueError:
                    continue
                return int(np.clip(max(first.height, first.width), size, 2 * size))
        return size

    def _cut(self, index: int, payload: bytes | None, choices, row: int) -> tuple[int, np.ndarray, _Texts]:
        for _ in range(self._max_replacements):
            try:
                record = _parsed(self._parse, payload)
                texts = texts_of(record, index, self.source)
                self._check(texts)
                return index, self.augmentation.cut(record.image, choices, row, self._max_pixels), texts
            except ValueError as error:
                self._damage.note(index, error)
            index = (index + 1) % self.source.count
            payload = self.source.read(np.array([index]))[0]
        raise RuntimeError(
            f"{self._max_replacements} records in a row cannot be used, the last is number {index}: "
            f"{self.damage}; check the dataset or raise max_replacements"
        )

    def _check(self, texts: _Texts) -> None:
        """Raises RecordError if a record lacks what the batch needs."""
        raise NotImplementedError

    def _targets(
        self, key: np.ndarray, examples: np.ndarray, texts: Sequence[_Texts]
    ) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _signature(self, rows: int | None) -> dict[str, tf.TensorSpec]:
        size = self.augmentation.output_size
        return {
            "images": tf.TensorSpec((rows, size, size, 3), tf.uint8),
            "record": tf.TensorSpec((rows,), tf.int64),
            "examples": tf.TensorSpec((rows,), tf.int32),
        }


class ContrastiveBatches(Batches):
    """Batches of pictures and texts: images, token_ids int32 [B, T], record, examples."""

    def __init__(
        self,
        source,
        tokenizer: Tokenizer,
        augmentation: ImageAugmentation,
        batch_size: int,
        seed: int,
        *,
        captions: CaptionChoice | None = None,
        label_names: Sequence[str] | None = None,
        **options,
    ):
        """captions: how a text is chosen. label_names: default metadata["label_names"]. options: see
        `Batches`.
        """
        self.tokenizer = tokenizer
        self.captions = captions or CaptionChoice()
        self._label_names = (
            label_names if label_names is not None else source.metadata.get("label_names") or ()
        )
        super().__init__(source, augmentation, batch_size, seed, **options)

    def _check(self, texts: _Texts) -> None:
        if self._label_names:
            _check_labels(texts.labels, len(self._label_names))
        if not texts.captions and not (self._label_names and texts.labels.size):
            raise RecordError("no caption")

    def texts(self, step: int, host: int = 0, hosts: int = 1) -> list[str]:
        """The texts of a batch before they are tokenized (for people and logs); reads the batch again."""
        batch = self.at(step, host, hosts)
        payloads = zip(batch["record"].tolist(), self.source.read(batch["record"]))
        texts = [texts_of(_parsed(self._parse, payload), number, self.source) for number, payload in payloads]
        return self._chosen(step_key_numpy(self.seed, int(step)), batch["examples"], texts)

    def _chosen(self, key, examples, texts: Sequence[_Texts]) -> list[str]:
        captions, labels = [t.captions for t in texts], [t.labels for t in texts]
        return self.captions.choose(key, examples, captions, labels, self._label_names)

    def _targets(self, key, examples, texts):
        with tf.device("CPU:0"):
            return {"token_ids": self.tokenizer(self._chosen(key, examples, texts)).numpy()}

    def _signature(self, rows):
        ids = tf.TensorSpec((rows, self.tokenizer.length), tf.int32)
        return super()._signature(rows) | {"token_ids": ids}


class LabelledBatches(Batches):
    """Batches of pictures and multi-hot labels: images, labels float32 [B, classes], record, examples."""

    def __init__(
        self,
        source,
        augmentation: ImageAugmentation,
        batch_size: int,
        seed: int,
        *,
        num_classes: int | None = None,
        **options,
    ):
        """num_classes: default the number of metadata["label_names"]. options: see `Batches`."""
        self.num_classes = num_classes or class_count(source.metadata)
        super().__init__(source, augmentation, batch_size, seed, **options)

    def _check(self, texts: _Texts) -> None:
        _check_labels(texts.labels, self.num_classes)
        if not texts.labels.size:
            raise RecordError("no label")

    def _targets(self, key, examples, texts):
        return {"labels": multi_hot([t.labels for t in texts], self.num_classes)}

    def _signature(self, rows):
        return super()._signature(rows) | {"labels": tf.TensorSpec((rows, self.num_classes), tf.float32)}


class EvaluationBatches:
    """Pictures in the order of the files, without augmentation; the last batch is short.

    Each element: images uint8 [b, S, S, 3], record int64 [b], examples int32 [b] (index within the batch),
    valid bool [b] (False: the picture could not be decoded and is white; nothing is replaced, so that results
    keep their records), labels float32 [b, classes] if num_classes, token_ids int32 [b, T] of each record's
    caption number `caption` (0 = padding throughout where it has none) if a tokenizer is given.
    """

    def __init__(
        self,
        source,
        augmentation: ImageAugmentation | int,
        batch_size: int,
        *,
        tokenizer: Tokenizer | None = None,
        num_classes: int | None = None,
        caption: int = 0,
        records: np.ndarray | None = None,
        threads: int | None = None,
        parse: Callable = parse_example,
        max_pixels: int = 1 << 26,
    ):
        """augmentation: its `evaluation()` is used; an int is an output size (whole picture). records: which,
        or all.
        """
        if isinstance(augmentation, int):
            augmentation = ImageAugmentation(augmentation, scale=(1.0, 1.0))
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.source, self.augmentation = source, augmentation.evaluation()
        self.batch_size = int(batch_size)
        self.records = np.arange(source.count) if records is None else np.asarray(records, np.int64)
        self._tokenizer, self._num_classes, self._caption = tokenizer, num_classes, caption
        self._parse = parse
        self._max_pixels = max_pixels
        self._damage = _Damage()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads or cores(), thread_name_prefix="pictures")

    @property
    def damage(self) -> dict[str, int]:
        """Number of undecodable pictures met so far, by cause."""
        return dict(self._damage.counts)

    def __len__(self) -> int:
        return (len(self.records) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self.at(number) for number in range(len(self)))

    def at(self, number: int) -> dict[str, np.ndarray]:
        """Batch `number` of 0 .. len(self) - 1."""
        indices = self.records[number * self.batch_size : (number + 1) * self.batch_size]
        count, size = len(indices), self.augmentation.output_size
        examples = np.arange(count, dtype=np.int32)
        choices = self.augmentation.choices(step_key_numpy(0, 0), examples, central=True)

        def load(row: int, index: int, payload: bytes | None):
            try:
                record = _parsed(self._parse, payload)
                return (
                    self.augmentation.cut(record.image, choices, row, self._max_pixels),
                    texts_of(record, index, self.source),
                    True,
                )
            except ValueError as error:
                self._damage.note(index, error)
                return np.full((size, size, 3), 255, np.uint8), _Texts((), np.zeros(0, np.int64)), False

        loaded = self._pool.map(load, range(count), indices.tolist(), self.source.read(indices))
        pictures, texts, valid = zip(*loaded, strict=True)
        batch = {
            "images": np.stack(pictures),
            "record": indices.astype(np.int64),
            "examples": examples,
            "valid": np.array(valid),
        }
        if self._num_classes:
            for t in texts:
                _check_labels(t.labels, self._num_classes)
            batch["labels"] = multi_hot([t.labels for t in texts], self._num_classes)
        if self._tokenizer is not None:
            chosen = ["" if self._caption >= len(t.captions) else t.captions[self._caption] for t in texts]
            with tf.device("CPU:0"):
                batch["token_ids"] = self._tokenizer(chosen).numpy()
        return batch

    def dataset(self, *, parallel_batches: int = 2, prefetch: int = 2) -> tf.data.Dataset:
        """The same batches behind tf.data's prefetching; the first dimension is not static."""
        size = self.augmentation.output_size
        signature = {
            "images": tf.TensorSpec((None, size, size, 3), tf.uint8),
            "record": tf.TensorSpec((None,), tf.int64),
            "examples": tf.TensorSpec((None,), tf.int32),
            "valid": tf.TensorSpec((None,), tf.bool),
        }
        if self._num_classes:
            signature["labels"] = tf.TensorSpec((None, self._num_classes), tf.float32)
        if self._tokenizer is not None:
            signature["token_ids"] = tf.TensorSpec((None, self._tokenizer.length), tf.int32)
        numbers = tf.data.Dataset.range(len(self))
        return mapped(numbers, lambda n: self.at(int(n)), signature, parallel_batches, prefetch, None)


def class_count(metadata: Mapping) -> int:
    """The number of classes a dataset's json tells: that of its label_names."""
    names = metadata.get("label_names")
    if not names:
        raise ValueError(
            "the dataset's json has no label_names: give num_classes, or prepare the data with labels"
        )
    return len(names)


def multi_hot(labels: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """float32 [B, num_classes]: 1 at each label of each example."""
    hot = np.zeros((len(labels), num_classes), np.float32)
    rows = np.repeat(np.arange(len(labels)), [len(own) for own in labels])
    hot[rows, np.fromiter(itertools.chain.from_iterable(labels), np.int64, len(rows))] = 1.0
    return hot


def cores() -> int:
    """The cores this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_labels(labels: np.ndarray, num_classes: int) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        wrong = labels.max() if labels.max() >= num_classes else labels.min()
        raise LookupError(
            f"a record has the label {wrong}, but labels must lie in [0, {num_classes}): "
            "check num_classes and the dataset's label_names"
        )
