r"""Makes real image-text data out of emoji: fetches, renders, joins, splits, writes TFRecords.

  python tools/prepare_emoji.py --output_dir=data/emoji
  python tools/prepare_emoji.py --output_dir=data/emoji --source_dir=folder_of_tgz_files     (without network)

Pictures: ten styles of npm packages (tools/emoji/packages.py) and, where the font is installed, Symbola's
line drawings. Datasets (basic_tf/data/records.py): train; test_in_distribution; test_<style> for each
held-out style; test_held_out_concepts; retrieval. Beside them: splits.json, tokenizer_text.txt (the training
captions), contact_sheet.png, samples/ (a few pictures to try predict.py on), cache/ (packages and rendered
pictures). A complete output is left alone; an interrupted run goes on where it was. train.json is written
last.
"""

import collections
import dataclasses
import hashlib
import json
import os
import posixpath
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from tools.emoji import packages, styles
from tools.emoji.concepts import load_concepts
from tools.emoji.datasets import Datasets
from tools.emoji.pictures import contact_sheet, rendered
from tools.emoji.splits import DEFAULT_SIZES, Sizes, make_splits
from tools.sources import npm
from tools.sources.progress import progress_bar
from tools.sources.render import Picture, render

TOOL_VERSION = "1"

_OUTPUT = flags.DEFINE_string("output_dir", "data/emoji", "Where the datasets go; gs:// too.")
_CACHE = flags.DEFINE_string(
    "cache_dir", None, "Local folder for packages and rendered pictures; default OUTPUT_DIR/cache."
)
_SOURCE = flags.DEFINE_string(
    "source_dir", None, "Folder of the packages' .tgz files, fetched by hand; nothing is fetched."
)
_SIZE = flags.DEFINE_integer("size", 64, "Side of the pictures in pixels, a multiple of 16.", lower_bound=16)
_SYMBOLA = flags.DEFINE_string(
    "symbola_font", None, "The font Symbola's file; default: an installed one, or none."
)

_SAMPLES = {"cat": "1f431", "heart": "2764", "pizza": "1f355", "rocket": "1f680", "tree": "1f333"}
_SAMPLE_SIZE = 256
_SHEET_ROWS = 24
_TRAIN_SHARDS = 4


def main(argv):
    """Everything in order; each step is skipped where its result is there."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if _SIZE.value % 16:
        raise app.UsageError(f"--size={_SIZE.value}: expected a multiple of 16")
    try:
        prepare(_OUTPUT.value, _CACHE.value, _SOURCE.value, _SIZE.value, _SYMBOLA.value)
    except (npm.PackageError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def prepare(
    output_dir: str,
    cache_dir: str | None = None,
    source_dir: str | None = None,
    size: int = 64,
    font: str | None = None,
    sizes: Sizes = DEFAULT_SIZES,
) -> None:
    """Makes the datasets unless they are there. Errors say what to do and leave nothing half-written."""
    console, start = Console(), time.monotonic()
    if cache_dir is None:
        if "://" in output_dir:
            raise ValueError(f"--output_dir={output_dir} is not local: name a local folder with --cache_dir")
        cache_dir = posixpath.join(output_dir, "cache")
    if font is not None and not Path(font).is_file():
        raise FileNotFoundError(f"--symbola_font={font} does not exist; leave it out to do without that test")
    font = font or styles.find_font("Symbola")
    stamp = {
        "tool_version": TOOL_VERSION,
        "picture_size": size,
        "split_sizes": dataclasses.asdict(sizes),
        "packages": npm.description(packages.PACKAGES),
        "symbola": _sha256(Path(font)) if font else None,
    }
    if is_complete(output_dir, stamp):
        console.print(f"{output_dir} is complete: nothing to do")
        return
    if not font:
        console.print("The font Symbola is not installed: no test_symbola (Debian: fonts-symbola).")

    console.print(
        f"packages: {len(packages.PACKAGES)}, {'from ' + source_dir if source_dir else 'by npm pack'}"
    )
    files = npm.fetch(packages.PACKAGES, Path(cache_dir), Path(source_dir) if source_dir else None)
    concepts = load_concepts(files)
    drawings = draw(files, concepts, font)
    splits = make_splits(concepts, {style: drawings[style].keys() for style in drawings}, sizes=sizes)
    pngs = {}
    with progress_bar(console) as progress:
        task = progress.add_task("rendering", total=sum(map(len, drawings.values())))
        for style, of_style in drawings.items():
            pngs[style] = rendered(
                style, of_style, size, Path(cache_dir), lambda count: progress.advance(task, count)
            )
    datasets = Datasets(concepts, splits, pngs)
    licences = {package.licence for package in packages.PACKAGES}
    facts = {
        "source": "emoji pictures and names of npm packages" + (" and the font Symbola" if font else ""),
        "licences": sorted(licences | ({packages.FONT_LICENCE} if font else set())),
        "split_seed": splits.seed,
        **stamp,
        "stamp": stamp,
    }
    write(output_dir, datasets, pngs, drawings, facts, console)
    report(datasets, pngs, console)
    console.print(f"{output_dir}: complete after {time.monotonic() - start:.1f} s")


def draw(files: dict[str, Path], concepts, font: str | Path | None) -> dict[str, dict[str, Picture]]:
    """What each style has to show: style -> concept code -> picture, not yet rendered."""
    drawings = {
        style: styles.icon_pictures(files[package.name], concepts, packages.MISTAKEN.get(style, ()))
        for style, package in packages.STYLE_PACKAGES.items()
    }
    if font:
        drawings[packages.FONT_STYLE] = styles.font_pictures(Path(font), concepts)
    return drawings


def is_complete(output_dir: str, stamp: dict) -> bool:
    """Whether train.json is there with this stamp, and every dataset it names with all its shards."""
    try:
        train = json.loads(_read_text(posixpath.join(output_dir, "train.json")))
        if train["stamp"] != stamp:
            return False
        for name in train["datasets"]:
            facts = json.loads(_read_text(posixpath.join(output_dir, f"{name}.json")))
            if facts["stamp"] != stamp or not all(
                _exists(posixpath.join(output_dir, shard)) for shard in facts["shards"]
            ):
                return False
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return True


def write(output_dir: str, datasets: Datasets, pngs, drawings, facts: dict, console: Console) -> None:
    """Everything of the output folder; train.json last, after its records were read again and found clean."""
    import tensorflow as tf

    from basic_tf.data.records import RecordWriter, serialize_example

    def put(name: str, data: bytes) -> None:
        path = posixpath.join(output_dir, name)
        tf.io.gfile.makedirs(posixpath.dirname(path))
        with tf.io.gfile.GFile(path + ".tmp", "wb") as file:
            file.write(data)
        tf.io.gfile.rename(path + ".tmp", path, overwrite=True)

    tf.io.gfile.makedirs(output_dir)
    old = posixpath.join(output_dir, "train.json")
    if tf.io.gfile.exists(old):
        tf.io.gfile.remove(old)
    put("splits.json", (json.dumps(datasets.splits.as_json(), indent=1) + "\n").encode())
    texts = dict.fromkeys(caption for entry in datasets.train.entries for caption in entry.captions)
    put("tokenizer_text.txt", "".join(text + "\n" for text in texts).encode())
    rows = [*datasets.splits.test[: _SHEET_ROWS * 3 // 4], *datasets.splits.held_out[: _SHEET_ROWS // 4]]
    put("contact_sheet.png", contact_sheet(pngs, rows, facts["picture_size"]))
    for name, code in _SAMPLES.items():
        for style in packages.HELD_OUT_STYLES:
            if code in drawings[style]:
                put(f"samples/{name}-{style}.png", render(drawings[style][code], _SAMPLE_SIZE))

    planned = list(datasets.all())
    facts = facts | {"datasets": [name for name, _ in planned]}
    with progress_bar(console) as progress:
        task = progress.add_task("writing", total=sum(len(dataset.entries) for _, dataset in planned))
        for name, dataset in planned:
            training = name == "train"
            with RecordWriter(output_dir, name, shards=_TRAIN_SHARDS if training else 1) as writer:
                for entry in dataset.entries:
                    image = pngs[entry.style][entry.code]
                    writer.write(serialize_example(image, entry.captions, entry.labels, entry.id))
                    progress.advance(task)
                verify = (lambda source: check_hygiene(source, datasets)) if training else None
                writer.finish(verify=verify, **dataset.facts, **facts)


def check_hygiene(source, datasets: Datasets) -> None:
    """Reads training records again. ValueError if one shows or names what must not be trained on."""
    from basic_tf.data.records import parse_example

    names = datasets.train.facts["label_names"]
    for start in range(0, source.count, 1024):
        for payload in source.read(np.arange(start, min(start + 1024, source.count))):
            record = parse_example(payload)
            style, code = record.id.split("/")
            if not datasets.splits.is_trained(code, style):
                raise ValueError(f"training record {record.id} belongs to a test")
            for text in (*record.captions, *(names[label] for label in record.labels)):
                found = datasets.forbidden.found(text)
                if found:
                    raise ValueError(f"training record {record.id} says {text!r}: {found!r} is held out")


def report(datasets: Datasets, pngs, console: Console) -> None:
    """Tables of what was joined and written."""
    joined = Table("style", "pictures", "in training", title="Pictures joined to base emoji")
    trained = collections.Counter(entry.style for entry in datasets.train.entries)
    for style, of_style in pngs.items():
        joined.add_row(style, f"{len(of_style):,}", f"{trained[style]:,}")
    joined.add_row("all", f"{sum(map(len, pngs.values())):,}", f"{trained.total():,}")
    console.print(joined)
    written = Table("dataset", "records", "classes", "captions", title="Datasets")
    for name, dataset in datasets.all():
        classes = len(dataset.facts.get("classes") or dataset.facts.get("label_names") or ())
        captions = sum(len(entry.captions) for entry in dataset.entries)
        written.add_row(name, f"{len(dataset.entries):,}", f"{classes:,}" if classes else "", f"{captions:,}")
    console.print(written)
    console.print(
        f"{len(datasets.removed)} training pictures left out: near-identical to a test picture; "
        f"labels: {dict(collections.Counter(datasets.labels.kinds))}"
    )


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# TensorFlow is imported for remote paths only: finding a complete output should take no time.
def _read_text(path: str) -> str:
    if "://" not in path:
        return Path(path).read_text(encoding="utf-8")
    import tensorflow as tf

    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(path)
    with tf.io.gfile.GFile(path) as file:
        return file.read()


def _exists(path: str) -> bool:
    if "://" not in path:
        return os.path.exists(path)
    import tensorflow as tf

    return tf.io.gfile.exists(path)


if __name__ == "__main__":
    app.run(main)
