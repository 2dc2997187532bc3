"""Published zero-shot figures, percent, to stand beside ours. Each row says where it is from.

Recollections of a paper are marked as such; nothing that is remembered with low confidence is here.
"""

import dataclasses
from collections.abc import Collection

DIFFERS = "†"


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """figures: percent by test. source: the paper that prints them, or "recollection of ..., confidence high/medium"."""

    model: str
    source: str
    figures: dict[str, float]


def _robustness(imagenet, a, r, v2, sketch, objectnet) -> dict[str, float]:
    names = ("imagenet", "imagenet_a", "imagenet_r", "imagenet_v2", "imagenet_sketch", "objectnet")
    values = (imagenet, a, r, v2, sketch, objectnet)
    return {name: value for name, value in zip(names, values) if value is not None}


_COCA = "CoCa, arXiv 2205.01917"
_WISE = "WiSE-FT, arXiv 2109.01903"
_CLIP_OTHERS = {
    "birdsnap": 49.5,
    "caltech101": 92.8,
    "cars": 78.8,
    "cifar10": 95.7,
    "cifar100": 77.5,
    "dtd": 55.7,
    "eurosat": 59.6,
    "flowers": 78.3,
    "food101": 93.8,
    "mnist": 88.3,
    "pcam": 63.0,
    "pets": 93.5,
    "resisc45": 71.7,
    "stl10": 99.4,
    "sun397": 68.4,
    "ucf101": 76.9,
    "voc2007": 84.3,
}

ROWS = (
    PublishedRow("CLIP L/14-336", _COCA, _robustness(76.2, 77.2, 88.9, 70.1, 60.2, 72.3)),
    PublishedRow(
        "CLIP L/14-336", "recollection of CLIP's table 11, arXiv 2103.00020, confidence high", _CLIP_OTHERS
    ),
    PublishedRow("ALIGN", _COCA, _robustness(76.4, 75.8, 92.2, 70.1, 64.8, 72.2)),
    PublishedRow("LiT", _COCA, _robustness(84.5, 79.4, 93.9, 78.7, None, 81.1)),
    PublishedRow("CoCa", _COCA, _robustness(86.3, 90.2, 96.5, 80.7, 77.6, 82.7)),
    PublishedRow(
        "BASIC-S", "recollection of arXiv 2111.10050, confidence medium", _robustness(71.9, *[None] * 5)
    ),
    PublishedRow("BASIC-M", _WISE, _robustness(81.4, 66.7, 90.6, 74.1, 67.4, 73.5)),
    PublishedRow("BASIC-L, first version", _COCA, _robustness(85.7, 85.6, 95.7, 80.6, 76.1, 78.9)),
    PublishedRow(
        "BASIC-L, third version",
        "EVA-CLIP-18B, arXiv 2402.04252",
        _robustness(85.7, 85.6, 95.7, 80.6, 76.1, 82.3),
    ),
)


def table(
    ours: dict[str, float], tests: tuple[str, ...], titles: dict[str, str], differing: Collection[str] = ()
) -> list[str]:
    """Markdown lines: our figures (shares by test) in the first row, published ones below; [] if none of `tests` is ours.

    tests: the columns, of which those in `ours` are shown. With all of them, a last column has their mean. differing:
    tests of which published figures carry a mark, as they are not of the same prompts or pictures as ours.
    """
    shown = [name for name in tests if name in ours]
    if not shown:
        return []
    whole = len(shown) == len(tests) > 1

    def row(model: str, figures: dict[str, float], source: str, marked: Collection[str] = ()) -> str:
        marks = dict.fromkeys(marked, f" {DIFFERS}")
        cells = [f"{figures[name]:.1f}{marks.get(name, '')}" if name in figures else "–" for name in shown]
        if whole:
            complete = all(name in figures for name in shown)
            cells.append(f"{sum(figures[name] for name in shown) / len(shown):.1f}" if complete else "–")
        return f"| {model} | " + " | ".join(cells) + f" | {source} |"

    head = [titles[name] for name in shown] + (["mean"] if whole else [])
    lines = ["| model | " + " | ".join(head) + " | source |", "|---|" + "---:|" * len(head) + "---|"]
    lines.append(row("**this run**", {name: 100 * ours[name] for name in shown}, "measured here"))
    lines += [
        row(one.model, one.figures, one.source, differing) for one in ROWS if set(one.figures) & set(shown)
    ]
    return lines
