import numpy as np
import pytest
import tensorflow as tf

from basic_tf.monitoring.panels import (
    Retrieved,
    config_markdown,
    gallery,
    image_from_figure,
    similarity_matrix,
    write_config,
    write_figure,
)


def unit_rows(rng, shape):
    rows = rng.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def color_share(image, color, tolerance=8):
    return (np.abs(image.astype(int) - color).max(axis=-1) <= tolerance).mean()


def test_gallery_shows_the_pictures_and_marks_right_and_wrong():
    pictures = np.full((7, 31, 31, 3), (255, 0, 255), np.uint8)
    right = [[Retrieved("costs $5 or $6", 0.9, True), Retrieved("a  very\nlong caption " * 4, 0.1, True)]] * 7
    wrong = [[Retrieved("a cat", 0.9, False)]] * 7
    plain = [[Retrieved("a cat", 0.9)]] * 7
    images = [image_from_figure(gallery(pictures, found, columns=3)) for found in (right, wrong, plain)]
    for image in images:
        assert image.dtype == np.uint8 and image.ndim == 4 and image.shape[0] == 1 and image.shape[3] == 3
        assert color_share(image, (255, 0, 255)) > 0.3
    green = [color_share(image, (0x1A, 0x7F, 0x37)) for image in images]
    red = [color_share(image, (0xB4, 0x23, 0x18)) for image in images]
    assert green[0] > 0 and green[1] == green[2] == 0
    assert red[1] > 0 and red[0] == red[2] == 0


def test_similarity_matrix_says_what_the_numbers_are():
    rng = np.random.default_rng(3)
    images, texts = unit_rows(rng, (9, 5)), unit_rows(rng, (9, 5))
    figure = similarity_matrix(images, texts, captions=[f"a $ {i}" for i in range(9)], most=7)
    expected = images[:7] @ texts[:7].T
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected, atol=1e-6)
    best = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_array_equal(best[:, 0], expected.argmax(1))
    said = " ".join(text.get_text() for text in figure.texts)
    assert f"pairs {expected.diagonal().mean():.3f}" in said
    assert f"others {expected[~np.eye(7, dtype=bool)].mean():.3f}" in said
    assert f"{(expected.argmax(1) == np.arange(7)).mean():.0%} of 7" in said
    labels = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
    assert "captionpicture" in labels and "cosine similarity" in labels
    assert image_from_figure(figure).std() > 10


def test_similarity_matrix_shows_pictures_beside_their_rows():
    rng = np.random.default_rng(4)
    rows = unit_rows(rng, (3, 4))
    pictures = rng.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    figure = similarity_matrix(rows, rows, pictures=pictures)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), pictures.reshape(24, 8, 3))


def test_one_pair_is_enough():
    row = np.ones((1, 1), np.float32)
    assert image_from_figure(similarity_matrix(row, row)).size
    assert image_from_figure(gallery(np.zeros((1, 4, 4, 3), np.uint8), [[]])).size


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="got 2 pictures, 1 lists"):
        gallery(np.zeros((2, 4, 4, 3), np.uint8), [[]])
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        similarity_matrix(np.zeros((2, 3)), np.zeros((3, 3)))


def test_tensorboard_finds_everything(tmp_path):
    write_config(0, "nobody = 'listens'")
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        write_figure(3, "similarity", similarity_matrix(np.eye(3), np.eye(3)))
        write_config(3, "a.b = 1\n# c\nd.e = '*'")
    writer.close()

    found = {}
    (path,) = tmp_path.glob("events*")
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        for value in event.summary.value:
            found[value.tag] = (
                event.step,
                value.metadata.plugin_data.plugin_name,
                tf.make_ndarray(value.tensor),
            )
    assert found["similarity"][1] == "images"
    width, height, png = found["similarity"][2]
    assert tf.io.decode_png(png).shape.as_list() == [int(height), int(width), 3]
    assert found["gin"][1] == "text" and found["gin"][2].item().decode() == config_markdown(
        "a.b = 1\n# c\nd.e = '*'"
    )
    assert config_markdown("a\nb") == "    a\n    b"
