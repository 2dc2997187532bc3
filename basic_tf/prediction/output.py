"""What predict.py shows: a table, JSON, or a sheet of pictures."""

import itertools
import json
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from basic_tf.prediction.pictures import Unreadable
from basic_tf.prediction.prediction import Match, Prediction


def printable(path: str) -> str:
    """A file name that cannot disturb a terminal: control characters and broken UTF-8 escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in path
    )


def unreadable_line(item: Unreadable) -> str:
    """The one line about a file that gave no picture."""
    return f"{printable(item.path)}: {printable(item.reason)}"


def print_predictions(console: Console, predictions: Sequence[Prediction]) -> None:
    """A row for each file: name, best class with its probability, and the next ones."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("best", overflow="fold", style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("then", overflow="fold", style="dim")
    for item in predictions:
        rest = "   ".join(
            f"{name} {_percent(p)}" for name, p in zip(item.classes[1:], item.probabilities[1:])
        )
        table.add_row(
            escape(printable(item.path)),
            escape(printable(item.classes[0])),
            _percent(item.probabilities[0]),
            escape(printable(rest)),
        )
    console.print(table)


def print_matches(console: Console, sentence: str, matches: Sequence[Match]) -> None:
    """A row for each file, most similar first."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=escape(f'"{printable(sentence)}"'), title_justify="left"
    )
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    table.add_column("similarity", justify="right", no_wrap=True)
    for rank, item in enumerate(matches, 1):
        table.add_row(str(rank), escape(printable(item.path)), f"{item.similarity:.3f}")
    console.print(table)


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def predictions_json(predictions: Sequence[Prediction], unreadable: Sequence[Unreadable], classes) -> str:
    """{"classes": [...], "files": [{"file", "predictions": [{"class", "probability"}]}], "unreadable":
    [...]}.
    """
    files = [
        {
            "file": item.path,
            "predictions": [
                {"class": name, "probability": p} for name, p in zip(item.classes, item.probabilities)
            ],
        }
        for item in predictions
    ]
    return _dump({"classes": list(classes), "files": files, "unreadable": _unreadable(unreadable)})


def matches_json(matches: Sequence[Match], unreadable: Sequence[Unreadable], sentence: str) -> str:
    """{"search": sentence, "files": [{"file", "similarity"}], "unreadable": [...]}, most similar first."""
    files = [{"file": item.path, "similarity": item.similarity} for item in matches]
    return _dump({"search": sentence, "files": files, "unreadable": _unreadable(unreadable)})


def _unreadable(items: Sequence[Unreadable]) -> list[dict[str, str]]:
    return [{"file": item.path, "reason": item.reason} for item in items]


def _dump(value) -> str:
    # ASCII, so that a file name that is no UTF-8 still prints.
    return json.dumps(value, indent=2, ensure_ascii=True)


def write_sheet(path: str, items: Sequence[Prediction | Match], title: str, limit: int = 60) -> None:
    """A PNG with each picture and its answer under it; the first `limit` items."""
    # Matplotlib takes a second to import, and most calls want no sheet.
    from basic_tf.evaluation.pictures import PLAIN, cell_figure, save, shortened

    shown = list(items[:limit])
    columns = min(6, max(2, len(shown)))
    rows = -(-len(shown) // columns)
    if len(items) > limit:
        title = f"{title} (the first {limit} of {len(items)})"
    title = shortened(printable(title), 16 * columns)
    figure, cells = cell_figure(rows, columns, title, side=1.7, above=0.28, below=0.62, left=0.16)
    for axis, item in itertools.zip_longest(cells.ravel(), shown):
        axis.axis("off")
        if item is None:
            continue
        if item.thumbnail is not None:
            axis.imshow(
                item.thumbnail, interpolation="nearest" if item.thumbnail.width <= 64 else "antialiased"
            )
        axis.text(
            0.5,
            1.03,
            shortened(printable(item.path.rsplit("/", 1)[-1]), 26),
            transform=axis.transAxes,
            ha="center",
            fontsize=8,
            color="#57606a",
            **PLAIN,
        )
        lines = _caption(item)
        for line, text in enumerate(lines):
            axis.annotate(
                shortened(text, 28),
                (0.5, 0),
                (0, -4 - 11 * line),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=8,
                fontweight="bold" if line == 0 else "normal",
                **PLAIN,
            )
    save(figure, path)


def _caption(item: Prediction | Match) -> list[str]:
    if isinstance(item, Match):
        return [f"similarity {item.similarity:.3f}"]
    return [f"{printable(name)[:20]}  {_percent(p)}" for name, p in zip(item.classes[:3], item.probabilities)]
