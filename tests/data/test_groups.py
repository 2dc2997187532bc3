"""Distinct concepts in a batch."""

import functools

import numpy as np
import pytest

from basic_tf.data import groups
from basic_tf.data.examples import serialize_example
from basic_tf.data.memory import InMemorySource
from basic_tf.data.mixture import MixedSource, MixtureOrder

_KINDS = ["concept"] * 5 + ["keyword"] * 2


def _source(rows, kinds=_KINDS):
    examples = [serialize_example(b"x", ["t"], labels) for labels in rows]
    return InMemorySource(examples, {"label_kinds": kinds}, damaged=[3])


def test_groups_are_the_first_label_of_the_kind():
    found = groups.label_groups(_source([[5, 2], [2, 6], [6], [1], [4, 1]]), "concept")
    assert found[0] == found[1] == 2 and found[4] == 4
    assert len({*found.tolist()}) == 4  # the record without a concept and the damaged one stand alone


def test_no_batch_holds_a_concept_twice():
    rng = np.random.default_rng(0)
    concepts = rng.permutation(np.repeat(np.arange(5), 4))
    source = InMemorySource([serialize_example(b"x", ["t"], [c]) for c in concepts], {"label_kinds": _KINDS})
    order = groups.distinct_labels(source, batch_size=5, seed=3)
    for epoch in range(3):
        _, records = order.indices(epoch * 20, 20)
        assert sorted(records) == list(range(20))
        for batch in concepts[records].reshape(4, 5):
            assert len(set(batch)) == 5


def test_parts_of_a_mixture_whose_labels_are_known_come_in_distinct_runs():
    rng = np.random.default_rng()
    concepts = rng.permutation(np.repeat(np.arange(5), 4))
    facts = {"label_kinds": _KINDS, "label_names": list("abcdefg")}
    known = InMemorySource([serialize_example(b"x", ["t"], [c]) for c in concepts], facts)
    unknown = InMemorySource([serialize_example(b"x", ["t"])] * 30, {})
    source = MixedSource([known, unknown], [1, 1], ["known", "unknown"])
    order = MixtureOrder(source, 10, 3, functools.partial(groups.distinct_where_labelled, run=5))
    for batch in range(int(rng.integers(0, 10**6)), 10**6 + 1, 10**5):
        _, records = order.indices(batch * 10, 10)
        own = records[records < 20]
        assert len(own) == 5 and len(set(concepts[own])) == 5
    _, records = order.indices(0, 60)
    assert sorted(records[records >= 20]) == list(range(20, 50))


def test_an_unknown_kind_is_said():
    with pytest.raises(ValueError, match=r"no label of kind 'style' \(it has concept, keyword\)"):
        groups.label_groups(_source([[0], [1], [2], [3]]), "style")
