"""Retrieval in both directions, with several captions to a picture (the convention of CLIP_benchmark).

Text to image: each caption is one query, right when its own picture is among the best k. Image to text: each
picture is one query, right when any of its captions is among the best k. Of equal similarities the lower
index comes first.
"""

from collections.abc import Sequence

import numpy as np

from basic_tf.evaluation.ranking import stable_ranks

_CHUNK = 512


def recalls(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_of_text: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = _CHUNK,
) -> dict[str, dict[str, float | int]]:
    """R@k in both directions.

    image_embeddings: unit rows [N, E]. text_embeddings: unit rows [M, E]. image_of_text: int [M], the picture
    of each caption; every picture needs at least one. Never holds more than `chunk` rows of the N x M
    similarities. Returns {"image_to_text": {"R@1": ..., "queries": N, "candidates": M}, "text_to_image":
    {...}}.
    """
    image_of_text = np.asarray(image_of_text, np.int64)
    images, texts = len(image_embeddings), len(text_embeddings)
    if image_of_text.shape != (texts,):
        raise ValueError(
            f"{texts} captions need {texts} picture numbers, received the shape {image_of_text.shape}"
        )
    if images == 0 or texts == 0:
        raise ValueError(f"retrieval needs pictures and captions, received {images} and {texts}")
    if image_of_text.min() < 0 or image_of_text.max() >= images:
        raise ValueError(f"picture numbers must lie in 0..{images - 1}")
    counts = np.bincount(image_of_text, minlength=images)
    if counts.min() == 0:
        raise ValueError(f"picture {int(np.argmin(counts))} has no caption; every picture needs at least one")
    for name, rows in (("image", image_embeddings), ("text", text_embeddings)):
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} embeddings are not finite")

    text_ranks = np.concatenate(
        [
            stable_ranks(
                text_embeddings[start : start + chunk] @ image_embeddings.T,
                image_of_text[start : start + chunk],
            )
            for start in range(0, texts, chunk)
        ]
    )
    image_ranks = np.concatenate(
        [
            _best_ranks(image_embeddings[start : start + chunk] @ text_embeddings.T, start, image_of_text)
            for start in range(0, images, chunk)
        ]
    )
    return {
        "image_to_text": _recalls(image_ranks, ks, texts),
        "text_to_image": _recalls(text_ranks, ks, images),
    }


def _best_ranks(scores: np.ndarray, start: int, image_of_text: np.ndarray) -> np.ndarray:
    """Rank of the best own caption in each row [n, M]; row i is picture start + i."""
    own = image_of_text[None, :] == np.arange(start, start + len(scores))[:, None]
    # argmax takes the first of equal values: the own caption that comes first in the stable order.
    return stable_ranks(scores, np.argmax(np.where(own, scores, -np.inf), axis=1))


def _recalls(ranks: np.ndarray, ks: Sequence[int], candidates: int) -> dict[str, float | int]:
    values: dict[str, float | int] = {f"R@{k}": float(np.mean(ranks < k)) for k in ks}
    return {**values, "queries": len(ranks), "candidates": candidates}
