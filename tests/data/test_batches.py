import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf.data import shards
from basic_tf.data.batches import ContrastiveBatches, LabelledBatches
from basic_tf.data.block_cache import BlockCache
from basic_tf.data.captions import CaptionChoice
from basic_tf.data.decoding import decode
from basic_tf.data.evaluation_batches import EvaluationBatches
from basic_tf.data.examples import parse_example, serialize_example
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.labels import multi_hot
from basic_tf.data.memory import InMemorySource
from basic_tf.data.order import BlockOrder, DistinctOrder, ExampleOrder
from basic_tf.data.python_calls import aligned_empty, mapped
from basic_tf.data.records import DamagedDataError, RecordSource, RecordWriter
from basic_tf.data.subset import Subset
from tests.data.pictures import jpeg, source

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 6
AUGMENTATION = ImageAugmentation(
    output_size=16,
    scale=(0.7, 1.1),
    rotation=10.0,
    flip=True,
    gain=0.2,
    recolour_probability=0.3,
    erase_probability=0.3,
)


class Bytes:
    """A tokenizer without a model: one id per byte."""

    length = LENGTH
    vocabulary_size = 256

    def __call__(self, texts):
        codes = tf.io.decode_raw(tf.constant(texts, tf.string), tf.uint8, fixed_length=LENGTH)
        return tf.cast(codes, tf.int32)


def contrastive(records=None, **options):
    options = {"batch_size": 12, "seed": 3} | options
    return ContrastiveBatches(records or source(53), Bytes(), AUGMENTATION, **options)


def labelled(records=None, **options):
    return LabelledBatches(records or source(53), AUGMENTATION, **({"batch_size": 12, "seed": 3} | options))


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        left, right = np.asarray(one[name]), np.asarray(other[name])
        assert left.dtype == right.dtype and np.array_equal(left, right), name


MAKES = {
    "contrastive": contrastive,
    "contrastive, cached": lambda records=None: contrastive(records, cache_decoded=True),
    "labelled": labelled,
    "labelled, cached": lambda records=None: labelled(records, cache_decoded=True),
}
each = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@each
def test_elements_are_what_the_architecture_says(make):
    batches = make()
    spec = batches.dataset().element_spec
    batch = batches.at(4)
    assert batch.keys() == spec.keys()
    for name, value in batch.items():
        assert tuple(spec[name].shape) == value.shape and spec[name].dtype == value.dtype
    assert batch["images"].shape == (12, 16, 16, 3) and batch["images"].dtype == np.uint8
    assert batch["examples"].tolist() == list(range(12)) and batch["record"].dtype == np.int64
    if "labels" in batch:
        expected = [[i % 7, 7 + i % 3][: 1 + i % 2] for i in batch["record"].tolist()]
        assert [np.flatnonzero(row).tolist() for row in batch["labels"]] == expected
        assert batch["labels"].dtype == np.float32 and batch["labels"].shape == (12, 10)
    else:
        assert batch["token_ids"].shape == (12, LENGTH) and batch["token_ids"].dtype == np.int32


@each
def test_two_runs_are_equal_and_resuming_continues_the_stream(make):
    stream = list(make().dataset(0, parallel_batches=3).take(9))
    for step, batch in enumerate(stream):
        same(make().at(step) if step == 5 else batch, batch)
    for first in (1, 4, 6):
        resumed = make().dataset(first, parallel_batches=1).take(9 - first)
        for one, other in zip(resumed, stream[first:], strict=True):
            same(one, other)
    far = 10**9
    same(next(iter(make().dataset(far, private_threads=1))), make().at(far))
    assert not np.array_equal(make().at(far)["record"], make().at(far + 1)["record"])


@each
def test_hosts_share_the_batch_of_one_host(make):
    whole = make().at(7)
    for hosts in (2, 4):
        parts = [make().at(7, host, hosts) for host in range(hosts)]
        same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
    same(next(iter(make().dataset(7, host=1, hosts=2))), make().at(7, 1, 2))


def test_each_host_reads_only_its_part():
    records = source(53)
    batches = contrastive(records)
    whole = batches.at(2)["record"].tolist()
    records.reads.clear()
    for host in range(4):
        batches.at(2, host, 4)
        assert sorted(records.reads) == sorted(whole[3 * host : 3 * host + 3])
        records.reads.clear()


@each
def test_an_epoch_reads_every_record_once(make):
    records = source(48)
    seen = np.concatenate([make(records).at(step)["record"] for step in range(4)])
    assert sorted(seen.tolist()) == list(range(48))


@each
@pytest.mark.parametrize("hosts", [1, 3])
def test_unusable_records_are_replaced_by_the_next_usable_one(make, hosts):
    """Read errors (5, 52) and undecodable pictures (6, 20): 5 and 6 become 7, 20 becomes 21, 52 becomes 0."""
    records = source(53, damaged=[5, 52], broken=[6, 20])
    batches, clean = make(records), make(source(53))
    met = set()
    for step in range(9):
        wanted = clean.at(step)
        batch = [batches.at(step, host, hosts) for host in range(hosts)]
        batch = {name: np.concatenate([part[name] for part in batch]) for name in wanted}
        replaced = {5: 7, 6: 7, 20: 21, 52: 0}
        assert batch["record"].tolist() == [replaced.get(i, i) for i in wanted["record"].tolist()]
        rows = [row for row in range(12) if wanted["record"][row] not in replaced]
        same({n: v[rows] for n, v in batch.items()}, {n: v[rows] for n, v in wanted.items()})
        met |= set(wanted["record"].tolist()) & set(replaced)
    assert met == {5, 6, 20, 52}
    assert batches.damage == {"damaged record": 2, "undecodable PNG": 2}


def test_records_without_what_is_needed_are_replaced():
    good = parse_example(source(1).read([0])[0]).image
    examples = [
        serialize_example(good, ["a"], [0]),
        serialize_example(good, [" ", ""], []),
        serialize_example(good, ["c"], []),
        b"\xff\xff not a message",
        serialize_example(good, [], [1]),
    ]
    records = InMemorySource(examples, {"label_names": ["x", "y"]})
    order = ExampleOrder(5, 0, shuffle=False)
    batches = contrastive(records, batch_size=5, order=order)
    assert batches.at(0)["record"].tolist() == [0, 2, 2, 4, 4]
    assert batches.damage == {"no caption": 1, "unreadable record (ValueError)": 1}
    batches = labelled(records, batch_size=5, order=order, cache_decoded=True)
    assert batches.at(0)["record"].tolist() == [0, 4, 4, 4, 4]
    assert batches.damage == {"no label": 2, "unreadable record (ValueError)": 1}


@each
def test_metrics_say_how_many_records_cannot_be_used(make):
    batches = make(source(53, damaged=[5], broken=[6, 20]))
    for step in range(5):
        batches.at(step)
    assert batches.scalars(5) == {"unusable_records": 3.0}
    assert make(source(53)).scalars(0) == {}


@pytest.mark.parametrize("cached", [False, True])
def test_too_many_damaged_records_stop_reading(cached):
    records = source(300, broken=range(0, 300, 10))

    def read(**options):
        batches = labelled(records, cache_decoded=cached, **options)
        for step in range(25):
            batches.at(step)
        return batches.damage

    message = r"1[6-9] records cannot be used, 15 are allowed of 300 .*'undecodable PNG': 1.*raise max_unusable_fraction"
    with pytest.raises(DamagedDataError, match=message):
        read()
    assert read(max_unusable_fraction=0.1) == {"undecodable PNG": 30}
    with pytest.raises(ValueError, match=r"max_unusable_fraction must lie in \[0, 1\], got 5"):
        read(max_unusable_fraction=5)


def test_records_without_a_label_are_passed_over_in_any_number():
    payloads = source(60).read(np.arange(60))
    picture = parse_example(payloads[0]).image
    payloads[::2] = [serialize_example(picture, ["no label"], [])] * 30
    batches = labelled(InMemorySource(payloads, {"label_names": [str(n) for n in range(10)]}))
    for step in range(5):
        assert (batches.at(step)["record"] % 2).all()
    assert batches.damage == {"no label": 30}


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_usable_is_an_error(cached):
    records = source(6, broken=range(6))
    with pytest.raises((RuntimeError, ValueError), match="undecodable PNG"):
        contrastive(records, batch_size=2, cache_decoded=cached, max_replacements=5).at(0)


def test_cached_pictures_are_the_pictures():
    plain = ImageAugmentation(24, scale=(1.0, 1.0))
    records = source(30)
    batch = LabelledBatches(records, plain, 10, 1, cache_decoded=True).at(1)
    for image, index in zip(batch["images"], batch["record"], strict=True):
        assert np.array_equal(image, decode(parse_example(records.read([index])[0]).image))
    uncached = LabelledBatches(records, plain, 10, 1).at(1)
    same(batch, uncached)


@pytest.mark.parametrize(("side", "size", "expected"), [(24, 16, 24), (24, 8, 16), (24, 40, 40)])
def test_pictures_in_memory_are_as_large_as_needed(side, size, expected):
    batches = LabelledBatches(
        source(4, side=side, broken=[0]), ImageAugmentation(size), 2, 1, cache_decoded=True
    )
    assert batches._cache.pictures.shape == (4, expected, expected, 3)


def test_texts_and_their_ids():
    batches = contrastive(captions=CaptionChoice(keyword_dropout=0.5))
    texts = batches.texts(3)
    same({"t": Bytes()(texts).numpy()}, {"t": batches.at(3)["token_ids"]})
    for text, record in zip(texts, batches.at(3)["record"], strict=True):
        captions = parse_example(batches.source.read([record])[0]).captions
        kept, whole = set(text.split(", ")), [set(caption.split(", ")) for caption in captions]
        assert kept <= whole[0] or kept <= whole[1]
    assert len({len(text.split(", ")) for text in texts}) > 1


def test_distinct_and_block_orders():
    groups = np.arange(53) // 2
    batches = contrastive(order=DistinctOrder(groups, 12, 3))
    assert batches.steps_per_epoch == 4.0
    for step in range(8):
        assert len(set(groups[batches.at(step)["record"]])) == 12

    records = source(53)
    order = BlockOrder(53, block=5, window=2, seed=3, lanes=2, batch_size=12)
    cached = contrastive(BlockCache(records, 5, 8), order=order)
    for step in range(4):
        same(cached.at(step), contrastive(order=order).at(step))


def test_records_on_disk(tmp_path):
    with RecordWriter(str(tmp_path), "train", shards=3) as writer:
        for payload in source(40, encode=jpeg).read(np.arange(40)):
            writer.write(payload)
        path = writer.finish(label_names=[f"name {i}" for i in range(10)])
    records = RecordSource.open(path)
    for make in MAKES.values():
        same(make(records).at(11), make(RecordSource.open(path)).at(11))
    assert sorted(np.concatenate([labelled(records, batch_size=8).at(s)["record"] for s in range(5)])) == [
        *range(40)
    ]


def test_evaluation_keeps_order_and_marks_what_it_cannot_read():
    records = source(23, damaged=[3], broken=[9])
    batches = EvaluationBatches(records, 24, 10, tokenizer=Bytes(), num_classes=10, caption=1)
    elements = list(batches)
    assert [len(e["record"]) for e in elements] == [10, 10, 3] == [10] * (len(batches) - 1) + [3]
    whole = {name: np.concatenate([e[name] for e in elements]) for name in elements[0]}
    assert whole["record"].tolist() == list(range(23))
    assert np.flatnonzero(~whole["valid"]).tolist() == [3, 9]
    assert (whole["images"][[3, 9]] == 255).all() and not whole["labels"][[3, 9]].any()
    assert batches.damage == {"damaged record": 1, "undecodable PNG": 1}
    for i in (0, 8, 22):
        record = parse_example(records.read([i])[0])
        assert np.array_equal(whole["images"][i], decode(record.image))
        assert np.array_equal(whole["token_ids"][i], Bytes()([record.captions[1]])[0])
        assert np.flatnonzero(whole["labels"][i]).tolist() == record.labels.tolist()
    for one, other in zip(batches.dataset(), elements, strict=True):
        same(one, other)
    chosen = EvaluationBatches(records, AUGMENTATION, 2, records=[22, 0, 7])
    assert [e["record"].tolist() for e in chosen] == [[22, 0], [7]]
    assert chosen.at(0)["images"].shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: contrastive(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: contrastive(batch_size=54), r"batch_size=54 is larger than the dataset \(53 records\)"),
        (lambda: contrastive().dataset(hosts=5), "batch_size=12 is not divisible by 5 hosts"),
        (lambda: contrastive().at(0, 2, 2), r"host must lie in \[0, 2\)"),
        (lambda: contrastive(order=ExampleOrder(52, 0)), "the order is over 52 records"),
        (lambda: contrastive(order=DistinctOrder(np.arange(53), 10, 0)), "arranged for batches of 10"),
        (lambda: labelled(InMemorySource(source(20).read(range(20)))), "no label_names"),
        (lambda: EvaluationBatches(source(3), 8, 0), "batch_size must be at least 1"),
    ],
)
def test_impossible_requests_are_one_clear_line(attempt, message):
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)


def test_too_many_pictures_for_the_memory():
    with pytest.raises(MemoryError, match=r"take 0\.00 GiB, the limit is 0\.00 GiB: raise cache"):
        contrastive(cache_decoded=True, cache_limit_bytes=1000)


@pytest.mark.parametrize("cached", [False, True])
def test_a_label_outside_the_classes_is_no_damage_but_an_error(cached):
    with pytest.raises(LookupError, match="has the label 9, but labels must lie in"):
        batches = labelled(num_classes=9, cache_decoded=cached)
        for step in range(5):
            batches.at(step)


def test_multi_hot():
    hot = multi_hot([np.array([2, 0]), np.array([], np.int64), np.array([1, 1])], 3)
    assert hot.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("cached", [True, False])
def test_a_program_that_ends_while_reading_ahead_ends_well(cached):
    """Without python_calls every second such program aborts (cached) after its work is done."""
    program = (
        "from tests.data.test_batches import labelled, source\n"
        f"elements = iter(labelled(source(200), cache_decoded={cached}, batch_size=150).dataset())\n"
        "for _ in range(4): next(elements)\n"
        "print('done')"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr[-2000:]


def test_aligned_arrays_reach_tensorflow_without_a_copy():
    made = []

    def make(number):
        array = aligned_empty((number + 1, 5, 3))
        array[...] = number
        made.append(array.ctypes.data)
        return {"x": array}

    signature = {"x": tf.TensorSpec((None, 5, 3), tf.uint8)}
    for number, element in enumerate(mapped(tf.data.Dataset.range(8), make, signature, 1, 1)):
        received = np.asarray(element["x"])
        assert received.shape == (number + 1, 5, 3) and (received == number).all()
        assert received.ctypes.data == made[number]


def test_a_gin_file_reads_remote_files_by_blocks(monkeypatch):
    """ram:// stands for gs://: one request for each block of an epoch."""
    import gin
    from basic_tf import configurables

    with RecordWriter("ram://blocks", "train", records_per_shard=150) as writer:
        for payload in source(600, side=6).read(np.arange(600)):
            writer.write(payload)
        writer.finish(label_names=[f"name {i}" for i in range(10)])
    requests, real = [], tf.io.gfile.GFile.read
    monkeypatch.setattr(
        tf.io.gfile.GFile, "read", lambda file, n=-1: requests.append(file.name) or real(file, n)
    )

    def requests_of_an_epoch(order):
        configurables.parse_text(
            "Records.path = 'ram://blocks/train.json'\nContrastiveBatches.source = @Records()\n" + order
        )
        batches = gin.get_configurable("ContrastiveBatches")(
            tokenizer=Bytes(), augmentation=AUGMENTATION, batch_size=50, seed=3
        )
        requests.clear()
        seen = np.concatenate([batches.at(step)["record"] for step in range(12)])
        assert sorted(seen.tolist()) == list(range(600))
        return sum(name.endswith(".tfrecord") for name in requests)

    monkeypatch.setattr(shards, "_REMOTE_GAP", 0)  # records this small would all be neighbours
    assert requests_of_an_epoch("") > 400
    by_blocks = "ContrastiveBatches.order = @BlockOrder\nBlockOrder.block = 25\nBlockOrder.window = 4"
    assert requests_of_an_epoch(by_blocks) == 24
    part = Subset(RecordSource.open("ram://blocks/train.json"), 0.0, 0.5)
    assert isinstance(contrastive(part, order=BlockOrder(part.count, 25, 4, 3)).source, BlockCache)
    assert not isinstance(contrastive(order=BlockOrder(53, 5, 2, 3)).source, BlockCache)  # not remote
    gin.clear_config()
    tf.io.gfile.rmtree("ram://blocks")
