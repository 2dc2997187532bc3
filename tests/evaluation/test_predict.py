"""People's own files: every kind gets an answer or one clear line, and the others are still done."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from basic_tf import predict as binary
from basic_tf.data.pillow_pictures import upright_on_white
from basic_tf.evaluation.encoder import SavedModelEncoder
from basic_tf.prediction import output, pictures, prediction
from basic_tf.prediction.pictures import Picture, Unreadable

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(30)


def photograph(height=61, width=83, channels=3):
    blocks = RNG.integers(0, 256, (-(-height // 16), -(-width // 16), channels), dtype=np.uint8)
    return np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width]


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)


def huge_png(width, height):
    """A valid header of a picture that nobody should decode."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


GOOD = [
    "1x1.png",
    "alpha.png",
    "animated.gif",
    "cmyk.jpg",
    "grey.jpg",
    "noending",
    "one_bit.bmp",
    "palette.bmp",
    "photo.jpg",
    "really_png.jpg",
    "rotated.jpg",
    "sixteen_bit.png",
    "strange [red]\nname.png",
    "transparent.gif",
    "webp.webp",
    "tagged.tiff",
]
BAD = {
    "empty.png": "is empty (0 bytes)",
    "huge.png": "has 200000 x 100000 pixels (20000 megapixels); the limit is 100",
    "text.png": "is not a picture (it holds text)",
    "garbage.jpg": "is not a picture in a format known here",
    "truncated.jpg": "is damaged or cut short",
    "truncated.png": "is damaged or cut short",
    "folder.png": "is a folder, not a picture",
    "broken_link.png": "does not exist",
    "pipe.png": "is not a regular file",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    save(folder / "1x1.png", photograph(1, 1))
    save(folder / "alpha.png", photograph(channels=4))
    frames = [Image.fromarray(photograph()) for _ in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(photograph()).convert("CMYK").save(folder / "cmyk.jpg")
    save(folder / "grey.jpg", photograph(channels=1)[..., 0])
    save(folder / "noending", photograph(), format="PNG")
    Image.fromarray(photograph()).convert("1").save(folder / "one_bit.bmp")
    Image.fromarray(photograph()).quantize(20).save(folder / "palette.bmp")
    save(folder / "photo.jpg", photograph(300, 400), quality=90)
    save(folder / "really_png.jpg", photograph(), format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    save(folder / "rotated.jpg", photograph(64, 32), exif=exif, quality=95)
    Image.fromarray(RNG.integers(0, 65536, (40, 30), dtype=np.uint16)).save(folder / "sixteen_bit.png")
    save(folder / "strange [red]\nname.png", photograph())
    Image.fromarray(photograph()).quantize(9).save(folder / "transparent.gif", transparency=0)
    save(folder / "webp.webp", photograph(channels=4))
    save(folder / "tagged.tiff", photograph())

    (folder / "empty.png").touch()
    (folder / "huge.png").write_bytes(huge_png(200_000, 100_000))
    (folder / "text.png").write_text("I am no picture,\nI am a poem.")
    (folder / "garbage.jpg").write_bytes(bytes(RNG.integers(128, 256, 3000, dtype=np.uint8)))
    whole = (folder / "photo.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    whole = (folder / "alpha.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "folder.png").mkdir()
    (folder / "broken_link.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")

    (folder / "notes.txt").write_text("not meant")
    (folder / ".hidden.png").write_text("not meant")
    (folder / "inner").mkdir()
    save(folder / "inner" / "deep.png", photograph())
    return str(folder)


def read_all(folder, **options):
    listing = pictures.find_files([folder])
    items = [*pictures.read_pictures(listing.files, **options), *listing.problems]
    return {os.path.basename(item.path): item for item in items}, listing


def test_every_file_is_read_or_explained(folder):
    items, listing = read_all(folder)
    assert listing.passed_over == 1  # notes.txt
    assert {name for name, item in items.items() if isinstance(item, Picture)} == set(GOOD)
    reasons = {name: item.reason for name, item in items.items() if isinstance(item, Unreadable)}
    assert set(reasons) == set(BAD)
    for name, expected in BAD.items():
        assert reasons[name].startswith(expected)
        assert "\n" not in output.unreadable_line(items[name])


def test_the_graph_sees_what_pillow_sees(folder):
    """Every readable file, as the SavedModel decodes it, against Pillow's picture laid upright on white."""
    import tensorflow as tf

    from basic_tf.serving import decoding

    items, _ = read_all(folder)
    for name in GOOD:
        decoded = decoding.decode(tf.constant(items[name].encoded), decoding.evaluation_view(200)).numpy()
        with Image.open(os.path.join(folder, name)) as opened:
            expected = upright_on_white(opened)
        buffer = io.BytesIO()
        expected.save(buffer, "PNG")
        expected = decoding.decode(tf.constant(buffer.getvalue()), decoding.evaluation_view(200)).numpy()
        difference = np.abs(decoded.astype(int) - expected)
        assert difference.mean() < 1.0, name  # JPEG decoders differ by a level or two


def test_rotated_and_transparent_pictures_by_hand(tmp_path):
    array = np.zeros((40, 20, 3), np.uint8)
    array[:20] = (255, 0, 0)  # red above, black below
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    save(tmp_path / "turned.jpg", array, exif=exif, quality=100, subsampling=0)
    (item,) = pictures.read_pictures([str(tmp_path / "turned.jpg")])
    upright = np.asarray(Image.open(io.BytesIO(item.encoded)))
    assert upright[5, 10].max() < 30 and upright[35, 10, 0] > 220

    palette = Image.new("P", (10, 10), 0)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.paste(1, (5, 0, 10, 10))
    palette.save(tmp_path / "clear.gif", transparency=0)
    (item,) = pictures.read_pictures([str(tmp_path / "clear.gif")])
    on_white = np.asarray(Image.open(io.BytesIO(item.encoded)).convert("RGB"))
    assert on_white[5, 1].tolist() == [255, 255, 255] and on_white[5, 8].tolist() == [10, 200, 30]


def test_permission_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "mine.png"
    save(path, photograph())

    def denied(*_):
        raise PermissionError

    monkeypatch.setattr("builtins.open", denied)  # root may read everything, so the test denies it
    (item,) = pictures.read_pictures([str(path)])
    monkeypatch.undo()
    assert item == Unreadable(str(path), "may not be read (permission denied)")


def test_listing(folder):
    recursive = pictures.find_files([folder], recursive=True)
    assert any(path.endswith("inner/deep.png") for path in recursive.files)
    assert not any(path.endswith(".hidden.png") for path in recursive.files)
    named = pictures.find_files([os.path.join(folder, "notes.txt"), os.path.join(folder, "missing.png")])
    reasons = [item.reason for item in pictures.read_pictures(named.files)]
    assert reasons == ["is not a picture (it holds text)", "does not exist"]
    twice = pictures.find_files([folder, os.path.join(folder, "1x1.png")])
    assert len(twice.files) == len(set(twice.files))


def test_a_name_that_is_no_text(tmp_path, exported, capsys):
    """A file name may be any bytes: the file gets its answer, and its name is printed so that it cannot disturb."""
    for name in (b"bad\xff.png", b"good.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            save(file, photograph(), format="PNG")
    with open(os.path.join(os.fsencode(tmp_path), b"worse\xfe.png"), "wb") as file:
        file.write(b"\xff" * 9)
    assert predict_here(f"--saved_model={exported}", "--classes=cat,dog", str(tmp_path)) == 1
    captured = capsys.readouterr()
    assert "bad\\udcff.png" in captured.out and "good.png" in captured.out
    assert "worse\\udcfe.png: is not a picture" in captured.err and captured.err.count("\n") == 1


def test_folders_that_links_lead_to_are_walked_once(tmp_path):
    save(tmp_path / "a.png", photograph(8, 8))
    (tmp_path / "inner").mkdir()
    save(tmp_path / "inner" / "b.png", photograph(8, 8))
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "inner" / "up").symlink_to("..")
    found = pictures.find_files([str(tmp_path)], recursive=True)
    assert found.files == [f"{tmp_path}/a.png", f"{tmp_path}/inner/b.png"] and not found.problems


def test_a_list_of_classes_with_a_byte_order_mark(folder, exported, tmp_path, capsys):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat\r\n\r\ndög\r\n".encode())
    flags = [f"--saved_model={exported}", f"--classes_file={path}", "--json", f"{folder}/photo.jpg"]
    assert predict_here(*flags) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["cat", "dög"]
    path.write_bytes("dög".encode("latin-1"))
    assert predict_here(*flags) == 2
    assert "classes.txt is not UTF-8 text" in capsys.readouterr().err


def test_classification_is_softmax_over_the_classes(folder, exported):
    encoder = SavedModelEncoder(exported, batch_size=4)
    classes = ["red apple", "cat", "blue house", "moon"]
    paths = [os.path.join(folder, name) for name in ("photo.jpg", "alpha.png", "text.png", "1x1.png")]
    answers = list(
        prediction.classify(encoder, pictures.read_pictures(paths), classes, ("{}", "a {}"), 4, batch=3)
    )
    assert [type(item).__name__ for item in answers] == [
        "Prediction",
        "Prediction",
        "Unreadable",
        "Prediction",
    ]
    for item in answers:
        if isinstance(item, prediction.Prediction):
            assert sorted(item.classes) == sorted(classes)
            assert list(item.probabilities) == sorted(item.probabilities, reverse=True)
            assert sum(item.probabilities) == pytest.approx(1)
    served = encoder._loaded.signatures["classify"]
    import tensorflow as tf

    bare = list(prediction.classify(encoder, pictures.read_pictures(paths[:1]), classes, ("{}",), 4))
    data = tf.constant([Path(paths[0]).read_bytes()])
    expected = served(image_bytes=data, classes=tf.constant(classes))["probabilities"].numpy()[0]
    received = dict(zip(bare[0].classes, bare[0].probabilities))
    np.testing.assert_allclose([received[name] for name in classes], expected, atol=1e-5)


def test_files_that_only_tensorflow_refuses(exported):
    """Pillow's word is not the last one: what the graph cannot decode gets a line, the rest of the batch an
    answer.
    """
    encoder = SavedModelEncoder(exported, batch_size=4)
    buffer = io.BytesIO()
    Image.fromarray(photograph()).save(buffer, "PNG")
    given = [
        Picture("a", buffer.getvalue()),
        Picture("b", buffer.getvalue()[:70]),
        Picture("c", buffer.getvalue()),
    ]
    answers = list(prediction.classify(encoder, given, ["cat", "dog"], ("{}",)))
    assert [item.path for item in answers] == ["a", "c", "b"]
    assert answers[2].reason.startswith("cannot be decoded: ")


def test_search_ranks_by_similarity(folder, exported):
    encoder = SavedModelEncoder(exported, batch_size=4)
    unreadable = []
    paths = [os.path.join(folder, name) for name in ("photo.jpg", "alpha.png", "empty.png", "1x1.png")]
    matches = prediction.search(encoder, pictures.read_pictures(paths), "a red cat", 2, unreadable.append)
    similarities = [match.similarity for match in matches]
    assert len(matches) == 3 and similarities == sorted(similarities, reverse=True)
    rows = encoder.encode_image_bytes([Path(paths[0]).read_bytes()]) @ encoder.encode_text(["a red cat"]).T
    found = {match.path: match.similarity for match in matches}
    assert found[paths[0]] == pytest.approx(float(rows[0, 0]), abs=1e-5)
    assert [item.path for item in unreadable] == [paths[2]]


def predict(*arguments):
    """The binary in a process of its own, with the environment of a person."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "basic_tf.predict", *arguments]
    return subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def predict_here(*arguments):
    """The same in this process: a new one takes seconds to import TensorFlow."""
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS.flags_by_module_dict()["basic_tf.predict"]:
        name.unparse()
    return binary.main(flags.FLAGS(["predict", *arguments]))


def test_the_binary_on_a_whole_folder(folder, exported, tmp_path):
    sheet = tmp_path / "sheet.png"
    done = predict(
        f"--saved_model={exported}", "--classes=red apple, cat,cat", f"--sheet={sheet}", "--json", folder
    )
    assert done.returncode == 1, done.stderr  # some files were unreadable
    content = json.loads(done.stdout)
    assert content["classes"] == ["red apple", "cat"]
    assert {os.path.basename(item["file"]) for item in content["files"]} == set(GOOD)
    assert {os.path.basename(item["file"]) for item in content["unreadable"]} == set(BAD)
    assert all(len(item["predictions"]) == 2 for item in content["files"])
    assert "Traceback" not in done.stderr
    for name in BAD:
        assert sum(name in line for line in done.stderr.splitlines()) == 1, name
    with Image.open(sheet) as opened:
        assert min(opened.size) > 300


def test_tables(folder, exported, tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\n\nblue house\ntree [x]\n")
    strange = os.path.join(folder, "strange [red]\nname.png")
    assert predict_here(f"--saved_model={exported}", f"--classes_file={classes}", "--top=3", strange) == 0
    captured = capsys.readouterr()
    assert "strange [red]\\nname.png" in captured.out and "tree [x]" in captured.out and " %" in captured.out
    assert captured.err == ""
    four = [f"{folder}/{name}" for name in GOOD[:4]]
    assert predict_here(f"--saved_model={exported}", "--search=a tree", "--top=2", *four) == 0
    captured = capsys.readouterr()
    assert '"a tree"' in captured.out
    assert len([line for line in captured.out.splitlines() if folder in line]) == 2
    assert captured.err == ""


def test_prompts_or_words_as_typed(folder, exported, capsys):
    """The probabilities of a class are those of its prompts, and with --noprompts those of the bare word."""
    picture = os.path.join(folder, "photo.jpg")
    answers = []
    for flag in ("--prompts", "--noprompts"):
        assert predict_here(f"--saved_model={exported}", "--classes=cat,dog", flag, "--json", picture) == 0
        found = json.loads(capsys.readouterr().out)["files"][0]["predictions"]
        answers.append({item["class"]: item["probability"] for item in found})
    encoder = SavedModelEncoder(exported)
    row = encoder.encode_image_bytes([Path(picture).read_bytes()])[0]
    logits = encoder.encode_text(["cat", "dog"]) @ row / encoder.temperature
    assert answers[1]["cat"] == pytest.approx(1 / (1 + np.exp(logits[1] - logits[0])), abs=1e-4)
    assert abs(answers[0]["cat"] - answers[1]["cat"]) > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes=a", "x.png"], "--saved_model is missing"),
        (["--saved_model=SAVED", "--classes=a"], "no pictures: name files or folders"),
        (["--saved_model=SAVED", "x.png"], "pass either classes"),
        (["--saved_model=SAVED", "--classes=a", "--search=b", "x.png"], "pass either classes"),
        (["--saved_model=SAVED", "--classes=cat, ,dog", "x.png"], "--classes has an empty name"),
        (["--saved_model=SAVED", "--search= ", "x.png"], "--search=' ' is empty"),
        (["--saved_model=SAVED", "--classes_file=EMPTY", "x.png"], "no class names"),
        (["--saved_model=SAVED", "--classes_file=none.txt", "x.png"], "none.txt does not exist"),
        (["--saved_model=.", "--classes=a", "x.png"], "is not a SavedModel folder"),
        (["--saved_model=SAVED", "--classes=a", "x.png"], "no readable picture"),
        (["--saved_model=SAVED", "--classes=a", "--sheet=EMPTY/x/y.png", "x.png"], "is not a directory"),
        (["--saved_model=CUT", "--classes=a", "x.png"], "its files are damaged or incomplete"),
    ],
)
def test_what_cannot_be_done(arguments, message, exported, tmp_path, capsys):
    """One line and the exit code 2."""
    (tmp_path / "empty.txt").touch()
    shutil.copytree(exported, tmp_path / "cut")
    os.truncate(tmp_path / "cut/variables/variables.data-00000-of-00001", 1000)
    for word, path in (("SAVED", exported), ("EMPTY", f"{tmp_path}/empty.txt"), ("CUT", f"{tmp_path}/cut")):
        arguments = [argument.replace(word, path) for argument in arguments]
    assert predict_here(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert captured.err.splitlines()[-1].count(message) == 1 and captured.out == ""
