"""What the first bytes of a picture say: its format, its size, and which decoder reads it as it is meant."""

import struct
from typing import NamedTuple

import tensorflow as tf

from basic_tf.data.orientation import AS_STORED, in_exif, in_segment, swaps_sides

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class PictureError(ValueError):
    """A picture that cannot be decoded. `cause` is short and the same for all pictures with the same
    trouble.
    """

    def __init__(self, cause: str, detail: str = ""):
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause


class Header(NamedTuple):
    """What the first bytes of a picture say; height and width are those of the picture turned upright."""

    kind: str  # "jpeg", "png", "gif", "bmp" or "webp"
    height: int
    width: int
    alpha: bool = False  # PNG alone: an alpha channel or a transparent colour
    orientation: int = AS_STORED  # JPEG alone; the others are turned by Pillow
    by_pillow: bool = False  # TensorFlow would read it otherwise than it is meant


def header(encoded: bytes) -> Header:
    """Format and size of an encoded picture, without decoding it. PictureError if it is none."""
    if not encoded:
        raise PictureError("empty picture")
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            return _jpeg(encoded)
        if encoded[:8] == _PNG_SIGNATURE:
            return _png(encoded)
        if encoded[:4] == b"GIF8":
            width, height = struct.unpack("<HH", encoded[6:10])
            return Header("gif", height, width, by_pillow=_gif_is_transparent(encoded))
        if encoded[:2] == b"BM":
            return _bmp(encoded)
        if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
            return _webp(encoded)
    except (struct.error, IndexError, tf.errors.OpError) as error:
        raise PictureError("damaged header", first_line(error)) from error
    raise PictureError("unknown format", f"{len(encoded)} bytes that begin with {encoded[:8]!r}")


def _jpeg(encoded: bytes) -> Header:
    """The size from the start-of-frame segment, the orientation from a segment before it; TensorFlow is asked for the
    size where the segments are not in order.
    """
    at, orientation, size = 2, None, None
    while at + 9 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", encoded, at + 5)
            if height and width:
                size = height, width
            break
        elif marker in (0xDA, 0xD9):  # the scan, or the end, before any frame
            break
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            end = at + 2 + struct.unpack_from(">H", encoded, at + 2)[0]
            if marker == 0xE1 and orientation is None:
                orientation = in_segment(encoded, at + 4, end)
            at = end
    height, width = size or tf.io.extract_jpeg_shape(encoded).numpy().tolist()[:2]
    orientation = orientation or AS_STORED
    return Header("jpeg", *_turned(height, width, orientation), orientation=orientation)


def _png(encoded: bytes) -> Header:
    width, height, _, colour = struct.unpack(">IIBB", encoded[16:26])
    before_pixels = max(encoded.find(b"IDAT"), 0)
    # Only asked for where there is one: TensorFlow's decoder invents an alpha of 1, 3 or 15 for
    # opaque pictures of 1, 2 or 4 bits when four channels are wanted, and they would come out white.
    alpha = colour in (4, 6) or encoded.find(b"tRNS", 0, before_pixels) > 0
    exif = encoded.find(b"eXIf", 0, before_pixels)
    orientation = in_exif(encoded, exif + 4) if exif > 0 else None
    size = _turned(height, width, orientation)
    return Header("png", *size, alpha=alpha, by_pillow=orientation not in (None, AS_STORED))


def _gif_is_transparent(encoded: bytes) -> bool:
    """Whether the first frame has a transparent colour; TensorFlow would make it black."""
    try:
        flags, at = encoded[10], 13
        if flags & 0x80:
            at += 3 << (flags & 7) + 1  # the palette
        while encoded[at] == 0x21:  # extensions, before the frame
            if encoded[at + 1] == 0xF9 and encoded[at + 3] & 1:
                return True
            at += 2
            while encoded[at]:
                at += encoded[at] + 1
            at += 1
    except IndexError:  # cut short: the decoder will say so
        pass
    return False


def _bmp(encoded: bytes) -> Header:
    """TensorFlow reads palettes as grey, alpha not at all, and few of the other kinds."""
    if struct.unpack("<I", encoded[14:18])[0] == 12:  # of OS/2
        width, height = struct.unpack("<HH", encoded[18:22])
        return Header("bmp", height, width, by_pillow=True)
    width, height, _, bits, compression = struct.unpack("<iiHHI", encoded[18:34])
    return Header("bmp", abs(height), abs(width), by_pillow=(bits, compression) != (24, 0))


def _webp(encoded: bytes) -> Header:
    """TensorFlow decodes neither alpha nor animations."""
    height, width = _webp_size(encoded)
    chunk, flags = encoded[12:16], encoded[20]
    if chunk == b"VP8L":
        return Header("webp", height, width, by_pillow=bool(encoded[24] & 0x10))
    if chunk != b"VP8X":
        return Header("webp", height, width)
    orientation = None
    if flags & 0x08:
        exif = encoded.rfind(b"EXIF") + 8
        orientation = in_exif(encoded, exif + 6 if encoded.startswith(b"Exif\0\0", exif) else exif)
    size = _turned(height, width, orientation)
    return Header("webp", *size, by_pillow=bool(flags & 0x12) or orientation not in (None, AS_STORED))


def _turned(height: int, width: int, orientation: int | None) -> tuple[int, int]:
    return (width, height) if orientation and swaps_sides(orientation) else (height, width)


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


def checked_header(encoded: bytes, max_pixels: int) -> Header:
    """`header`, refusing pictures without pixels or with more than max_pixels."""
    found = header(encoded)
    if found.height < 1 or found.width < 1:
        raise PictureError("damaged header", f"size {found.width} x {found.height}")
    if found.height * found.width > max_pixels:
        raise PictureError("too many pixels", f"{found.width} x {found.height}, limit {max_pixels:,}")
    return found


def first_line(error: Exception) -> str:
    """What an error says, without TensorFlow's names of nodes."""
    message = getattr(error, "message", None) or str(error)
    return message.split("}} ")[-1].split("\n")[0].split(" [Op:")[0]
