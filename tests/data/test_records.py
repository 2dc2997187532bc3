"""Records: TensorFlow and we read what was written, in any order; damage is found, counted and skipped."""

import concurrent.futures
import gc
import gzip
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.data import open_files, records, shards
from basic_tf.data.records import RecordSource, RecordWriter

RNG = np.random.default_rng()


def payloads(count, largest=5000):
    return [RNG.bytes(int(size)) for size in RNG.integers(0, largest, count)]


def write(folder, data, name="t", **options):
    with RecordWriter(str(folder), name, **options) as writer:
        for payload in data:
            writer.write(payload)
        return writer.finish(source="test")


def shard_files(folder, name="t"):
    return sorted(str(p) for p in folder.glob(f"{name}-*.tfrecord"))


def in_file_order(data, count):
    """Round robin: shard s has records s, s + count, ..."""
    return [payload for shard in range(count) for payload in data[shard::count]]


@pytest.mark.parametrize(
    "count, options", [(1, {"shards": 3}), (37, {"shards": 4}), (37, {"records_per_shard": 10})]
)
def test_tensorflow_reads_what_was_written_and_so_do_we(tmp_path, count, options):
    data = payloads(count)
    path = write(tmp_path, data, **options)
    expected = data if "records_per_shard" in options else in_file_order(data, options["shards"])
    files = shard_files(tmp_path)
    assert [bytes(x) for x in tf.data.TFRecordDataset(files).as_numpy_iterator()] == expected
    source = RecordSource.open(path)
    assert source.count == count and source.metadata["source"] == "test"
    assert json.loads((tmp_path / "t.json").read_text())["shards"] == [os.path.basename(f) for f in files]
    order = RNG.integers(0, count, 3 * count)
    assert source.read(order) == [expected[i] for i in order]
    assert source.read(np.array([], int)) == []
    assert RecordSource.open(str(tmp_path / "t-*.tfrecord")).read(order) == source.read(order)


def test_index_holds_offset_and_length_of_each_payload(tmp_path):
    data = payloads(23)
    write(tmp_path, data, shards=2)
    for shard, file in enumerate(shard_files(tmp_path)):
        pairs = np.fromfile(file + ".index", "<u8").reshape(-1, 2)
        raw = Path(file).read_bytes()
        assert [raw[o : o + n] for o, n in pairs.tolist()] == data[shard::2]


def test_records_that_tensorflow_wrote_are_read_without_json_and_index(tmp_path):
    data = payloads(19)
    with tf.io.TFRecordWriter(str(tmp_path / "00000.tfrecord")) as writer:
        for payload in data:
            writer.write(payload)
    source = RecordSource.open(str(tmp_path / "*.tfrecord"))
    assert source.read(np.arange(19)) == data
    pairs = np.fromfile(tmp_path / "00000.tfrecord.index", "<u8").reshape(-1, 2)
    assert pairs[:, 1].tolist() == [len(payload) for payload in data]


def test_index_stays_in_memory_where_it_cannot_be_written(tmp_path, monkeypatch):
    data = payloads(5)
    path = write(tmp_path, data)
    os.remove(shard_files(tmp_path)[0] + ".index")

    def refuse(*_, **__):
        raise tf.errors.PermissionDeniedError(None, None, "read-only")

    monkeypatch.setattr(tf.io.gfile, "rename", refuse)
    assert RecordSource.open(path).read(np.arange(5)) == data
    assert not os.path.exists(shard_files(tmp_path)[0] + ".index")


@pytest.mark.parametrize("harm", ["other file", "odd size", "permuted"])
def test_wrong_index_is_made_again(tmp_path, harm):
    data = payloads(9)
    path = write(tmp_path, data)
    index = shard_files(tmp_path)[0] + ".index"
    good = Path(index).read_bytes()
    bad = {"other file": good[:-16], "odd size": good[:-3], "permuted": good[16:32] + good[:16] + good[32:]}[
        harm
    ]
    with open(index, "wb") as file:
        file.write(bad)
    assert RecordSource.open(path).read(np.arange(9)) == data
    assert Path(index).read_bytes() == good


def test_scan_crosses_its_window(tmp_path, monkeypatch):
    data = payloads(50, 300)
    write(tmp_path, data)
    file = shard_files(tmp_path)[0]
    for window in (13, 64, 999):
        monkeypatch.setattr(shards, "_SCAN_BYTES", window)
        assert [n for _, n in shards.scan_shard(file)] == [len(payload) for payload in data]


def harmed(tmp_path, data, damage):
    """Writes data to one shard and turns bits: record -> byte within its frame (negative: from its end)."""
    path = write(tmp_path, data)
    file = shard_files(tmp_path)[0]
    pairs = np.fromfile(file + ".index", "<u8").reshape(-1, 2).astype(int)
    raw = bytearray(Path(file).read_bytes())
    for record, byte in damage.items():
        start, end = pairs[record, 0] - 12, pairs[record].sum() + 4
        raw[start + byte if byte >= 0 else end + byte] ^= 1 << int(RNG.integers(8))
    with open(file, "wb") as out:
        out.write(raw)
    return path, file, pairs


def test_damage_anywhere_in_a_record_is_found_logged_once_and_its_neighbours_are_read(tmp_path, caplog):
    data = [RNG.bytes(int(n)) for n in RNG.integers(30, 99, 12)]
    damage = {0: 0, 2: 7, 4: 8, 6: 11, 8: 12, 9: -1, 11: -5}  # length, its checksum, payload, its checksum
    path, file, pairs = harmed(tmp_path, data, damage)
    source = RecordSource.open(path)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            read = source.read(np.arange(12))
            assert read == [None if i in damage else data[i] for i in range(12)]
    assert sorted(source.damaged) == sorted(damage)
    lines = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(lines) == len(damage)
    assert f"{file}: record 8 at byte {pairs[8, 0] - 12} is damaged" in "\n".join(lines)


def test_budget_of_damage(tmp_path):
    data = [RNG.bytes(40) for _ in range(60)]
    path, _, _ = harmed(tmp_path, data, dict.fromkeys(range(0, 60, 2), 20))
    source = RecordSource.open(path)
    assert source.read(np.arange(20)).count(None) == 10  # the least that is always allowed
    with pytest.raises(
        records.DamagedDataError, match=r"11 damaged records, 10 are allowed of 60.*max_damaged"
    ):
        source.read(np.arange(20, 22))
    assert RecordSource.open(path, max_damaged_fraction=0.5).read(np.arange(60)).count(None) == 30


def test_truncated_shard_is_one_clear_line(tmp_path):
    data = [RNG.bytes(50) for _ in range(6)]
    path = write(tmp_path, data)
    file = shard_files(tmp_path)[0]
    whole = Path(file).read_bytes()
    for size in (len(whole) - 1, len(whole) - 60, 5):
        with open(file, "wb") as out:
            out.write(whole[:size])
        with pytest.raises(records.RecordFileError, match="is truncated: it ends at byte") as error:
            RecordSource.open(path)
        assert file in str(error.value) and "\n" not in str(error.value)
    with open(file, "wb") as out:
        out.write(whole[: 4 * 66])  # cut between two records: the json knows better
    with pytest.raises(records.RecordFileError, match="says 6 records, its shards hold 4"):
        RecordSource.open(path)


def test_what_is_missing_or_no_shard_is_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shard matches"):
        RecordSource.open(str(tmp_path / "x-*.tfrecord"))
    with pytest.raises(FileNotFoundError, match=r"x\.json does not exist"):
        RecordSource.open(str(tmp_path / "x.json"))
    path = write(tmp_path, payloads(4), shards=2)
    os.remove(shard_files(tmp_path)[1])
    with pytest.raises(FileNotFoundError, match=r"00001-of-00002.tfrecord does not exist"):
        RecordSource.open(path)
    (tmp_path / "e.json").write_text('{"shards": [], "count": 0}')
    with pytest.raises(records.RecordFileError, match="names no shard"):
        RecordSource.open(str(tmp_path / "e.json"))
    (tmp_path / "e.json").write_text('["shards"]')
    with pytest.raises(records.RecordFileError, match="not a dataset's json"):
        RecordSource.open(str(tmp_path / "e.json"))
    (tmp_path / "empty.tfrecord").write_bytes(b"")
    with pytest.raises(records.RecordFileError, match="hold no record"):
        RecordSource.open(str(tmp_path / "empty.tfrecord"))
    (tmp_path / "zipped.tfrecord").write_bytes(gzip.compress(b"a" * 99))
    with pytest.raises(records.RecordFileError, match="a GZIP file"):
        RecordSource.open(str(tmp_path / "zipped.tfrecord"))
    (tmp_path / "text.tfrecord").write_bytes(b"this is no record at all")
    with pytest.raises(records.RecordFileError, match="no TFRecord file"):
        RecordSource.open(str(tmp_path / "text.tfrecord"))


def test_damaged_length_without_index_is_one_clear_line(tmp_path):
    _, file, pairs = harmed(tmp_path, [RNG.bytes(50) for _ in range(6)], {3: 1})
    os.remove(file + ".index")
    with pytest.raises(
        records.RecordFileError, match=f"record 3 at byte {pairs[3, 0] - 12} is damaged; without"
    ):
        RecordSource.open(file)


@pytest.mark.parametrize("bad", [-1, 5, 1 << 40])
def test_index_outside(tmp_path, bad):
    source = RecordSource.open(write(tmp_path, payloads(5)))
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        source.read(np.array([0, bad]))


def test_file_systems_of_gfile(tmp_path):
    """ram:// stands for gs://: reads by range, neighbours in one request."""
    data = payloads(41)
    path = write("ram://records/a", data, shards=3)
    expected = in_file_order(data, 3)
    source = RecordSource.open(path)
    order = RNG.permutation(41)
    assert source.read(order) == [expected[i] for i in order]
    assert source.read(np.arange(41)) == expected
    tf.io.gfile.remove("ram://records/a/t-00001-of-00003.tfrecord.index")
    assert RecordSource.open("ram://records/a/t-*.tfrecord").read(order) == source.read(order)
    tf.io.gfile.rmtree("ram://records/a")


def test_remote_runs_join_neighbours_and_leave_out_gaps(monkeypatch):
    monkeypatch.setattr(shards, "_REMOTE_GAP", 10)
    monkeypatch.setattr(shards, "_REMOTE_RUN", 100)
    starts = np.array([300, 0, 45, 20, 120, 90])
    ends = starts + np.array([50, 20, 40, 20, 30, 30])
    assert shards._runs(starts, ends) == [[1, 3, 2], [5, 4], [0]]


def test_threads_and_forks_share_a_source(tmp_path):
    data = payloads(64)
    source = RecordSource.open(write(tmp_path, data, records_per_shard=20))
    orders = [RNG.permutation(64) for _ in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for order, read in zip(orders, pool.map(source.read, orders)):
            assert read == [data[i] for i in order]
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=lambda: queue.put(source.read(orders[0])))
    child.start()
    assert queue.get() == source.read(orders[0])
    child.join()


def test_indexes_stay_in_memory_within_their_limit(tmp_path, monkeypatch):
    data = payloads(900, 30)
    path = write(tmp_path, data, records_per_shard=3)
    read_from, real = [], shards.read_range

    def spy(name, *arguments):
        read_from.append(name)
        return real(name, *arguments)

    whole, small = RecordSource.open(path), RecordSource.open(path, index_limit_bytes=100 * 4 * 4)
    monkeypatch.setattr(shards, "read_range", spy)
    for source, reads in ((whole, 300), (small, 600)):
        for _ in range(2):  # each shard in turn, as a batch in random order does
            assert source.read(np.arange(0, 900, 3)) == data[::3]
        assert len(read_from) == reads
        read_from.clear()
    assert small.read(np.arange(600, 900)) == data[600:] and not read_from  # the latest hundred are there
    assert (len(small._indexes), small._index_bytes) == (100, 1600)


def test_shards_above_four_gigabytes_have_longer_numbers():
    pairs = np.array([[12, 1 << 32], [(1 << 32) + 28, 5]])
    assert shards.frame_edges(pairs, (1 << 32) + 37).tolist() == [0, (1 << 32) + 16, (1 << 32) + 37]
    assert shards.frame_edges(pairs[:0], 0).tolist() == [0]


@pytest.mark.parametrize("limit_is_known", [True, False])
def test_more_shards_than_a_process_may_have_open_files(tmp_path, monkeypatch, limit_is_known):
    data = payloads(240, 50)
    source = RecordSource.open(write(tmp_path, data, records_per_shard=2))
    monkeypatch.setattr(open_files, "_files", open_files.OpenFiles(None if limit_is_known else 1000))

    def read(answer):
        try:
            most = max(map(int, os.listdir("/proc/self/fd"))) + 20
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            good = all(source.read(np.arange(240)) == data for _ in range(2))
            answer.put("good" if good else "other records")
        except BaseException as error:
            answer.put(repr(error))

    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=read, args=[answer])
    child.start()
    assert answer.get() == "good"
    child.join()


def test_the_limit_of_open_files_is_raised_where_it_may_be_and_half_of_it_kept(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert open_files._share_of_limit() == min(hard, 1 << 16) // 2
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 1 << 16), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_files_are_closed_with_their_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(open_files, "_files", open_files.OpenFiles())
    source = RecordSource.open(write(tmp_path, payloads(8), shards=4))
    source.read(np.arange(8))
    assert len(open_files._files._kept) == 4
    del source
    gc.collect()
    assert not open_files._files._kept


# Writing


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), RecordWriter(str(tmp_path), "t", shards=2) as writer:
        writer.write(b"1")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(ValueError, match="dataset t has no record"),
        RecordWriter(str(tmp_path), "t") as writer,
    ):
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_refused_by_verify_the_old_dataset_stays(tmp_path):
    path = write(tmp_path, [b"old"])
    seen = []

    def refuse(source):
        seen.extend(source.read(np.arange(source.count)))
        raise ValueError("not clean")

    with pytest.raises(ValueError, match="not clean"), RecordWriter(str(tmp_path), "t", shards=2) as writer:
        for payload in (b"a", b"b", b"c"):
            writer.write(payload)
        writer.finish(verify=refuse)
    assert seen == [b"a", b"c", b"b"]
    assert RecordSource.open(path).read(np.array([0])) == [b"old"]
    assert not (tmp_path / ".t.partial").exists()


@pytest.mark.parametrize("fact", ["caf\udce9", {1, 2}])
def test_metadata_that_no_json_can_hold_leave_the_old_dataset(tmp_path, fact):
    path = write(tmp_path, [b"old"] * 3, shards=3)
    with pytest.raises((ValueError, TypeError)), RecordWriter(str(tmp_path), "t") as writer:
        writer.write(b"new")
        writer.finish(label_names=[fact])
    assert RecordSource.open(path).read(np.arange(3)) == [b"old"] * 3
    assert not (tmp_path / ".t.partial").exists()


def test_a_killed_writer_leaves_no_dataset_and_the_next_one_clears_up(tmp_path):
    code = f"""
        import os, signal
        from basic_tf.data.records import RecordWriter
        writer = RecordWriter({str(tmp_path)!r}, "t", shards=2)
        for _ in range(100):
            writer.write(b"x" * 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [".t.partial"]
    data = payloads(3)
    path = write(tmp_path, data)
    assert RecordSource.open(path).read(np.arange(3)) == data
    assert not (tmp_path / ".t.partial").exists()


def test_a_rewritten_dataset_has_no_shard_of_the_old_one(tmp_path):
    write(tmp_path, payloads(40), shards=4)
    write(tmp_path, payloads(40), name="t2", shards=4)
    data = payloads(4)
    path = write(tmp_path, data, shards=2)
    assert len(shard_files(tmp_path)) == 2
    assert RecordSource.open(path).read(np.arange(4)) == in_file_order(data, 2)
    assert RecordSource.open(str(tmp_path / "t2.json")).count == 40


def test_a_copied_dataset_reads_from_its_new_place(tmp_path):
    data = payloads(6)
    write(tmp_path / "a", data)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert RecordSource.open(str(tmp_path / "b" / "t.json")).read(np.arange(6)) == data


# Examples


def test_example_round_trip():
    image, captions, labels = RNG.bytes(99), ("a cat", "eine schöne Katze"), [3, 1 << 40, 0]
    payload = records.serialize_example(image, captions, labels, "noto/1f431")
    record = records.parse_example(payload)
    assert (record.image, record.captions, record.id) == (image, captions, "noto/1f431")
    assert record.labels.dtype == np.int64 and record.labels.tolist() == labels
    parsed = tf.io.parse_single_example(
        payload,
        {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "caption": tf.io.VarLenFeature(tf.string),
            "label": tf.io.VarLenFeature(tf.int64),
            "id": tf.io.FixedLenFeature([], tf.string),
        },
    )
    assert parsed["image/encoded"].numpy() == image
    assert [c.decode() for c in parsed["caption"].values.numpy()] == list(captions)
    assert parsed["label"].values.numpy().tolist() == labels


def test_keys_of_img2dataset():
    def feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {"jpg": feature(b"\xff\xd8"), "txt": feature(b"a dog"), "key": feature(b"000000012")}
    features["width"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[256]))
    payload = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    record = records.parse_example(payload, records.IMG2DATASET)
    assert (record.image, record.captions, record.id) == (b"\xff\xd8", ("a dog",), "000000012")
    assert record.labels.shape == (0,)
    with pytest.raises(
        ValueError, match=r"no picture under 'image/encoded': the record has jpg, key, txt, width"
    ):
        records.parse_example(payload)


def test_foreign_bytes_are_a_value_error():
    with pytest.raises(ValueError, match=r"not a serialized tf\.train\.Example"):
        records.parse_example(b"\xff" * 20)
