"""Batches as a pure function of (seed, step): what training and evaluation read.

`Batches.at(step)` needs nothing but its argument, so a run resumed at step k reads what the uninterrupted run
would have, hosts divide each batch by rows, and reading ahead by threads changes nothing. `Batches.dataset`
is the same thing behind tf.data's prefetching.
"""

import concurrent.futures
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from basic_tf.data.block_cache import kept_by_blocks
from basic_tf.data.captions import CaptionChoice
from basic_tf.data.examples import parse_example
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.labels import check_labels, class_count, multi_hot
from basic_tf.data.mixture import MixedSource, MixtureOrder
from basic_tf.data.order import ExampleOrder
from basic_tf.data.picture_headers import header
from basic_tf.data.python_calls import aligned_empty, mapped
from basic_tf.data.tokenizer import Tokenizer
from basic_tf.data.usable_records import (
    READ_AT_ONCE,
    Damage,
    DecodedPictures,
    NothingToLearnError,
    Texts,
    in_tasks,
    parsed,
    readable,
    texts_of,
)
from basic_tf.machine import cores
from basic_tf.randomness import step_key_numpy


class Batches:
    """What both kinds of training batches share; use `ContrastiveBatches` or `LabelledBatches`.

    A record that cannot be used (damaged in the file, no decodable picture, no text) is replaced by the next
    usable one in the order of the files, so that a batch always has its full, static size and the replacement
    depends neither on hosts nor on what was read before. `damage` counts such records by cause, `scalars` hands
    their number to the metrics; `record` in a batch names the record really used.
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
        max_unusable_fraction: float = 0.05,
        max_pixels: int = 1 << 26,
    ):
        """Arguments of all batches.

        source: count, metadata and read(indices), as `records.RecordSource` and `memory.InMemorySource` have
        them.
        augmentation: what happens to each picture; its output_size is S. batch_size: B, over all hosts.
        order: which record each position holds, or a function of (source, batch_size, seed) that makes such an order;
          default `ExampleOrder(source.count, seed)`, of a mixture `MixtureOrder`. With a `BlockOrder`, records of remote
          files are read and kept by blocks.
        cache_decoded: decode all pictures once and keep them, cache_side x cache_side pixels (default: the
        first
          picture's longer side, at least the output's and at most twice that), within cache_limit_bytes.
        policy: a further augmentation of the finished pictures, called with (pictures uint8 [B, S, S, 3], key, examples),
        e.g. `rand_augment.RandAugment`.
        threads: for decoding; default one more than cores. parse: payload -> record; default
        `examples.parse_example`; `functools.partial` of it binds other keys.
        max_replacements: unusable records in a row that are an error. max_unusable_fraction: above this share of damaged
        records (but at least 10; those that merely lack a text or label do not count) reading stops, an error.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > source.count:
            raise ValueError(
                f"batch_size={batch_size} is larger than the dataset ({source.count:,} records): a batch "
                "would hold a record twice; choose a smaller batch_size or a larger dataset"
            )
        if isinstance(source, MixedSource):
            source.check_batch(batch_size)
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
        self.source, self.augmentation, self.policy = kept_by_blocks(source, self.order), augmentation, policy
        self.batch_size, self.seed = int(batch_size), int(seed)
        self.threads = threads or cores() + 1  # one more: each waits now and then for Python's lock
        self._damage = Damage(source.count, max_unusable_fraction)
        self._parse = parse
        self._max_replacements = max_replacements
        self._max_pixels = max_pixels
        self._pool = concurrent.futures.ThreadPoolExecutor(self.threads, thread_name_prefix="pictures")
        self._features = None
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
    def keeps_decoded(self) -> bool:
        """Whether all pictures wait decoded in memory."""
        return self._cache is not None

    def fixed_pictures(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
        """(uint8 [n, S, S, 3], int64 [n] records really used, their encoded pictures), of an augmentation without chance.

        ValueError for one with chance: it gives a record a new picture each time.
        """
        if self.augmentation.varying:
            raise ValueError(f"views of a picture differ by {', '.join(self.augmentation.varying)}")
        records = np.asarray(records, np.int64)
        choices = self.augmentation.choices(step_key_numpy(0, 0), np.arange(len(records), dtype=np.int32))
        images, used, _ = self._cut_all(records, choices)
        used = np.asarray(used, np.int64)
        encoded = [parsed(self._parse, payload).image for payload in self.source.read(used)]
        return images, used, encoded

    def use_features(self, cache) -> None:
        """From now on `images` of a batch are float32 [B, D], the features of a `feature_cache.FeatureCache`."""
        self._features = cache

    @property
    def gives_features(self) -> bool:
        """Whether `images` of a batch are features."""
        return self._features is not None

    @property
    def damage(self) -> dict[str, int]:
        """Number of distinct unusable records met so far, by cause."""
        return dict(self._damage.counts)

    def scalars(self, step: int) -> Mapping[str, float]:
        """What metrics should say of the data before a step: of a mixture, how much each part has given; how many records
        this host could not use so far, if any.
        """
        found = {}
        if isinstance(self.order, MixtureOrder):
            found |= self.order.scalars(int(step) * self.batch_size)
        unusable = sum(self.damage.values())
        return found | ({"unusable_records": float(unusable)} if unusable else {})

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
        if self._features is not None:
            return self._batch_of_features(key, examples, wanted)
        if self._cache is not None:
            used = self._cache.replacement[wanted]
            images = self.augmentation.warp([self._cache.pictures[index] for index in used], choices)
            texts = [self._cache.texts[index] for index in used]
        else:
            images, used, texts = self._cut_all(wanted, choices)
        if self.policy is not None:
            images = self.policy(images, key, examples)
        batch = {"images": images, "record": np.asarray(used, np.int64), "examples": examples}
        return batch | self._targets(key, examples, texts)

    def _batch_of_features(self, key, examples, wanted: np.ndarray) -> dict[str, np.ndarray]:
        used = self._features.used[wanted]
        records = [parsed(self._parse, payload) for payload in self.source.read(used)]
        texts = [texts_of(record, index, self.source) for record, index in zip(records, used.tolist())]
        images = self._features.rows(wanted, [record.image for record in records])
        batch = {"images": images, "record": used, "examples": examples}
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
        for start in range(0, self.source.count, READ_AT_ONCE):
            indices = np.arange(start, min(start + READ_AT_ONCE, self.source.count))
            for payload in self.source.read(indices):
                try:
                    first = header(parsed(self._parse, payload).image)
                except ValueError:
                    continue
                return int(np.clip(max(first.height, first.width), size, 2 * size))
        return size

    def _cut_all(self, wanted: np.ndarray, choices) -> tuple[np.ndarray, list[int], list[Texts]]:
        """(uint8 [n, S, S, 3], records really used, their texts) of n records, by the per-example road."""
        size, count = self.augmentation.output_size, len(wanted)
        images = aligned_empty((count, size, size, 3))
        indices, payloads = wanted.tolist(), self.source.read(wanted)

        def cut(rows: range) -> list[tuple[int, Texts]]:
            done = self._cut_together(rows, indices, payloads, choices, images)
            # Those that cannot be used, once more alone: they are counted, and others take their place.
            return [
                done.get(row) or self._cut(indices[row], payloads[row], choices, row, images[row])
                for row in rows
            ]

        parts = self._pool.map(cut, in_tasks(count, self.threads))
        used, texts = zip(*itertools.chain.from_iterable(parts), strict=True)
        return self.augmentation.finish(images, choices), list(used), list(texts)

    def _cut_together(
        self, rows: range, indices: list[int], payloads, choices, images: np.ndarray
    ) -> dict[int, tuple[int, Texts]]:
        """Fills the rows whose records can be used: (record, its texts) of each of them."""
        good, texts, encoded = readable(
            rows, indices, payloads, self.source, self._parse, self._check, self._damage
        )
        errors = self.augmentation.cut_together(encoded, choices, good, self._max_pixels, images)
        return {
            row: (indices[row], own)
            for row, own, error in zip(good, texts, errors, strict=True)
            if error is None
        }

    def _cut(
        self, index: int, payload: bytes | None, choices, row: int, out: np.ndarray
    ) -> tuple[int, Texts]:
        for _ in range(self._max_replacements):
            try:
                record = parsed(self._parse, payload)
                texts = texts_of(record, index, self.source)
                self._check(texts)
                self.augmentation.cut(record.image, choices, row, self._max_pixels, out)
                return index, texts
            except ValueError as error:
                self._damage.note(index, error)
            index = (index + 1) % self.source.count
            payload = self.source.read(np.array([index]))[0]
        raise RuntimeError(
            f"{self._max_replacements} records in a row cannot be used, the last is number {index}: "
            f"{self.damage}; check the dataset or raise max_replacements"
        )

    def _check(self, texts: Texts) -> None:
        """Raises NothingToLearnError if a record lacks what the batch needs."""
        raise NotImplementedError

    def _targets(
        self, key: np.ndarray, examples: np.ndarray, texts: Sequence[Texts]
    ) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _signature(self, rows: int | None) -> dict[str, tf.TensorSpec]:
        size = self.augmentation.output_size
        images = tf.TensorSpec((rows, size, size, 3), tf.uint8)
        if self._features is not None:
            images = tf.TensorSpec((rows, self._features.width), tf.float32)
        return {
            "images": images,
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

    def _check(self, texts: Texts) -> None:
        if self._label_names:
            check_labels(texts.labels, len(self._label_names))
        if not texts.captions and not (self._label_names and texts.labels.size):
            raise NothingToLearnError("no caption")

    def texts(self, step: int, host: int = 0, hosts: int = 1) -> list[str]:
        """The texts of a batch before they are tokenized (for people and logs); reads the batch again."""
        batch = self.at(step, host, hosts)
        payloads = zip(batch["record"].tolist(), self.source.read(batch["record"]))
        texts = [texts_of(parsed(self._parse, payload), number, self.source) for number, payload in payloads]
        return self._chosen(step_key_numpy(self.seed, int(step)), batch["examples"], texts)

    def _chosen(self, key, examples, texts: Sequence[Texts]) -> list[str]:
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

    def _check(self, texts: Texts) -> None:
        check_labels(texts.labels, self.num_classes)
        if not texts.labels.size:
            raise NothingToLearnError("no label")

    def _targets(self, key, examples, texts):
        return {"labels": multi_hot([t.labels for t in texts], self.num_classes)}

    def _signature(self, rows):
        return super()._signature(rows) | {"labels": tf.TensorSpec((rows, self.num_classes), tf.float32)}
