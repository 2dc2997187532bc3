"""A data set of 48 drawn shapes with captions and labels, and a tokenizer: enough for whole runs in seconds."""

import io

import numpy as np
from PIL import Image, ImageDraw

from basic_tf.data.examples import serialize_example
from basic_tf.data.records import RecordWriter
from tools import train_tokenizer

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220)}
NAMES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


def picture(shape: str, colour: str, rng: np.random.Generator) -> bytes:
    """A 32 px PNG of one shape, jittered."""
    image = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(image)
    x, y, r = *rng.integers(12, 20, 2).tolist(), int(rng.integers(7, 11))
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, COLOURS[colour])
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], COLOURS[colour])
    else:
        draw.line((x - r, y, x + r, y), COLOURS[colour], 4)
        draw.line((x, y - r, x, y + r), COLOURS[colour], 4)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _write(folder: str, name: str, copies: int, seed: int, **metadata) -> None:
    rng = np.random.default_rng(seed)
    with RecordWriter(folder, name, shards=2) as writer:
        for number in range(copies * len(NAMES)):
            colour, shape = NAMES[number % len(NAMES)].split()
            if name == "train":
                labels = [SHAPES.index(shape), len(SHAPES) + list(COLOURS).index(colour)]
                captions = [f"{colour} {shape}", f"a picture of a {colour} {shape}", f"{shape}, {colour}"]
            else:
                labels, captions = [number % len(NAMES)], [f"{colour} {shape}", f"the {shape} in {colour}"]
            writer.write(serialize_example(picture(shape, colour, rng), captions, labels, f"{name}-{number}"))
        writer.finish(**metadata)


def make(folder: str) -> str:
    """Writes train, test_in_distribution, retrieval and tokenizer.model into `folder`."""
    _write(
        folder, "train", 4, 1, label_names=[*SHAPES, *COLOURS], label_kinds=["concept"] * 4 + ["colour"] * 3
    )
    classes = [{"name": name, "described": f"{name}: {name.split()[1]}, shape"} for name in NAMES]
    _write(folder, "test_in_distribution", 2, 2, classes=classes)
    _write(folder, "retrieval", 1, 3)
    train_tokenizer.run([f"{folder}/train.json"], f"{folder}/tokenizer.model", 60, allow_smaller=True)
    return folder
