"""The SavedModel alone gives what the training code gives."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from basic_tf.evaluation.encoder import ModelEncoder, SavedModelEncoder
from basic_tf.evaluation.prompts import class_prompts
from basic_tf.evaluation.zero_shot import class_weights
from basic_tf.serving import saved_model
from tests.evaluation.conftest import SIZE, TEMPLATES

TEXTS = ["a red apple", "the CAT", "", "a small house on a large tree of the moon and much more that is cut"]
CLASSES = ["apple", "cat", "house", "blue fish", "sun"]

# Runs with neither this repository nor Keras: a bare process that has tensorflow and tensorflow_text.
STRANGER = """
import json, sys
import numpy as np, tensorflow as tf
import tensorflow_text
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("basic_tf", "keras", "tf_keras", "keras_cv"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Forbidden())
for name in [n for n in sys.modules if n.split(".")[0] in ("keras", "tf_keras")]:
    del sys.modules[name]
try:
    import basic_tf
    sys.exit("basic_tf could be imported")
except ImportError:
    pass
given = np.load(sys.argv[2], allow_pickle=True)
signatures = tf.saved_model.load(sys.argv[1]).signatures
images = tf.constant(given["images"].tolist())
texts = tf.constant(given["texts"].tolist())
classes = tf.constant(given["classes"].tolist())
np.savez(
    sys.argv[3],
    images=signatures["encode_image"](image_bytes=images)["embeddings"],
    pixels=signatures["encode_pixels"](images=tf.constant(given["pixels"]))["embeddings"],
    texts=signatures["encode_text"](texts=texts)["embeddings"],
    classify=signatures["classify"](image_bytes=images, classes=classes)["probabilities"],
    names=signatures["classify_names"](image_bytes=images, classes=classes)["probabilities"],
    default=signatures["serving_default"](image_bytes=images, classes=classes)["probabilities"],
)
"""


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    result = []
    for index, (height, width) in enumerate([(32, 32), (70, 41), (9, 20), (33, 64), (1, 1)]):
        array = np.kron(rng.integers(0, 256, (3, 3, 4), dtype=np.uint8), np.ones((30, 30, 1), np.uint8))
        picture = Image.fromarray(array).resize((width, height))
        buffer = io.BytesIO()
        if index == 1:
            picture.convert("RGB").save(buffer, "JPEG")
        else:
            picture.save(buffer, "PNG")
        result.append(buffer.getvalue())
    return result


@pytest.fixture(scope="module")
def stranger(exported, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    pixels = np.random.default_rng(6).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(
        folder / "given.npz",
        images=np.array(pictures, object),
        texts=np.array(TEXTS, object),
        classes=np.array(CLASSES, object),
        pixels=pixels,
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", STRANGER, exported, folder / "given.npz", folder / "made.npz"],
        cwd=folder,
        env=environment,
        check=True,
    )
    return {**np.load(folder / "made.npz"), "given_pixels": pixels}


def softmax(logits):
    logits = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_a_process_without_our_code_gives_the_same_embeddings(model, tokenizer, view, pictures, stranger):
    own = ModelEncoder(model, tokenizer, view, batch_size=4)
    np.testing.assert_allclose(stranger["images"], own.encode_image_bytes(pictures), atol=1e-5)
    np.testing.assert_allclose(stranger["texts"], own.encode_text(TEXTS), atol=1e-5)
    direct = model.encode_image(stranger["given_pixels"]).numpy()
    np.testing.assert_allclose(stranger["pixels"], direct, atol=1e-5)
    np.testing.assert_allclose(stranger["texts"], model.encode_text(tokenizer(TEXTS)).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(stranger["images"], axis=1), 1, atol=1e-5)
    assert np.abs(stranger["images"][0] - stranger["images"][1]).max() > 0.05  # the embeddings differ at all


def test_probabilities(model, tokenizer, view, stranger):
    own = ModelEncoder(model, tokenizer, view)
    np.testing.assert_allclose(own.temperature, 0.07, rtol=1e-6)
    bare = own.encode_text(CLASSES)
    np.testing.assert_allclose(stranger["classify"], softmax(stranger["images"] @ bare.T / 0.07), atol=1e-5)
    np.testing.assert_array_equal(stranger["classify"], stranger["default"])
    weights = class_weights(own, class_prompts(CLASSES, TEMPLATES))
    np.testing.assert_allclose(stranger["names"], softmax(stranger["images"] @ weights.T / 0.07), atol=1e-5)
    assert np.abs(stranger["names"] - stranger["classify"]).max() > 1e-3  # the templates do something


def test_fixed_batches_do_not_change_the_result(exported, pictures):
    encoder = SavedModelEncoder(exported, batch_size=2)
    pixels = np.random.default_rng(8).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    cases = {"encode_image_bytes": pictures, "encode_text": TEXTS, "encode_images": pixels}
    together = {method: getattr(encoder, method)(rows) for method, rows in cases.items()}
    for method, rows in cases.items():
        np.testing.assert_array_equal(
            together[method][-1:], getattr(encoder, method)(rows[-1:])
        )  # to the bit
        assert getattr(encoder, method)(rows[:0]).shape == (0, 24)
    encoder.batch_size = 64
    for method, rows in cases.items():
        np.testing.assert_allclose(together[method], getattr(encoder, method)(rows), atol=1e-5)


def test_one_trace_whatever_the_number_of_pictures(model, tokenizer, view, pictures):
    encoder = ModelEncoder(model, tokenizer, view, batch_size=3)
    for count in (1, 3, 5):
        encoder.encode_image_bytes(pictures[:count])
        encoder.encode_images(np.zeros((count, SIZE, SIZE, 3), np.uint8))
        encoder.encode_text(TEXTS[: min(count, 4)])
    module = encoder._module
    for function in (module.encode_image, module.encode_pixels, module.encode_text):
        assert function.experimental_get_tracing_count() == 1


def test_photographs_are_seen_upright(model, tokenizer, view, exported):
    upright = Image.fromarray(
        np.kron(
            np.random.default_rng(6).integers(0, 256, (3, 4, 3), np.uint8), np.ones((20, 20, 1), np.uint8)
        )
    )
    camera = Image.Exif()
    camera[0x0112] = 6  # held by a quarter to the right: the sensor's picture lies on its left side
    stored, turned = io.BytesIO(), io.BytesIO()
    upright.save(stored, "JPEG", quality=100, subsampling=0)
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, "JPEG", quality=100, subsampling=0, exif=camera)
    for encoder in (ModelEncoder(model, tokenizer, view, batch_size=2), SavedModelEncoder(exported)):
        one, other = encoder.encode_image_bytes([stored.getvalue(), turned.getvalue()])
        asleep = encoder.encode_image_bytes([turned.getvalue().replace(b"Exif", b"none", 1)])[0]
        assert np.abs(one - other).max() < 0.1 * np.abs(one - asleep).max()


def test_an_undecodable_picture_is_named(exported, pictures):
    encoder = SavedModelEncoder(exported, batch_size=2)
    with pytest.raises(ValueError, match=r"picture 3 \(60 bytes\) cannot be decoded"):
        encoder.encode_image_bytes([*pictures[:3], pictures[3][:60], pictures[4]])
    with pytest.raises(ValueError, match=r"picture 1 \(4 bytes\) cannot be decoded: .not a JPEG, PNG, GIF"):
        encoder.encode_image_bytes([pictures[0], b"text"])
    with pytest.raises(ValueError, match="expected uint8"):
        encoder.encode_images(np.zeros((1, SIZE, SIZE + 1, 3), np.uint8))


def test_metadata(exported):
    metadata = saved_model.load_metadata(exported)
    assert metadata["image_size"] == SIZE and metadata["embedding_dim"] == 24
    assert metadata["templates"] == list(TEMPLATES)
    assert metadata["provenance"] == {"run": "a test", "step": 7}
    assert metadata["versions"]["tensorflow"] == tf.__version__
    assert set(metadata["signatures"]) >= {"encode_image", "encode_text", "classify", "serving_default"}
    assert not [name for name in os.listdir(os.path.dirname(exported)) if name.endswith(".writing")]


def test_export_keeps_what_is_there(exported, model, tokenizer, view, tmp_path):
    with pytest.raises(FileExistsError, match="--overwrite"):
        saved_model.export(model, tokenizer, view, exported)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="is no SavedModel"):
        saved_model.export(model, tokenizer, view, str(tmp_path / "precious"), overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"no saved_model\.pb"):
        SavedModelEncoder(str(tmp_path))


class Toy(tf.Module):
    """The least that can be exported."""

    def __init__(self):
        super().__init__()
        self.log_inverse_temperature = tf.Variable(1.0)
        self.scale = tf.Variable([1.0, 2.0])

    def parameters(self):
        return {"scale": self.scale, "log_inverse_temperature": self.log_inverse_temperature}

    def encode_image(self, images):
        return tf.math.l2_normalize(
            tf.reduce_mean(tf.cast(images, tf.float32), (1, 2))[:, :2] * self.scale, -1
        )

    def encode_text(self, ids):
        return tf.math.l2_normalize(tf.cast(ids[:, :2], tf.float32) * self.scale + 0.1, -1)


def test_overwrite(tokenizer, tmp_path):
    path = str(tmp_path / "model")
    saved_model.export(Toy(), tokenizer, 32, path, ("one {}",))
    saved_model.export(Toy(), tokenizer, 32, path + "/", ("two {}",), overwrite=True)
    with open(os.path.join(path, saved_model.METADATA_FILE)) as file:
        metadata = json.load(file)
    assert metadata["templates"] == ["two {}"] and metadata["embedding_dim"] == 2
    assert metadata["temperature"] == pytest.approx(np.exp(-1), abs=1e-6)
    assert os.listdir(tmp_path) == ["model"]


def test_a_weight_that_is_no_variable_is_refused(tokenizer, tmp_path):
    toy = Toy()
    toy.parameters = lambda: {"scale": np.ones(2)}
    with pytest.raises(TypeError, match="received ndarray"):
        saved_model.export(toy, tokenizer, 32, str(tmp_path / "model"))
