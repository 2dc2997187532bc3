r"""Makes TFRecords out of one's own pairs of pictures and texts, whatever they come as.

  python tools/prepare_pairs.py --input='shards/*.tar' --output_dir=data/mine
  python tools/prepare_pairs.py --input=pairs.csv --image_column=file --caption_columns=title,alt --output_dir=data/mine
  python tools/prepare_pairs.py --input='laion/*.tfrecord' --format=img2dataset --align --output_dir=data/web
  python tools/prepare_pairs.py --input=photos --format=folders --output_dir=data/photos     (photos/<class>/<picture>)
  python tools/prepare_pairs.py --format=tfds --tfds_name=cifar10 --output_dir=data/cifar10

Every picture is decoded in full. A row that cannot be used, or that a filter leaves out, is counted by its cause and
written to <output_dir>/<name>.rejects.jsonl with its file and row (or byte offset); above --max_reject_share of damaged
rows the tool stops and writes no dataset. The dataset appears when it is complete, or not at all.
"""

import dataclasses
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags

from basic_tf.data.examples import IMG2DATASET, FeatureKeys
from basic_tf.data.records import RecordFileError
from tools.pairs.files import ending, matching
from tools.pairs.folders import ClassFolders
from tools.pairs.record_files import RecordFiles
from tools.pairs.tables import Columns, Tables
from tools.pairs.tars import WebDataset
from tools.pairs.tfds_splits import TfdsSplit
from tools.sources.conversion import Check
from tools.sources.dataset import write_dataset
from tools.sources.filters import ALIGN, Filters
from tools.sources.likeness import EvaluationPictures
from tools.sources.places import refuse_overwriting
from tools.sources.rejects import TooManyRejectsError
from tools.sources.rows import LabelTable

TOOL_VERSION = "1"
_FORMATS = ("webdataset", "csv", "tsv", "jsonl", "parquet", "folders", "tfds", "records", "img2dataset")
_ENDINGS = {"tar": "webdataset", "tgz": "webdataset", "tsv": "tsv", "csv": "csv"}
_ENDINGS |= {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "json": "records",
    "tfrecord": "records",
}

_INPUT = flags.DEFINE_list(
    "input", [], "Files or patterns, separated by commas; gs:// too. A folder for `folders`."
)
_FORMAT = flags.DEFINE_enum("format", None, _FORMATS, "Default: from the ending of the first input.")
_OUTPUT = flags.DEFINE_string("output_dir", None, "Where the dataset goes; gs:// too.", required=True)
_NAME = flags.DEFINE_string("name", "train", "The dataset's name: <output_dir>/<name>.json.")
_SHARDS = flags.DEFINE_integer("shards", 8, "Records go to this many shards in turn.", lower_bound=1)
_PER_SHARD = flags.DEFINE_integer(
    "records_per_shard", None, "Fill shards with this many instead.", lower_bound=1
)
_LICENCES = flags.DEFINE_list("licences", [], "What the dataset's json says of licences.")
_SHARE = flags.DEFINE_float(
    "max_reject_share", 0.05, "Stop above this share of damaged rows (filtered ones are none)."
)
_THREADS = flags.DEFINE_integer(
    "threads", None, "For reading and decoding; default: as many as cores.", lower_bound=1
)
_LIMIT = flags.DEFINE_integer("limit", None, "Read this many rows only.", lower_bound=1)

_PICTURE = flags.DEFINE_string("image_column", None, "Tables: paths or bytes of the pictures.")
_CAPTIONS = flags.DEFINE_list(
    "caption_columns", None, "Tables, .json of WebDataset, TFDS: where captions stand."
)
_LABEL = flags.DEFINE_string("label_column", None, "Tables, .json of WebDataset, TFDS: where labels stand.")
_SEPARATOR = flags.DEFINE_string("label_separator", "", "Tables: between several labels in one text.")
_ID = flags.DEFINE_string("id_column", None, "Tables: a name for each row.")
_LABEL_NAMES = flags.DEFINE_string("label_names", None, "A file of label names, one a line, in their order.")
_BASE64 = flags.DEFINE_bool("base64", False, "CSV, TSV, JSON lines: pictures stand in the table in base64.")
_ROOT = flags.DEFINE_string(
    "image_root", None, "Tables: where relative paths begin; default: the table's folder."
)
_FOLDER_LABELS = flags.DEFINE_bool("folder_labels", True, "Folders: whether their names are labels.")
_TFDS = flags.DEFINE_string("tfds_name", None, "TFDS: name, name/config or name/config:version.")
_TFDS_SPLIT = flags.DEFINE_string("tfds_split", "train", "TFDS: the split.")
_TFDS_DIR = flags.DEFINE_string(
    "tfds_data_dir", None, "TFDS: where it is prepared; default: the usual place."
)

_ALIGN = flags.DEFINE_bool(
    "align", False, "ALIGN's filters: side > 200, aspect < 3, 3 to 20 words, 10 repeats."
)
_SIDE = flags.DEFINE_integer("shorter_side_above", None, "Keep pictures whose shorter side has more pixels.")
_ASPECT = flags.DEFINE_float(
    "aspect_below", None, "Keep pictures with longer side < this times the shorter one."
)
_WORDS = flags.DEFINE_list("words", None, "Keep captions of so many words: fewest,most.")
_REPEATS = flags.DEFINE_integer("caption_repeats", None, "Leave out captions that more rows than this have.")
_SMALLEST = flags.DEFINE_integer(
    "smallest_side", 2, "A picture with a shorter side below is damaged.", lower_bound=1
)
_AGAINST = flags.DEFINE_list("against", None, "Leave out near-duplicates of these evaluation sets (jsons).")
_SIMILARITY = flags.DEFINE_float("similarity", 0.5, "SSIM from which a picture is a near-duplicate.")
_PIXELS = flags.DEFINE_integer("max_pixels", 1 << 26, "A picture with more pixels is refused.", lower_bound=1)


def main(argv):
    """Reads the flags, converts, reports."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: patterns go into --input, in quotes")
    try:
        source = reader()
        refuse_overwriting(matching(_INPUT.value), _OUTPUT.value, _NAME.value)
        write_dataset(
            source,
            Check(filters(), None, _SMALLEST.value, _PIXELS.value, evaluation()),
            _OUTPUT.value,
            _NAME.value,
            shards=_SHARDS.value,
            records_per_shard=_PER_SHARD.value,
            max_reject_share=_SHARE.value,
            threads=_THREADS.value,
            limit=_LIMIT.value,
            facts=facts(source),
        )
    except (TooManyRejectsError, RecordFileError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except tf.errors.OpError as error:
        sys.exit(f"error: {error.message}")


def filters() -> Filters:
    """The filters that the flags ask for."""
    given = {
        "shorter_side_above": _SIDE.value,
        "aspect_below": _ASPECT.value,
        "caption_repeats": _REPEATS.value,
    }
    if _WORDS.value is not None:
        if len(_WORDS.value) != 2 or not all(word.strip().isdecimal() for word in _WORDS.value):
            raise ValueError(f"--words={','.join(_WORDS.value)}: expected two numbers, fewest,most")
        given["words"] = tuple(map(int, _WORDS.value))
    base = ALIGN if _ALIGN.value else Filters()
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def evaluation() -> EvaluationPictures | None:
    """The pictures that no record may resemble."""
    return EvaluationPictures(matching(_AGAINST.value), _SIMILARITY.value) if _AGAINST.value else None


def reader():
    """The reader of the input: `rows(pictures)`, `total` (None if unknown), `labels`."""
    names = None
    if _LABEL_NAMES.value:
        with tf.io.gfile.GFile(_LABEL_NAMES.value) as file:
            names = [line.strip() for line in file.read().splitlines() if line.strip()]
    labels, captions = LabelTable(names), tuple(_CAPTIONS.value) if _CAPTIONS.value is not None else None
    kind = _FORMAT.value
    if kind == "tfds":
        if not _TFDS.value:
            raise ValueError("--format=tfds needs --tfds_name")
        return TfdsSplit(_TFDS.value, _TFDS_SPLIT.value, _TFDS_DIR.value, captions, _LABEL.value)
    if not _INPUT.value:
        raise ValueError("nothing to read: give --input (or --format=tfds --tfds_name=...)")
    first = _INPUT.value[0]
    packed = [path for path in _INPUT.value if path.endswith(".gz") and not path.endswith(".tar.gz")]
    if packed and kind != "webdataset":
        raise ValueError(
            f"--input={packed[0]} is compressed, which is read of .tar.gz and .tgz alone: unpack it first (gunzip)"
        )
    if kind is None:
        kind = "folders" if tf.io.gfile.isdir(first) else _ENDINGS.get(ending(first.removesuffix(".gz")))
        if kind is None:
            raise ValueError(
                f"--input={first} has an unknown ending: say what it is with --format={'|'.join(_FORMATS)}"
            )
    if kind in ("folders", "records", "img2dataset") and len(_INPUT.value) > 1:
        raise ValueError(f"--format={kind} takes one --input, got {len(_INPUT.value)}")
    if kind == "folders":
        return ClassFolders(first, labels, labelled=_FOLDER_LABELS.value)
    if kind in ("records", "img2dataset"):
        return RecordFiles(first, IMG2DATASET if kind == "img2dataset" else FeatureKeys())
    if kind == "webdataset":
        return WebDataset(matching(_INPUT.value), labels, captions, _LABEL.value)
    columns = Columns(
        _PICTURE.value, captions, _LABEL.value, _ID.value, _SEPARATOR.value, _BASE64.value, _ROOT.value
    )
    return Tables(matching(_INPUT.value), kind, columns, labels)


def facts(source) -> dict:
    """What the dataset's json says of where it comes from."""
    named = f"TensorFlow Datasets: {_TFDS.value}, split {_TFDS_SPLIT.value}" if _TFDS.value else _INPUT.value
    made = {"source": named, "tool": "tools/prepare_pairs.py", "tool_version": TOOL_VERSION}
    return made | getattr(source, "facts", {}) | ({"licences": _LICENCES.value} if _LICENCES.value else {})


if __name__ == "__main__":
    app.run(main)
