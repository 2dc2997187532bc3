"""The progress of a tool: how much is done, at which rate, how long it will take."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class _Rate(ProgressColumn):
    """Things per second."""

    def render(self, task):
        """The rate of a task as text."""
        return f"{task.speed or task.finished_speed or 0:,.0f}/s"


def progress_bar(console: Console) -> Progress:
    """A bar with count, rate, time since the start and time left (`-:--:--` while the total is unknown)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)
