"""Encoded pictures to pixels, by TensorFlow as in the exported SavedModel; sizes changed by OpenCV."""

import struct
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

cv2.setNumThreads(
    1
)  # batches are made by threads of our own; OpenCV's would only crowd the computation's cores

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
    return decode_window(encoded, checked_header(encoded, max_pixels))


def checked_header(encoded: bytes, max_pixels: int) -> Header:
    """`header`, refusing pictures without pixels or with more than max_pixels."""
    found = header(encoded)
    if found.height < 1 or found.width < 1:
        raise PictureError("damaged header", f"size {found.width} x {found.height}")
    if found.height * found.width > max_pixels:
        raise PictureError("too many pixels", f"{found.width} x {found.height}, limit {max_pixels:,}")
    return found


def decode_window(
    encoded: bytes, found: Header, window: tuple[int, int, int, int] | None = None, ratio: int = 1
):
    """uint8 [h, w, 3], read only; window (top, left, height, width) in pixels of the picture scaled down by `ratio`
    (JPEG).
    """
    try:
        # Tensors and a float for `acceptable_fraction`: bytes, tuples and its default, an int, all leave TensorFlow's
        # fast path, and a small picture's decoding takes three times as long.
        with tf.device("CPU:0"):
            contents = tf.constant(encoded)
            if found.kind == "jpeg":
                options = {
                    "channels": 3,
                    "ratio": ratio,
                    "dct_method": "INTEGER_ACCURATE",
                    "acceptable_fraction": 1.0,
                }
                if window is None:
                    return np.asarray(tf.io.decode_jpeg(contents, **options))
                return np.asarray(tf.io.decode_and_crop_jpeg(contents, tf.constant(window), **options))
            if found.kind == "png":
                picture = np.asarray(tf.io.decode_png(contents, channels=4 if found.alpha else 3))
            else:
                picture = np.asarray(tf.io.decode_image(contents, channels=3, expand_animations=False))
    except tf.errors.OpError as error:
        raise PictureError(f"undecodable {found.kind.upper()}", _first_line(error)) from error
    if picture.shape[-1] == 4:
        picture = on_white(picture)
    if window is not None:
        top, left, height, width = window
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
