"""The evaluation's view of a picture as graph operations: the twin of `data.images` without its random
choices.

A SavedModel cannot hold Python, so what `ImageAugmentation.evaluation()` does to a file (decode, composite on
white, cut the central window, resize) is written here once more in TensorFlow operations. Tests hold the two
together: the same window of the same pixels, resized to within one level of 255 (the training code resizes in
fixed point). Everything that evaluates goes through here, so what is measured is what is served; pictures that
TensorFlow reads otherwise than they are meant are sent as `data.decoding.plain_bytes`.
"""

import tensorflow as tf

from basic_tf.data.images import ImageAugmentation

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_RIFF = b"RIFF"  # of WebP
_JPEG_RATIOS = (8, 4, 2, 1)
_SMALL = 256  # pixels a side; a batch of such pictures fits in memory decoded
_GROUP = 8  # small pictures decoded by one turn of the loop; a turn of its own for each costs a third of its decoding


def evaluation_view(preprocessing: ImageAugmentation | int) -> ImageAugmentation:
    """The augmentation without chance; a number is the size in pixels of the whole picture, made square."""
    if isinstance(preprocessing, int):
        preprocessing = ImageAugmentation(output_size=preprocessing, scale=(1.0, 1.0))
    return preprocessing.evaluation()


def description(view: ImageAugmentation) -> dict:
    """What the evaluation does to a picture, for the files that say how figures or an export were made."""
    return {
        "output_size": view.output_size,
        "fit": view.fit,
        "window": view.scale[0],
        "border": view.border,
    }


def decode_batch(encoded: tf.Tensor, view: ImageAugmentation) -> tf.Tensor:
    """Encoded pictures string [N] -> uint8 [N, S, S, 3].

    InvalidArgumentError lists all rows that do not start like a JPEG, PNG, GIF, BMP or WebP; for a picture
    that is cut short it holds the decoder's message.
    """
    known = (
        _starts(encoded, _JPEG) | _starts(encoded, _PNG) | _starts(encoded, b"GIF8") | _starts(encoded, b"BM")
    )
    known |= _starts(encoded, _RIFF)
    check = tf.debugging.Assert(
        tf.reduce_all(known),
        ["not a JPEG, PNG, GIF, BMP or WebP picture; rows:", tf.reshape(tf.where(~known), [-1])],
        summarize=20,
    )
    with tf.control_dependencies([check]):
        encoded = tf.identity(encoded)
    size = view.output_size

    return tf.cond(
        _small_pngs_of_one_size(encoded),
        lambda: _decode_alike(encoded, view),
        lambda: _mapped(lambda one: decode(one, view), encoded, [size, size, 3]),
    )


def _mapped(function, rows: tf.Tensor, shape) -> tf.Tensor:
    signature = tf.TensorSpec(shape, tf.uint8)
    return tf.map_fn(function, rows, fn_output_signature=signature, parallel_iterations=16)


def _small_pngs_of_one_size(encoded: tf.Tensor) -> tf.Tensor:
    """A boolean scalar: PNGs of one size, at most 256 x 256, a multiple of 8 of them (the encoders pad to full batches)."""
    # Padded: a stump has no size. Byte 16 on: width and height, big-endian.
    head = tf.strings.join([tf.strings.substr(encoded, 0, 24), b"\0" * 24])
    sizes = tf.io.decode_raw(tf.strings.substr(head, 16, 8), tf.int32, little_endian=False)  # [N, 2]
    fits = (sizes == sizes[:1]) & (sizes > 0) & (sizes <= _SMALL)
    groups = (tf.size(encoded) > 0) & (tf.size(encoded) % _GROUP == 0)
    return groups & tf.reduce_all(fits) & tf.reduce_all(_starts(encoded, _PNG))


def _decode_alike(encoded: tf.Tensor, view: ImageAugmentation) -> tf.Tensor:
    """`decode` for PNGs of one size, to the bit: some hundred operations for the batch, not for each picture."""
    with tf.device("CPU:0"):

        def decoded(one):
            def group(rows):
                return tf.stack([one(row) for row in tf.unstack(rows, _GROUP)])

            # Cut to whole groups, which it has, for shapes that are checked while tracing the branch not taken.
            whole = encoded[: tf.size(encoded) // _GROUP * _GROUP]
            return _mapped(group, tf.reshape(whole, [-1, _GROUP]), [_GROUP, None, None, 3])

        pictures = tf.cond(
            tf.reduce_any(_png_has_alpha(encoded)), lambda: decoded(_png_or_on_white), lambda: decoded(_png)
        )
        height, width = tf.unstack(tf.shape(pictures)[2:4])
        pictures = tf.reshape(pictures, [-1, height, width, 3])
        rows, columns, top, left = _spans(height, width, _window(height, width, view), 1, view.output_size)
        return _framed(pictures[:, top[0] : top[1], left[0] : left[1]], rows, columns, view)


def decode(encoded: tf.Tensor, view: ImageAugmentation) -> tf.Tensor:
    """One encoded picture, a scalar string -> uint8 [S, S, 3]."""
    with tf.device("CPU:0"):
        is_jpeg = _starts(encoded, _JPEG)
        inner, rows, columns = tf.cond(
            is_jpeg, lambda: _cut_jpeg(encoded, view), lambda: _cut_other(encoded, view)
        )
        return _framed(inner[None], rows, columns, view)[0]


def _framed(inner: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor, view: ImageAugmentation) -> tf.Tensor:
    """The cut windows uint8 [N, h, w, 3] resized into these rows and columns of the output -> uint8 [N, S, S, 3]."""
    size = view.output_size
    resized = _resize(inner, rows[1] - rows[0], columns[1] - columns[0])
    # Where the window is larger than the picture, white lies around it.
    edges = [[0, 0], [rows[0], size - rows[1]], [columns[0], size - columns[1]], [0, 0]]
    if view.border == "reflect":
        return tf.ensure_shape(tf.pad(resized, edges, "SYMMETRIC"), [None, size, size, 3])
    return tf.ensure_shape(tf.pad(resized, edges, constant_values=255), [None, size, size, 3])


def _starts(encoded: tf.Tensor, beginning: bytes) -> tf.Tensor:
    # tf.strings.substr fails on a string that is shorter than its start, not on one shorter than its end.
    return tf.strings.substr(encoded, 0, len(beginning)) == beginning


def _cut_jpeg(encoded: tf.Tensor, view: ImageAugmentation):
    """Decodes the window alone, scaled down by the DCT as far as it keeps at least S pixels."""
    shape = tf.image.extract_jpeg_shape(encoded)
    window = _window(shape[0], shape[1], view)
    shorter = tf.minimum(window[2], window[3])

    def at(ratio: int):
        def branch():
            rows, columns, top, left = _spans(shape[0], shape[1], window, ratio, view.output_size)
            picture = tf.image.decode_and_crop_jpeg(
                encoded,
                tf.stack([top[0], left[0], top[1] - top[0], left[1] - left[0]]),
                channels=3,
                ratio=ratio,
                dct_method="INTEGER_ACCURATE",
            )
            return picture, rows, columns

        return branch

    fits = tf.stack([shorter >= ratio * view.output_size for ratio in _JPEG_RATIOS[:-1]])
    # The first ratio that fits, else the last (1).
    index = tf.reduce_sum(tf.cast(tf.math.cumprod(tf.cast(~fits, tf.int32)), tf.int32))
    return tf.switch_case(index, [at(ratio) for ratio in _JPEG_RATIOS])


def _cut_other(encoded: tf.Tensor, view: ImageAugmentation):
    picture = tf.cond(
        _starts(encoded, _PNG),
        lambda: _png_or_on_white(encoded),
        lambda: tf.cond(
            _starts(encoded, _RIFF),
            lambda: _webp(encoded),
            lambda: tf.image.decode_image(encoded, channels=3, expand_animations=False),
        ),
    )
    shape = tf.shape(picture)
    window = _window(shape[0], shape[1], view)
    rows, columns, top, left = _spans(shape[0], shape[1], window, 1, view.output_size)
    return picture[top[0] : top[1], left[0] : left[1]], rows, columns


def _png(encoded: tf.Tensor) -> tf.Tensor:
    return tf.image.decode_png(encoded, channels=3)


def _png_or_on_white(encoded: tf.Tensor) -> tf.Tensor:
    alpha = _png_has_alpha(encoded[None])[0]
    return tf.cond(alpha, lambda: _png_on_white(encoded), lambda: _png(encoded))


def _png_has_alpha(encoded: tf.Tensor) -> tf.Tensor:
    """Of PNGs string [N], boolean [N]: an alpha channel (colour types 4 and 6), or a tRNS chunk before the pixels.

    TensorFlow's decoder drops a transparent colour unless four channels are asked for, and invents an alpha
    for opaque pictures of fewer than 8 bits if they are: so they are asked for exactly where there is one.
    """
    head = tf.strings.join([tf.strings.substr(encoded, 0, 26), b"\0" * 26])  # padded: a stump has no byte 25
    colour = tf.strings.substr(head, 25, 1)
    before_pixels = tf.strings.split(encoded, "IDAT", maxsplit=1)[:, :1].values
    has_trns = tf.strings.split(before_pixels, "tRNS", maxsplit=1).row_lengths() > 1
    return (colour == b"\x04") | (colour == b"\x06") | has_trns


def _png_on_white(encoded: tf.Tensor) -> tf.Tensor:
    return _on_white(tf.image.decode_png(encoded, channels=4))


def _webp(encoded: tf.Tensor) -> tf.Tensor:
    """TensorFlow refuses three channels of a WebP with alpha, and four of one without: it is asked for what there is.

    Asked so for an animation, TensorFlow 2.20 writes all frames into room for one, and the process dies: refused before.
    """
    head = tf.strings.join([tf.strings.substr(encoded, 0, 21), b"\0" * 21])  # padded: a stump has no byte 20
    flags = tf.io.decode_raw(tf.strings.substr(head, 20, 1), tf.uint8)[0]
    animated = (tf.strings.substr(head, 12, 4) == b"VP8X") & (tf.bitwise.bitwise_and(flags, 2) > 0)
    check = tf.debugging.Assert(~animated, ["an animated WebP cannot be decoded; send one frame of it"])
    with tf.control_dependencies([check]):
        picture = tf.image.decode_image(tf.identity(encoded), channels=0, expand_animations=False)
    return tf.cond(tf.shape(picture)[2] == 4, lambda: _on_white(picture), lambda: picture)


def _on_white(rgba: tf.Tensor) -> tf.Tensor:
    rgba = tf.cast(rgba, tf.int32)
    alpha = rgba[..., 3:]
    # Exact rounding of (colour * alpha + 255 * (255 - alpha)) / 255.
    return tf.cast((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def _window(height: tf.Tensor, width: tf.Tensor, view: ImageAugmentation):
    """(centre x, centre y, width, height) of the central window, float64, in pixels of the whole picture."""
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    short, long = tf.minimum(height, width), tf.maximum(height, width)
    across, down = {"stretch": (width, height), "pad": (long, long), "crop": (short, short)}[view.fit]
    # As float32 first: the choices of `ImageAugmentation` are float32.
    side = tf.cast(tf.constant(view.scale[0], tf.float32), tf.float64)
    return width / 2, height / 2, side * across, side * down


def _spans(height: tf.Tensor, width: tf.Tensor, window, ratio: int, size: int):
    """Rows and columns of the output that the picture fills, and rows and columns of the picture that are
    taken.
    """
    x, y, across, down = window
    top, rows = _span(y / ratio, down / ratio, -(-height // ratio), size)
    left, columns = _span(x / ratio, across / ratio, -(-width // ratio), size)
    return rows, columns, top, left


def _span(centre: tf.Tensor, length: tf.Tensor, limit: tf.Tensor, size: int):
    """One axis: (start, stop) in the picture of `limit` pixels, and the part of the output it fills; int32
    [2] each.
    """

    def whole(value):
        return tf.cast(tf.round(value), tf.int32)

    start, stop = centre - length / 2, centre + length / 2
    inner_start = tf.clip_by_value(whole(start), 0, limit - 1)
    inner_stop = tf.clip_by_value(whole(stop), inner_start + 1, limit)
    outside = (start < -0.5) | (stop > tf.cast(limit, tf.float64) + 0.5)
    scale = size / length
    low = tf.clip_by_value(whole((tf.cast(inner_start, tf.float64) - start) * scale), 0, size - 1)
    high = tf.clip_by_value(whole((tf.cast(inner_stop, tf.float64) - start) * scale), low + 1, size)
    filled = tf.where(outside, tf.stack([low, high]), tf.constant([0, size]))
    return tf.stack([inner_start, inner_stop]), filled


def _resize(pictures: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """uint8 [N, h, w, 3] -> uint8 [N, height, width, 3]: bilinear; area means where it shrinks more than
    twofold.
    """
    shape, target = tf.shape(pictures), tf.stack([height, width])
    shrinks = (shape[1] > 2 * height) | (shape[2] > 2 * width)
    resized = tf.cond(
        shrinks,
        lambda: tf.raw_ops.ResizeArea(images=pictures, size=target),
        lambda: tf.image.resize(pictures, target),  # half-pixel centres; the identity at the right size
    )
    return tf.cast(tf.clip_by_value(resized, 0.0, 255.0) + 0.5, tf.uint8)
