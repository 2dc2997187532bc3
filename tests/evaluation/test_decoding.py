"""The served decoding is the training code's, to the rounding of the resize."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from basic_tf.data.images import ImageAugmentation
from basic_tf.randomness import step_key_numpy
from basic_tf.serving import decoding

RNG = np.random.default_rng(20)


def smooth(height, width, channels):
    """Random pictures with some structure, so that codecs and resizing have something to keep."""
    small = RNG.integers(0, 256, (5, 4, channels), dtype=np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(small[..., c]).resize((width, height), Image.BICUBIC))
            for c in range(channels)
        ],
        -1,
    )


def encoded(array, format, mode=None, **options):
    picture = Image.fromarray(array.squeeze() if array.shape[-1] == 1 else array)
    if mode == "P+alpha":
        picture = picture.quantize(7)
    elif mode:
        picture = picture.convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


CASES = {
    "png": encoded(smooth(45, 70, 3), "PNG"),
    "png_tall": encoded(smooth(91, 33, 3), "PNG"),
    "png_small": encoded(smooth(9, 13, 3), "PNG"),
    "png_same_size": encoded(smooth(32, 32, 3), "PNG"),
    "png_one_pixel": encoded(smooth(1, 1, 3), "PNG"),
    "png_alpha": encoded(smooth(50, 41, 4), "PNG"),
    "png_grey": encoded(smooth(50, 41, 1), "PNG"),
    "png_grey_alpha": encoded(smooth(50, 41, 4), "PNG", "LA"),
    "png_one_bit": encoded(smooth(50, 41, 1), "PNG", "1"),
    "png_palette": encoded(smooth(50, 41, 3), "PNG", "P"),
    "png_palette_alpha": encoded(smooth(50, 41, 4), "PNG", "P+alpha"),
    "png_transparent_colour": encoded(smooth(50, 41, 3), "PNG", transparency=(255, 255, 255)),
    "jpeg": encoded(smooth(60, 47, 3), "JPEG", quality=90),
    "jpeg_large": encoded(smooth(401, 633, 3), "JPEG", quality=90),
    "jpeg_huge": encoded(smooth(1201, 933, 3), "JPEG", quality=80),
    "jpeg_grey": encoded(smooth(60, 47, 1), "JPEG"),
    "jpeg_progressive": encoded(smooth(200, 147, 3), "JPEG", progressive=True),
    "gif": encoded(smooth(60, 47, 3), "GIF"),
    "bmp": encoded(smooth(60, 47, 3), "BMP"),
    "webp": encoded(smooth(60, 47, 3), "WEBP"),
}
VIEWS = {
    "whole": ImageAugmentation(32, (1.0, 1.0)),
    "paper": ImageAugmentation(24),
    "pad": ImageAugmentation(32, (0.9, 1.1), fit="pad"),
    "pad_outside": ImageAugmentation(32, (1.25, 1.4), fit="pad"),
    "crop": ImageAugmentation(17, (0.7, 0.8), fit="crop"),
}


@pytest.mark.parametrize("view", VIEWS)
def test_equal_to_the_training_code(view):
    augmentation = VIEWS[view]
    evaluation = augmentation.evaluation()
    choices = evaluation.choices(step_key_numpy(0, 0), np.arange(len(CASES)), central=True)
    expected = np.stack([evaluation.cut(data, choices, row) for row, data in enumerate(CASES.values())])
    decode = tf.function(lambda rows: decoding.decode_batch(rows, decoding.evaluation_view(augmentation)))
    received = decode(tf.constant(list(CASES.values()))).numpy()
    difference = np.abs(received.astype(int) - expected).max(axis=(1, 2, 3))
    assert max(difference) <= 1, dict(zip(CASES, difference))
    assert difference[list(CASES).index("png_one_pixel")] == 0
    assert expected.std() > 20  # the pictures are not all one colour


def test_a_number_means_the_whole_picture_made_square():
    picture = smooth(64, 32, 3)
    received = decoding.decode(tf.constant(encoded(picture, "PNG")), decoding.evaluation_view(32)).numpy()
    # 64 -> 32 rows: the mean of two rows; 32 columns stay.
    expected = (picture.astype(np.float32).reshape(32, 2, 32, 3).mean(1) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(received, expected)


def test_transparency_becomes_white():
    picture = np.zeros((8, 8, 4), np.uint8)  # black, wholly transparent
    picture[:, 4:, 3] = 255  # right half opaque
    received = decoding.decode(tf.constant(encoded(picture, "PNG")), decoding.evaluation_view(8)).numpy()
    assert (received[:, :4] == 255).all() and (received[:, 4:] == 0).all()


@pytest.mark.parametrize("lossless", [True, False])
def test_transparent_webp_becomes_white(lossless):
    """Beside one without alpha, in one request."""
    picture = np.zeros((16, 16, 4), np.uint8)  # black, wholly transparent
    picture[:, 8:, 3] = 255  # right half opaque
    rows = tf.constant([encoded(picture, "WEBP", lossless=lossless, exact=True), CASES["webp"]])
    decode = tf.function(lambda rows: decoding.decode_batch(rows, decoding.evaluation_view(16)))
    received = decode(rows).numpy()
    assert (received[0, :, :8] == 255).all() and (received[0, :, 8:] < 10).all()
    alone = decoding.decode(tf.constant(CASES["webp"]), decoding.evaluation_view(16)).numpy()
    np.testing.assert_array_equal(received[1], alone)


def test_an_animated_webp_is_refused():
    """Decoding it would take the process down."""
    frames = [Image.fromarray(np.full((30, 30, 3), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    decode = tf.function(lambda rows: decoding.decode_batch(rows, decoding.evaluation_view(8)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="animated WebP cannot be decoded"):
        decode(tf.constant([buffer.getvalue()]))


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200, 90)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    received = decoding.decode(tf.constant(buffer.getvalue()), decoding.evaluation_view(8)).numpy()
    assert np.abs(received.astype(int) - 10).max() <= 2


def test_rows_that_are_no_pictures_are_all_named():
    rows = tf.constant([CASES["png"], b"hello", CASES["jpeg"], b"", b"<svg/>"])
    decode = tf.function(lambda rows: decoding.decode_batch(rows, decoding.evaluation_view(8)))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"not a JPEG, PNG, .*; rows:\] \[1 3 4\]"):
        decode(rows)


@pytest.mark.parametrize(
    "stump", [CASES["png"][:20], CASES["png"][:60], CASES["jpeg"][:150], b"\xff\xd8\xff", b"BM", b"RIFF"]
)
def test_truncated_pictures_fail(stump):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoding.decode_batch(tf.constant([stump]), decoding.evaluation_view(8))


PNGS = [name for name in CASES if name.startswith("png")]


@pytest.mark.parametrize("view", ["paper", "pad_outside"])
def test_pngs_of_one_size_together_are_what_each_is_alone(view):
    """To the bit: the batch takes another road, and an embedding must not depend on the company."""
    evaluation = decoding.evaluation_view(VIEWS[view])
    many, one = [tf.TensorSpec([None], tf.string)], [tf.TensorSpec([], tf.string)]
    decode = tf.function(lambda rows: decoding.decode_batch(rows, evaluation), input_signature=many)
    alone = tf.function(lambda row: decoding.decode(row, evaluation), input_signature=one)
    size = (50, 41)
    same_size = [data for data in CASES.values() if Image.open(io.BytesIO(data)).size == size[::-1]]
    assert len(same_size) == 7  # with and without an alpha channel, a palette, one bit
    opaque = [CASES[name] for name in ("png_grey", "png_one_bit", "png_palette")]
    batches = [
        [*same_size, encoded(smooth(*size, 3), "PNG")],
        [*opaque, *[encoded(smooth(*size, 3), "PNG") for _ in range(13)]],
        *[
            [encoded(smooth(*shape, 3), "PNG") for _ in range(8)]
            for shape in [(1, 1), (9, 13), (32, 32), (256, 131)]
        ],
    ]
    for rows in batches:
        assert decoding._small_pngs_of_one_size(tf.constant(rows))
        received = decode(tf.constant(rows)).numpy()
        for row, data in zip(received, rows, strict=True):
            np.testing.assert_array_equal(row, alone(tf.constant(data)).numpy())


def test_which_pictures_are_decoded_together():
    def together(*rows):
        return bool(decoding._small_pngs_of_one_size(tf.constant(rows, tf.string)))

    eight = [CASES["png_grey"]] * 7 + [CASES["png_alpha"]]
    assert together(*eight)
    assert together(*eight, *eight)
    assert not together()
    assert not together(*eight[1:])
    assert not together(*eight[1:], CASES["png_tall"])  # two sizes
    assert not together(*eight[1:], CASES["jpeg"])
    assert not together(*eight[1:], b"\x89PNG\r\n\x1a\n")  # a stump
    large = encoded(smooth(257, 5, 3), "PNG")
    assert not together(*[large] * 8)  # decoded all at once, large ones would fill the memory
    empty = decoding.decode_batch(tf.constant([], tf.string), decoding.evaluation_view(8))
    assert empty.shape == (0, 8, 8, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):  # cut short among whole ones
        decoding.decode_batch(tf.constant([*eight[1:], eight[0][:90]]), decoding.evaluation_view(8))
