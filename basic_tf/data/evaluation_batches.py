"""Pictures for evaluation: in the order of the files, without chance."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from basic_tf.data.examples import parse_example
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.labels import check_labels, multi_hot
from basic_tf.data.python_calls import mapped
from basic_tf.data.tokenizer import Tokenizer
from basic_tf.data.usable_records import Damage, Texts, in_tasks, readable
from basic_tf.machine import cores
from basic_tf.randomness import step_key_numpy


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
        self._damage = Damage()
        self._threads = threads or cores()
        self._pool = concurrent.futures.ThreadPoolExecutor(self._threads, thread_name_prefix="pictures")

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

        images = np.full((count, size, size, 3), 255, np.uint8)
        numbers, payloads = indices.tolist(), self.source.read(indices)

        def load(rows: range) -> list[Texts | None]:
            found = dict.fromkeys(rows)
            good, texts, encoded = readable(
                rows, numbers, payloads, self.source, self._parse, lambda own: None, self._damage
            )
            errors = self.augmentation.cut_together(encoded, choices, good, self._max_pixels, images)
            for row, own, error in zip(good, texts, errors, strict=True):
                if error is None:
                    found[row] = own
                else:
                    self._damage.note(numbers[row], error)
            return list(found.values())

        loaded = list(itertools.chain.from_iterable(self._pool.map(load, in_tasks(count, self._threads))))
        texts = [Texts((), np.zeros(0, np.int64)) if found is None else found for found in loaded]
        batch = {
            "images": images,
            "record": indices.astype(np.int64),
            "examples": examples,
            "valid": np.array([found is not None for found in loaded]),
        }
        if self._num_classes:
            for t in texts:
                check_labels(t.labels, self._num_classes)
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
