"""Encoded pictures to pixels, upright and on white; sizes changed by OpenCV.

TensorFlow decodes, as in the exported SavedModel; Pillow what TensorFlow would read otherwise than it is meant
(`picture_headers.Header.by_pillow`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from basic_tf.data import pillow_pictures
from basic_tf.data.orientation import AS_STORED, stored_box, turned
from basic_tf.data.picture_headers import Header, PictureError, checked_header, first_line

cv2.setNumThreads(
    1
)  # batches are made by threads of our own; OpenCV's would only crowd the computation's cores

_MOST_TOGETHER = 16  # pictures of one call
_PIXELS_TOGETHER = 1 << 23


def decode(encoded: bytes, max_pixels: int = 1 << 26) -> np.ndarray:
    """uint8 [H, W, 3], read only, of a JPEG, PNG, GIF, BMP or WebP (of an animation the first frame). PictureError names
    what is wrong.

    Photographs are turned as the camera was held (EXIF); transparency is composited on white; grey, palette, 16-bit and
    CMYK pictures become RGB. A BMP of 32 bits has alpha only where its header says so. Pictures of more than `max_pixels`
    are refused before any memory is taken for them.
    """
    return decode_window(encoded, Window(checked_header(encoded, max_pixels)))


def plain_bytes(encoded: bytes, max_pixels: int = 1 << 26) -> bytes:
    """The same bytes where TensorFlow's decoders read them as they are meant, else a PNG of what `decode` makes of them.

    For graphs, which hold none of this module: the evaluation's and the exported one. What cannot be decoded is given back:
    the graph says what is wrong.
    """
    try:
        found = checked_header(encoded, max_pixels)
        if not found.by_pillow and found.orientation == AS_STORED:
            return encoded
        picture = decode_window(encoded, Window(found))
    except PictureError:
        return encoded
    return cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def decode_together(encoded: Sequence[bytes], max_pixels: int) -> list[np.ndarray | PictureError]:
    """`decode` of each of several pictures, at less cost, or what is wrong with it."""
    return decode_planned(encoded, lambda number: Window(checked_header(encoded[number], max_pixels)))


class Window(NamedTuple):
    """What is wanted of an encoded picture: top, left, height and width in pixels of the upright picture scaled down by
    `ratio` (JPEG alone; otherwise 1). `box` None is the whole picture.
    """

    found: Header
    box: tuple[int, int, int, int] | None = None
    ratio: int = 1


def decode_window(encoded: bytes, window: Window) -> np.ndarray:
    """uint8 [h, w, 3], read only. PictureError names what is wrong."""
    if window.found.by_pillow:
        return _finished(_by_pillow(encoded, window.found), window)
    try:
        (picture,) = _in_one_call([encoded], [window])
    except tf.errors.OpError as error:
        raise PictureError(f"undecodable {window.found.kind.upper()}", first_line(error)) from error
    return _finished(picture, window)


def _by_pillow(encoded: bytes, found: Header) -> np.ndarray:
    try:
        picture = pillow_pictures.decoded(encoded, found.kind)
    except Exception as error:  # a damaged picture can raise anything inside Pillow's parsers
        raise PictureError(f"undecodable {found.kind.upper()}", first_line(error)) from error
    if picture.shape[:2] != (found.height, found.width):
        size = f"{found.width} x {found.height}, its pixels are {picture.shape[1]} x {picture.shape[0]}"
        raise PictureError("damaged header", f"size {size}")
    return picture


def _stored_box(window: Window) -> tuple[int, int, int, int]:
    """Where a window of a JPEG lies in the picture that the decoder makes."""
    found, box, ratio = window
    return stored_box(box, found.orientation, -(-found.height // ratio), -(-found.width // ratio))


def decode_windows(encoded: Sequence[bytes], windows: Sequence[Window]) -> list[np.ndarray | PictureError]:
    """`decode_window` of each of several pictures, or what is wrong with it.

    Pictures of one kind share a call of TensorFlow: a call costs as much as decoding a small picture, and during it other
    threads have the interpreter. They are decoded in the caller's thread, not in those that training computes with.
    """
    groups: dict[tuple, list[int]] = {}
    result: list = [None] * len(windows)
    for number, window in enumerate(windows):
        if window.found.by_pillow:
            result[number] = _attempted(encoded[number], window)
        else:
            groups.setdefault(_call_of(window), []).append(number)
    for members in groups.values():
        for numbers in _in_parts(members, [windows[n].found for n in members]):
            try:
                pictures = _in_one_call([encoded[n] for n in numbers], [windows[n] for n in numbers])
            except tf.errors.OpError:  # some of them are damaged: one by one
                for number in numbers:
                    result[number] = _attempted(encoded[number], windows[number])
                continue
            for number, picture in zip(numbers, pictures, strict=True):
                result[number] = _finished(picture, windows[number])
    return result


def _attempted(encoded: bytes, window: Window) -> np.ndarray | PictureError:
    try:
        return decode_window(encoded, window)
    except PictureError as error:
        return error


def decode_planned(
    encoded: Sequence[bytes], plan: Callable[[int], Window]
) -> list[np.ndarray | PictureError]:
    """`decode_windows` with the window that `plan` gives for the number of each picture, or the PictureError it raises."""
    result: list = [None] * len(encoded)
    windows = {}
    for number in range(len(encoded)):
        try:
            windows[number] = plan(number)
        except PictureError as error:
            result[number] = error
    decoded = decode_windows([encoded[number] for number in windows], list(windows.values()))
    for number, picture in zip(windows, decoded, strict=True):
        result[number] = picture
    return result


def _in_parts(members: list[int], headers: list[Header]) -> list[list[int]]:
    """`members` in order, cut where a part would have more than _MOST_TOGETHER or too many pixels to be held at once."""
    parts, held = [], 0
    for member, found in zip(members, headers, strict=True):
        pixels = found.height * found.width
        if not parts or len(parts[-1]) == _MOST_TOGETHER or held + pixels > _PIXELS_TOGETHER:
            parts.append([])
            held = 0
        parts[-1].append(member)
        held += pixels
    return parts


def _decoded(contents: tf.Tensor, box: tf.Tensor | None, kind: str, alpha: bool, ratio: int) -> tf.Tensor:
    """uint8 [h, w, 3 or 4] by TensorFlow's decoders; box: of JPEGs, the others are decoded whole."""
    if kind == "jpeg":
        options = {"channels": 3, "ratio": ratio, "dct_method": "INTEGER_ACCURATE"}
        if box is None:
            return tf.io.decode_jpeg(contents, **options)
        return tf.io.decode_and_crop_jpeg(contents, box, **options)
    if kind == "png":
        return tf.io.decode_png(contents, channels=4 if alpha else 3)
    return tf.io.decode_image(contents, channels=3, expand_animations=False)


@functools.cache
def _graph(count: int, kind: str, alpha: bool, ratio: int, whole: bool):
    """(contents string [count], boxes int32 [count, 4]) -> count pictures, as a concrete function."""

    def decode_each(contents, boxes):
        return [
            _decoded(one, None if whole else box, kind, alpha, ratio)
            for one, box in zip(tf.unstack(contents), tf.unstack(boxes))
        ]

    signature = [tf.TensorSpec([count], tf.string), tf.TensorSpec([count, 4], tf.int32)]
    return tf.function(decode_each, input_signature=signature, autograph=False).get_concrete_function()


def _call_of(window: Window) -> tuple[str, bool, int, bool]:
    """What pictures must have in common to share a call: kind, alpha, ratio, and whether they are decoded whole."""
    found, box, ratio = window
    return found.kind, found.alpha, ratio, found.kind != "jpeg" or box is None


def _in_one_call(encoded: list[bytes], windows: list[Window]) -> list[np.ndarray]:
    """The pictures of windows with one `_call_of`, as TensorFlow's decoders make them; OpError if one is damaged."""
    *kind, whole = _call_of(windows[0])
    boxes = [(0, 0, 0, 0) if whole else _stored_box(window) for window in windows]
    with tf.device("CPU:0"):
        # Lists, not tensors, which TensorFlow's fast path would take. An operation that fails there makes its exception
        # under a lock of TensorFlow's: if garbage collection then passes the interpreter on, and the next thread also has
        # a damaged picture, it waits for that lock and keeps the interpreter, and the process hangs for good.
        pictures = tf.raw_ops.PartitionedCall(
            args=[encoded, boxes],
            Tout=[tf.uint8] * len(encoded),
            f=_graph(len(encoded), *kind, whole),
            executor_type="SINGLE_THREADED_EXECUTOR",
        )
    return [np.asarray(picture) for picture in pictures]


def _finished(picture: np.ndarray, window: Window) -> np.ndarray:
    """A decoded picture without alpha, upright, cut to its window where the decoder has not done so."""
    if picture.shape[-1] == 4:
        picture = on_white(picture)
    picture = turned(picture, window.found.orientation)
    if window.box is not None and window.found.kind != "jpeg":
        top, left, height, width = window.box
        picture = picture[top : top + height, left : left + width]
    return picture


def on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [..., 4] with straight alpha -> uint8 [..., 3] on a white ground."""
    alpha = rgba[..., 3:].astype(np.uint32)
    # Exact rounding of (colour * alpha + white * (255 - alpha)) / 255.
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def resize(picture: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3]: bilinear; area means where it shrinks more than
    twofold. Into `out`, if given.
    """
    if picture.shape[:2] == (height, width):
        if out is None:
            return picture
        out[...] = picture
        return out
    shrinks = picture.shape[0] > 2 * height or picture.shape[1] > 2 * width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), dst=out, interpolation=how)


def framed(picture: np.ndarray, side: int, fit: str) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [side, side, 3], fitted as `ImageAugmentation.fit` says (crop: the central
    square).
    """
    height, width = picture.shape[:2]
    if fit == "stretch" or height == width:
        return resize(picture, side, side)
    if fit == "crop":
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        return resize(picture[top : top + short, left : left + short], side, side)
    factor = side / max(height, width)
    inner = resize(picture, max(1, round(height * factor)), max(1, round(width * factor)))
    top, left = (side - inner.shape[0]) // 2, (side - inner.shape[1]) // 2
    result = np.full((side, side, 3), 255, np.uint8)
    result[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return result
