"""One protocol for everything that turns pictures and sentences into embeddings, and its two implementations.

Work goes through in batches of one fixed size, the last one padded: one trace of each function, the same bits
for a picture whatever company it comes in, and memory that does not grow with the number of pictures.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from basic_tf.data.decoding import plain_bytes
from basic_tf.data.images import ImageAugmentation
from basic_tf.serving import saved_model as saved_models
from basic_tf.serving.module import ServingModule

DEFAULT_BATCH = 64


class UndecodableError(ValueError):
    """A picture that cannot be decoded. row: which of those given; complaint: its size and the decoder's reason."""

    def __init__(self, row: int, complaint: str):
        super().__init__(f"picture {row} {complaint}")
        self.row, self.complaint = row, complaint


class Encoder(Protocol):
    """What evaluation and prediction need of a model. Calls from several threads at a time are fine."""

    image_size: int
    embedding_dim: int
    temperature: float

    def encode_image_bytes(self, images: Sequence[bytes]) -> np.ndarray:
        """float32 [N, E] unit rows from encoded pictures (JPEG, PNG, GIF, BMP, WebP), seen as training sees them.
        ValueError names an undecodable one (`UndecodableError`).
        """

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, E] unit rows from pixels, uint8 [N, S, S, 3]."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, E] unit rows from sentences."""


class _BatchedEncoder:
    """Fixed batches with padding over three functions of one full batch."""

    image_size: int
    embedding_dim: int
    temperature: float
    batch_size: int
    _encode_bytes: Callable[[tf.Tensor], tf.Tensor]
    _encode_pixels: Callable[[tf.Tensor], tf.Tensor]
    # Sentences go through in two steps, as tokenizing many at once costs a third of tokenizing them a batch at a time.
    _prepare_texts: Callable[[list[str]], np.ndarray]  # rows [N, ...]
    _encode_prepared: Callable[[tf.Tensor], tf.Tensor]

    def encode_image_bytes(self, images: Sequence[bytes]) -> np.ndarray:
        """See `Encoder`."""
        images = list(images)
        result = np.empty((len(images), self.embedding_dim), np.float32)
        for start in range(0, len(images), self.batch_size):
            # The graph alone would leave photographs on their side, which training turns.
            batch = [plain_bytes(image) for image in images[start : start + self.batch_size]]
            # The padding repeats a picture of the batch: it decodes if the batch does.
            padded = batch + [batch[0]] * (self.batch_size - len(batch))
            try:
                embeddings = self._encode_bytes(tf.constant(padded, tf.string))
            except tf.errors.InvalidArgumentError as error:
                raise self._undecodable(batch, start) from error
            result[start : start + len(batch)] = embeddings.numpy()[: len(batch)]
        return result

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """See `Encoder`."""
        expected = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ValueError(f"expected uint8 [N, {expected}], received {images.dtype} {images.shape}")
        result = np.empty((len(images), self.embedding_dim), np.float32)
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            padded = np.zeros((self.batch_size, *expected), np.uint8)
            padded[: len(batch)] = batch
            result[start : start + len(batch)] = self._encode_pixels(tf.constant(padded)).numpy()[
                : len(batch)
            ]
        return result

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        prepared = self._prepare_texts(texts)
        result = np.empty((len(texts), self.embedding_dim), np.float32)
        for start in range(0, len(texts), self.batch_size):
            batch = prepared[start : start + self.batch_size]
            padded = np.concatenate([batch, np.repeat(batch[:1], self.batch_size - len(batch), axis=0)])
            embeddings = self._encode_prepared(tf.constant(padded))
            result[start : start + len(batch)] = embeddings.numpy()[: len(batch)]
        return result

    def _undecodable(self, batch: Sequence[bytes], start: int) -> ValueError:
        """The decode op does not say which row it failed on; rows tried one by one do."""
        for row, image in enumerate(batch):
            try:
                self._encode_bytes(tf.constant([image] * self.batch_size, tf.string))
            except tf.errors.InvalidArgumentError as error:
                complaint = f"({len(image)} bytes) cannot be decoded: {_reason(error)}"
                return UndecodableError(start + row, complaint)
        return ValueError(
            f"pictures {start}..{start + len(batch) - 1} fail together, though each can be encoded alone"
        )


def _reason(error: tf.errors.OpError) -> str:
    """The one line of a graph's error that says what was wrong; the rest says where in the graph."""
    lines = str(error.message).split("\n\t [[")[0].splitlines()
    line = lines[-1].split("}} ")[-1] if lines else "no reason given"
    return line.removeprefix("assertion failed: ").strip()


class ModelEncoder(_BatchedEncoder):
    """An encoder over a dual encoder in this process.

    model: offers `encode_image(uint8 [N, S, S, 3])` and `encode_text(int32 [N, T])`, unit rows [N, E], and
    `log_inverse_temperature`. tokenizer: strings -> int32 [N, T]. preprocessing: as for `ServingModule`: an
    augmentation, or the size S in pixels.
    """

    def __init__(
        self, model, tokenizer, preprocessing: ImageAugmentation | int, batch_size: int = DEFAULT_BATCH
    ):
        # The same graph functions that are exported: what is measured is what is served.
        self._module = ServingModule(model, tokenizer, preprocessing)
        self.image_size = self._module.image_size
        self.batch_size = batch_size
        self._encode_bytes = lambda images: self._module.encode_image(images)["embeddings"]
        self._encode_pixels = lambda images: self._module.encode_pixels(images)["embeddings"]
        self._prepare_texts = lambda texts: self._module.tokens(tf.constant(texts, tf.string)).numpy()
        self._encode_prepared = self._module.embed_tokens
        self.embedding_dim = int(self._module.encode_text(tf.constant([""]))["embeddings"].shape[1])

    @property
    def temperature(self) -> float:
        """The learned softmax temperature; probabilities are softmax(cosine / temperature)."""
        return float(np.exp(-float(tf.convert_to_tensor(self._module.log_inverse_temperature))))


class SavedModelEncoder(_BatchedEncoder):
    """An encoder over an exported SavedModel: needs tensorflow and tensorflow_text, no checkpoint and no
    model code.

    saved_model: the folder (local or gs://) that basic_tf.export wrote. Its description is in `metadata`.
    """

    def __init__(self, saved_model: str, batch_size: int = DEFAULT_BATCH):
        import tensorflow_text  # noqa: F401  registers the SentencePiece ops that the graph uses

        self.metadata = saved_models.load_metadata(saved_model)
        self.image_size = int(self.metadata["image_size"])
        self.embedding_dim = int(self.metadata["embedding_dim"])
        self.temperature = float(self.metadata["temperature"])
        self.batch_size = batch_size
        self._loaded = saved_models.load(saved_model)
        signatures = self._loaded.signatures
        self._encode_bytes = lambda images: signatures["encode_image"](image_bytes=images)["embeddings"]
        self._encode_pixels = lambda images: signatures["encode_pixels"](images=images)["embeddings"]
        # The exported signature tokenizes itself.
        self._prepare_texts = lambda texts: tf.constant(texts, tf.string).numpy()
        self._encode_prepared = lambda texts: signatures["encode_text"](texts=texts)["embeddings"]
