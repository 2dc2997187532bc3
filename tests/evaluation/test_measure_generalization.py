"""The gaps of a model from its records, and the document's part made of them."""

import json

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.contrastive import generalization
from basic_tf.data.records import RecordWriter, serialize_example
from basic_tf.evaluation.encoder import ModelEncoder
from tools import measure_generalization
from tools.report import blocks
from tools.report.layout import Charts


@pytest.fixture
def sets(tmp_path):
    """24 training records of 12 concepts, and 10 test records."""
    rng = np.random.default_rng(5)
    names = [f"{a} {b}" for a in ("red", "green", "blue") for b in ("cat", "dog", "tree", "fish")]
    for name, count in (("train", 24), ("retrieval", 10)):
        with RecordWriter(str(tmp_path), name) as writer:
            for index in range(count):
                picture = tf.io.encode_png(rng.integers(0, 256, (32, 32, 3), np.uint8)).numpy()
                concept = index % 12
                labels = [12, concept]  # a label of another kind comes first
                writer.write(
                    serialize_example(picture, [names[concept], f"a {names[concept]}"], labels, str(index))
                )
            writer.finish(label_names=[*names, "thing"], label_kinds=["concept"] * 12 + ["kind"])
    return str(tmp_path / "train.json"), str(tmp_path / "retrieval.json")


def test_from_records_to_the_document(model, tokenizer, view, sets, tmp_path):
    encoder = ModelEncoder(model, tokenizer, view, 8)
    result = measure_generalization.measure(model, encoder, *sets, "concept", [8, 4], 64, 3, 100, 0)
    assert (result["train"]["pairs"], result["test"]["pairs"]) == (12, 10)
    assert [gaps["batch"] for gaps in result["gaps"]] == [4, 8] and result["gaps"][0]["pool"] == 10
    assert result["bound"]["pairs"] == 24
    weights = sum(int(np.prod(weight.shape)) for weight in model.parameters().values())
    assert sum(result["bound"]["weights"].values()) == pytest.approx(weights, abs=2)  # the temperature
    terms = result["bound"]["log10"]
    assert terms["all_encoders"]["total"] > terms["fixed_encoders"]["total"]
    assert terms["fixed_encoders"]["similarities"] is None
    json.dumps(result, allow_nan=False)

    images, texts = measure_generalization.embedded_pairs(encoder, sets[1], "", 100, 0)
    expected = generalization.normalised_loss(images, texts, 1 / encoder.temperature, 10, False, 3)
    train = measure_generalization.embedded_pairs(encoder, sets[0], "concept", 100, 0)
    train = generalization.normalised_loss(*train, 1 / encoder.temperature, 10, False, 3)
    assert result["gaps"][0]["reference_pool"]["value"] == pytest.approx(expected.value - train.value)

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "generalization.json").write_text(json.dumps({"stage": "finetune", "step": 9, **result}))
    text = blocks.KINDS["generalization"]([str(folder)], Charts("x.md"))
    value = result["gaps"][1]["train_objective"]
    assert "| 8 |" in text and f"{value['value']:+.3f} ± {value['standard_error']:.3f} |" in text
    assert f"| total | 10^{terms['all_encoders']['total']:.1f} | " in text


def test_all_pairs_without_distinct(model, tokenizer, view, sets):
    encoder = ModelEncoder(model, tokenizer, view, 8)
    images, texts = measure_generalization.embedded_pairs(encoder, sets[0], "", 20, 1)
    assert images.shape == texts.shape == (20, 24)
    with pytest.raises(ValueError, match="no label of kind 'style'"):
        measure_generalization.embedded_pairs(encoder, sets[0], "style", 20, 1)
