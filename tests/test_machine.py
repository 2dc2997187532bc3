"""Cores are counted with and without an affinity."""

import os

from basic_tf.machine import cores


def test_cores_with_and_without_a_system_that_tells_them(monkeypatch):
    """macOS has no sched_getaffinity; a system may not know its number of cores either."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2}, raising=False)
    assert cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
