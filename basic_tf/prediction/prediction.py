"""Classifying and searching pictures with an encoder."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from basic_tf.evaluation.encoder import Encoder
from basic_tf.evaluation.prompts import class_prompts
from basic_tf.evaluation.zero_shot import class_weights
from basic_tf.prediction.pictures import Picture, Unreadable


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes of one picture, best first. thumbnail: as in `Picture`."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    thumbnail: object = None


@dataclasses.dataclass(frozen=True)
class Match:
    """A picture and its cosine similarity with the sentence."""

    path: str
    similarity: float
    thumbnail: object = None


def embedded(
    encoder: Encoder, pictures: Iterable[Picture | Unreadable], batch: int
) -> Iterator[tuple[list[Picture], np.ndarray, list[Unreadable]]]:
    """Yields (readable pictures, their embeddings [n, E], unreadable files), `batch` files at a time."""
    good: list[Picture] = []
    bad: list[Unreadable] = []
    for item in pictures:
        (good if isinstance(item, Picture) else bad).append(item)
        if len(good) + len(bad) == batch:
            yield _embed(encoder, good, bad)
            good, bad = [], []
    if good or bad:
        yield _embed(encoder, good, bad)


def _embed(encoder, good, bad):
    if not good:
        return good, np.zeros((0, encoder.embedding_dim), np.float32), bad
    try:
        return good, encoder.encode_image_bytes([picture.encoded for picture in good]), bad
    except ValueError:
        # A file that Pillow reads and TensorFlow does not: each by itself, so that the others still get their
        # answer.
        kept, rows = [], []
        for picture in good:
            try:
                rows.append(encoder.encode_image_bytes([picture.encoded])[0])
                kept.append(picture)
            except ValueError as error:
                bad.append(Unreadable(picture.path, f"cannot be decoded: {str(error).split(': ', 1)[-1]}"))
        return kept, np.reshape(np.asarray(rows, np.float32), (len(kept), encoder.embedding_dim)), bad


def classify(
    encoder: Encoder,
    pictures: Iterable[Picture | Unreadable],
    classes: Sequence[str],
    templates: Sequence[str],
    top: int = 3,
    batch: int = 64,
) -> Iterator[Prediction | Unreadable]:
    """The best `top` classes of each picture with their probabilities, softmax(cosine / temperature) over
    `classes`.

    Answers come in the order of the pictures within each batch, unreadable files after the readable ones.
    """
    weights = class_weights(encoder, class_prompts(classes, templates))
    top = min(top, len(classes))
    for good, embeddings, bad in embedded(encoder, pictures, batch):
        logits = (embeddings.astype(np.float64) @ weights.T.astype(np.float64)) / encoder.temperature
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for row, picture in enumerate(good):
            best = order[row]
            yield Prediction(
                picture.path,
                tuple(classes[index] for index in best),
                tuple(float(probabilities[row, index]) for index in best),
                picture.thumbnail,
            )
        yield from bad


def search(
    encoder: Encoder,
    pictures: Iterable[Picture | Unreadable],
    sentence: str,
    batch: int = 64,
    on_unreadable: Callable[[Unreadable], None] = lambda unreadable: None,
) -> list[Match]:
    """All readable pictures, most similar to the sentence first; of equal ones in the order given."""
    query = encoder.encode_text([sentence])[0].astype(np.float64)
    matches = []
    for good, embeddings, bad in embedded(encoder, pictures, batch):
        similarities = embeddings.astype(np.float64) @ query
        matches += [
            Match(picture.path, float(similarity), picture.thumbnail)
            for picture, similarity in zip(good, similarities)
        ]
        for unreadable in bad:
            on_unreadable(unreadable)
    return sorted(matches, key=lambda match: -match.similarity)
