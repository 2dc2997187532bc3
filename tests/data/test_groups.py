"""Distinct concepts in a batch."""

import numpy as np
import pytest

from basic_tf.data import groups
from basic_tf.data.examples import serialize_example
from basic_tf.data.memory import InMemorySource

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


def test_an_unknown_kind_is_said():
    with pytest.raises(ValueError, match=r"no label of kind 'style' \(it has concept, keyword\)"):
        groups.label_groups(_source([[0], [1], [2], [3]]), "style")
