import io
import json

import numpy as np
import pytest
from PIL import Image

from basic_tf.evaluation import datasets
from tools import prepare_class_folders


def save(path, size, frame=None, rng=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    if frame is not None:
        pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = frame, frame, frame, frame
    Image.fromarray(pixels).save(path)
    return pixels


def test_class_folders_become_a_test(tmp_path):
    images = tmp_path / "images"
    save(images / "Blue_Jay" / "b.png", (5, 6))
    save(images / "Blue_Jay" / "a.jpg", (7, 6))
    save(images / "American_Robin" / "x.png", (5, 5))
    (images / "Blue_Jay" / "notes.txt").write_text("no picture")
    assert prepare_class_folders.write(str(images), "birdsnap", str(tmp_path / "out"), "folders", 0) == 3
    test = datasets.open_test(str(tmp_path / "out"), "birdsnap")
    assert test.classes == ("American Robin", "Blue Jay")
    ((pictures, labels, _),) = test.batches()
    assert labels.tolist() == [0, 1, 1]
    assert pictures[1] == (images / "Blue_Jay" / "a.jpg").read_bytes()


def test_objectnet_loses_its_frame_and_its_other_folders(tmp_path):
    with open(prepare_class_folders._OBJECTNET) as file:
        classes = json.load(file)["classes"]
    images = tmp_path / "images"
    for entry in classes:
        (images / entry["folder"]).mkdir(parents=True)
    save(images / "not_of_imagenet" / "x.png", (20, 20))
    pixels = save(images / classes[7]["folder"] / "x.png", (20, 30), frame=(255, 0, 0))
    assert prepare_class_folders.write(str(images), "objectnet", str(tmp_path), "objectnet", 2) == 1
    test = datasets.open_test(str(tmp_path), "objectnet")
    ((pictures, labels, _),) = test.batches()
    assert len(test.classes) == 113 and labels.tolist() == [7] and test.classes[7] == classes[7]["name"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pictures[0]))), pixels[2:-2, 2:-2])
    (images / classes[3]["folder"]).rmdir()
    with pytest.raises(ValueError, match="1 of 113 are missing"):
        prepare_class_folders.write(str(images), "objectnet", str(tmp_path), "objectnet", 2)


def test_folders_as_people_have_them(tmp_path, capsys):
    images = tmp_path / "images"
    for path in ("a/x.jpg", "a/y.png", "b/x.png", ".ipynb_checkpoints/x.png", "__MACOSX/x.png"):
        save(images / path, (9, 9))
    (images / "a/x.jpg").rename(images / "a/x.jfif")
    (images / "b/._x.png").write_bytes(b"Mac OS X")
    (images / "b/notes.txt").write_text("?")
    assert prepare_class_folders.write(str(images), "t", str(tmp_path / "out"), "folders", 0) == 3
    assert datasets.open_test(str(tmp_path / "out"), "t").classes == ("a", "b")
    assert (
        "1 files are not named like pictures and are left out, such as b/notes.txt" in capsys.readouterr().out
    )


@pytest.mark.parametrize("border", [0, 1])
def test_a_jpeg_cut_in_its_scan_data_is_no_whole_picture(border, tmp_path):
    """Its header is whole: only decoding it in full tells."""
    save(tmp_path / "x.jpg", (90, 90))
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=r"x\.jpg is no whole picture"):
        prepare_class_folders.picture(str(tmp_path / "x.jpg"), border)


def test_a_picture_without_its_border_stands_as_the_camera_was_held(tmp_path):
    pixels = save(tmp_path / "x.png", (20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    content = prepare_class_folders.picture(str(tmp_path / "x.png"), 2)
    found = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(found, np.rot90(pixels, -1)[2:-2, 2:-2])


def test_bad_pictures_leave_nothing_behind(tmp_path):
    images = tmp_path / "images"
    save(images / "a" / "x.png", (9, 9))
    save(images / "b" / "x.png", (4, 9))
    with pytest.raises(ValueError, match="nothing is left"):
        prepare_class_folders.write(str(images), "t", str(tmp_path / "out"), "folders", 2)
    (images / "b" / "x.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"b/x\.png is no whole picture"):
        prepare_class_folders.write(str(images), "t", str(tmp_path / "out"), "folders", 0)
    assert not (tmp_path / "out" / "test_t.json").exists()
    with pytest.raises(ValueError, match="at least two"):
        prepare_class_folders.class_folders(str(images / "a"), "folders")
