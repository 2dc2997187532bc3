"""Foreign pairs to our records: every good row is converted, every bad one is in the reject file with its cause."""

import collections
import gzip
import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

from basic_tf.data.batches import ContrastiveBatches
from basic_tf.data.captions import CaptionChoice
from basic_tf.data.examples import IMG2DATASET, FeatureKeys, parse_example, serialize_example
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.records import RecordSource, RecordWriter
from tests.data import damaged_pairs
from tests.data.damaged_pairs import WAYS, Pair, pairs, sample, tar_of, write
from tests.data.pictures import jpeg, png, smooth
from tools import prepare_pairs
from tools.pairs import tables
from tools.pairs.files import PictureFile, matching
from tools.pairs.folders import ClassFolders
from tools.pairs.record_files import RecordFiles
from tools.pairs.tables import Columns, Tables
from tools.pairs.tars import Damage, Member, WebDataset, members
from tools.sources.conversion import Check
from tools.sources.dataset import write_dataset
from tools.sources.filters import ALIGN, Filters
from tools.sources.places import refuse_overwriting
from tools.sources.rejects import TooManyRejectsError
from tools.sources.rows import BadRow, LabelTable

RNG = np.random.default_rng()


def reader(kind, pattern, **columns):
    paths = sorted(tf.io.gfile.glob(pattern))
    if kind == "webdataset":
        return WebDataset(paths, LabelTable(), None, None)
    return Tables(paths, kind, Columns(**columns), LabelTable())


def converted(source, out, check=None, **options):
    """{id: record}, the json, the rejects."""
    options = {"shards": 3, "max_reject_share": 0.2, "facts": {"source": "test"}} | options
    write_dataset(source, check or Check(), str(out), "train", **options)
    return found(out)


def found(out):
    source = RecordSource.open(str(out / "train.json"))
    records = [parse_example(payload) for payload in source.read(np.arange(source.count))]
    assert len({record.id for record in records}) == len(records)
    return {record.id: record for record in records}, source.metadata, rejects(out)


def rejects(out):
    return [json.loads(line) for line in (out / "train.rejects.jsonl").read_text().splitlines()]


def place_of(kind, reject, rows):
    """The id of the row that a reject's place names."""
    if kind == "webdataset":
        return reject["member"]
    row = reject["row"]
    if kind == "jsonl":
        with open(reject["file"], "rb") as file:
            file.seek(reject["offset"])
            assert rows[row].id.encode() in file.readline()
    if kind == "csv":
        with open(reject["file"], "rb") as file:
            assert rows[row].id.encode() in file.read().splitlines()[reject["line"] - 1]
    return rows[row].id


def check_damage(kind, count, tmp_path):
    rows = pairs(count, WAYS[kind], RNG)
    records, facts, bad = converted(reader(kind, write(kind, rows, tmp_path)), tmp_path / "out")
    good = {pair.id: pair for pair in rows if pair.damage is None}
    assert records.keys() == good.keys()
    for name, record in records.items():
        assert record.image == good[name].picture and record.captions == (good[name].caption,)
    expected = {pair.id: WAYS[kind][pair.damage] for pair in rows if pair.damage is not None}
    assert {place_of(kind, reject, rows): reject["cause"] for reject in bad} == expected
    assert len(bad) == len(expected)
    assert facts["conversion"]["bad"] == dict(collections.Counter(expected.values()))
    assert facts["conversion"]["rows"] == count


@pytest.mark.parametrize("kind", list(WAYS))
def test_good_rows_are_converted_and_bad_ones_are_named(kind, tmp_path):
    assert len(WAYS[kind]) >= 8
    check_damage(kind, 400, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(WAYS))
def test_ten_thousand_rows_with_five_per_cent_damaged(kind, tmp_path):
    check_damage(kind, 10_000, tmp_path)


def samples(count):
    return [sample(Pair(f"{n:03d}", jpeg(smooth(RNG, 12, 12)), f"text {n}")) for n in range(count)]


def test_a_tar_with_a_damaged_header_loses_only_its_sample(tmp_path):
    buffer = io.BytesIO()
    tar_of(samples(9), buffer)
    data = bytearray(buffer.getvalue())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        at = next(member.offset for member in tar if member.name == "004.jpg")
    data[at + int(RNG.integers(0, 100))] ^= 0x15
    (tmp_path / "a.tar").write_bytes(data)
    records, _, bad = converted(
        reader("webdataset", str(tmp_path / "a.tar")), tmp_path / "out", max_reject_share=0.9
    )
    assert records.keys() == {f"{n:03d}" for n in range(9) if n != 4}
    assert (bad[0]["cause"], bad[0]["offset"]) == ("damaged tar header", at)
    assert {r["cause"] for r in bad} == {"damaged tar header", "missing picture"}


@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_tar_is_said_to_be_one_and_what_it_has_is_used(zipped, tmp_path):
    buffer = io.BytesIO()
    tar_of(samples(30), buffer)
    data = buffer.getvalue()[: 20 * 2048]
    data = gzip.compress(buffer.getvalue())[:-3000] if zipped else data
    name = "a.tar.gz" if zipped else "a.tar"
    (tmp_path / name).write_bytes(data)
    records, _, bad = converted(
        reader("webdataset", str(tmp_path / name)), tmp_path / "out", max_reject_share=0.9
    )
    assert 0 < len(records) < 30 and "truncated tar" in [r["cause"] for r in bad]
    assert len(bad) <= 2  # the cut, and the sample that it went through
    assert sorted(records) == [f"{n:03d}" for n in range(len(records))]


def test_members_of_a_tar_that_belong_to_no_sample_are_counted_and_part_none(tmp_path):
    kept = samples(3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:

        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        add("README", b"what this is")
        for one in kept:
            for end in ("jpg", "txt"):  # as a Mac writes them
                add(f"./._{one['__key__']}.{end}", b"Mac OS X")
                add(f"./{one['__key__']}.{end}", one[end])
        add(".DS_Store", b"Mac OS X")
    source = reader("webdataset", str(tmp_path / "a.tar"))
    records, facts, out = converted(source, tmp_path / "out", max_reject_share=0.0)
    assert {name: record.image for name, record in records.items()} == {
        f"./{one['__key__']}": one["jpg"] for one in kept
    }
    assert facts["conversion"]["filtered"] == {"no part of a sample": 8} and facts["conversion"]["bad"] == {}
    assert "README" in out[0]["detail"] and len(out) == 1


def test_a_damaged_gzip_is_a_bad_row(tmp_path):
    """Damage inside the deflate stream is zlib.error, which is no OSError."""
    buffer = io.BytesIO()
    tar_of(samples(30), buffer)
    data = bytearray(gzip.compress(buffer.getvalue(), mtime=0))
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    (tmp_path / "a.tar.gz").write_bytes(data)
    *_, last = reader("webdataset", str(tmp_path / "a.tar.gz")).rows()
    assert isinstance(last, BadRow) and last.cause == "damaged gzip"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_members_are_those_of_tarfile(form):
    buffer, expected = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for n in range(40):
            long = form != tarfile.USTAR_FORMAT and n % 3 == 0
            info = tarfile.TarInfo(("f\u00e4r/" * 40 if long else "x/") + f"{n}.txt")
            if n % 7 == 0:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                continue
            data = RNG.bytes(int(RNG.integers(0, 1600)))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            expected.append((info.name, data))
    buffer.seek(0)
    read = list(members(buffer))
    assert all(isinstance(member, Member) and member.whole for member in read)
    assert [(member.name, member.data) for member in read] == expected


def test_tars_cut_anywhere_never_pass_in_silence():
    buffer = io.BytesIO()
    tar_of(samples(4), buffer)
    data = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.getmembers()
        end = tar.offset
    for cut in [512, 1024, *RNG.integers(1, end, 20).tolist()]:
        read = list(members(io.BytesIO(data[:cut])))
        assert isinstance(read[-1], Damage) or not read[-1].whole


def test_what_img2dataset_wrote_is_read_as_it_is(tmp_path):
    """The keys that its TFRecordSampleWriter writes: key, jpg, txt, and the metadata beside them."""
    pictures = [jpeg(smooth(RNG, 20, 30)) for _ in range(12)]

    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        value = value if isinstance(value, bytes) else (value or "").encode()
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    for shard in range(2):
        with tf.io.TFRecordWriter(str(tmp_path / f"{shard:05d}.tfrecord")) as writer:
            for n in range(6 * shard, 6 * shard + 6):
                values = {
                    "key": f"{n:09d}",
                    "jpg": pictures[n],
                    "txt": f"photo number {n}",
                    "caption": "not this",
                }
                values |= {"url": "http://x/y.jpg", "status": "success", "error_message": None, "exif": "{}"}
                values |= {
                    "width": 30,
                    "height": 20,
                    "original_width": 300,
                    "original_height": 200,
                    "sha256": "0a",
                }
                example = tf.train.Example(
                    features=tf.train.Features(feature={k: feature(v) for k, v in values.items()})
                )
                writer.write(example.SerializeToString())

    source = RecordSource.open(str(tmp_path / "*.tfrecord"))
    batches = ContrastiveBatches(
        source,
        _WordCounter(),
        ImageAugmentation(16),
        4,
        seed=3,
        captions=CaptionChoice(),
        parse=lambda payload: parse_example(payload, IMG2DATASET),
    )
    batch = batches.at(0)
    assert batch["images"].shape == (4, 16, 16, 3) and batches.damage == {}
    assert batches.texts(0) == [f"photo number {n}" for n in batch["record"]]

    records, _, bad = converted(RecordFiles(str(tmp_path / "*.tfrecord"), IMG2DATASET), tmp_path / "out")
    assert {name: record.image for name, record in records.items()} == {
        f"{n:09d}": picture for n, picture in enumerate(pictures)
    }
    assert records["000000007"].captions == ("photo number 7",) and not bad


def test_labels_of_records_stay_whoever_names_them(tmp_path):
    labels = [(0,), (1, 0), (), (1,)]

    def written(name, labels, **facts):
        with RecordWriter(str(tmp_path), name) as writer:
            for n, own in enumerate(labels):
                writer.write(serialize_example(png(smooth(RNG, 8, 8)), [f"text {n}"], own, str(n)))
            return writer.finish(**facts)

    def copied(path):
        source = RecordFiles(path, FeatureKeys())
        records, facts, bad = converted(source, tmp_path / "out", max_reject_share=0.5, facts=source.facts)
        return (
            [tuple(records[key].labels.tolist()) for key in sorted(records)],
            facts,
            [r["cause"] for r in bad],
        )

    classes = [{"name": "cat"}, {"name": "dog"}]
    found, facts, bad = copied(written("test_a", [*labels, (2,)], classes=classes))
    assert found == labels and facts["classes"] == classes and "label_names" not in facts
    assert bad == ["unknown label"]
    path = written("b", [*labels, (2,)], label_names=["x", "y"])
    found, facts, bad = copied(path)
    assert found == labels and facts["label_names"] == ["x", "y"] and bad == ["unknown label"]
    assert copied(path.replace(".json", "-*.tfrecord"))[0] == [*labels, (2,)]


class _WordCounter:
    length = 1

    def __call__(self, texts):
        return tf.constant([[len(text.split())] for text in texts], tf.int32)


def test_class_folders_become_labels(tmp_path):
    pictures = {}
    for name in ("dogs", "cats", "empty"):
        (tmp_path / "in" / name / "deep").mkdir(parents=True)
        for n in range(0 if name == "empty" else 5):
            path = f"{name}/{'deep/' * (n % 2)}{n}.{'PNG' if n % 2 else 'jpg'}"
            pictures[path] = (png if n % 2 else jpeg)(smooth(RNG, 9 + n, 12))
            (tmp_path / "in" / path).write_bytes(pictures[path])
    (tmp_path / "in/dogs/0.txt").write_text("the first dog\n")
    (tmp_path / "in/dogs/notes.doc").write_text("?")
    (tmp_path / "in/dogs/.hidden").write_text("?")
    source = ClassFolders(str(tmp_path / "in"), LabelTable())
    records, facts, bad = converted(source, tmp_path / "out")
    assert {name: record.image for name, record in records.items()} == pictures
    assert facts["label_names"] == ["cats", "dogs", "empty"]
    assert all(facts["label_names"][r.labels[0]] == name.split("/")[0] for name, r in records.items())
    assert records["dogs/0.jpg"].captions == ("the first dog",)
    assert [(r["cause"], r["file"].split("/")[-1]) for r in bad] == [("no picture's file name", "notes.doc")]
    mixed = [row.id for row in source.rows() if not isinstance(row, BadRow)]
    assert sorted(mixed) == sorted(pictures) and mixed != sorted(pictures)


def test_folders_as_people_have_them(tmp_path, caplog):
    for path in (
        "cats/a.jfif",
        "cats/.ipynb_checkpoints/a.jpg",
        "__MACOSX/cats/a.jpg",
        ".git/b.jpg",
        "loose.jpg",
    ):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(jpeg(smooth(RNG, 9, 9)))
    (tmp_path / "in/README.md").write_text("?")
    with caplog.at_level("WARNING"):
        source = ClassFolders(str(tmp_path / "in"), LabelTable())
    records, facts, bad = converted(source, tmp_path / "out", max_reject_share=0.5)
    assert list(records) == ["cats/a.jfif"] and facts["label_names"] == ["cats"]
    assert [(r["cause"], r["file"].split("/")[-1]) for r in bad] == [("not in a class folder", "loose.jpg")]
    assert len([r for r in caplog.records if "hidden folders are left out" in r.getMessage()]) == 1

    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.jpg").write_bytes(jpeg(smooth(RNG, 9, 9)))
    (flat / "a.txt").write_text("a thing")
    with pytest.raises(ValueError, match=r"holds no folder with files: expected .*--nofolder_labels"):
        ClassFolders(str(flat), LabelTable())
    records, facts, bad = converted(ClassFolders(str(flat), LabelTable(), labelled=False), tmp_path / "out")
    assert records["a.jpg"].captions == ("a thing",) and "label_names" not in facts and not bad


def tfds_set(folder, name, features, examples):
    """Writes a prepared data set of TensorFlow Datasets; features: {name: feature}."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    own = folder / name / "1.0.0"
    own.mkdir(parents=True)
    identity = DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(own), module_name=name
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=5, overwrite=False)
    writer.initialize_splits(["train"])
    for example in examples:
        writer.add_examples({"train": [example]})
    writer.close_all()


def test_tfds_by_name_and_a_clear_line_without(tmp_path):
    import tensorflow_datasets as tfds

    from tools.pairs.tfds_splits import TfdsSplit

    pictures = [smooth(RNG, 10, 14) for _ in range(8)]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["one", "two"]),
    }
    examples = [{"image": picture, "label": n % 2} for n, picture in enumerate(pictures)]
    tfds_set(tmp_path / "tfds", "little_set", features, examples)
    source = TfdsSplit("little_set", "train", str(tmp_path / "tfds"), None, None)
    records, facts, _ = converted(source, tmp_path / "out")
    assert facts["label_names"] == ["one", "two"] and len(records) == 8
    for record in records.values():
        number = int(record.id.split("/")[-1])
        assert record.labels.tolist() == [number % 2]
        assert np.array_equal(tf.io.decode_image(record.image).numpy(), pictures[number])
    with pytest.raises(ValueError, match="no split test; it has train"):
        TfdsSplit("little_set", "test", str(tmp_path / "tfds"), None, None)
    with pytest.raises(
        ValueError, match=r"the data set other_set is not prepared in .*: run `tfds build other_set`"
    ):
        TfdsSplit("other_set", "train", str(tmp_path / "tfds"), None, None)


def test_tfds_takes_texts_that_are_called_like_captions_and_no_other(tmp_path):
    import tensorflow_datasets as tfds

    from tools.pairs.tfds_splits import TfdsSplit

    kinds, said = tfds.features, []
    image, picture = kinds.Image(shape=(None, None, 3)), smooth(RNG, 9, 9)

    def captions(name, given=None):
        source = TfdsSplit(name, "train", str(tmp_path), given, None, said.append)
        return [row.captions for row in source.rows()]

    named = {"image": image, "label": kinds.ClassLabel(names=["river"]), "filename": kinds.Text()}
    named |= {"image/filename": kinds.Text(), "text_id": kinds.Text(), "page_title": kinds.Text()}
    example = {"image": picture, "label": 0} | dict.fromkeys([*named][2:], "River_1.jpg")
    tfds_set(tmp_path, "labelled", named, [example])
    assert captions("labelled") == [()]
    assert said == ["labelled: picture from image, label from label, captions from nothing"]
    assert captions("labelled", ("page_title",)) == [("River_1.jpg",)]
    with pytest.raises(
        ValueError, match="no text label; its texts are filename, image/filename, page_title, text_id"
    ):
        captions("labelled", ("label",))

    # As coco_captions has them.
    nested = kinds.Sequence({"id": np.int64, "text": kinds.Text(), "language": kinds.Text()})
    coco = {"image": image, "image/filename": kinds.Text(), "captions": nested}
    texts = [f"caption {n}" for n in range(5)]
    example = {"image": picture, "image/filename": "COCO_1.jpg"}
    example["captions"] = [{"id": n, "text": text, "language": "en"} for n, text in enumerate(texts)]
    tfds_set(tmp_path, "coco_like", coco, [example])
    said.clear()
    for given in (None, ("captions",), ("captions/text",)):
        assert captions("coco_like", given) == [tuple(texts)]
    assert said == ["coco_like: picture from image, label from nothing, captions from captions/text"] * 3
    assert captions("coco_like", ("captions/language",)) == [("en",) * 5]

    tfds_set(tmp_path, "bare", {"image": image, "url": kinds.Text()}, [{"image": picture, "url": "x"}])
    with pytest.raises(
        ValueError, match="no class label, and no text called like a caption; its texts are url"
    ):
        captions("bare")


def test_labels_of_tables(tmp_path):
    (tmp_path / "p.png").write_bytes(png(smooth(RNG, 8, 8)))
    (tmp_path / "t.tsv").write_text("file\twhat\np.png\tred;round\np.png\tround\np.png\t\np.png\tsquare\n")

    def numbers(names):
        columns = Columns(label="what", label_separator=";")
        return [
            row.cause if isinstance(row, BadRow) else row.labels
            for row in Tables([str(tmp_path / "t.tsv")], "tsv", columns, LabelTable(names)).rows()
        ]

    assert numbers(None) == [(0, 1), (1,), (), (2,)]
    assert numbers(["square", "round", "red"]) == [(2, 1), (1,), (), (0,)]
    assert numbers(["red", "round"]) == [(0, 1), (1,), (), "unknown label"]
    with pytest.raises(ValueError, match="no column nothing; it has file, what"):
        list(Tables([str(tmp_path / "t.tsv")], "tsv", Columns(label="nothing"), LabelTable()).rows())


def test_a_label_that_is_no_utf8_is_one_bad_row(tmp_path):
    (tmp_path / "p.png").write_bytes(png(smooth(RNG, 8, 8)))
    rows = [
        b"id,file,text,what",
        *(b"%d,p.png,a thing,red" % n for n in range(9)),
        b"9,p.png,a thing,caf\xe9",
    ]
    (tmp_path / "t.csv").write_bytes(b"\n".join(rows))
    records, facts, bad = converted(reader("csv", str(tmp_path / "t.csv"), label="what"), tmp_path / "out")
    assert len(records) == 9 and facts["label_names"] == ["red"]
    assert [(reject["cause"], reject["row"], reject["line"]) for reject in bad] == [("bad encoding", 9, 11)]


def test_base64_in_json_lines(tmp_path):
    rows = pairs(20, {}, RNG, share=0.0)
    path = damaged_pairs.jsonl_base64(rows, tmp_path / "a.jsonl")
    with open(path, "a") as file:
        file.write('{"key": "z", "image": "no base 64", "text": "x"}\n{"image": 3, "text": "x"}\n[1]\n')
    records, _, bad = converted(reader("jsonl", path, base64=True), tmp_path / "out")
    assert {name: record.image for name, record in records.items()} == {p.id: p.picture for p in rows}
    assert [r["cause"] for r in bad] == ["bad encoding", "missing picture", "malformed row"]
    assert [r["row"] for r in bad] == [20, 21, 22]


def test_filters_of_align(tmp_path):
    """Each limit at both of its sides; repeats are counted over all rows, whatever their case and spaces."""
    cases = [
        (201, 300, "three small words", None),
        (200, 300, "three small words again", "small picture"),
        (210, 629, "just inside the ratio", None),
        (210, 630, "just outside the ratio", "aspect ratio"),
        (630, 210, "also outside the ratio", "aspect ratio"),
        (220, 220, "two words", "short caption"),
        (220, 220, " ".join(["word"] * 20), None),
        (220, 220, " ".join(["word"] * 21), "long caption"),
        *[(220, 220, "ten times the same", None)] * 10,
        *[
            (220, 220, ["eleven times  The same", "Eleven times the same "][n % 2], "repeated caption")
            for n in range(11)
        ],
    ]
    sizes = {case[:2]: png(np.zeros((*case[:2], 3), np.uint8)) for case in cases}
    rows = [Pair(str(n), sizes[case[:2]], case[2]) for n, case in enumerate(cases)]
    path = damaged_pairs.jsonl_base64(rows, tmp_path / "a.jsonl")
    # Filtered rows are wanted so: they do not count as damage.
    records, facts, out = converted(
        reader("jsonl", path, base64=True), tmp_path / "out", Check(ALIGN), max_reject_share=0.0
    )
    assert sorted(map(int, records)) == [n for n, case in enumerate(cases) if case[3] is None]
    assert {r["row"]: (r["kind"], r["cause"]) for r in out} == {
        n: ("filtered", case[3]) for n, case in enumerate(cases) if case[3]
    }
    assert facts["conversion"]["bad"] == {} and facts["filters"]["words"] == [3, 20]


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "jsonl"])
def test_captions_are_counted_without_reading_pictures(kind, tmp_path, monkeypatch):
    rows = pairs(30, {}, RNG, share=0.0)
    for pair in rows:
        pair.picture += RNG.bytes(50_000)
    if kind == "jsonl":
        path = damaged_pairs.jsonl_base64(rows, tmp_path / "a.jsonl")
        monkeypatch.setattr(tables.base64, "b64decode", None)
    else:
        path = write(kind, rows, tmp_path)
    read = io_counter(monkeypatch)
    source = reader(kind, path, base64=kind == "jsonl")
    assert [row.captions for row in source.rows(pictures=False)] == [(pair.caption,) for pair in rows]
    assert kind == "jsonl" or read() < 30 * 50_000 / 10


def io_counter(monkeypatch):
    """How many bytes this process has read from now on, by the system's count."""

    def total():
        with open("/proc/self/io") as file:
            return int(file.readline().split()[1])

    begin = total()
    return lambda: total() - begin


def test_labels_are_numbered_alike_whether_captions_are_counted_or_not(tmp_path):
    """The row of the unreadable picture names no label, in either pass."""
    (tmp_path / "p.png").write_bytes(png(smooth(RNG, 8, 8)))
    lines = [
        "id,image,text,what",
        "0,https://x/a.png,a thing,blue",
        "1,p.png,a thing,red",
        "2,p.png,a thing,green",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    for check in (Check(), Check(Filters(caption_repeats=10))):
        source = reader("csv", str(tmp_path / "t.csv"), label="what")
        _, facts, bad = converted(source, tmp_path / "out", check, max_reject_share=0.5)
        assert facts["label_names"] == ["red", "green"] and len(bad) == 1


@pytest.mark.parametrize("place", ["local", "ram://"])  # ram:// stands for gs://
def test_a_truncated_tar_does_not_end_the_counting(place, tmp_path):
    buffer = io.BytesIO()
    tar_of(samples(5), buffer)
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
        at = next(member.offset for member in tar if member.name == "003.jpg")
    path = f"{tmp_path if place == 'local' else 'ram://cut'}/a.tar"
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(buffer.getvalue()[: at + 600])
    *found, last = reader("webdataset", path).rows(pictures=False)
    assert [row.captions for row in found[:3]] == [(f"text {n}",) for n in range(3)]
    assert last.cause == "truncated tar"


def test_a_row_keeps_the_captions_that_are_wanted():
    filters = Filters(words=(2, 3))
    assert filters.captions(["one", "one two", "one two three four"], None) == ["one two"]
    with pytest.raises(BadRow, match="long caption"):
        filters.captions(["one", "one two three four"], None)


def test_too_many_rejects_end_the_tool_and_leave_no_dataset(tmp_path):
    rows = pairs(300, {"noise": ""}, RNG, share=0.2)
    source = reader("jsonl", write("jsonl", rows, tmp_path))
    (tmp_path / "out").mkdir()
    with pytest.raises(
        TooManyRejectsError, match=r"60 of 300 rows are damaged \(unknown format 60\), the limit is 10.00%"
    ):
        converted(source, tmp_path / "out", max_reject_share=0.1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.rejects.jsonl"}
    assert len(rejects(tmp_path / "out")) == 60
    # With a known total it ends as soon as the share is spent.
    source.total = 300
    with pytest.raises(TooManyRejectsError, match="31 of 300 rows"):
        converted(source, tmp_path / "out", max_reject_share=0.1)
    assert len(rejects(tmp_path / "out")) == 31


def test_rows_lost_in_a_damaged_parquet_file_are_counted(tmp_path):
    rows = pairs(400, {}, RNG, share=0.0)
    path = write("parquet", rows, tmp_path)
    data = bytearray((tmp_path / "pairs.parquet").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = RNG.bytes(4000)
    (tmp_path / "pairs.parquet").write_bytes(data)
    records, facts, bad = converted(reader("parquet", path), tmp_path / "out", max_reject_share=1.0)
    assert 0 < len(records) < 400 and facts["conversion"]["rows"] == 400 and bad


def test_tables_that_begin_with_a_mark_of_windows(tmp_path):
    (tmp_path / "p.png").write_bytes(png(smooth(RNG, 8, 8)))
    (tmp_path / "t.csv").write_text('"file","text"\r\n"p.png","a thing"\r\n', "utf-8-sig")
    (tmp_path / "t.jsonl").write_text('{"file": "p.png", "text": "a thing"}\n', "utf-8-sig")
    for kind in ("csv", "jsonl"):
        records, _, bad = converted(reader(kind, str(tmp_path / f"t.{kind}")), tmp_path / kind)
        assert records["p.png"].captions == ("a thing",) and not bad


def test_a_file_that_is_named_like_a_pattern(tmp_path):
    for name in ("pairs [2023].csv", "pairs 2.csv"):
        (tmp_path / name).write_text("x")
    assert matching([f"{tmp_path}/pairs [2023].csv"]) == [f"{tmp_path}/pairs [2023].csv"]
    assert matching([f"{tmp_path}/pairs [2]*"]) == [f"{tmp_path}/pairs 2.csv"]


@flagsaver.flagsaver
def test_a_compressed_table_is_no_tar(tmp_path):
    def opened(*arguments):
        prepare_pairs.flags.FLAGS(["prepare_pairs", "--output_dir=x", *arguments])
        return prepare_pairs.reader()

    for more in ([], ["--format=csv"]):
        with pytest.raises(ValueError, match=r"pairs\.csv\.gz is compressed.*unpack it first"):
            opened(f"--input={tmp_path}/pairs.csv.gz", *more)
    prepare_pairs.flags.FLAGS["format"].unparse()
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        tar_of(samples(2), file)
    assert len(list(opened(f"--input={tmp_path}/a.tar.gz").rows())) == 2


def test_an_input_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="no file matches /nowhere"):
        matching(["/nowhere/x.csv"])
    with pytest.raises(BadRow, match="a URL, not a file"):
        PictureFile("", "https://example.com/a.jpg")


def test_no_tool_writes_over_its_own_input(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    own = [tmp_path / "data" / name for name in ("t.json", "t-00000-of-00001.tfrecord", "t.rejects.jsonl")]
    for path in own:
        path.write_text("old")
        for folder in (tmp_path / "data", tmp_path / "link", f"{tmp_path}/x/../data/"):
            with pytest.raises(ValueError, match=f"would replace its own input {path}: name another folder"):
                refuse_overwriting([str(path)], str(folder), "t")
    with pytest.raises(ValueError, match="its own input"):
        refuse_overwriting(["gs://b/a/t.json"], "gs://b/a/", "t")
    refuse_overwriting([*map(str, own), "gs://b/a/t.json"], "gs://b/b", "t")
    refuse_overwriting(list(map(str, own)), str(tmp_path / "data"), "u")


@pytest.mark.parametrize("pattern", ["train.json", "train-*.tfrecord"])
@flagsaver.flagsaver
def test_the_command_does_not_replace_its_input(pattern, tmp_path):
    with RecordWriter(str(tmp_path), "train") as writer:
        for n in range(3):
            writer.write(serialize_example(png(smooth(RNG, 8, 8)), ["a text"], [], str(n)))
        writer.finish()
    command = ["prepare_pairs", f"--output_dir={tmp_path}", "--limit=1", f"--input={tmp_path}/{pattern}"]
    with pytest.raises(SystemExit, match="would replace its own input"):
        prepare_pairs.main(prepare_pairs.flags.FLAGS(command))
    assert RecordSource.open(str(tmp_path / "train.json")).count == 3


def test_the_command(tmp_path):
    rows = pairs(40, {"noise": ""}, RNG)
    write("csv", rows, tmp_path)

    command = [sys.executable, "tools/prepare_pairs.py", f"--output_dir={tmp_path / 'out'}"]
    command += [
        f"--input={tmp_path}/pairs.csv",
        "--words=1,30",
        "--licences=CC0-1.0",
        "--caption_repeats=1000",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())  # a table may break lines anywhere
    assert "unknown format" in said and "38 records" in said
    records, facts, _ = found(tmp_path / "out")
    assert len(records) == 38 and facts["licences"] == ["CC0-1.0"] and facts["filters"]["words"] == [1, 30]
