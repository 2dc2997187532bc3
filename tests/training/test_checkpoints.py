"""Checkpoints: exact round trip, whole or absent, and what happens to damaged ones."""

import os

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from basic_tf.training import checkpoints


def _arrays(seed):
    rng = np.random.default_rng(seed)
    return {
        "parameters/a/kernel": rng.normal(size=(3, 5)).astype(np.float32),
        "parameters/b": rng.normal(size=()),
        "optimizer/a/kernel/momentum": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
        "view": np.asfortranarray(rng.normal(size=(4, 7))).T,
        "step": np.asarray(seed, np.int64),
    }


def _same(left, right):
    assert set(left) == set(right)
    for path, array in left.items():
        assert array.dtype == right[path].dtype and array.shape == right[path].shape
        np.testing.assert_array_equal(array, right[path])


def test_round_trip_is_exact_in_every_dtype(tmp_path):
    checkpoints.save(str(tmp_path), 7, _arrays(7), {"stage": "x"})
    loaded = checkpoints.load_latest(str(tmp_path))
    assert loaded.step == 7 and loaded.metadata == {"stage": "x"}
    _same(loaded.arrays, _arrays(7))


def test_keeps_the_newest_and_sweeps_what_a_kill_left(tmp_path):
    os.makedirs(tmp_path / ".tmp-000000001")
    for step in (1, 2, 30, 4):
        checkpoints.save(str(tmp_path), step, _arrays(step), {}, keep=2)
    assert checkpoints.steps(str(tmp_path)) == [4, 30]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]


@pytest.mark.parametrize("damage", ["flip", "truncate", "no_array_file", "no_manifest", "garbage_manifest"])
def test_a_damaged_latest_falls_back_and_is_named(tmp_path, damage, caplog):
    for step in (1, 2):
        checkpoints.save(str(tmp_path), step, _arrays(step), {})
    latest = tmp_path / "step-000000002"
    file = latest / "arrays-00000-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-1])
    elif damage == "no_array_file":
        file.unlink()
    elif damage == "no_manifest":
        (latest / "manifest.json").unlink()
    else:
        (latest / "manifest.json").write_text("{")
    with caplog.at_level("WARNING", logger="absl"):
        loaded = checkpoints.load_latest(str(tmp_path))
    assert loaded.step == 1
    _same(loaded.arrays, _arrays(1))
    assert "step-000000002" in caplog.text


def test_no_checkpoint_at_all(tmp_path):
    assert checkpoints.load_latest(str(tmp_path / "nothing")) is None


def _damage(folder, step):
    file = next((folder / f"step-{step:09d}").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def test_damaged_checkpoints_alone_are_an_error_and_stay(tmp_path):
    for step in (1, 2):
        checkpoints.save(str(tmp_path), step, _arrays(step), {})
        _damage(tmp_path, step)
    for _ in range(2):
        with pytest.raises(
            checkpoints.CheckpointError, match=r"2 checkpoints, .*step-000000002.*step-000000001.*start anew"
        ):
            checkpoints.load_latest(str(tmp_path), set_damaged_aside=True)
    assert checkpoints.steps(str(tmp_path)) == [1, 2]


def test_damaged_checkpoints_do_not_take_the_place_of_those_to_keep(tmp_path):
    for step in (3, 6, 8):
        checkpoints.save(str(tmp_path), step, _arrays(step), {}, keep=3)
    for step in (6, 8):
        _damage(tmp_path, step)
    assert checkpoints.load_latest(str(tmp_path)).step == 3  # a reader changes nothing
    assert checkpoints.steps(str(tmp_path)) == [3, 6, 8]
    assert checkpoints.load_latest(str(tmp_path), set_damaged_aside=True).step == 3
    kept = []
    for step in (4, 5):
        checkpoints.save(str(tmp_path), step, _arrays(step), {}, keep=2)
        kept.append(checkpoints.steps(str(tmp_path)))
    assert kept == [[3, 4], [4, 5]]
    assert len(list(tmp_path.glob(".damaged-step-*"))) == 2


def test_the_checkpoint_just_written_is_never_deleted(tmp_path):
    for step in (6, 8, 5):
        checkpoints.save(str(tmp_path), step, _arrays(step), {}, keep=1)
    assert checkpoints.steps(str(tmp_path)) == [5]


@pytest.mark.parametrize("error", [tf.errors.UnavailableError, tf.errors.PermissionDeniedError])
@pytest.mark.parametrize("file", ["manifest.json", "safetensors"])
def test_what_cannot_be_reached_is_not_damage(tmp_path, monkeypatch, error, file):
    for step in (1, 2):
        checkpoints.save(str(tmp_path), step, _arrays(step), {})
    opened = tf.io.gfile.GFile

    def unreachable(path, mode):
        if "step-000000002" in path and path.endswith(file):
            raise error(None, None, "not now")
        return opened(path, mode)

    monkeypatch.setattr(tf.io.gfile, "GFile", unreachable)
    with pytest.raises(error):
        checkpoints.load_latest(str(tmp_path), set_damaged_aside=True)
    assert checkpoints.steps(str(tmp_path)) == [1, 2]


def test_an_unfinished_save_in_an_object_store_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "is_local", lambda path: False)
    checkpoints.save(str(tmp_path), 1, _arrays(1), {})
    (tmp_path / "step-000000001" / "manifest.json").unlink()
    assert checkpoints.load_latest(str(tmp_path)) is None


def test_checkpoints_that_a_training_replaces_meanwhile(tmp_path, monkeypatch):
    checkpoints.save(str(tmp_path), 1, _arrays(1), {})
    load = checkpoints.load

    def slow(folder, step):
        if step == 1:
            checkpoints.save(folder, 2, _arrays(2), {}, keep=1)
        return load(folder, step)

    monkeypatch.setattr(checkpoints, "load", slow)
    assert checkpoints.load_latest(str(tmp_path)).step == 2


def test_large_maps_are_split_into_files(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_FILE_BYTES", 100)
    checkpoints.save(str(tmp_path), 1, _arrays(1), {})
    assert len(list((tmp_path / "step-000000001").glob("*.safetensors"))) > 1
    _same(checkpoints.load(str(tmp_path), 1).arrays, _arrays(1))


def test_assign_refuses_another_model():
    variables = {"a": tf.Variable(tf.zeros([2])), "b": tf.Variable(tf.zeros([3]))}
    with pytest.raises(checkpoints.CheckpointError, match=r"lacks b.*has c"):
        checkpoints.assign({"a": np.zeros(2), "c": np.zeros(3)}, variables, "run/step-1")
    with pytest.raises(checkpoints.CheckpointError, match=r"b \(4,\) instead of \(3,\)"):
        checkpoints.assign({"a": np.zeros(2), "b": np.zeros(4)}, variables, "run/step-1")
    checkpoints.assign({"a": np.ones(2), "b": np.ones(3)}, variables, "run/step-1")
    np.testing.assert_array_equal(variables["b"], np.ones(3))
