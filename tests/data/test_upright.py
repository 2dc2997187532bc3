"""Pictures as they are meant: upright and on white, whichever decoder reads them."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from basic_tf.data import orientation
from basic_tf.data.decoding import (
    Window,
    decode,
    decode_together,
    decode_window,
    decode_windows,
    framed,
    plain_bytes,
)
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.picture_headers import PictureError, header
from basic_tf.data.pillow_pictures import upright_on_white
from basic_tf.randomness import step_key_numpy
from tests.data.pictures import smooth

RNG = np.random.default_rng(31)


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def exif(value: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = value
    return data


def photograph(height=40, width=63) -> Image.Image:
    return Image.fromarray(smooth(RNG, height, width))


def clear() -> Image.Image:
    """Red below on the right, transparent black elsewhere."""
    picture = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (15, 10, 30, 20))
    return picture


def palette() -> Image.Image:
    picture = Image.new("P", (30, 20), 0)
    picture.putpalette([10, 20, 30, 255, 0, 0])
    picture.paste(1, (15, 10, 30, 20))
    return picture


def bmp_with_alpha() -> bytes:
    """32 bits with masks, of which the fourth is alpha's: 2 x 1 pixels, a clear blue one and an opaque red one."""
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks + bytes(108 - 40 - 16)
    pixels = struct.pack("<II", 0x000000FF, 0xFFFF0000)
    offset = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + pixels


def by_pillow() -> dict[str, bytes]:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "green")]
    return {
        "transparent GIF": saved(palette(), "GIF", transparency=0),
        "palette BMP": saved(palette(), "BMP"),
        "grey BMP": saved(photograph().convert("L"), "BMP"),
        "1-bit BMP": saved(photograph().convert("1"), "BMP"),
        "BMP of 32 bits": saved(clear(), "BMP"),
        "BMP with alpha": bmp_with_alpha(),
        "lossless WebP with alpha": saved(clear(), "WEBP", lossless=True),
        "lossy WebP with alpha": saved(clear(), "WEBP"),
        "animated WebP": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "turned WebP": saved(photograph(), "WEBP", exif=exif(8)),
        "turned PNG": saved(photograph(), "PNG", exif=exif(5)),
    }


def by_tensorflow() -> dict[str, bytes]:
    return {
        "JPEG": saved(photograph(), "JPEG"),
        "JPEG that is upright": saved(photograph(), "JPEG", exif=exif(1)),
        "turned JPEG": saved(photograph(), "JPEG", exif=exif(6)),
        "PNG": saved(photograph(), "PNG"),
        "PNG with alpha": saved(clear(), "PNG"),
        "PNG that is upright": saved(photograph(), "PNG", exif=exif(1)),
        "GIF": saved(palette(), "GIF"),
        "BMP": saved(photograph(), "BMP"),
        "WebP": saved(photograph(), "WEBP"),
        "WebP that is upright": saved(photograph(), "WEBP", exif=exif(1), icc_profile=b"x" * 100),
    }


PICTURES = by_pillow() | by_tensorflow()


def expected(encoded: bytes) -> np.ndarray:
    return np.asarray(upright_on_white(Image.open(io.BytesIO(encoded))))


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_is_upright_on_white(name):
    encoded = PICTURES[name]
    found, result = header(encoded), decode(encoded)
    assert found.by_pillow == (name in by_pillow())
    assert result.shape == (found.height, found.width, 3) and result.dtype == np.uint8
    limit = 1 if name in ("WebP", "WebP that is upright") or "JPEG" in name else 0  # of rounding
    assert np.abs(result.astype(int) - expected(encoded)).max() <= limit
    (together,) = decode_together([encoded], 1 << 20)
    assert np.array_equal(together, result)
    if found.kind != "jpeg" and min(found.height, found.width) > 1:  # windows of those: below
        top, left, height, width = box = (
            found.height // 3,
            found.width // 4,
            found.height // 2,
            found.width // 2,
        )
        cut = decode_window(encoded, Window(found, box))
        assert np.array_equal(cut, result[top : top + height, left : left + width])


@pytest.mark.parametrize("name", PICTURES)
def test_graphs_are_given_what_they_read_alike(name):
    encoded = PICTURES[name]
    plain = plain_bytes(encoded)
    assert (plain is encoded) == (name in by_tensorflow() and name != "turned JPEG")
    if plain is not encoded:
        assert np.array_equal(tf.io.decode_image(plain).numpy(), decode(encoded))


def test_what_no_graph_can_decode_stays_what_it_is():
    for broken in (b"", b"text", PICTURES["turned PNG"][:-40], PICTURES["palette BMP"][:60]):
        assert plain_bytes(broken) is broken
    turned = PICTURES["turned JPEG"]
    assert plain_bytes(turned, max_pixels=100) is turned


def test_colours_by_hand():
    for name in ("transparent GIF", "lossless WebP with alpha"):
        result = decode(PICTURES[name])
        assert result[0, 0].tolist() == [255] * 3 and result[-1, -1].tolist() == [255, 0, 0]
    assert decode(PICTURES["palette BMP"])[[0, -1], [0, -1]].tolist() == [[10, 20, 30], [255, 0, 0]]
    assert decode(PICTURES["BMP with alpha"]).tolist() == [[[255] * 3, [255, 0, 0]]]
    assert decode(PICTURES["animated WebP"]).reshape(-1, 3).tolist() == [[255, 0, 0]] * 63


@pytest.mark.parametrize("value", range(1, 9))
def test_a_photograph_is_turned_and_so_are_its_windows(value):
    stored = photograph(90, 61)
    encoded = saved(stored, "JPEG", exif=exif(value), quality=95)
    found, whole = header(encoded), decode(encoded)
    assert (found.kind, found.orientation, found.by_pillow) == ("jpeg", value, False)
    assert np.abs(whole.astype(int) - expected(encoded)).max() <= 1
    windows = []
    for ratio in (1, 2, 4, 8):
        rows, columns = -(-found.height // ratio), -(-found.width // ratio)
        top, left = int(RNG.integers(rows)), int(RNG.integers(columns))
        high, wide = int(RNG.integers(1, rows - top + 1)), int(RNG.integers(1, columns - left + 1))
        windows += [Window(found, None, ratio), Window(found, (top, left, high, wide), ratio)]
    for alone, together in zip(
        [decode_window(encoded, window) for window in windows],
        decode_windows([encoded] * len(windows), windows),
        strict=True,
    ):
        assert np.array_equal(alone, together)
    made = [decode_window(encoded, window) for window in windows]
    for window, scaled, cut in zip(windows[1::2], made[::2], made[1::2], strict=True):
        top, left, high, wide = window.box
        assert cut.shape == (high, wide, 3)
        # The decoder's window may differ at its edge, where it knows no neighbours to smooth colours with.
        assert np.abs(cut.astype(int) - scaled[top : top + high, left : left + wide]).mean() < 2


def test_training_sees_photographs_upright():
    plain = photograph(400, 300)
    turned = plain.transpose(
        Image.Transpose.ROTATE_90
    )  # as the camera wrote it, held by a quarter to the right
    view = ImageAugmentation(50, scale=(0.7, 1.0), fit="crop")
    choices = view.choices(step_key_numpy(1, 2), np.arange(6))
    out = np.empty((6, 50, 50, 3), np.uint8)
    encoded = saved(turned, "JPEG", exif=exif(6), quality=95)
    assert view.cut_together([encoded] * 6, choices, range(6), 1 << 20, out) == [None] * 6
    for row in range(6):
        upright = view.cut(saved(plain, "JPEG", quality=95), choices, row)
        assert np.abs(out[row].astype(int) - upright).mean() < 2
    assert (
        np.abs(framed(decode(encoded), 50, "crop").astype(int) - framed(np.asarray(plain), 50, "crop")).mean()
        < 2
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code"), [(3, "H2x"), (4, "I")])
def test_orientation_of_all_writers(order, kind, code):
    entries = struct.pack(order + "HHI4s", 0x010F, 2, 1, b"x\0\0\0")
    entries += struct.pack(order + "HHI" + code, 0x0112, kind, 1, 7)
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IxxH", 10, 2) + entries
    segment = b"..Exif\0\0" + tiff
    assert orientation.in_segment(segment, 2, len(segment)) == 7
    for cut in range(len(segment)):  # never an error
        assert orientation.in_segment(segment[:cut], 2, cut) in (None, 7)


@pytest.mark.parametrize("text", [b'tiff:Orientation="6"', b"<tiff:Orientation>6</tiff:Orientation>"])
def test_orientation_that_only_xmp_says(text):
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta " + text
    encoded = saved(photograph(), "JPEG")
    encoded = encoded[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + encoded[2:]
    assert header(encoded).orientation == 6
    assert np.abs(decode(encoded).astype(int) - expected(encoded)).max() <= 1


@pytest.mark.parametrize("name", by_pillow())
def test_what_is_cut_short_is_a_picture_error(name):
    encoded = PICTURES[name]
    ends = sorted({*RNG.integers(0, len(encoded), 25).tolist(), 12, 20, 30})
    for picture in decode_together([encoded[:end] for end in ends], 1 << 20):
        assert isinstance(picture, np.ndarray | PictureError)
    assert isinstance(decode_together([encoded[: len(encoded) // 2]], 1 << 20)[0], PictureError)
