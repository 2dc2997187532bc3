"""Streams: order, bounds and errors of work that is under way in several threads."""

import itertools
import threading

import numpy as np
import pytest

from basic_tf.evaluation import stream
from basic_tf.evaluation.encoder import UndecodableError


def test_order_and_bounds():
    """Results come in order though calls end out of order; what waits is bounded, and so is what runs."""
    taken, running, most_running, most_waiting = 0, 0, 0, 0
    lock = threading.Lock()
    rng = np.random.default_rng()
    pauses = rng.uniform(0, 0.004, 60)

    def items():
        nonlocal most_waiting
        for item in range(60):
            most_waiting = max(most_waiting, item + 1 - taken)
            yield item

    def square(item):
        nonlocal running, most_running
        with lock:
            running += 1
            most_running = max(most_running, running)
        threading.Event().wait(pauses[item])
        with lock:
            running -= 1
        return item * item

    for item, result in stream.overlapped(square, items(), under_way=3):
        assert (item, result) == (taken, taken * taken)
        taken += 1
    assert taken == 60
    assert 2 <= most_running <= 3
    assert most_waiting <= 6


def test_calls_overlap():
    """Two calls that wait for each other end only if both are under way."""
    barrier = threading.Barrier(2, timeout=20)
    assert len(list(stream.overlapped(lambda item: barrier.wait(), range(4), under_way=2))) == 4


def test_an_error_comes_in_its_place_and_starts_nothing_more():
    started, received, before = [], [], set(threading.enumerate())

    def call(item):
        started.append(item)
        if item == 7:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError):
        for item, _ in stream.overlapped(call, range(1000), under_way=2):
            received.append(item)
    assert received == list(range(7))
    assert max(started) <= 7 + 4
    assert not set(threading.enumerate()) - before  # the pool is gone


def test_closing_early_and_interrupts_start_nothing_more():
    started = []
    results = stream.overlapped(started.append, range(1000), under_way=2)
    next(results)
    results.close()
    assert len(started) <= 5
    with pytest.raises(KeyboardInterrupt):
        for item, _ in stream.overlapped(started.append, range(1000), under_way=2):
            if item == 3:
                raise KeyboardInterrupt
    assert len(started) <= 5 + 9


class Counting:
    """Embeds a picture (a number as text) by that number; remembers the sizes of its batches."""

    batch_size = 8
    embedding_dim = 2

    def __init__(self):
        self.sizes = []

    def encode_image_bytes(self, images):
        self.sizes.append(len(images))
        bad = [row for row, image in enumerate(images) if image == b"bad"]
        if bad:
            raise UndecodableError(bad[0], "(3 bytes) cannot be decoded: no picture")
        return np.array([[float(image), 1] for image in images], np.float32)


@pytest.mark.parametrize("several_labels", [False, True])
def test_pictures_are_dealt_in_full_batches(several_labels):
    rng = np.random.default_rng()
    encoder = Counting()
    sizes = [int(size) for size in rng.integers(1, 30, 9)]
    edges = np.cumsum([0, *sizes])
    count = int(edges[-1])
    labels = rng.integers(0, 5, (count, 4) if several_labels else count)

    def batches():
        for start, stop in itertools.pairwise(edges):
            rows = np.arange(start, stop)
            yield [str(row).encode() for row in rows], labels[rows], 3 * rows

    rows, found, records = (np.concatenate(part) for part in zip(*stream.embedded(encoder, batches())))
    np.testing.assert_array_equal(rows[:, 0], np.arange(count))
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(records, 3 * np.arange(count))
    assert sorted(encoder.sizes, reverse=True)[: count // 8] == [8] * (count // 8)
    assert len(encoder.sizes) == -(-count // 8)


def test_a_picture_that_cannot_be_decoded_is_named_by_file_and_record():
    images = [b"1"] * 19 + [b"bad"] + [b"2"] * 30
    batches = [
        (images[:6], np.zeros(6, int), np.arange(6)),
        (images[6:], np.zeros(44, int), np.arange(6, 50)),
    ]
    message = r"^a/test_x.json: the picture of record 19 \(3 bytes\) cannot be decoded: no picture$"
    with pytest.raises(ValueError, match=message):
        list(stream.embedded(Counting(), batches, "a/test_x.json"))
