import itertools

import numpy as np
import pytest

from basic_tf.data.captions import CaptionChoice
from basic_tf.randomness import step_key_numpy

KEY = step_key_numpy(3, 17)


def many(choice, captions, labels=(), names=(), count=4000, key=KEY):
    return choice.choose(key, np.arange(count), [captions] * count, [labels] * count, names)


def test_each_caption_is_as_likely():
    texts = many(CaptionChoice(), ["a", "b", "c"])
    counts = np.array([texts.count(c) for c in "abc"])
    assert counts.sum() == 4000 and np.all(np.abs(counts - 4000 / 3) < 5 * np.sqrt(4000 * 2 / 9))


def test_a_choice_depends_on_its_own_example_alone():
    choice = CaptionChoice(keyword_dropout=0.5, label_text=0.5)
    captions = [[f"{i}, x, y, z", f"other {i}, u, v"] for i in range(50)]
    labels = [[i % 3, 3 + i % 2] for i in range(50)]
    names = ["red", "green", "blue", "big", "small"]
    whole = choice.choose(KEY, np.arange(50), captions, labels, names)
    rows = [49, 7, 20]
    part = choice.choose(KEY, np.array(rows), [captions[i] for i in rows], [labels[i] for i in rows], names)
    assert part == [whole[i] for i in rows]
    assert choice.choose(step_key_numpy(3, 18), np.arange(50), captions, labels, names) != whole


def test_labels_become_a_sentence_in_every_order_and_template():
    choice = CaptionChoice(templates=("a photo of {}.", "{}!"))
    names = ["cat", "dog", "eel"]
    texts = many(choice, [], [0, 2, 1], names)
    orders = [", ".join(order) for order in itertools.permutations(names)]
    expected = {t.format(o) for t in choice.templates for o in orders}
    assert set(texts) == expected
    assert all(abs(texts.count(e) - 4000 / 12) < 5 * np.sqrt(4000 / 12) for e in expected)


def test_share_of_label_texts():
    texts = many(CaptionChoice(templates=("{}",), label_text=0.25), ["own"], [0], ["name"])
    assert abs(texts.count("name") / 4000 - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    assert set(many(CaptionChoice(), ["own"], [0], ["name"])) == {"own"}
    assert set(many(CaptionChoice(label_text=1.0), ["own"], [0], ())) == {"own"}


def test_keyword_dropout_keeps_the_first_keyword_and_the_order():
    texts = many(CaptionChoice(keyword_dropout=0.3), ["apple, red,  round , fruit"])
    kept = [text.split(", ") for text in texts]
    assert all(
        k[0] == "apple" and k == [w for w in ("apple", "red", "round", "fruit") if w in k] for k in kept
    )
    for word in ("red", "round", "fruit"):
        share = np.mean([word in k for k in kept])
        assert abs(share - 0.7) < 5 * np.sqrt(0.21 / 4000)
    assert set(many(CaptionChoice(keyword_dropout=0.9), ["no commas here"])) == {"no commas here"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ("no slot",)}, "exactly once"),
        ({"templates": ()}, "must not be empty"),
        ({"keyword_dropout": 1.5}, "keyword_dropout is a probability"),
        ({"label_text": -0.1}, "label_text is a probability"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        CaptionChoice(**options)


def test_an_example_without_text_is_an_error():
    with pytest.raises(ValueError, match="example 5 has neither"):
        CaptionChoice().choose(KEY, np.array([5]), [[]], [[]], ["name"])
