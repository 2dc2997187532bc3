"""The machine that this process runs on."""

import os


def cores() -> int:
    """The cores this process may use; where the system does not say (macOS), all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
