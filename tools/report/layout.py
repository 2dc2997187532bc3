"""What the kinds of generated parts share: where charts go, how a table looks."""

import dataclasses
import os
from collections.abc import Sequence

import tensorflow as tf

from tools.report.runs import Run


@dataclasses.dataclass(frozen=True)
class Charts:
    """Where the pictures of a document go: `docs/results/demo/` for `docs/results/demo.md`.

    original: the document itself, where `document` is only a trial of it.
    """

    document: str
    original: str | None = None

    def path(self, name: str) -> tuple[str, str]:
        """(where to write, how the document links to it)."""
        folder = self.document.removesuffix(".md")
        tf.io.gfile.makedirs(folder)
        return os.path.join(folder, name), f"{os.path.basename(folder)}/{name}"

    def present(self, name: str) -> str:
        """Where a file of that name is if the document already has one."""
        return os.path.join((self.original or self.document).removesuffix(".md"), name)


DASH = "–"


def percent(share: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return DASH if share is None else f"{100 * share:.1f}"


def with_error(share: float, error: float) -> str:
    """A share and its error in percent."""
    return f"{percent(share)} ± {percent(error)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def one_run(runs: Sequence[str], kind: str) -> Run:
    """The only run of a part that takes one; ValueError otherwise."""
    if len(runs) != 1:
        raise ValueError(f"a part of kind {kind} takes one run, received {' '.join(runs) or 'none'}")
    return Run(runs[0])
