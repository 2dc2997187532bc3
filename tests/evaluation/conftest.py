"""A tiny dual encoder with a real tokenizer, and its SavedModel: made once for all tests of this folder."""

import io

import numpy as np
import pytest
import sentencepiece

from basic_tf.data.images import ImageAugmentation
from basic_tf.data.tokenizer import Tokenizer
from basic_tf.serving import saved_model
from basic_tf.towers.coatnet import CoAtNet
from basic_tf.towers.coatnet_table import CoAtNetTable
from basic_tf.towers.dual_encoder import DualEncoder
from basic_tf.towers.text_transformer import TextTransformer

SIZE = 32
TEMPLATES = ("{}", "a picture of a {}", "{} on white")
WORDS = [
    "red",
    "green",
    "blue",
    "apple",
    "cat",
    "dog",
    "house",
    "tree",
    "a",
    "the",
    "of",
    "picture",
    "on",
    "white",
    "small",
    "large",
    "sun",
    "moon",
    "car",
    "fish",
]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    rng = np.random.default_rng(3)
    lines = [" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=80,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file):
    return Tokenizer(tokenizer_file, 12)


@pytest.fixture(scope="session")
def model(tokenizer):
    table = CoAtNetTable(
        (2, 8), (("mbconv", 1, 8), ("mbconv", 1, 16), ("attention", 1, 32), ("attention", 1, 32)), 16
    )
    image_tower = CoAtNet(table, image_size=SIZE)
    text_tower = TextTransformer(
        vocabulary_size=tokenizer.vocabulary_size, length=12, width=16, layers=1, heads=2
    )
    model = DualEncoder(image_tower, text_tower, 24)
    model.build()
    # Initial weights of 0.02 give all pictures nearly the same embedding; larger ones tell them apart.
    rng = np.random.default_rng(0)
    for weight in model.parameters().values():
        if len(weight.shape) > 1:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


@pytest.fixture(scope="session")
def view():
    """Preprocessing that is not trivial: a central window, and pictures that are not square stay
    undistorted.
    """
    return ImageAugmentation(output_size=SIZE, scale=(0.8, 0.9), fit="pad")


@pytest.fixture(scope="session")
def exported(model, tokenizer, view, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "saved_model"
    return saved_model.export(model, tokenizer, view, str(path), TEMPLATES, {"run": "a test", "step": 7})
