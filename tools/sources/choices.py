"""Choices by hash: stable over machines, versions and the order of things."""

import hashlib
from collections.abc import Iterable, Sequence


def number(*parts: object) -> int:
    """A 64-bit number that depends on the parts alone."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def ordered(items: Iterable, *parts: object, key=str) -> list:
    """The items in an order drawn by hash; adding an item leaves the order of the others as it was."""
    return sorted(items, key=lambda item: (number(*parts, key(item)), key(item)))


def pick(items: Sequence, *parts: object, key=str):
    """One of the items; which one does not depend on their order."""
    return ordered(items, *parts, key=key)[0]
