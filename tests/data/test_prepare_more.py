"""Icons, clip art and photographs, offline, out of small packages of our own."""

import base64
import gzip
import hashlib
import io
import json
import struct
import tarfile

import numpy as np
import pytest

from basic_tf.data.records import RecordSource, parse_example
from tests.data.deb_fixture import write_deb
from tests.data.pictures import png, smooth
from tools import prepare_clipart
from tools.clipart import library
from tools.icons import sets
from tools.icons.names import captions, plain_name
from tools.photos import fashion, stamps
from tools.sources import debian
from tools.sources.conversion import Check
from tools.sources.dataset import write_dataset
from tools.sources.phrases import Phrases
from tools.sources.render import pixels

RNG = np.random.default_rng()


def read(folder, name):
    source = RecordSource.open(str(folder / f"{name}.json"))
    records = [parse_example(payload) for payload in source.read(np.arange(source.count))]
    return {record.id: record for record in records}, source.metadata


def rejects(folder, name="train"):
    lines = (folder / f"{name}.rejects.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("arrow-down-bold-outline", "arrow down"),
        ("light-bulb", "light bulb"),
        ("light", "light"),
        ("home-24px", "home"),
        ("access-time-24-filled", "access time"),
        ("number-4", "number"),
        ("4", "4"),
        ("outline-home", "home"),
        ("Black_Cat", "black cat"),
    ],
)
def test_icon_names_without_their_style(name, plain):
    assert plain_name(name, {}) == plain


def test_icon_names_lose_what_their_set_calls_style():
    icon_set = {"suffixes": {"": "Line", "pop": "Pop", "line-pop": "x"}, "prefixes": {"web": "Web"}}
    assert captions("web-apple-line-pop", icon_set) == ["apple", "web apple line pop"]
    assert captions("apple", icon_set) == ["apple"]


BOX = '<path d="M2 2h{w}v12H2z" fill="{fill}"/>'


def iconify(path):
    """@iconify/json with four sets; returns its integrity."""

    def icon_set(prefix, icons, **facts):
        return {"prefix": prefix, "icons": icons, "width": 16, "height": 16} | facts

    def facts(spdx, category):
        return {"name": "x", "author": {"name": "A"}, "license": {"spdx": spdx}, "category": category}

    boxes = {f"red-box-{n}": {"body": BOX.format(w=3 + n % 9, fill="red")} for n in range(6)}
    free = boxes | {
        "tree-outline": {"body": BOX.format(w=9, fill="currentColor")},
        "hot-dog-stand": {"body": BOX.format(w=9, fill="blue")},
        "snow": {"body": BOX.format(w=9, fill="#fff")},
        "broken": {"body": "<path d="},
    }
    files = {
        "json/free.json": icon_set("free", free),
        "json/paid.json": icon_set("paid", {"dollar": {"body": BOX.format(w=9, fill="red")}}),
        "json/smileys.json": icon_set("smileys", {"smile": {"body": BOX.format(w=9, fill="red")}}),
        "json/brands.json": icon_set("brands", {"acme": {"body": BOX.format(w=9, fill="red")}}),
        "collections.json": {
            "free": facts("MIT", "Material"),
            "paid": facts("CC-BY-NC-4.0", None),
            "smileys": facts("MIT", "Emoji"),
            "brands": facts("MIT", "Logos"),
        },
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_icons_of_free_sets_become_pairs(tmp_path):
    iconify(tmp_path / "icons.tgz")
    forbidden = Phrases(["hot dog"])
    icons = sets.Icons(tmp_path / "icons.tgz", forbidden, 32, least=5, workers=1)
    write_dataset(icons, Check(), str(tmp_path / "out"), "train", max_reject_share=0.5, facts=icons.facts())
    records, facts = read(tmp_path / "out", "train")
    assert set(records) == {"free/tree-outline", *(f"free/red-box-{n}" for n in range(6))}
    assert records["free/tree-outline"].captions == ("tree", "tree outline")
    assert records["free/red-box-3"].captions == ("red box", "red box 3")
    assert [facts["label_names"][i] for i in records["free/red-box-3"].labels] == ["box", "red"]
    assert records["free/tree-outline"].labels.size == 0
    picture = pixels(records["free/tree-outline"].image)
    assert picture.shape == (32, 32, 3) and picture[16, 16].max() == 0 and picture[0, 0].min() == 255
    assert (
        facts["licences"] == ["MIT"]
        and facts["sets"]["free"]["author"] == "A"
        and list(facts["sets"]) == ["free"]
    )
    assert {r["icon"]: (r["kind"], r["cause"]) for r in rejects(tmp_path / "out")} == {
        "free/hot-dog-stand": ("filtered", "held-out concept"),
        "free/snow": ("filtered", "nothing to see on white"),
        "free/broken": ("bad", "cannot be drawn"),
    }
    some = sets.Icons(tmp_path / "icons.tgz", forbidden, 32, limit=3, workers=1)
    assert some.total == 4 and sum(1 for _ in some.rows()) == 4  # three, and the one that was left out


def rdf(title, *words):
    items = "".join(f"<rdf:li>{word}</rdf:li>" for word in words)
    return (
        '<svg xmlns="s"><metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/"><cc:Work><dc:title>'
        f"{title}</dc:title><dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>"
        "<dc:publisher><cc:Agent><dc:title>Library</dc:title></cc:Agent></dc:publisher></cc:Work></rdf:RDF>"
        "</metadata></svg>"
    ).encode()


def clear_png(colour, height=40, width=60):
    """A PNG whose left half is transparent."""
    picture = np.zeros((height, width, 4), np.uint8)
    picture[:, width // 2 :] = (*colour, 255)
    return png(picture)


def test_clip_art_becomes_pairs_and_a_test_of_folders(tmp_path):
    svgs, pngs = {}, {}

    def add(path, svg, picture=None):
        svgs[f"usr/share/openclipart/svg/{path}.svg"] = svg
        if picture is not None:
            pngs[f"usr/share/openclipart/png/{path}.png"] = picture

    for n in range(25):
        add(
            f"animals/birds/crow_{n}",
            rdf(f"crow no. {n}", "birds", "animals", "unsorted"),
            clear_png((n, 0, 0)),
        )
    add("food/pizza_slice", rdf("A slice", "food"), clear_png((9, 0, 0)))
    add("food/cheese", rdf("Lemon SVG theme", "yellow", "food"), clear_png((9, 9, 0)))
    add(
        "food/odd",
        b"<svg><metadata><rdf:RDF><dc:title>a & b</dc:title></rdf:RDF></svg>",
        clear_png((9, 9, 9)),
    )
    add("food/held", rdf("snack", "hot dogs"), clear_png((9, 9, 9)))
    add("food/white", rdf("milk", "food"), clear_png((255, 255, 255)))
    add("food/lost", rdf("lost", "food"))
    add("food/cut", rdf("cut", "food"), clear_png((9, 0, 0))[:-40])
    add("shapes/stars/star_1", rdf("gramastar", "stars"), clear_png((9, 0, 0)))
    svgs["usr/share/openclipart/svg/food/link.svg"] = None
    write_deb(tmp_path / "svg.deb", svgs)
    write_deb(tmp_path / "png.deb", pngs)
    whole = library.Library(tmp_path / "svg.deb", tmp_path / "png.deb", Phrases(["hot dog"]))
    assert len(whole.test) == 5 and whole.classes == ["animals/birds"]
    for tested, name in ((True, "test"), (False, "train")):
        write_dataset(
            library.Drawings(whole, tested, 30), Check(), str(tmp_path / "out"), name, max_reject_share=0.5
        )
    test, _ = read(tmp_path / "out", "test")
    train, facts = read(tmp_path / "out", "train")
    assert set(test) == set(whole.test) and not set(test) & set(train)
    assert all(record.labels.tolist() == [0] and record.captions == ("birds",) for record in test.values())
    assert whole.described_classes()[0]["described"] == "birds, animals"
    crow = next(record for name, record in train.items() if name.startswith("animals/birds"))
    assert len(train) == 20 + 3
    assert crow.captions[0].startswith("crow no. ") and crow.captions[1:] == (
        f"{crow.captions[0]}: birds, animals",
        "birds, animals",
    )
    assert {facts["label_names"][i] for i in crow.labels} == {"animals", "birds"}
    assert train["food/cheese"].captions == ("cheese", "cheese: yellow, food", "yellow, food")
    assert train["food/odd"].captions == ("odd",)
    assert train["food/pizza_slice"].captions == ("A slice", "A slice: food")
    picture = pixels(train["food/pizza_slice"].image)
    assert picture.shape == (30, 30, 3)  # the right half of 60 x 40, in the middle of a square
    assert (
        picture[:, :3].min() > 250 and picture[:, -3:].min() > 250 and picture[15, 15].tolist() == [9, 0, 0]
    )
    assert {r["member"]: r["cause"] for r in rejects(tmp_path / "out")} == {
        "food/held": "held-out concept",
        "food/white": "nothing to see on white",
        "food/lost": "missing picture",
        "food/cut": "undecodable PNG",
        "shapes/stars/star_1": "generated star",
    }


def test_titles_that_many_drawings_share_give_way_to_file_names(tmp_path):
    svgs, pngs = {}, {}
    for number, name in enumerate(
        ("red_apple_jane_do_01", "apple_tree_2", "pear_03", "cut_melon_", "01_grapefruit")
    ):
        svgs[f"usr/share/openclipart/svg/food/{name}.svg"] = rdf(
            "Clipart by Jane Doe - pear", "food", "11"
        ).replace(
            b"<dc:subject>",
            b"<dc:creator><cc:Agent><dc:title>Jane Doe</dc:title></cc:Agent></dc:creator><dc:subject>",
        )
        pngs[f"usr/share/openclipart/png/food/{name}.png"] = clear_png((number, 0, 0))
    cards = "usr/share/openclipart/svg/recreation/games/cards"
    svgs[f"{cards}/white/white_s_q.svg"] = svgs[f"{cards}/simple/simple_d_10.svg"] = rdf("")
    write_deb(tmp_path / "svg.deb", svgs)
    write_deb(tmp_path / "png.deb", pngs)
    found = library.Library(tmp_path / "svg.deb", tmp_path / "png.deb", Phrases(()))
    assert {drawing.title for drawing in found.drawings.values()} == {
        "red apple", "apple tree", "pear", "cut melon", "grapefruit", "queen of spades", "10 of diamonds",
    }  # fmt: skip
    assert found.drawings["food/pear_03"].keywords == ("food",)
    assert library.class_folder("recreation/games/cards/white") == "recreation/games/cards"
    assert library.class_name("recreation/games/cards") == "playing cards"


def test_near_duplicates_of_the_clip_art_test_are_not_trained_on(tmp_path):
    svgs, pngs = {}, {}
    for number in range(25):
        svgs[f"usr/share/openclipart/svg/food/fruit_{number}.svg"] = rdf(f"no. {number}", "food")
        # Numbers 0 and 1, 2 and 3, ... show the same but for a shade.
        picture = smooth(np.random.default_rng(number // 2), 64, 64) // 2 + number % 2
        pngs[f"usr/share/openclipart/png/food/fruit_{number}.png"] = png(picture.astype(np.uint8))
    write_deb(tmp_path / "svg.deb", svgs)
    write_deb(tmp_path / "png.deb", pngs)
    files = {library.SVG.name: tmp_path / "svg.deb", library.PNG.name: tmp_path / "png.deb"}
    prepare_clipart.prepare(str(tmp_path / "out"), files, Phrases(()), 64)
    test, _ = read(tmp_path / "out", "test_clipart_folders")
    train, facts = read(tmp_path / "out", "train")
    tested = {int(name.rpartition("_")[2]) // 2 for name in test}
    assert len(test) == 5 and not tested & {int(name.rpartition("_")[2]) // 2 for name in train}
    removed = 25 - len(test) - len(train)
    assert removed >= 3 and sum(facts["near_duplicates"]["removed"].values()) == removed


def test_what_a_stamp_shows():
    for caption, name in {
        "A wild boar.": "wild boar", "A pair of closed scissors.": "closed scissors", "Measuring tape.": "measuring tape",
        "An albino peahen (a female peafowl, or peacock).": "albino peahen", "A \u201cGranny Smith\u201d apple.":
        "granny smith apple", "A UK post box. Put your letter in here!": "uk post box", "Eat your broccoli!": "",
        "We remember those who have died.": "", "": "",
    }.items():  # fmt: skip
        assert stamps.class_name(caption) == name


def test_photographs_among_stamps(tmp_path):
    root, files = "usr/share/tuxpaint/stamps/", {}
    grain = RNG.integers(0, 256, (70, 80, 3), np.uint8)
    for name, caption, picture in (
        ("animals/boar", "A wild boar.\naf.utf8=x\n", grain),
        ("animals/boar2", "A wild boar.", 255 - grain),
        ("food/apple", "An apple", smooth(RNG, 60, 60) // 2 + RNG.integers(0, 99, (60, 60, 3), np.uint8)),
        ("animals/drawn", "A cow.", np.full((50, 50, 3), 7, np.uint8)),
        ("animals/cartoon/pig", "A pig.", grain),
        ("symbols/a", "A letter.", grain),
        ("food/unnamed", None, grain),
    ):
        files[f"{root}{name}.png"] = png(picture)
        if caption is not None:
            files[f"{root}{name}.txt"] = caption.encode()
    write_deb(tmp_path / "a.deb", files)
    found = stamps.Stamps(tmp_path / "a.deb", 40)
    write_dataset(
        found, Check(), str(tmp_path / "out"), "test_photos", facts={"classes": found.described_classes()}
    )
    records, facts = read(tmp_path / "out", "test_photos")
    assert set(records) == {"animals/boar", "animals/boar2", "food/apple"}
    assert [item["name"] for item in facts["classes"]] == ["apple", "wild boar"]
    assert records["animals/boar2"].labels.tolist() == [1] and records["food/apple"].captions == ("An apple",)
    assert pixels(records["animals/boar"].image).shape == (40, 40, 3)


def test_fashion_mnist_is_read_and_inverted(tmp_path):
    def idx(array):
        return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()

    pictures = RNG.integers(0, 256, (7, 28, 28), np.uint8)
    labels = RNG.integers(0, 10, 7).astype(np.uint8)
    root = "usr/share/datasets/fashion-mnist/"
    files = {
        f"{root}t10k-images-idx3-ubyte.gz": gzip.compress(idx(pictures)),
        f"{root}t10k-labels-idx1-ubyte.gz": gzip.compress(idx(labels)),
    }
    write_deb(tmp_path / "a.deb", files)
    write_dataset(fashion.Fashion(tmp_path / "a.deb", "t10k"), Check(), str(tmp_path / "out"), "test_fashion")
    records, facts = read(tmp_path / "out", "test_fashion")
    for n in range(7):
        record = records[f"t10k/{n}"]
        assert np.array_equal(pixels(record.image)[:, :, 0], 255 - pictures[n])
        assert facts["label_names"][record.labels[0]] == record.captions[0] == fashion.NAMES[labels[n]]
    with pytest.raises(ValueError, match="lacks the train half"):
        fashion.Fashion(tmp_path / "a.deb", "train")
    with pytest.raises(ValueError, match="no whole IDX file"):
        fashion.read_idx(idx(pictures)[:-1])


def test_debian_packages_are_checked(tmp_path):
    digest = write_deb(tmp_path / "x_1%3a2-3_all.deb", {"usr/a": b"1", "usr/link": None, "usr/b/c": b"22"})
    package = debian.Deb("x", "1:2-3", digest, "MIT")
    files = debian.fetch([package], tmp_path / "cache", tmp_path)
    assert dict(debian.files(files["x"])) == {"usr/a": b"1", "usr/b/c": b"22"}
    with pytest.raises(debian.PackageError, match=r"lacks y_1_all.deb; get y_1_all.deb from a Debian mirror"):
        debian.fetch([debian.Deb("y", "1", "0", "MIT")], tmp_path / "cache", tmp_path)
    (tmp_path / "x_1%3a2-3_all.deb").write_bytes(b"!<arch>\nshort")
    with pytest.raises(debian.PackageError, match="is not the published file"):
        debian.fetch([package], tmp_path / "cache", tmp_path)
    (tmp_path / "not.deb").write_bytes(b"something")
    with pytest.raises(debian.PackageError, match="is no Debian package"):
        list(debian.files(tmp_path / "not.deb"))


def test_held_out_names_come_from_the_emoji_data(tmp_path, monkeypatch):
    from tests.data.emoji_fixture import ENTRIES, write_packages
    from tools.emoji.concepts import code_of
    from tools.emoji.held_out import held_out_phrases

    packages = write_packages(tmp_path / "packages", monkeypatch)
    entry = ENTRIES[0]
    (tmp_path / "splits.json").write_text(json.dumps({"held_out": [code_of(entry["emoji"])]}))
    phrases = held_out_phrases(str(tmp_path), str(packages))
    assert f"two {entry['name']}s, large" in phrases and ENTRIES[1]["name"] not in phrases
    assert "anything" not in held_out_phrases("")
    with pytest.raises(FileNotFoundError, match="make the emoji data first"):
        held_out_phrases(str(tmp_path / "nowhere"))
