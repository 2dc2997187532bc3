"""How a camera was held (EXIF's orientation, 1 to 8): found in the bytes of a picture, and undone.

The decoders of TensorFlow leave a photograph as it lies in the file, often on its side.
"""

import re
import struct

import cv2
import numpy as np

AS_STORED = 1
# By orientation: whether rows and columns change places, and whether rows, then columns, are mirrored after that.
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_TAG = 0x0112
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_TAG = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def in_segment(encoded: bytes, start: int, end: int) -> int | None:
    """The orientation that the APP1 segment with the contents encoded[start:end] of a JPEG says; None if it says none."""
    if encoded.startswith(_EXIF, start):
        return in_exif(encoded, start + len(_EXIF))
    if encoded.startswith(_XMP, start):
        found = _XMP_TAG.search(encoded, start, end)
        return int(found[1]) if found else None
    return None


def in_exif(encoded: bytes, start: int) -> int | None:
    """The orientation that EXIF data (a TIFF header and its directory) from `start` on says; None if it says none."""
    order = _BYTE_ORDERS.get(encoded[start : start + 2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(order + "I", encoded, start + 4)
        (entries,) = struct.unpack_from(order + "H", encoded, start + directory)
        first = start + directory + 2
        for tag, kind, _, value in struct.iter_unpack(order + "HHI4s", encoded[first : first + 12 * entries]):
            if tag == _TAG:  # a 16-bit number, of some writers a 32-bit one
                found = int.from_bytes(value[: 2 if kind == 3 else 4], "little" if order == "<" else "big")
                return found if found in _TURNS else AS_STORED
    except struct.error:  # cut short
        pass
    return None


def swaps_sides(orientation: int) -> bool:
    """Whether the upright picture is as wide as the stored one is high."""
    return orientation != AS_STORED and _TURNS[orientation][0]


def turned(picture: np.ndarray, orientation: int) -> np.ndarray:
    """[h, w, 3] as stored -> the picture as it was seen."""
    if orientation == AS_STORED:
        return picture
    swapped, rows, columns = _TURNS[orientation]
    if swapped:  # by OpenCV: NumPy takes as long as the decoder
        picture = cv2.transpose(picture)
    if rows or columns:
        picture = cv2.flip(picture, 1 if not rows else -1 if columns else 0)
    return picture


def stored_box(
    box: tuple[int, int, int, int], orientation: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a window of the upright picture, height x width -> where it lies as stored."""
    if orientation == AS_STORED:
        return box
    swapped, rows, columns = _TURNS[orientation]
    top, left, high, wide = box
    top = height - top - high if rows else top
    left = width - left - wide if columns else left
    return (left, top, wide, high) if swapped else (top, left, high, wide)
