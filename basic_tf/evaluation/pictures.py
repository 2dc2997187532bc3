"""Figures of an evaluation: a grid of test pictures with their predictions, and accuracy by style against
chance.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

PLAIN = {"parse_math": False}  # a class name may hold dollar signs
RIGHT, WRONG, MUTED = "#1a7f37", "#c4314b", "#6a737d"
SERIES = ("#2f6fb3", "#e08a1e", "#5a9e6f", "#a05195", "#6a737d", "#c4314b")
_MARKERS = ("o", "^", "s", "D")  # where there are more series than colours


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis, at most `length` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _figure(width: float, height: float, **options):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: its global state and its choice of a window system have no place in a server.
    figure = Figure(figsize=(width, height), dpi=120, **options)
    FigureCanvasAgg(figure)
    return figure


def cell_figure(rows: int, columns: int, title: str, side: float, above: float, below: float, left: float):
    """A figure of square cells and its axes [rows, columns]; all sizes in inches.

    side: of a cell. above, below: room for text over and under each cell. left: room left of the first
    column. The places are computed here: matplotlib's own layout takes seconds for forty cells.
    """
    gap, top = 0.16, 0.5
    width = left + columns * (side + gap)
    height = top + rows * (above + side + below)
    figure = _figure(width, height)
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=13, **PLAIN)
    cells = np.empty((rows, columns), object)
    for row in range(rows):
        bottom = height - top - row * (above + side + below) - above - side
        for column in range(columns):
            place = (left + column * (side + gap), bottom, side, side)
            cells[row, column] = figure.add_axes(
                (place[0] / width, place[1] / height, place[2] / width, place[3] / height)
            )
    return figure, cells


def save(figure, path: str) -> None:
    """Writes the figure as PNG to a local or gs:// path."""
    with tf.io.gfile.GFile(path, "wb") as file:
        figure.savefig(file, format="png")


@dataclasses.dataclass
class GridRow:
    """One test in the grid: pictures uint8 [S, S, 3], true classes, whether the best class is right (two
    classes may share a name), the best classes of each and their cosines."""

    title: str
    images: list[np.ndarray]
    labels: list[str]
    right: list[bool]
    predictions: list[Sequence[str]]
    scores: list[Sequence[float]]


def prediction_grid(path: str, rows: Sequence[GridRow], title: str) -> None:
    """Writes a PNG: a row for each test; each picture under its true class with its three best classes below.

    Right is green with a tick, wrong is red with a cross; among the three, the true class is green.
    """
    columns = max(len(row.images) for row in rows)
    figure, cells = cell_figure(len(rows), columns, title, side=1.7, above=0.28, below=0.66, left=0.5)
    for row, line in zip(rows, cells):
        for axis in line[len(row.images) :]:
            axis.axis("off")
        line[0].set_ylabel(shortened(row.title, 24), fontsize=11, labelpad=8, **PLAIN)
        for column, axis in zip(range(len(row.images)), line):
            _cell(
                axis,
                *(part[column] for part in (row.images, row.labels, row.right, row.predictions, row.scores)),
            )
    save(figure, path)


def _cell(
    axis, image: np.ndarray, label: str, right: bool, best: Sequence[str], scores: Sequence[float]
) -> None:
    colour = RIGHT if right else WRONG
    axis.imshow(image, interpolation="nearest" if image.shape[0] <= 96 else "antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5)
    axis.set_title(
        f"{'✓' if right else '✗'} {shortened(label, 19)}",
        fontsize=9,
        color=colour,
        fontweight="bold",
        **PLAIN,
    )
    for line, (name, score) in enumerate(zip(best[:3], scores[:3])):
        axis.annotate(
            f"{score:.2f} {shortened(name, 22)}",
            (0, 0),
            (0, -5 - 11 * line),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=RIGHT if name == label else "#24292f",
            **PLAIN,
        )


def accuracy_bars(
    path: str,
    names: Sequence[str],
    top1: Sequence[float],
    top5: Sequence[float],
    errors: Sequence[float],
    chance: Sequence[float],
    title: str,
) -> None:
    """Writes a PNG: top-1 (with its standard error) and top-5 of each test, with a mark at chance for
    top-1.
    """
    figure = _figure(7.6, 0.62 * len(names) + 1.7, layout="constrained")
    axis = figure.subplots()
    rows = np.arange(len(names))[::-1]  # the first test on top
    axis.barh(rows, top5, height=0.62, color="#c9dcf2", label="top-5")
    axis.barh(
        rows,
        top1,
        height=0.62,
        color="#2f6fb3",
        xerr=np.asarray(errors),
        error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#10243c"},
        label="top-1 ± standard error",
    )
    axis.vlines(
        chance, rows - 0.4, rows + 0.4, color="#d1242f", linewidth=2, label="chance (top-1)", zorder=3
    )
    for row, first, fifth in zip(rows, top1, top5):
        axis.text(
            1.015, row, f"{100 * first:.1f} / {100 * fifth:.1f}", va="center", fontsize=9, color="#24292f"
        )
    axis.text(1.015, len(names) - 0.42, "top-1 / top-5, %", va="bottom", fontsize=8, color=MUTED)
    axis.set_yticks(rows, names, fontsize=10)
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xticks(np.linspace(0, 1, 6), [f"{tick:.0f} %" for tick in np.linspace(0, 100, 6)])
    axis.grid(axis="x", color="#e1e4e8", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False
    )
    save(figure, path)


def grouped_bars(
    path: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float] | None]],
    title: str,
) -> None:
    """Writes a PNG: for each group one bar of each series, (share, standard error) or None where there is none."""
    figure = _figure(7.6, 0.2 * len(groups) * (len(series) + 1) + 1.9, layout="constrained")
    axis = figure.subplots()
    height = 0.84 / len(series)
    rows = np.arange(len(groups))[::-1].astype(float)  # the first group on top
    for number, (name, values) in enumerate(series.items()):
        places = rows + 0.42 - height * (number + 0.5)
        shown = [(place, *value) for place, value in zip(places, values) if value is not None]
        if not shown:
            continue
        where, shares, errors = zip(*shown)
        axis.barh(
            where,
            shares,
            height=0.92 * height,
            xerr=errors,
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#10243c"},
            color=SERIES[number % len(SERIES)],
            label=name,
        )
        for place, share, error in shown:
            axis.text(
                share + error + 0.012, place, f"{100 * share:.1f}", va="center", fontsize=8, color="#24292f"
            )
    axis.set_yticks(rows, groups, fontsize=10)
    axis.set_xlim(0, 1.06)
    axis.set_xticks(np.linspace(0, 1, 6), [f"{tick:.0f} %" for tick in np.linspace(0, 100, 6)])
    axis.grid(axis="x", color="#e1e4e8", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    save(figure, path)


def shift_scatter(
    path: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    labels: tuple[str, str],
    line: tuple[float, float] | None = None,
    joined: bool = True,
) -> None:
    """Writes a PNG: accuracy under shift against in-distribution accuracy on logit axes, one marker a checkpoint.

    series: (in distribution, under shift) of each run's checkpoints, in order; shares strictly between 0 and 1. labels: of
    the axes. line: slope and intercept of a fit, in logits. The grey line is accuracy that does not drop.
    """
    figure = _figure(6.4, 6.0, layout="constrained")
    axis = figure.subplots()

    def logit(share):
        share = np.asarray(share, np.float64)
        return np.log(share / (1 - share))

    shares = np.array([pair for of_run in series.values() for pair in of_run])
    low, high = logit(shares.min()) - 0.3, logit(shares.max()) + 0.3
    axis.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=":", label="no drop")
    if line is not None:
        ends = np.array([low, high])
        axis.plot(ends, line[0] * ends + line[1], color=MUTED, linewidth=1, label="fit")
    for number, (name, pairs) in enumerate(series.items()):
        points = logit(np.array(pairs))
        colour = SERIES[number % len(SERIES)]
        marker = _MARKERS[number // len(SERIES) % len(_MARKERS)]
        if joined:
            axis.plot(points[:, 0], points[:, 1], color=colour, linewidth=0.8, alpha=0.6)
        axis.scatter(points[:, 0], points[:, 1], s=22, color=colour, marker=marker, label=name, zorder=3)
    ticks = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
    ticks = ticks[(logit(ticks) >= low) & (logit(ticks) <= high)]
    for own in (axis.xaxis, axis.yaxis):
        own.set_ticks(logit(ticks), [f"{100 * tick:g} %" for tick in ticks])
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.grid(color="#e1e4e8", zorder=0)
    axis.set_axisbelow(True)
    figure.suptitle(title, fontsize=12)
    axis.legend(fontsize=9, frameon=False, loc="upper left")
    save(figure, path)


def error_lines(
    path: str,
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    title: str,
    labels: tuple[str, str],
    log_x: bool = True,
    log_y: bool = False,
) -> None:
    """Writes a PNG: lines, with error bars where they are finite; every x has a tick.

    series: (x, y, half width of y) of each line, in order.
    """
    figure = _figure(6.4, 4.4, layout="constrained")
    axis = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        x, y, errors = (np.array(part, np.float64) for part in zip(*points))
        # Beside each other, not upon each other.
        x = x * 1.03**number if log_x else x + 0.006 * np.ptp(x) * number
        axis.errorbar(
            x,
            y,
            np.where(np.isfinite(errors), errors, 0),
            color=SERIES[number % len(SERIES)],
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=name,
        )
    ticks = sorted({point[0] for points in series.values() for point in points})
    if log_x:
        axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    if log_y:
        axis.set_yscale("log")
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.grid(color="#e1e4e8", zorder=0)
    axis.set_axisbelow(True)
    figure.suptitle(title, fontsize=12)
    axis.legend(fontsize=9, frameon=False)
    save(figure, path)


def seed_dots(path: str, groups: Mapping[str, Mapping[str, Sequence[float]]], title: str, label: str) -> None:
    """Writes a PNG: a row for each entry of each group, a dot for each of its values and a line at their mean.

    groups: by heading, by name of the row, the values. label: what the values are.
    """
    count = sum(len(rows) for rows in groups.values())
    figure = _figure(7.6, 0.25 * (count + len(groups)) + 1.3, layout="constrained")
    axis = figure.subplots()
    at, ticks = 0.0, []
    for number, (heading, rows) in enumerate(groups.items()):
        axis.text(
            0.0,
            at,
            f" {heading}",
            transform=axis.get_yaxis_transform(),
            fontsize=9,
            weight="bold",
            va="center",
        )
        for name, values in rows.items():
            at -= 1
            colour = SERIES[number % len(SERIES)]
            mean = sum(values) / len(values)
            axis.plot([mean, mean], [at - 0.35, at + 0.35], color=colour, linewidth=2)
            axis.plot(values, [at] * len(values), "o", color=colour, markersize=4.5, alpha=0.65)
            ticks.append((at, name))
        at -= 1
    axis.set_yticks([y for y, _ in ticks], [name for _, name in ticks], fontsize=9)
    axis.set_ylim(at + 0.4, 0.6)
    axis.set_xlabel(label)
    axis.grid(axis="x", color="#e1e4e8", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    save(figure, path)
