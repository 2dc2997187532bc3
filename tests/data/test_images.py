import io
import struct
import traceback
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from basic_tf.data import decoding
from basic_tf.data.colours import colour_maps
from basic_tf.data.decoding import Window, decode, decode_window, decode_windows, framed, on_white
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.picture_headers import PictureError, header
from basic_tf.randomness import step_key_numpy
from tests.data.pictures import jpeg, png, smooth

KEY = step_key_numpy(5, 23)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(depth: int, colour: int, rows: list[bytes], width: int, extra: bytes = b"") -> bytes:
    size = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


PALETTE = chunk(b"PLTE", bytes(range(10, 130, 10)))
ODD_PNGS = {
    "1 bit": raw_png(1, 0, [b"\xa6"], 8),
    "2 bits": raw_png(2, 0, [b"\x1b"], 4),
    "4 bits": raw_png(4, 0, [b"\x0f\xf7"], 4),
    "palette": raw_png(2, 3, [b"\x1b"], 4, PALETTE),
    "palette with alpha": raw_png(2, 3, [b"\x1b"], 4, PALETTE + chunk(b"tRNS", bytes([0, 128]))),
    "grey with a transparent value": raw_png(8, 0, [b"\x00\x10\x20\xff"], 4, chunk(b"tRNS", b"\x00\x10")),
    "1 bit with a transparent value": raw_png(1, 0, [b"\xa6"], 8, chunk(b"tRNS", b"\x00\x01")),
    "rgb with a transparent colour": raw_png(2 * 4, 2, [bytes(range(6))], 2, chunk(b"tRNS", b"\0\0\0\1\0\2")),
    "rgba of 16 bits": raw_png(16, 6, [b"\xff\xff\x80\x80\x00\x00\x40\x40"], 1),
}


@pytest.mark.parametrize("name", ODD_PNGS)
def test_every_kind_of_png_on_white(name):
    rgba = np.array(Image.open(io.BytesIO(ODD_PNGS[name])).convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(decode(ODD_PNGS[name]) - expected).max() <= 0.51


def test_compositing_is_exact():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (37, 41, 4), dtype=np.uint8)
    expected = np.rint((rgba[..., :3] * (rgba[..., 3:] / 255.0)) + 255 - rgba[..., 3:])
    assert np.array_equal(on_white(rgba), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg(mode):
    picture = Image.fromarray(smooth(np.random.default_rng(1), 33, 47)).convert(mode)
    result = decode(saved(picture, "JPEG", quality=98, subsampling=0))
    assert result.shape == (33, 47, 3) and result.dtype == np.uint8
    assert np.abs(result.astype(int) - np.array(picture.convert("RGB"))).mean() < 2.5


def test_sixteen_bit_grey_keeps_its_upper_half():
    values = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    assert decode(saved(Image.fromarray(values), "PNG"))[0, :, 0].tolist() == [0, 0, 1, 156, 255]


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "PNG", "JPEG"])
def test_formats_and_their_headers(kind):
    picture = Image.fromarray(smooth(np.random.default_rng(2), 20, 31))
    encoded = saved(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = header(encoded)
    assert (found.kind, found.height, found.width) == (kind.lower(), 20, 31)
    error = np.abs(decode(encoded).astype(int) - np.array(Image.open(io.BytesIO(encoded)).convert("RGB")))
    assert error.mean() < (2.5 if kind == "JPEG" else 0.5)


def test_jpeg_sizes_are_those_of_tensorflow():
    rng = np.random.default_rng(12)
    extra = (
        {"comment": b"\xff\xc0 not a frame" * 9},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {},
    )
    for options in extra:
        height, width = rng.integers(1, 300, 2).tolist()
        encoded = saved(Image.new("RGB", (width, height)), "JPEG", **options)
        filled = encoded[:2] + b"\xff\xff" + encoded[2:]  # fill bytes before a marker are allowed
        for data in (encoded, filled):
            found = header(data)
            assert (found.height, found.width) == (height, width)
            assert tf.io.extract_jpeg_shape(data).numpy().tolist() == [height, width, 3]


def test_webp_headers_of_all_three_kinds():
    picture = Image.fromarray(smooth(np.random.default_rng(2), 20, 31))
    for options in ({}, {"lossless": True}, {"icc_profile": b"x" * 100}):
        found = header(saved(picture, "WEBP", **options))
        assert (found.height, found.width) == (20, 31)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("P", (9, 7), value) for value in (0, 1, 2)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    encoded = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(encoded).reshape(-1, 3).tolist() == [[255, 0, 0]] * 63


def broken_pictures():
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    good_png, good_jpeg = png(noise), jpeg(noise)
    flipped = bytearray(good_png)
    flipped[len(flipped) // 2] ^= 0xFF
    return {
        "empty": (b"", "empty picture"),
        "text": (b"hello, I am a text", "unknown format"),
        "png cut": (good_png[: len(good_png) // 2], "undecodable PNG"),
        "png header alone": (good_png[:20], "damaged header"),
        "png damaged": (bytes(flipped), "undecodable PNG"),
        "jpeg cut": (good_jpeg[: len(good_jpeg) // 2], "undecodable JPEG"),
        "jpeg header alone": (good_jpeg[:30], "damaged header"),
        "gif cut": (b"GIF89a\x05\x00\x05\x00", "undecodable GIF"),
        "bomb": (raw_png(8, 2, [b""], 70000), "damaged header"),
        "no pixels": (raw_png(8, 2, [], 0), "damaged header"),
    }


@pytest.mark.parametrize("name", broken_pictures())
def test_broken_pictures_name_their_cause(name):
    encoded, cause = broken_pictures()[name]
    if name == "bomb":
        encoded, cause = encoded[:16] + struct.pack(">II", 70000, 70000) + encoded[24:], "too many pixels"
    with pytest.raises(PictureError) as error:
        decode(encoded)
    assert error.value.cause == cause and "\n" not in str(error.value) and "{{" not in str(error.value)
    with pytest.raises(PictureError):
        augmentation = ImageAugmentation(8)
        augmentation.cut(encoded, augmentation.choices(KEY, np.arange(1)), 0)


@pytest.mark.parametrize("name", ["png cut", "png damaged", "jpeg cut", "gif cut"])
def test_damaged_pictures_raise_outside_the_fast_path(name):
    """In the fast path two threads with damaged pictures may wait for each other for good (`decoding._in_one_call`)."""
    with pytest.raises(PictureError) as caught:
        decode(broken_pictures()[name][0])
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__cause__.__traceback__)]
    assert "partitioned_call_eager_fallback" in frames


def test_a_single_pixel_is_a_picture():
    one = np.array([[[10, 200, 30]]], np.uint8)
    augmentation = ImageAugmentation(8, scale=(0.3, 2.0))
    for row in range(20):
        result = augmentation.cut(png(one), augmentation.choices(KEY, np.arange(20)), row)
        assert result.shape == (8, 8, 3) and (result == one[0, 0]).all(-1).any()


def bilinear(picture: np.ndarray, x: np.ndarray, y: np.ndarray, border: str) -> np.ndarray:
    """Float64 reference: [S, S, 3] values of the picture at the (fractional) pixel indices x, y."""
    far = 2 * max(picture.shape)
    sides = ((far, far), (far, far), (0, 0))
    if border == "white":
        padded = np.pad(picture.astype(np.float64), sides, constant_values=255.0)
    else:
        padded = np.pad(picture.astype(np.float64), sides, mode="symmetric")
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    at = lambda row, column: padded[row + far, column + far]  # noqa: E731
    upper = at(top, left) * (1 - fx) + at(top, left + 1) * fx
    lower = at(top + 1, left) * (1 - fx) + at(top + 1, left + 1) * fx
    return upper * (1 - fy) + lower * fy


GEOMETRY = ImageAugmentation(
    output_size=23,
    scale=(0.6, 1.3),
    aspect=(0.7, 1.5),
    rotation=40.0,
    translation=0.1,
    flip=True,
)


@pytest.mark.parametrize("border", ["white", "reflect"])
def test_warp_is_the_affine_map_it_says(border):
    """The oracle is written from the words: window around a centre, turned, mirrored; pixel centres at +
    1/2.
    """
    rng = np.random.default_rng(4)
    pictures = rng.integers(0, 256, (9, 37, 37, 3), dtype=np.uint8)
    augmentation = ImageAugmentation(**{**GEOMETRY.__dict__, "border": border})
    choices = augmentation.choices(KEY, np.arange(9))
    assert 0 < choices.flip.sum() < 9
    result = augmentation.warp(pictures, choices)
    size = augmentation.output_size
    for row in range(9):
        width, height = 37 * choices.window[row].astype(np.float64)
        centre = [
            37 / 2 + choices.place[row, axis] * abs(37 - side) / 2 + choices.shift[row, axis] * 37
            for axis, side in enumerate((width, height))
        ]
        v, u = np.meshgrid(*[(np.arange(size) + 0.5) / size - 0.5] * 2, indexing="ij")
        if choices.flip[row]:
            u = -u
        angle = float(choices.angle[row])
        x = centre[0] + np.cos(angle) * u * width - np.sin(angle) * v * height - 0.5
        y = centre[1] + np.sin(angle) * u * width + np.cos(angle) * v * height - 0.5
        expected = bilinear(pictures[row], x, y, border)
        # Pictures of pure noise: half a level of rounding, and float32 coordinates inside the library.
        assert np.abs(result[row] - expected).max() < 0.75


def test_without_chance_a_picture_stays_as_it_is():
    pictures = np.random.default_rng(5).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    still = ImageAugmentation(20, scale=(1.0, 1.0))
    assert np.array_equal(still.warp(pictures, still.choices(KEY, np.arange(3))), pictures)
    assert np.array_equal(still.cut(png(pictures[1]), still.choices(KEY, np.arange(3)), 1), pictures[1])


def test_windows_stay_inside_and_reach_every_corner():
    augmentation = ImageAugmentation(10, scale=(0.5, 0.5))
    choices = augmentation.choices(KEY, np.arange(2000))
    for fit, (room_x, room_y, side) in {"stretch": (60, 40, 0), "crop": (60, 40, 20)}.items():
        chosen = ImageAugmentation(10, scale=(0.5, 0.5), fit=fit)
        windows = np.array([chosen.window_in(40, 60, choices, row) for row in range(2000)])
        left, right = windows[:, 0] - windows[:, 2] / 2, windows[:, 0] + windows[:, 2] / 2
        top, bottom = windows[:, 1] - windows[:, 3] / 2, windows[:, 1] + windows[:, 3] / 2
        assert left.min() >= -1e-6 and right.max() <= room_x + 1e-6 and top.min() >= -1e-6
        assert bottom.max() <= room_y + 1e-6
        assert left.min() < 0.2 and right.max() > room_x - 0.2 and bottom.max() > room_y - 0.2
        if side:
            assert np.allclose(windows[:, 2:], side)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("encode", [png, jpeg])
def test_both_roads_cut_the_same_window(fit, encode):
    """The per-example road against the exact warp of the whole decoded picture; windows are whole pixels
    there.
    """
    picture = smooth(np.random.default_rng(6), 180, 240, slower=4)
    augmentation = ImageAugmentation(32, scale=(0.5, 1.2), aspect=(0.8, 1.25), fit=fit, flip=True)
    choices = augmentation.choices(KEY, np.arange(6))
    encoded = encode(picture)
    for row in range(6):
        x, y, width, height = augmentation.window_in(180, 240, choices, row)
        result = augmentation.cut(encoded, choices, row)
        v, u = np.meshgrid(*[(np.arange(32) + 0.5) / 32 - 0.5] * 2, indexing="ij")
        u = -u if choices.flip[row] else u
        # A mean over 3 x 3 points of each output pixel stands in for any sensible anti-aliasing.
        offsets = (np.arange(3) - 1) / 3 / 32
        px, py = x + u * width - 0.5, y + v * height - 0.5
        expected = np.mean(
            [bilinear(picture, px + a * width, py + b * height, "white") for a in offsets for b in offsets], 0
        )
        inside = (np.abs(px - 119.5) < 115) & (np.abs(py - 89.5) < 85)
        error = np.abs(result - expected)[inside]
        assert inside.sum() > 300 and error.mean() < 4 and error.max() < 20
        outside = (np.abs(px - 119.5) > 130) | (np.abs(py - 89.5) > 100)
        assert (result[outside] == 255).all()


def test_large_jpegs_are_scaled_down_while_decoding(monkeypatch):
    picture = smooth(np.random.default_rng(7), 400, 500, slower=4)
    ratios = []
    real = tf.io.decode_and_crop_jpeg

    def spy(*arguments, **options):
        ratios.append(options["ratio"])
        return real(*arguments, **options)

    monkeypatch.setattr(tf.io, "decode_and_crop_jpeg", spy)
    decoding._graph.cache_clear()
    encoded = jpeg(picture)
    for size, expected in [(300, 1), (200, 2), (100, 4), (20, 8)]:
        still = ImageAugmentation(size, scale=(1.0, 1.0))
        result = still.cut(encoded, still.choices(KEY, np.arange(1)), 0)
        assert np.abs(result.astype(int) - framed(picture, size, "stretch")).mean() < 2
        assert ratios.pop() == expected


def test_pictures_decoded_together_are_those_decoded_alone():
    """Every kind, alpha, ratio and window, sizes of their own, more than fit into one call; damage stays where it is."""
    rng = np.random.default_rng(19)
    encoded, windows = [], []
    for number in range(120):
        height, width = rng.integers(1, 90, 2).tolist()
        picture = Image.fromarray(smooth(rng, height, width))
        kind = ("JPEG", "PNG", "GIF", "BMP", "WEBP")[number % 5 if number % 2 else number % 4 // 2]
        if kind == "JPEG":
            picture = picture.convert(("RGB", "L", "CMYK")[int(rng.integers(3))])
        elif kind == "PNG" and rng.integers(2):
            picture.putalpha(int(rng.integers(256)))
        data = saved(picture, kind)
        if not rng.integers(6):
            data = data[: len(data) * 2 // 3]
        ratio = int(rng.choice([1, 2, 4, 8])) if kind == "JPEG" else 1
        rows, columns = -(-height // ratio), -(-width // ratio)
        top, left = int(rng.integers(rows)), int(rng.integers(columns))
        box = (top, left, int(rng.integers(1, rows - top + 1)), int(rng.integers(1, columns - left + 1)))
        encoded.append(data)
        windows.append(Window(header(data), box if rng.integers(4) else None, ratio))
    failed = 0
    for one, window, together in zip(encoded, windows, decode_windows(encoded, windows), strict=True):
        try:
            alone = decode_window(one, window)
        except PictureError as error:
            failed += 1
            assert isinstance(together, PictureError) and together.cause == error.cause
        else:
            assert together.dtype == np.uint8 and np.array_equal(together, alone)
    assert 5 < failed < 60
    assert decode_windows([], []) == []


def test_rows_cut_together_are_those_cut_alone():
    rng = np.random.default_rng(8)
    augmentation = ImageAugmentation(24, scale=(0.4, 1.2), aspect=(0.8, 1.25), fit="pad", flip=True)
    choices = augmentation.choices(KEY, np.arange(40))
    encoded = [(jpeg, png)[row % 2](smooth(rng, 30 + row, 100 - row)) for row in range(40)]
    encoded[5], encoded[7] = encoded[5][:-40], b"no picture"
    rows = [row for row in range(40) if row != 3]
    out = np.zeros((40, 24, 24, 3), np.uint8)
    errors = augmentation.cut_together([encoded[row] for row in rows], choices, rows, 1 << 20, out)
    assert [(row, str(error).split(":")[0]) for row, error in zip(rows, errors) if error is not None] == [
        (5, "undecodable PNG"),
        (7, "unknown format"),
    ]
    for row, error in zip(rows, errors, strict=True):
        if error is None:
            assert np.array_equal(out[row], augmentation.cut(encoded[row], choices, row))
    assert not out[3].any()


COLOURS = ImageAugmentation(
    13,
    scale=(1.0, 1.0),
    gain=0.3,
    brightness=0.2,
    contrast=0.4,
    saturation=0.5,
    recolour_probability=0.5,
    grey_probability=0.3,
    invert_probability=0.5,
)


def colours_one_by_one(pixels: np.ndarray, u: np.ndarray, a: ImageAugmentation) -> np.ndarray:
    """Float64 reference of the colour changes of one picture, step after step; pixels [N, 3] in [0, 1]."""
    u = u.astype(np.float64)
    signed = 2 * u - 1
    if u[0] < a.invert_probability:
        pixels = 1 - pixels
    if u[1] < a.recolour_probability:
        weights = u[9:18].reshape(3, 3) + 1e-3
        weights = weights / weights.sum(0)
        strength = u[18:21] / u[18:21].max() * (0.6 + 0.4 * u[21])
        pixels = 1 - ((1 - pixels) @ weights) * strength
    pixels = pixels * (1 + signed[2:5] * a.gain)
    pixels = 0.5 + (pixels - 0.5) * (1 + signed[5] * a.contrast)
    grey = (pixels @ [0.299, 0.587, 0.114])[:, None]
    pixels = grey + (pixels - grey) * (0 if u[7] < a.grey_probability else 1 + signed[6] * a.saturation)
    return pixels + signed[8] * a.brightness


def test_colours_are_the_changes_one_after_the_other():
    pictures = np.random.default_rng(8).integers(0, 256, (40, 13, 13, 3), dtype=np.uint8)
    choices = COLOURS.choices(KEY, np.arange(40))
    result = COLOURS.recolour(pictures.copy(), choices)
    for row in range(40):
        expected = colours_one_by_one(pictures[row].reshape(-1, 3) / 255.0, choices.paint[row], COLOURS)
        # The library works in fixed point: within a level.
        assert np.abs(result[row].reshape(-1, 3) - np.clip(expected, 0, 1) * 255).max() < 1


def test_recolouring_keeps_white_and_shows_black_ink():
    augmentation = ImageAugmentation(4, recolour_probability=1.0)
    matrix, offset = colour_maps(augmentation, augmentation.choices(KEY, np.arange(300)).paint)
    white, black = matrix.sum(1) + offset, offset
    assert np.allclose(white, 1, atol=1e-6)
    assert black.min() > -1e-6 and (1 - black).max(1).min() > 0.59 and black.std(0).min() > 0.15


def test_monochrome_only_leaves_coloured_pictures_alone():
    augmentation = ImageAugmentation(6, (1, 1), invert_probability=1.0, monochrome_only=True)
    grey = np.full((6, 6, 3), 30, np.uint8)
    coloured = grey.copy()
    coloured[2, 2] = (200, 10, 10)
    result = augmentation.warp([grey, coloured], augmentation.choices(KEY, np.arange(2)))
    assert (result[0] == 225).all() and np.array_equal(result[1], coloured)


def test_erasing_and_blur():
    augmentation = ImageAugmentation(
        30, (1, 1), erase_probability=0.5, erase_area=(0.1, 0.2), blur_probability=0.5
    )
    pictures = np.random.default_rng(9).integers(0, 200, (400, 30, 30, 3), dtype=np.uint8)
    choices = augmentation.choices(KEY, np.arange(400))
    result = augmentation.warp(pictures, choices)
    white = (result == 255).all(-1)
    share = white.mean((1, 2))
    assert 0.4 < (share > 0).mean() < 0.6 and 0.4 < choices.blur.mean() < 0.6
    assert share[share > 0].min() > 0.07 and share.max() < 0.24
    for row in (np.flatnonzero(choices.blur)[0], np.flatnonzero(choices.blur == 0)[0]):
        padded = np.pad(pictures[row].astype(float), ((1, 1), (1, 1), (0, 0)), mode="symmetric")
        means = sum(padded[i : i + 30, j : j + 30] for i in range(3) for j in range(3)) / 9
        expected = means if choices.blur[row] else pictures[row]
        assert np.abs(result[row] - expected)[~white[row]].max() <= 0.51


FULL = ImageAugmentation(
    **{
        **GEOMETRY.__dict__,
        **{k: v for k, v in COLOURS.__dict__.items() if k.endswith("probability") or k == "gain"},
        "erase_probability": 0.5,
        "blur_probability": 0.5,
    }
)


def test_any_split_of_a_batch_gives_the_same_bits():
    pictures = np.random.default_rng(10).integers(0, 256, (21, 40, 40, 3), dtype=np.uint8)
    whole = FULL.warp(pictures, FULL.choices(KEY, np.arange(21)))
    for rows in ([20], [3, 19, 4], list(range(7, 16))):
        part = FULL.warp(pictures[rows], FULL.choices(KEY, np.array(rows)))
        assert np.array_equal(part, whole[rows])
    other = FULL.warp(pictures, FULL.choices(step_key_numpy(5, 24), np.arange(21)))
    assert (other != whole).mean() > 0.3


def test_rotation_on_the_per_example_road():
    picture = np.full((50, 50, 3), 255, np.uint8)
    picture[:25] = 0
    augmentation = ImageAugmentation(50, scale=(1, 1), rotation=90)
    choices = augmentation.choices(KEY, np.arange(1))
    choices = choices._replace(angle=np.array([np.pi / 2], np.float32))
    result = augmentation.finish(augmentation.cut(png(picture), choices, 0)[None], choices)[0]
    # Output right of the centre is read from below the centre, which is white.
    assert (result[5:-5, 30:-2] == 255).all() and (result[5:-5, 2:20] == 0).all()


def test_evaluation_takes_the_centre():
    assert ImageAugmentation(8).evaluation().scale == (224 / 268, 224 / 268)
    assert ImageAugmentation(8, (0.5, 1.2), rotation=9, fit="crop").evaluation() == ImageAugmentation(
        8, (1.0, 1.0), fit="crop"
    )
    picture = smooth(np.random.default_rng(11), 64, 64)
    evaluation = ImageAugmentation(32, (0.5, 0.5)).evaluation()
    result = evaluation.cut(png(picture), evaluation.choices(KEY, np.arange(1), central=True), 0)
    assert np.array_equal(result, picture[16:48, 16:48])


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_framing(fit):
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 100
    result = framed(picture, 20, fit)
    assert result.shape == (20, 20, 3)
    if fit == "crop":
        assert (result == 100).all()
    if fit == "pad":
        assert (result[:5] == 255).all() and (result[15:] == 255).all() and (result[6:14, 6:14] == 100).all()
    if fit == "stretch":
        assert (result[:, :4] == 0).all() and (result[:, 6:14] == 100).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_size": 0}, "output_size"),
        ({"scale": (0.9, 0.5)}, "scale must be"),
        ({"erase_area": (0.0, 0.5)}, "erase_area must be"),
        ({"blur_probability": 2.0}, "blur_probability"),
        ({"fit": "squash"}, "fit must be one of"),
        ({"border": "black"}, "border"),
    ],
)
def test_impossible_numbers_say_so(options, message):
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(**options)
