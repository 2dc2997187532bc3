"""The public tests by name: each from what TFDS would give (mock data) or from records, through the suite to results.md."""

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from basic_tf.data.records import RecordWriter, serialize_example
from basic_tf.evaluation import public_tests, published, report, suite, weight_cache
from basic_tf.evaluation.public_sets import PUBLIC_SETS, ROBUSTNESS, camel_case_words, plain_label
from tests.evaluation.hash_encoder import HashEncoder

# How many names the prompts file has for each key.
COUNTS = {"caltech101": 102, "eurosat": 10, "flowers": 102, "mnist": 10, "pcam": 2, "pets": 37}
FROM_TFDS = [name for name, one in PUBLIC_SETS.items() if one.tfds]
ROOT = Path(__file__).parents[2]
QUICK = ["cifar10", "imagenet_a", "voc2007"]


@pytest.fixture(scope="session")
def wordnet_ids():
    (folder,) = importlib.util.find_spec(
        "tensorflow_datasets"
    ).submodule_search_locations  # not imported: seconds
    with open(f"{folder}/datasets/imagenet2012/labels.txt") as file:
        return file.read().split()


@pytest.fixture(scope="session")
def prompts_path(wordnet_ids, tmp_path_factory):
    """A prompts file in the format of tools/prepare_prompts.py with made-up names."""
    with open(ROOT / "tools/prompts/objectnet.json") as file:
        objectnet = json.load(file)["classes"]
    names = {key: [f"{key} {i}" for i in range(count)] for key, count in COUNTS.items()}
    names["imagenet"] = [f"thing {i}" for i in range(998)] + ["missile", "missile"]
    names["objectnet"] = [entry["name"] for entry in objectnet]
    keys = {one.templates for one in PUBLIC_SETS.values() if isinstance(one.templates, str)}
    content = {
        "classes": names,
        "templates": {key: ["a photo of a {}.", "the {}."] for key in keys},
        "wordnet_ids": {
            "imagenet": wordnet_ids,
            "imagenet_a": wordnet_ids[::5],
            "imagenet_r": wordnet_ids[1::5],
        },
    }
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def prompts_file(prompts_path):
    return public_tests.Prompts.load(prompts_path)


def run_mocked(name, prompts_file, tmp_path, pictures=6, **options):
    import tensorflow_datasets as tfds

    def open_test(wanted):
        test = public_tests.open_public(
            wanted, prompts_file, str(tmp_path / "records"), str(tmp_path / "tfds")
        )
        if test.subset is not None:  # random labels must be those of the subset
            competing = tf.constant(np.flatnonzero(test.subset))
            kept = test.pictures.map(
                lambda example: {
                    "image": example["image"],
                    "label": tf.gather(competing, example["label"] % len(competing)),
                }
            )
            test = dataclasses.replace(test, pictures=kept)
        return test

    with tfds.testing.mock_data(num_examples=pictures):
        result = suite.run(HashEncoder(), None, ("{}",), tests=[name], open_test=open_test, **options)
        report.write(result, str(tmp_path / "out"), {"model": "none"})
    return result


def check_from_tfds(name, prompts_file, tmp_path):
    spec = PUBLIC_SETS[name]
    result = run_mocked(name, prompts_file, tmp_path)
    assert not result.missing
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    if spec.figure == "mean_average_precision":
        assert 0 < content["multi_label"][name][spec.figure] <= 1
    else:
        entry = content["zero_shot"][name]
        assert entry["examples"] == 6 and 0 <= entry[spec.figure] <= 1
        expected = 200 if spec.subset else len(result.classes[name])
        assert entry["classes"] == expected
    assert content["templates"][name]
    text = (tmp_path / "out" / "results.md").read_text()
    assert spec.title in text and ("BASIC-L" in text) == (name in ROBUSTNESS)


@pytest.mark.parametrize("name", QUICK)
def test_a_test_from_tfds(name, prompts_file, tmp_path):
    check_from_tfds(name, prompts_file, tmp_path)


def test_difficult_objects_are_left_out():
    def example(label, clear):
        return {"image": b"x", "label": np.array(label, np.int64), "clear": np.array(clear, np.int64)}

    examples = [example([0, 2], [2]), example([1], [1]), example([0], [])]
    signature = {"image": tf.TensorSpec([], tf.string)}
    signature |= dict.fromkeys(("label", "clear"), tf.TensorSpec([None], tf.int64))
    pictures = tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=signature)
    test = public_tests.TfdsTest("voc2007", ("cat", "dog", "cow"), ("{}",), None, True, pictures)
    ((images, labels, numbers),) = test.batches()
    assert labels.tolist() == [[-1, 0, 1], [0, 1, 0], [-1, 0, 0]]
    assert (len(images), numbers.tolist()) == (3, [0, 1, 2])


def test_sun397_is_the_official_partition(prompts_file, tmp_path):
    check_from_tfds("sun397", prompts_file, tmp_path)
    with pytest.raises(public_tests.MissingTestError, match="tfds build sun397/standard-part1-120k"):
        public_tests.open_public("sun397", prompts_file, None, str(tmp_path / "none"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FROM_TFDS) - set(QUICK)))
def test_every_test_from_tfds(name, prompts_file, tmp_path):
    check_from_tfds(name, prompts_file, tmp_path)


def picture(rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", [name for name, one in PUBLIC_SETS.items() if one.tfds is None])
def test_a_test_from_records(name, prompts_file, tmp_path):
    rng = np.random.default_rng(2)
    classes = record_classes(name, prompts_file)
    with RecordWriter(str(tmp_path), f"test_{name}") as writer:
        for index in range(7):
            writer.write(serialize_example(picture(rng), [], [index % len(classes)], str(index)))
        writer.finish(classes=classes, crop_border=PUBLIC_SETS[name].crop_border)
    result = suite.run(
        HashEncoder(),
        str(tmp_path),
        ("{}",),
        tests=[name],
        open_test=lambda wanted: public_tests.open_public(wanted, prompts_file, str(tmp_path), None),
    )
    assert result.zero_shot[name].examples == 7 and result.zero_shot[name].candidates == len(classes)
    assert len(result.tests[name].templates) == (2 if name == "objectnet" else 1)
    assert result.classes[name][1] == {"ucf101": "Thing Number1"}.get(name, classes[1])


def record_classes(name, prompts_file=None):
    """As many names as the records of a public test have, ObjectNet's its own."""
    if name == "objectnet":
        return prompts_file.classes["objectnet"]
    return [f"ThingNumber{i}" for i in range(PUBLIC_SETS[name].class_count)]


@pytest.mark.parametrize(
    "name,change,border,words",
    [
        ("objectnet", lambda names: [*names, *["other"] * 200], 2, "it has 313 classes, .* has 113"),
        ("objectnet", lambda names: ["lamp", *names[1:]], 2, "class 0 is 'lamp', but 'alarm clock' in"),
        ("objectnet", list, 0, "its pictures were cropped by 0 pixels .*, not by 2"),
        ("birdsnap", lambda names: names[:-1], 0, "it has 499 classes, .* has 500"),
        ("ucf101", lambda names: names[:50], 0, "it has 50 classes, .* has 101"),
    ],
)
def test_records_of_another_test_are_refused(name, change, border, words, prompts_file, tmp_path):
    with RecordWriter(str(tmp_path), f"test_{name}") as writer:
        writer.write(serialize_example(picture(np.random.default_rng(2)), [], [0], "0"))
        writer.finish(classes=change(record_classes(name, prompts_file)), crop_border=border)
    with pytest.raises(
        ValueError, match=f"test_{name}.json is not {PUBLIC_SETS[name].title}: {words}"
    ) as info:
        public_tests.open_public(name, prompts_file, str(tmp_path), None)
    assert ("--classes=objectnet --crop_border=2" in str(info.value)) == (name == "objectnet")


def test_what_is_not_on_disk_is_said_and_the_others_run(prompts_file, tmp_path):
    rng = np.random.default_rng(2)
    with RecordWriter(str(tmp_path), "test_birdsnap") as writer:
        writer.write(serialize_example(picture(rng), [], [0], "0"))
        writer.finish(classes=record_classes("birdsnap"))
    lines = []

    def run(names):
        return suite.run(
            HashEncoder(),
            str(tmp_path),
            ("{}",),
            tests=names,
            with_retrieval=False,
            say=lines.append,
            open_test=lambda name: public_tests.open_public(
                name, prompts_file, str(tmp_path), str(tmp_path / "none")
            ),
        )

    result = run(["imagenet_v2", "objectnet", "birdsnap"])
    assert list(result.zero_shot) == ["birdsnap"] and list(result.missing) == ["imagenet_v2", "objectnet"]
    assert "tfds build imagenet_v2/matched-frequency --data_dir=" in lines[0] and "\n" not in lines[0]
    assert "tools/prepare_class_folders.py" in lines[1] and "\n" not in lines[1]
    report.write(result, str(tmp_path / "out"), {})
    assert "imagenet_v2 is not on disk" in (tmp_path / "out" / "results.md").read_text()
    with pytest.raises(FileNotFoundError, match="imagenet_a is not on disk"):
        run(["imagenet_a"])


def test_class_names_in_another_order_than_those_of_tfds(prompts_file):
    spec = PUBLIC_SETS["stl10"]
    assert public_tests._classes(spec, prompts_file, spec.classes) == spec.classes
    with pytest.raises(ValueError, match="stl10: class 8 is 'ship' here, but 'truck' in TFDS"):
        public_tests._classes(spec, prompts_file, (*spec.classes[:8], "truck", "ship"))
    with pytest.raises(ValueError, match="stl10: 10 class names for 9 labels"):
        public_tests._classes(spec, prompts_file, spec.classes[:9])
    with pytest.raises(ValueError, match="knows no label names"):
        public_tests._classes(PUBLIC_SETS["dtd"], prompts_file, ("0", "1"))


@pytest.fixture
def two_tests(tmp_path):
    """A folder with a test of its own and a public one."""
    rng = np.random.default_rng()
    for name, classes in (("mine", ["wren", "jay"]), ("birdsnap", record_classes("birdsnap"))):
        with RecordWriter(str(tmp_path / "data"), f"test_{name}") as writer:
            for index in range(5):
                writer.write(serialize_example(picture(rng), [], [index % 2], str(index)))
            writer.finish(classes=classes)
    return str(tmp_path / "data")


def test_tests_by_name_through_the_binary(two_tests, prompts_path, tmp_path):
    def flags(tests, data_dir=two_tests, prompts=prompts_path, out="out"):
        folder = [f"--data_dir={data_dir}"] if data_dir else []
        places = [f"--prompts={prompts}", f"--tfds_dir={tmp_path}/none", f"--output_dir={tmp_path}/{out}"]
        return [f"--tests={tests}", *folder, *places]

    wrong = {
        "no test 'imagenet_v3'": flags("mine,imagenet_v3"),
        "there are no prompts at /none.json": flags("imagenet_v2", prompts="/none.json"),
        "/typo is not a folder": flags("imagenet_v2", data_dir="/typo"),
        "no test 'mine': public ones are imagenet": flags("mine", data_dir=None),
        "sun397 is not on disk": flags("public", data_dir=None, out="nothing"),
    }
    runs = [
        flags("mine,imagenet_v2,birdsnap,objectnet,mine"),
        flags("mine,imagenet_v2,birdsnap,objectnet", out="out"),
        flags("mine", prompts="/none.json", out="own"),  # neither reads prompts nor keeps classifiers
        *wrong.values(),
    ]
    command = [sys.executable, "-m", "tests.evaluation.evaluate_process", json.dumps(runs)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, again, own, *failed = json.loads(done.stdout.splitlines()[-1])

    assert first[0] == 0 and sum(line.startswith("left out: ") for line in first[1].splitlines()) == 2
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(content["zero_shot"]) == ["mine", "birdsnap"]
    assert list(content["missing"]) == ["imagenet_v2", "objectnet"]
    assert content["templates"] == {"birdsnap": list(PUBLIC_SETS["birdsnap"].templates)}
    assert (tmp_path / "out" / "predictions.png").exists()
    assert len(list((tmp_path / "out" / "classifiers").iterdir())) == 2
    # Three sentences tell whose the classifiers are; two and 500 classes were in one template each, once.
    assert (first[3], again[0], again[3]) == (3 + 2 + 500, 0, 3)
    assert own[0] == 0 and "missing" not in json.loads((tmp_path / "own" / "results.json").read_text())
    assert not (tmp_path / "own" / "classifiers").exists()
    for words, (code, _, said, _) in zip(wrong, failed, strict=True):
        assert code == 2 and words in said and said.count("\n") == 1
    assert failed[-1][1].count("left out: ") == len(PUBLIC_SETS)


def test_subsets_compete_among_themselves(prompts_file):
    for name in ("imagenet_a", "imagenet_r"):
        assert prompts_file.mask(name).sum() == 200 and prompts_file.mask(name).shape == (1000,)


def test_prompts_that_are_missing_or_other_json(tmp_path):
    with pytest.raises(ValueError, match=r"make them with python tools/prepare_prompts\.py"):
        public_tests.Prompts.load(str(tmp_path / "none.json"))
    (tmp_path / "other.json").write_text('{"templates": []}')
    with pytest.raises(ValueError, match="is no file of tools/prepare_prompts"):
        public_tests.Prompts.load(str(tmp_path / "other.json"))


def test_label_names_as_words():
    assert plain_label("/a/apartment_building/outdoor") == "apartment building outdoor"
    assert plain_label("baby_back_ribs") == "baby back ribs"
    assert plain_label("Ram C/V Cargo Van Minivan 2012") == "Ram C/V Cargo Van Minivan 2012"
    names = {"ApplyEyeMakeup": "Apply Eye Makeup", "YoYo": "Yo Yo", "Archery": "Archery"}
    assert [camel_case_words(name) for name in names] == list(names.values())


def test_classifiers_are_cached_for_one_encoder(tmp_path):
    prompts = (("a cat", "the cat"), ("a dog", "the dog"))
    encoder = HashEncoder()
    made = []

    def make():
        made.append(1)
        return np.arange(8, dtype=np.float32).reshape(2, 4)

    first = weight_cache.WeightCache(str(tmp_path / "c"), encoder).weights(prompts, make)
    again = weight_cache.WeightCache(str(tmp_path / "c"), HashEncoder()).weights(prompts, make)
    np.testing.assert_array_equal(first, again)
    assert len(made) == 1
    weight_cache.WeightCache(str(tmp_path / "c"), HashEncoder(b"other weights")).weights(prompts, make)
    weight_cache.WeightCache(str(tmp_path / "c"), encoder).weights(prompts[:1], lambda: make()[:1])
    assert len(made) == 3
    for file in (tmp_path / "c").iterdir():
        file.write_bytes(file.read_bytes()[:50])  # cut short
    weight_cache.WeightCache(str(tmp_path / "c"), encoder).weights(prompts, make)
    assert len(made) == 4


def test_published_rows():
    by_name = {row.model: row.figures for row in published.ROWS if set(row.figures) & set(ROBUSTNESS)}
    means = {
        name: np.mean([by_name[name][test] for test in ROBUSTNESS])
        for name in by_name
        if len(by_name[name]) == 6
    }
    # The means that the abstracts of both versions print (the first cuts 83.77 off), and that of CoCa's paper.
    assert means["BASIC-L, first version"] == pytest.approx(83.7, abs=0.08)
    assert means["BASIC-L, third version"] == pytest.approx(84.3, abs=0.06)
    assert means["CoCa"] == pytest.approx(85.7, abs=0.06)
    assert all(set(row.figures) <= set(PUBLIC_SETS) for row in published.ROWS)
    titles = {name: one.title for name, one in PUBLIC_SETS.items()}
    lines = published.table({"imagenet": 0.5, "imagenet_v2": 0.25}, ROBUSTNESS, titles)
    assert lines[0] == "| model | ImageNet | ImageNet-V2 | source |"
    assert lines[2] == "| **this run** | 50.0 | 25.0 | measured here |"
    assert any(line.startswith("| BASIC-S | 71.9 | – | recollection") for line in lines)
    whole = published.table(dict.fromkeys(ROBUSTNESS, 0.5), ROBUSTNESS, titles)
    assert "| mean | source |" in whole[0] and "| 84.3 | EVA" in "".join(whole)
    assert published.table({}, ROBUSTNESS, titles) == []
    lines = published.table({"pcam": 0.5, "dtd": 0.25}, ("dtd", "pcam"), titles, ["pcam"])
    assert lines[2].startswith("| **this run** | 25.0 | 50.0 | 37.5 |") and "| 55.7 | 63.0 † |" in lines[3]


ENTRY = {
    "top1": 0.5,
    "standard_error": 0.1,
    "top5": 0.9,
    "mean_per_class": 0.5,
    "examples": 4,
    "classes": 9,
}


def test_templates_are_those_of_each_test():
    content = {"zero_shot": {"dtd": ENTRY, "pets": ENTRY, "mine": ENTRY}, "summary": {}, "retrieval": {}}
    content["provenance"] = {
        "step": 3,
        "templates": ["a drawing of a {}"],
        "described_templates": ["{}, described"],
    }
    content["templates"] = {name: ["a photo of a {}.", "the {}."] for name in ("dtd", "pets")}
    text = report.markdown(content)
    assert "- templates of dtd, pets: `a photo of a {}.`, `the {}.`\n" in text
    assert "- templates of mine: `a drawing of a {}`\n" in text and "described" not in text
    del content["zero_shot"]["mine"]
    text = report.markdown(content)
    assert "- templates: `a photo of a {}.`, `the {}.`\n" in text and "drawing" not in text


def test_published_figures_of_other_prompts_are_marked():
    content = {
        "zero_shot": dict.fromkeys(("dtd", "ucf101"), ENTRY),
        "summary": {},
        "retrieval": {},
        "provenance": {},
    }
    text = report.markdown(content)
    assert "| 55.7 | 76.9 † |" in text and "- UCF101: one template, where CLIP has 48" in text
