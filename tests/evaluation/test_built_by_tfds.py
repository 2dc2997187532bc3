"""A public set that TensorFlow Datasets really built, from an archive of its own format, through the binaries: with a
checkpoint and with its SavedModel.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic_tf import runs
from basic_tf.evaluation import prompts, public_tests
from basic_tf.evaluation.encoder import ModelEncoder
from tests import tiny_data

ROOT = Path(__file__).parents[2]
PICTURES = 60
TEMPLATES = ["a photo of a {}.", "the {}."]


def imagenet_archive(path, rng):
    """ILSVRC2012_img_val.tar with some pictures; their labels are those of the first ones of the true set."""
    with tarfile.open(path, "w") as archive:
        for number in range(1, PICTURES + 1):
            buffer = io.BytesIO()
            pixels = np.kron(rng.integers(0, 256, (3, 4, 3), np.uint8), np.ones((9, 9, 1), np.uint8))
            Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
            entry = tarfile.TarInfo(f"ILSVRC2012_val_{number:08d}.JPEG")
            entry.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(entry, buffer)


def called(module, *flags):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT), "NO_GCE_CHECK": "true"}
    done = subprocess.run(
        [sys.executable, *(("-c",) if module == "-c" else ("-m", module)), *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def class_rows(encoder, names):
    """Normalised means of the prompts of each class."""
    rows = np.stack([encoder.encode_text(own).mean(0) for own in prompts.class_prompts(names, TEMPLATES)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.slow
def test_imagenet_from_its_archive_with_a_checkpoint_and_a_saved_model(tmp_path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

    rng = np.random.default_rng()
    tfds_dir, run, data = tmp_path / "tfds", tmp_path / "run", tiny_data.make(str(tmp_path / "data"))
    (tfds_dir / "downloads/manual").mkdir(parents=True)  # where the tool's line says
    imagenet_archive(tfds_dir / "downloads/manual/ILSVRC2012_img_val.tar", rng)
    with pytest.raises(public_tests.MissingTestError) as missing:
        public_tests.open_public("imagenet", None, None, str(tfds_dir))
    code = re.search(r'`python -c "(.*)"`', str(missing.value))[1]  # as the line says
    called("-c", code)

    bindings = (
        f"TRAIN='{data}/train.json'",
        f"MODEL='{data}/tokenizer.model'",
        "contrastive/Stage.warm_start=None",
    )
    called(
        "basic_tf.train", "--gin_file=tests/training/tiny.gin", "--mode=train", "--stage=contrastive",
        f"--model_dir={run}", *(f"--gin_param={binding}" for binding in bindings),
    )  # fmt: skip
    called("basic_tf.export", f"--model_dir={run}", "--stage=contrastive")

    ids = tfds.builder("imagenet2012", data_dir=str(tfds_dir)).info.features["label"].names
    with open(Path(imagenet_common.__file__).parent / "validation_labels.txt", encoding="utf-8") as file:
        labels = np.array([ids.index(line) for line in file.read().split()[:PICTURES]])
    with tarfile.open(tfds_dir / "downloads/manual/ILSVRC2012_img_val.tar") as archive:
        images = [archive.extractfile(member).read() for member in archive.getmembers()]
    loaded = runs.load(str(run), "contrastive")
    encoder = ModelEncoder(loaded.model, loaded.tokenizer, loaded.image_size)
    rows = encoder.encode_image_bytes(images)
    # Names that fit: the model is hardly trained, so each picture's class gets the best of the names that are left.
    texts = [
        f"{rng.choice(['red', 'green', 'blue'])} {rng.choice(tiny_data.SHAPES)} {i}" for i in range(1000)
    ]
    ranked = np.argsort(-(rows @ class_rows(encoder, texts).T), axis=1)
    names, left = [None] * 1000, dict.fromkeys(range(1000))
    for label, own in zip(labels, ranked):
        if names[label] is None:
            names[label] = texts[next(text for text in own if text in left)]
            del left[texts.index(names[label])]
    names = [texts[left.popitem()[0]] if name is None else name for name in names]
    prompts_path = tmp_path / "prompts.json"
    content = {
        "classes": {"imagenet": names},
        "templates": {"imagenet": TEMPLATES},
        "wordnet_ids": {"imagenet": ids},
    }
    prompts_path.write_text(json.dumps(content))

    found = {}
    for name, source in {
        "checkpoint": [f"--model_dir={run}", "--stage=contrastive"],
        "saved_model": [f"--saved_model={run}/saved_model"],
    }.items():
        out = tmp_path / name
        done = called(
            "basic_tf.evaluate", *source, "--tests=imagenet_v2,imagenet", f"--tfds_dir={tfds_dir}",
            f"--prompts={prompts_path}", f"--output_dir={out}",
        )  # fmt: skip
        left_out = [line for line in done.stdout.splitlines() if line.startswith("left out: ")]
        assert len(left_out) == 1 and "imagenet_v2 is not on disk: build it with `python -c" in left_out[0]
        found[name] = json.loads((out / "results.json").read_text())["zero_shot"]["imagenet"]
    assert found["checkpoint"] == found["saved_model"] and found["checkpoint"]["examples"] == PICTURES

    # The definition, by hand.
    order = np.argsort(-(rows @ class_rows(encoder, names).T), axis=1, kind="stable")
    for key, k in (("top1", 1), ("top5", 5)):
        by_hand = np.mean([label in own[:k] for label, own in zip(labels, order)])
        assert found["checkpoint"][key] == pytest.approx(by_hand, abs=1.01 / PICTURES)
    assert found["checkpoint"]["top5"] > 0.05  # by chance 0.005
