"""What TensorBoard shows of a run: curves, pictures and their retrieved captions, similarities, the config.

Curves are written by the training loop (orbit); the rest is drawn here, without pyplot: it keeps every figure
alive and is not safe in threads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_RIGHT, _WRONG, _INK = "#1a7f37", "#b42318", "#24292f"


class Retrieved(NamedTuple):
    """A caption found for a picture.

    score: cosine similarity or probability. right: whether it is a true one; None if nobody knows.
    """

    text: str
    score: float
    right: bool | None = None


def gallery(
    pictures: np.ndarray,
    retrieved: Sequence[Sequence[Retrieved]],
    titles: Sequence[str] | None = None,
    columns: int = 6,
    title: str = "",
) -> Figure:
    """Test pictures, each with the captions found for it, best first: right ones green, wrong ones red.

    pictures: uint8 [N, H, W, 3]. retrieved: N lists. titles: N true names, above the pictures.
    """
    count = len(pictures)
    if len(retrieved) != count or (titles is not None and len(titles) != count) or not count:
        raise ValueError(
            f"A gallery needs one list of captions (and one title) per picture: got {count} pictures, "
            f"{len(retrieved)} lists, {'no' if titles is None else len(titles)} titles."
        )
    columns = min(columns, count)
    rows = -(-count // columns)
    lines = max(1, *(len(found) for found in retrieved))
    # Inches: a cell holds the title, the picture and its lines of text.
    side, line_height, title_height = 1.5, 0.16, 0.24
    cell_width, cell_height = side + 0.45, side + title_height + line_height * (lines + 1)
    top = 0.45 if title else 0.1
    width, height = columns * cell_width, rows * cell_height + top
    figure = _figure(width, height)
    if title:
        _text(figure, 0.5, 1 - 0.22 / height, title, size=12, ha="center", va="center", weight="bold")
    for i in range(count):
        row, column = divmod(i, columns)
        left = column * cell_width + (cell_width - side) / 2
        above = height - top - row * cell_height - title_height
        axes = figure.add_axes((left / width, (above - side) / height, side / width, side / height))
        axes.imshow(pictures[i], interpolation="nearest" if pictures.shape[1] <= 96 else "antialiased")
        _bare(axes)
        centre = (left + side / 2) / width
        if titles is not None:
            name = _short(titles[i], 26)
            y = (above + 0.05) / height
            _text(figure, centre, y, name, size=8, ha="center", va="bottom", weight="bold")
        for j, found in enumerate(retrieved[i]):
            mark = {True: "✓ ", False: "✗ ", None: ""}[found.right]
            color = {True: _RIGHT, False: _WRONG, None: _INK}[found.right]
            line = f"{mark}{_short(found.text, 24)}  {found.score:.2f}"
            y = (above - side - line_height * (j + 0.35)) / height
            _text(figure, centre, y, line, size=7, ha="center", va="top", color=color)
    return figure


def similarity_matrix(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    captions: Sequence[str] | None = None,
    pictures: np.ndarray | None = None,
    title: str = "Similarity of pictures and captions",
    most: int = 32,
) -> Figure:
    """Cosine similarities of the first `most` pairs of a batch; row i and column i belong together.

    image_embeddings, text_embeddings: unit rows [N, E]. captions: N texts for the columns. pictures: uint8
    [N, H, W, 3], shown beside the rows. The marked cell of a row is its best caption: on the diagonal it is
    right.
    """
    if image_embeddings.shape != text_embeddings.shape or image_embeddings.ndim != 2:
        raise ValueError(
            f"Expected two arrays [N, E], got {image_embeddings.shape} for pictures and "
            f"{text_embeddings.shape} for captions."
        )
    count = min(len(image_embeddings), most)
    # (N, E) . (E, N) -> (N, N)
    images, texts = (np.asarray(rows[:count], np.float32) for rows in (image_embeddings, text_embeddings))
    similarity = images @ texts.T
    best = similarity.argmax(axis=1)
    diagonal = similarity.diagonal()
    others = similarity[~np.eye(count, dtype=bool)]
    subtitle = f"pairs {diagonal.mean():.3f}"
    if others.size:
        subtitle += f", others {others.mean():.3f} on average;"
    subtitle += (
        f" best caption is the right one for {(best == np.arange(count)).mean():.0%} of {count} pictures"
    )

    side = max(4.0, 0.22 * count)
    left, bottom, right, top = 0.95, 1.75 if captions is not None else 0.6, 1.1, 0.75
    width, height = left + side + right, bottom + side + top
    figure = _figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    # Symmetric about 0, so that white always means "unrelated".
    limit = max(float(np.abs(similarity).max()), 1e-6)
    mesh = axes.imshow(similarity, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.scatter(best, np.arange(count), s=11, facecolors="white", edgecolors=_INK, linewidths=0.6)
    axes.set_xlabel("caption")
    ticks = np.arange(count) if captions is not None else np.arange(0, count, max(1, count // 8))
    axes.set_xticks(ticks)
    if captions is not None:
        names = [_short(caption, 26) for caption in captions[:count]]
        style = {"rotation": 55, "ha": "right", "rotation_mode": "anchor", "fontsize": 6.5}
        axes.set_xticklabels(names, parse_math=False, **style)
    if pictures is None:
        axes.set_yticks(np.arange(0, count, max(1, count // 8)))
        axes.set_ylabel("picture")
    else:
        axes.set_yticks([])
        column = np.concatenate(list(pictures[:count]), axis=0)  # [N * H, W, 3]: one picture beside each row
        cell = side / count
        strip = figure.add_axes(((left - cell - 0.05) / width, bottom / height, cell / width, side / height))
        strip.imshow(column, aspect="auto", interpolation="antialiased")
        _bare(strip)
        strip.set_ylabel("picture")
    bar = figure.add_axes(((left + side + 0.12) / width, bottom / height, 0.14 / width, side / height))
    figure.colorbar(mesh, cax=bar, label="cosine similarity")
    _text(figure, left / width, 1 - 0.28 / height, title, size=11, ha="left", va="center", weight="bold")
    _text(figure, left / width, 1 - 0.52 / height, subtitle, size=7.5, ha="left", va="center")
    return figure


def image_from_figure(figure: Figure) -> np.ndarray:
    """uint8 [1, height, width, 3], what `tf.summary.image` takes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[None, :, :, :3].copy()


def config_markdown(config: str) -> str:
    """The operative gin config as a Markdown code block, which TensorBoard's text tab shows as it is."""
    return "\n".join("    " + line for line in config.splitlines())


def write_figure(step: int, name: str, figure: Figure) -> None:
    """A figure as a picture, to TensorFlow's default summary writer (nothing where there is none)."""
    tf.summary.image(name, image_from_figure(figure), step=step)


def write_config(step: int, config: str) -> None:
    """The operative gin config into the text tab, through TensorFlow's default summary writer."""
    tf.summary.text("gin", config_markdown(config), step=step)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, facecolor="white")


def _text(figure: Figure, x: float, y: float, text: str, size: float, color: str = _INK, **kwargs) -> None:
    # Captions are not formulas: a lone "$" would be one to matplotlib.
    figure.text(x, y, text, fontsize=size, color=color, parse_math=False, **kwargs)


def _bare(axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d7de")


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
