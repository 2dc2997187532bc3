import json

import pytest

from basic_tf.evaluation import prompts


def test_all_texts_in_all_templates():
    received = prompts.class_prompts(["cat", ("dog", "hound")], ("{}", "a {}"))
    assert received == [("cat", "a cat"), ("dog", "a dog", "hound", "a hound")]


def test_braces_in_names_stay():
    assert prompts.class_prompts(["curly {brace} {0}"], ("a {}!",)) == [("a curly {brace} {0}!",)]


@pytest.mark.parametrize(
    ("how", "expected"), [("as_is", "Crème-brûlée (T. rex),  x_y"), ("plain", "crème brûlée t rex x y")]
)
def test_canonicalisation(how, expected):
    assert prompts.canonicalise("Crème-brûlée (T. rex),  x_y", how) == expected


def test_canonicalisation_errors():
    with pytest.raises(ValueError, match="choose one of as_is, plain"):
        prompts.canonicalise("cat", "clip")
    with pytest.raises(ValueError, match="is empty under"):
        prompts.canonicalise("#!", "plain")


def test_own_templates_are_sound():
    for name, templates in prompts.TEMPLATE_SETS.items():
        assert prompts.check_templates(templates, name) == tuple(templates)
        assert len(set(templates)) == len(templates)
    assert len(prompts.EMOJI_TEMPLATES) == 8


def test_load_templates(tmp_path):
    assert prompts.load_templates("emoji") == prompts.EMOJI_TEMPLATES
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({"source": "mine", "templates": ["ein {}", "{}"]}))
    assert prompts.load_templates(str(path)) == ("ein {}", "{}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "expected JSON"),
        ('["{}"]', "expected JSON"),
        ('{"templates": []}', "at least one template"),
        ('{"templates": "a {}"}', "list of at least one"),
        ('{"templates": ["a {}", "none"]}', "received 'none'"),
        ('{"templates": ["{} and {}"]}', "one {}"),
        ('{"templates": [3]}', "template string"),
    ],
)
def test_wrong_template_files(tmp_path, content, message):
    path = tmp_path / "templates.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        prompts.load_templates(str(path))
    assert str(path) in str(caught.value)


def test_unknown_template_set():
    with pytest.raises(ValueError, match="neither a known set \\(emoji, bare\\) nor an existing JSON file"):
        prompts.load_templates("imagenet")


def test_a_class_without_text():
    with pytest.raises(ValueError, match="class 1 has no text"):
        prompts.class_prompts(["cat", ()], ("{}",))
