"""Encoded pictures to pixels, by TensorFlow as in the exported SavedModel; sizes changed by OpenCV."""

import functools
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

cv2.setNumThreads(
    1
)  # batches are made by threads of our own; OpenCV's would only crowd the computation's cores

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_TOGETHER = 16  # pictures of one call
_PIXELS_TOGETHER = 1 << 23


class PictureError(ValueError):
    """A picture that cannot be decoded. `cause` is short and the same for all pictures with the same
    trouble.
    """

    def __init__(self, cause: str, detail: str = ""):
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause


class Header(NamedTuple):
    """What the first bytes of a picture say."""

    kind: str  # "jpeg", "png", "gif", "bmp" or "webp"
    height: int
    width: int
    alpha: bool  # PNG alone: an alpha channel or a transparent colour


def header(encoded: bytes) -> Header:
    """Format and size of an encoded picture, without decoding it. PictureError if it is none."""
    if not encoded:
        raise PictureError("empty picture")
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            return Header("jpeg", *_jpeg_size(encoded), False)
        if encoded[:8] == _PNG_SIGNATURE:
            width, height, _, colour = struct.unpack(">IIBB", encoded[16:26])
            # Only asked for where there is one: TensorFlow's decoder invents an alpha of 1, 3 or 15 for
            # opaque pictures of 1, 2 or 4 bits when four channels are wanted, and they would come out white.
            alpha = colour in (4, 6) or encoded.find(b"tRNS", 0, max(encoded.find(b"IDAT"), 0)) > 0
            return Header("png", height, width, alpha)
        if encoded[:4] == b"GIF8":
            width, height = struct.unpack("<HH", encoded[6:10])
            return Header("gif", height, width, False)
        if encoded[:2] == b"BM":
            width, height = struct.unpack("<ii", encoded[18:26])
            return Header("bmp", abs(height), abs(width), False)
        if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
            return Header("webp", *_webp_size(encoded), False)
    except (struct.error, tf.errors.OpError) as error:
        raise PictureError("damaged header", _first_line(error)) from error
    raise PictureError("unknown format", f"{len(encoded)} bytes that begin with {encoded[:8]!r}")


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Height and width, from the start-of-frame segment; TensorFlow is asked where the segments are not in order."""
    at = 2
    while at + 9 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", encoded, at + 5)
            if height and width:
                return height, width
            break
        elif marker in (0xDA, 0xD9):  # the scan, or the end, before any frame
            break
        else:
            at += (
                2
                if marker == 0x01 or 0xD0 <= marker <= 0xD8
                else 2 + struct.unpack_from(">H", encoded, at + 2)[0]
            )
    return tuple(tf.io.extract_jpeg_shape(encoded).numpy().tolist()[:2])


def _webp_size(encoded: bytes) -> tuple[int, int]:
    chunk = encoded[12:16]
    if chunk == b"VP8X":
        width, height = encoded[24:27] + b"\0", encoded[27:30] + b"\0"
        return struct.unpack("<I", height)[0] + 1, struct.unpack("<I", width)[0] + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack("<I", encoded[21:25])
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack("<HH", encoded[26:30])
    return height & 0x3FFF, width & 0x3FFF


def decode(encoded: bytes, max_pixels: int = 1 << 26) -> np.ndarray:
    """uint8 [H, W, 3], read only, of a JPEG, PNG, GIF (first frame), BMP or WebP. PictureError names what is wrong.

    Transparency is composited on white; grey, palette, 16-bit and CMYK pictures become RGB. Pictures of more
    than `max_pixels` are refused before any memory is taken for them.
    """
    return decode_window(encoded, Window(checked_header(encoded, max_pixels)))


def decode_together(encoded: Sequence[bytes], max_pixels: int) -> list[np.ndarray | PictureError]:
    """`decode` of each of several pictures, at less cost, or what is wrong with it."""
    return decode_planned(encoded, lambda number: Window(checked_header(encoded[number], max_pixels)))


def checked_header(encoded: bytes, max_pixels: int) -> Header:
    """`header`, refusing pictures without pixels or with more than max_pixels."""
    found = header(encoded)
    if found.height < 1 or found.width < 1:
        raise PictureError("damaged header", f"size {found.width} x {found.height}")
    if found.height * found.width > max_pixels:
        raise PictureError("too many pixels", f"{found.width} x {found.height}, limit {max_pixels:,}")
    return found


class Window(NamedTuple):
    """What is wanted of an encoded picture: top, left, height and width in pixels of the picture scaled down by `ratio`
    (JPEG alone; otherwise 1). `box` None is the whole picture.
    """

    found: Header
    box: tuple[int, int, int, int] | None = None
    ratio: int = 1


def decode_window(encoded: bytes, window: Window) -> np.ndarray:
    """uint8 [h, w, 3], read only. PictureError names what is wrong."""
    kind = window.found.kind
    try:
        with tf.device("CPU:0"):
            box = None if window.box is None else tf.constant(window.box)
            picture = np.asarray(_decoded(tf.constant(encoded), box, kind, window.found.alpha, window.ratio))
    except tf.errors.OpError as error:
        raise PictureError(f"undecodable {kind.upper()}", _first_line(error)) from error
    return _finished(picture, window)


def decode_windows(encoded: Sequence[bytes], windows: Sequence[Window]) -> list[np.ndarray | PictureError]:
    """`decode_window` of each of several pictures, or what is wrong with it.

    Pictures of one kind share a call of TensorFlow: a call costs as much as decoding a small picture, and during it other
    threads have the interpreter. They are decoded in the caller's thread, not in those that training computes with.
    """
    groups: dict[tuple, list[int]] = {}
    for number, (found, box, ratio) in enumerate(windows):
        whole = found.kind != "jpeg" or box is None
        groups.setdefault((found.kind, found.alpha, ratio, whole), []).append(number)
    result: list = [None] * len(windows)
    for kind, members in groups.items():
        for numbers in _in_parts(members, [windows[n].found for n in members]):
            whole = kind[-1]
            boxes = [(0, 0, 0, 0) if whole else windows[n].box for n in numbers]
            pictures = _in_one_call([encoded[n] for n in numbers], boxes, *kind)
            for place, number in enumerate(numbers):
                if pictures is not None:
                    result[number] = _finished(np.asarray(pictures[place]), windows[number])
                    continue
                try:  # one by one: some of them are damaged
                    result[number] = decode_window(encoded[number], windows[number])
                except PictureError as error:
                    result[number] = error
    return result


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
        # A float: the default, an int, leaves TensorFlow's fast path (so would bytes and tuples in place of tensors), and
        # a small picture's decoding takes three times as long.
        options = {
            "channels": 3,
            "ratio": ratio,
            "dct_method": "INTEGER_ACCURATE",
            "acceptable_fraction": 1.0,
        }
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


def _in_one_call(encoded: list[bytes], boxes: list[tuple], *kind) -> list[tf.Tensor] | None:
    """The pictures; None if one of them cannot be decoded."""
    with tf.device("CPU:0"):
        try:
            return tf.raw_ops.PartitionedCall(
                args=[tf.constant(encoded), tf.constant(boxes)],
                Tout=[tf.uint8] * len(encoded),
                f=_graph(len(encoded), *kind),
                executor_type="SINGLE_THREADED_EXECUTOR",
            )
        except tf.errors.OpError:
            return None


def _finished(picture: np.ndarray, window: Window) -> np.ndarray:
    """A decoded picture without alpha, cut to its window where the decoder has not done so."""
    if picture.shape[-1] == 4:
        picture = on_white(picture)
    if window.box is not None and window.found.kind != "jpeg":
        top, left, height, width = window.box
        picture = picture[top : top + height, left : left + width]
    return picture


def on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [..., 4] with straight alpha -> uint8 [..., 3] on a white ground."""
    alpha = rgba[..., 3:].astype(np.uint32)
    # Exact rounding of (colour * alpha + white * (255 - alpha)) / 255.
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _first_line(error: Exception) -> str:
    message = getattr(error, "message", None) or str(error)
    return message.split("}} ")[-1].split("\n")[0].split(" [Op:")[0]


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
