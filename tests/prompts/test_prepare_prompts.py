"""Prompts out of wheels: read as syntax, never imported; pinned by hash; counted."""

import dataclasses
import hashlib
import importlib.util
import json
import zipfile

import pytest

from tools import prepare_prompts
from tools.prompts import syntax, wheels

SOURCE = """
import torch_that_nobody_has
raise RuntimeError("imported")
A = (lambda c: f"a bad photo of a {c}.", lambda name: f"{name}!")
B: tuple = ("x",)
NAMES = ["tench", "goldfish"]
C = (lambda c: f"{c} and {c}",)
D = (lambda c: f"{c:>9}",)
E = (lambda c: f"{other}",)
F = (lambda c: "no format " + c,)
G = ("tench", 3)
"""


def test_templates_and_names_are_read_as_syntax():
    assert syntax.templates(SOURCE, "A") == ["a bad photo of a {}.", "{}!"]
    assert syntax.strings(SOURCE, "NAMES") == ["tench", "goldfish"]


@pytest.mark.parametrize("name", ["C", "D", "E", "F", "NAMES"])
def test_other_templates_are_errors(name):
    with pytest.raises(ValueError, match=name):
        syntax.templates(SOURCE, name)


def test_other_names_are_errors():
    with pytest.raises(ValueError, match="G is no tuple of strings"):
        syntax.strings(SOURCE, "G")
    with pytest.raises(ValueError, match="assigns nothing to Z"):
        syntax.strings(SOURCE, "Z")


def fake(cache, wheel, files):
    """A wheel of that name with these files in the cache, and the pin that fits it."""
    path = cache / f"{wheel.filename_prefix}py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return dataclasses.replace(wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    names = [f"class {i}" for i in range(998)] + ["class 3", "class 4"]
    with open(prepare_prompts._OBJECTNET) as file:
        ids = sorted({wnid for entry in json.load(file)["classes"] for wnid in entry["wordnet_ids"]})
    ids = sorted(ids + [f"n{i:08d}" for i in range(1000 - len(ids))])
    lambdas = ", ".join(f'lambda c: f"photo {i} of {{c}}"' for i in range(80))
    source = (
        f"import torch\nIMAGENET_CLASSNAMES = {tuple(names)!r}\nOPENAI_IMAGENET_TEMPLATES = ({lambdas})\n"
        'SIMPLE_IMAGENET_TEMPLATES = (lambda c: f"a {c}",)\n'
    )
    files = {
        "OPEN_CLIP": {prepare_prompts._METADATA: source},
        "CLIP_BENCHMARK": {
            prepare_prompts._NAMES: json.dumps(
                {"imagenet1k": ["wrong"], "caltech101": ["a"], "caltech101_vtab": ["b"], "mnist": ["0"]}
            ),
            prepare_prompts._TEMPLATES: json.dumps({"caltech101": ["a {c}."], "mnist": ["the number {c}"]}),
        },
        "TIMM": {
            prepare_prompts._SYNSETS: "\n".join(ids),
            prepare_prompts._SUBSET.format("a"): "\n".join(ids[::5]),
            prepare_prompts._SUBSET.format("r"): "\n".join(ids[1::5]),
        },
    }
    for name, of_wheel in files.items():
        monkeypatch.setattr(wheels, name, fake(tmp_path, getattr(wheels, name), of_wheel))
    return tmp_path


def test_the_file(cache):
    content = prepare_prompts.collect(str(cache))
    assert content["templates"]["imagenet"][79] == "photo 79 of {}"
    assert content["templates"]["caltech101"] == ["a {}."] and content["classes"]["caltech101"] == ["b"]
    assert content["templates"]["mnist"] == ["the number {}"]
    assert len(content["classes"]["imagenet"]) == 1000 and len(set(content["classes"]["imagenet"])) == 998
    assert len(content["wordnet_ids"]["imagenet_r"]) == 200
    assert content["sources"]["open_clip_torch"]["version"] == "3.3.0"
    for key, message in (
        ("templates", "expected 80 ImageNet templates, found 79"),
        ("classes", "class names"),
    ):
        damaged = json.loads(json.dumps(content))
        damaged[key]["imagenet"].pop()
        with pytest.raises(ValueError, match=message):
            prepare_prompts.check(damaged)


def test_another_wheel_is_refused(cache, monkeypatch):
    pinned = dataclasses.replace(wheels.TIMM, sha256="0" * 64)
    monkeypatch.setattr(wheels, "TIMM", pinned)
    with pytest.raises(ValueError, match="expected 000"):
        prepare_prompts.collect(str(cache))


def test_objectnet_has_its_113_classes():
    with open(prepare_prompts._OBJECTNET) as file:
        classes = json.load(file)["classes"]
    assert len(classes) == len({entry["folder"] for entry in classes}) == 113
    assert [entry["folder"] for entry in classes] == sorted(entry["folder"] for entry in classes)
    ids = [wnid for entry in classes for wnid in entry["wordnet_ids"]]
    assert (
        len(ids) == len(set(ids)) == 125
    )  # an ObjectNet class can be several of ImageNet's, never the reverse


@pytest.mark.slow
def test_the_published_wheels(tmp_path):
    """Needs a package registry."""
    try:
        content = prepare_prompts.collect(str(tmp_path))
    except OSError as error:
        pytest.skip(str(error))
    names = content["classes"]["imagenet"]
    assert names[:2] == ["tench", "goldfish"]
    assert (names[657], names[836]) == (names[744], names[837]) == ("missile", "sunglasses")
    assert content["templates"]["imagenet"][0] == "a bad photo of a {}."
    # The same order as TFDS' labels: position, not name, joins them.
    (folder,) = importlib.util.find_spec("tensorflow_datasets").submodule_search_locations
    with open(f"{folder}/datasets/imagenet2012/labels.txt") as file:
        assert file.read().split() == content["wordnet_ids"]["imagenet"]
