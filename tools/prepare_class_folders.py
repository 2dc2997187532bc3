"""Turns a folder of class folders (`<images>/<class>/*.jpg`) into the records of a zero-shot test.

    python tools/prepare_class_folders.py --images=birdsnap/test --name=birdsnap --output_dir=data/public
    python tools/prepare_class_folders.py --images=objectnet-1.0/images --name=objectnet --output_dir=data/public \\
      --classes=objectnet --crop_border=2

Writes `test_<name>.json` and its records, for `python -m basic_tf.evaluate --data_dir=data/public --tests=<name>`. A
class's name is its folder's (hidden ones are left out), underscores as spaces; with --classes=objectnet only the 113
folders that show classes of ImageNet are taken, with the names of tools/prompts/objectnet.json. --crop_border takes so many
pixels off each side (and stores a PNG, turned as the camera was held): ObjectNet's pictures have a red frame of 2. Every
picture is decoded in full: a damaged one ends it, by name, and no test is left behind. Files that are not named like
pictures are counted.
"""

import io
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags

from tools.pairs.files import PICTURE_ENDINGS, ending, is_hidden

_IMAGES = flags.DEFINE_string("images", None, "The folder of class folders.", required=True)
_NAME = flags.DEFINE_string(
    "name", None, "Name of the test: birdsnap, objectnet, ucf101, or your own.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Data folder, local or gs://.", required=True)
_CLASSES = flags.DEFINE_enum(
    "classes", "folders", ["folders", "objectnet"], "Which folders, and their names."
)
_CROP_BORDER = flags.DEFINE_integer("crop_border", 0, "Pixels to take off each side.", 0)
_SHARD_RECORDS = 4096
_OBJECTNET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prompts", "objectnet.json")


def class_folders(images: str, classes: str) -> list[tuple[str, str]]:
    """(folder, class name), sorted by folder. ValueError if one is missing or there are fewer than two."""
    present = sorted(
        entry.name for entry in os.scandir(images) if entry.is_dir() and not is_hidden(entry.name)
    )
    if classes == "folders":
        found = [(folder, " ".join(folder.replace("_", " ").split())) for folder in present]
    else:
        with open(_OBJECTNET, encoding="utf-8") as file:
            found = [(entry["folder"], entry["name"]) for entry in json.load(file)["classes"]]
        missing = [folder for folder, _ in found if folder not in set(present)]
        if missing:
            raise ValueError(
                f"{images} has no folder {missing[0]!r} ({len(missing)} of {len(found)} are missing)"
            )
    if len(found) < 2:
        raise ValueError(f"{images} has {len(found)} class folders; a test needs at least two")
    return found


def picture(path: str, border: int) -> bytes:
    """The file's bytes, or a PNG of it without its border. ValueError if it is no picture, or smaller than the border."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    from basic_tf.data.decoding import PictureError, decode

    with open(path, "rb") as file:
        content = file.read()
    try:
        if not border:
            decode(content)  # to the last pixel, as evaluation will
            return content
        with Image.open(io.BytesIO(content)) as image:
            image = ImageOps.exif_transpose(image)  # a PNG has no place for the camera's rotation
            width, height = image.size
            if min(width, height) <= 2 * border:
                raise ValueError(
                    f"{path} is {width} x {height}: nothing is left without a border of {border}"
                )
            buffer = io.BytesIO()
            image.convert("RGB").crop((border, border, width - border, height - border)).save(buffer, "PNG")
            return buffer.getvalue()
    except (PictureError, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no whole picture: {error}") from error


def write(images: str, name: str, output_dir: str, classes: str, border: int) -> int:
    """Writes the test; returns the number of pictures."""
    from rich.progress import track

    from basic_tf.data.records import RecordWriter, serialize_example

    folders = class_folders(images, classes)
    found = [
        (label, folder, file)
        for label, (folder, _) in enumerate(folders)
        for file in sorted(os.listdir(os.path.join(images, folder)))
        if not is_hidden(file)
    ]
    files = [item for item in found if ending(item[2]) in PICTURE_ENDINGS]
    if not files:
        raise ValueError(
            f"{images}: no picture in its class folders (names ending in {', '.join(PICTURE_ENDINGS)})"
        )
    if len(files) < len(found):
        other = next(f"{folder}/{file}" for _, folder, file in found if ending(file) not in PICTURE_ENDINGS)
        print(
            f"{len(found) - len(files):,} files are not named like pictures and are left out, such as {other}"
        )
    with RecordWriter(output_dir, f"test_{name}", records_per_shard=_SHARD_RECORDS) as writer:
        for label, folder, file in track(files, f"writing test_{name}"):
            content = picture(os.path.join(images, folder, file), border)
            writer.write(serialize_example(content, [], [label], f"{folder}/{file}"))
        writer.finish(
            classes=[name for _, name in folders],
            source=os.path.basename(images.rstrip("/")),
            crop_border=border,
        )
    return len(files)


def main(argv: list[str]) -> int:
    """Writes, and turns what a person can mend into one line."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? All arguments are flags")
    try:
        count = write(_IMAGES.value, _NAME.value, _OUTPUT_DIR.value, _CLASSES.value, _CROP_BORDER.value)
    except (OSError, ValueError) as error:
        print(f"prepare_class_folders: {error}", file=sys.stderr)
        return 2
    print(f"{_OUTPUT_DIR.value}/test_{_NAME.value}.json: {count:,} pictures")
    return 0


if __name__ == "__main__":
    app.run(main)
