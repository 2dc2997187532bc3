"""Stage 2 from cached features of the frozen image tower: the same losses, never from a stale or broken cache."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import configurables
from basic_tf.data.feature_cache import FeatureCache
from basic_tf.data.images import ImageAugmentation
from basic_tf.parallel import strategies
from basic_tf.training import frozen_features, loop, preemption, stage_run
from basic_tf.training.stages import ConfigurationError
from tests import tiny_data

RNG = np.random.default_rng()
FIXED = ("ImageAugmentation.rotation = 0.0", "ImageAugmentation.scale = (1.0, 1.0)",
         "ContrastiveBatches.cache_decoded = False")  # fmt: skip
CACHED = ("contrastive/Contrastive.cache_features = True",)
OPTIONS = stage_run.Options(seed=int(RNG.integers(100)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data.make(str(tmp_path_factory.mktemp("data")))


def stage(data, name, *bindings):
    bound = [f"TRAIN='{data}/train.json'", f"MODEL='{data}/tokenizer.model'", *bindings]
    configurables.parse(["tests/training/tiny.gin"], bound)
    return configurables.recipe().stage(name)


def train(data, folder, name, *bindings, options=OPTIONS):
    runtime = strategies.create("one_device")
    loop.run_stage(stage(data, name, *bindings), str(folder), runtime, options, preemption.StopRequest())
    lines = Path(folder, name, "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(data, folder, "pretrain", "Duration.steps = 2")
    return folder / "pretrain"


def after(pretrained):
    return f"contrastive/WarmStart.stage = '{pretrained}'"


def blocks(folder) -> list[Path]:
    return sorted(Path(folder, "contrastive", frozen_features.FOLDER).glob("*/block-*"))


def test_losses_are_those_of_the_pictures_also_after_a_stop(data, pretrained, tmp_path):
    live = train(data, tmp_path / "live", "contrastive", after(pretrained), *FIXED)
    assert not blocks(tmp_path / "live")
    cached = train(data, tmp_path / "cached", "contrastive", after(pretrained), *FIXED, *CACHED)
    np.testing.assert_allclose(cached, live, rtol=1e-6)
    assert len(cached) == 6 and len(set(cached)) == 6
    (block,) = blocks(tmp_path / "cached")
    made = block.stat().st_mtime_ns
    # Two steps, then the rest: the features are read, not made again.
    short = stage_run.Options(seed=OPTIONS.seed, train_steps=2)
    for options in (short, OPTIONS):
        (tmp_path / "cached" / "contrastive" / "finished.json").unlink(missing_ok=True)
        for part in ("checkpoints", "metrics.jsonl") if options is short else ():
            path = tmp_path / "cached" / "contrastive" / part
            tf.io.gfile.rmtree(str(path)) if path.is_dir() else path.unlink()
        again = train(
            data, tmp_path / "cached", "contrastive", after(pretrained), *FIXED, *CACHED, options=options
        )
    assert again == cached and block.stat().st_mtime_ns == made


def test_what_cannot_have_features_is_one_line(data, pretrained, tmp_path):
    for bindings, words in (
        ((*FIXED[:1], *FIXED[2:], "ImageAugmentation.flip = True"), r"\(flip, scale\).*without chance"),
        (FIXED[:2], "cache_decoded to False"),
        ((*FIXED, "locked/Rule.frozen = False"), "weights of the image tower are trained"),
        ((*FIXED, "ContrastiveBatches.policy = @RandAugment()"), "RandAugment"),
    ):
        run = stage_run.built(
            stage(data, "contrastive", after(pretrained), *CACHED, *bindings),
            str(tmp_path / "run"),
            strategies.create("one_device"),
            OPTIONS,
        )
        with pytest.raises(ConfigurationError, match=words) as error:
            frozen_features.provide(run)
        assert "\n" not in str(error.value)


def test_other_weights_views_and_data_have_other_keys(data, pretrained, tmp_path):
    def key(*bindings, change=None):
        run = stage_run.built(
            stage(data, "contrastive", after(pretrained), *FIXED, *CACHED, *bindings),
            str(tmp_path / "run"),
            strategies.create("one_device"),
            OPTIONS,
        )
        if change:
            variable = next(v for path, v in run.parameters.items() if path == change)
            variable.assign(variable + 1e-3)
        return frozen_features._key(run)

    same = key()
    assert key() == same and key("Schedule.peak = 1e-5", "Stage.batch_size = 8") == same
    others = [
        key(change="image_tower/stage1/block0/shrink/bias"),
        key("ImageAugmentation.fit = 'pad'"),
        key(f"Records.path = '{data}/retrieval.json'", "Stage.batch_size = 8"),
    ]  # fmt: skip
    assert len({same, *others}) == 4
    assert key(change="text_projection/kernel") == same


def test_changed_pictures_are_noticed(data, pretrained, tmp_path):
    train(data, tmp_path / "run", "contrastive", after(pretrained), *FIXED, *CACHED)
    (block,) = blocks(tmp_path / "run")
    head = json.loads(block.read_bytes().split(b"\n")[0])
    cache = FeatureCache(str(block.parent.parent), head["key"], head["rows"], head["width"])
    assert list(cache.missing()) == []
    with pytest.raises(ValueError, match="picture of record 7 is not the one"):
        cache.rows(np.array([7]), [b"another picture"])


def test_a_cache_is_resumed_and_broken_blocks_are_made_again(tmp_path):
    count, width, key = 23, 5, "a" * 64
    features = RNG.normal(size=(count, width)).astype(np.float32)
    used, checks = RNG.integers(0, count, count), RNG.integers(0, 2**32, count, dtype=np.uint32)

    def fill(cache, most=100):
        made = []
        for records in cache.missing():
            if len(made) == most:
                break
            cache.write(int(records[0]), used[records], checks[records], features[records])
            made.append(int(records[0]))
        return made

    def opened(key=key):
        return FeatureCache(str(tmp_path), key, count, width, block=4)

    assert fill(opened(), most=3) == [0, 4, 8]
    assert fill(opened()) == [12, 16, 20]
    cache = opened()
    assert fill(cache) == []
    np.testing.assert_array_equal(cache.features, features)
    np.testing.assert_array_equal(cache.used, used)
    np.testing.assert_array_equal(cache.checks, checks)
    files = sorted((tmp_path / key[:16]).iterdir())
    assert len(files) == 6
    files[1].write_bytes(files[1].read_bytes()[:-1])
    broken = bytearray(files[3].read_bytes())
    broken[-int(RNG.integers(1, 60))] ^= 1 << int(RNG.integers(8))
    files[3].write_bytes(broken)
    files[4].write_bytes(files[5].read_bytes())
    assert fill(opened()) == [4, 12, 16]
    assert fill(opened()) == []
    assert fill(opened("a" * 16 + "b" * 48)) == [0, 4, 8, 12, 16, 20]  # another key that begins alike
    with pytest.raises(ValueError, match="not finite"):
        next(iter(opened().missing()))
        opened().write(0, used[:4], checks[:4], np.full((4, width), np.nan, np.float32))


def test_what_varies():
    assert ImageAugmentation(24, scale=(1.0, 1.0)).varying == ()
    assert ImageAugmentation(24).varying == ("scale",)
    assert ImageAugmentation(24, (1.0, 1.0), fit="pad", border="reflect").varying == ()
    assert ImageAugmentation(24, (1.0, 1.0), fit="crop", gain=0.1, blur_probability=0.5).varying == (
        "gain", "blur_probability", "fit",
    )  # fmt: skip
