"""RandAugment: PIL's operations, chosen by the hash."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from basic_tf.data.batches import LabelledBatches
from basic_tf.data.images import ImageAugmentation
from basic_tf.data.rand_augment import OPERATIONS, RandAugment
from basic_tf.randomness import step_key_numpy


def picture(height=37, width=51, seed=None):
    """Smooth colours that do not fill the range, with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 220, (6, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(coarse, np.int64) + rng.integers(-9, 10, (height, width, 3)), 12, 240).astype(
        np.uint8
    )


def enhanced(kind):
    return lambda image, strength, sign: kind(image).enhance(1 + sign * 0.9 * strength)


def affine(coefficients):
    def moved(image, strength, sign):
        values = coefficients(strength * sign, *image.size)
        return image.transform(
            image.size, Image.Transform.AFFINE, values, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
        )

    return moved


# PIL, as AutoAugment uses it; the last number is the levels by which rounding (or a border's blending) may differ.
ORACLES = {
    "identity": (lambda image, strength, sign: image, 0),
    "auto_contrast": (lambda image, strength, sign: ImageOps.autocontrast(image), 1),
    "equalize": (lambda image, strength, sign: ImageOps.equalize(image), 0),
    "solarize": (lambda image, strength, sign: ImageOps.solarize(image, 256 * (1 - strength)), 0),
    "posterize": (lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)), 0),
    "colour": (enhanced(ImageEnhance.Color), 1),
    "contrast": (enhanced(ImageEnhance.Contrast), 1),
    "brightness": (enhanced(ImageEnhance.Brightness), 1),
    "sharpness": (enhanced(ImageEnhance.Sharpness), 2),
    "shear_x": (affine(lambda s, w, h: (1, 0.3 * s, 0, 0, 1, 0)), None),
    "shear_y": (affine(lambda s, w, h: (1, 0, 0, 0.3 * s, 1, 0)), None),
    "translate_x": (affine(lambda s, w, h: (1, 0, 0.45 * s * w, 0, 1, 0)), None),
    "translate_y": (affine(lambda s, w, h: (1, 0, 0, 0, 1, 0.45 * s * h)), None),
    "rotate": (
        lambda image, strength, sign: image.rotate(
            30 * strength * sign, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength,sign", [(0.5, 1.0), (0.5, -1.0), (1.0, -1.0), (0.27, 1.0)])
def test_every_operation_is_that_of_pil(name, strength, sign):
    before = picture()
    kept = before.copy()
    ours = OPERATIONS[name](before, strength, sign)
    oracle, tolerance = ORACLES[name]
    theirs = np.asarray(oracle(Image.fromarray(before), strength, sign))
    np.testing.assert_array_equal(before, kept)
    assert ours.dtype == np.uint8 and ours.shape == before.shape
    difference = np.abs(ours.astype(int) - theirs)
    if tolerance is not None:
        assert difference.max() <= tolerance
    else:  # moved: PIL cuts the outermost half pixel off, OpenCV blends it into the grey outside
        assert np.quantile(difference, 0.9) <= 4 and (ours != before).any()


@pytest.mark.parametrize("value", [0, 255, 77])
def test_a_plain_picture_survives(value):
    plain = np.full((9, 9, 3), value, np.uint8)
    for name in ("auto_contrast", "equalize"):
        np.testing.assert_array_equal(OPERATIONS[name](plain, 0.5, 1.0), plain)


def test_rows_follow_from_their_index_alone():
    pictures = np.stack([picture(24, 24, seed) for seed in range(12)])
    key, examples = step_key_numpy(7, 3), np.arange(12) + 100
    policy = RandAugment(3, 7.0)
    whole = policy(pictures, key, examples)
    for cut in (slice(0, 5), slice(5, 12)):
        np.testing.assert_array_equal(policy(pictures[cut], key, examples[cut]), whole[cut])
    assert (policy(pictures, step_key_numpy(7, 4), examples) != whole).any()
    np.testing.assert_array_equal(RandAugment(0)(pictures, key, examples), pictures)


def test_all_operations_are_drawn_alike(monkeypatch):
    seen = dict.fromkeys(OPERATIONS, 0)
    signs = []

    def counted(name):
        def operation(picture, strength, sign):
            seen[name] += 1
            signs.append(sign)
            assert strength == 0.9
            return picture

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, counted(name))
    count = 3000
    RandAugment(2, 9)(np.zeros((count, 2, 2, 3), np.uint8), step_key_numpy(1, 1), np.arange(count))
    expected = 2 * count / len(OPERATIONS)
    # Six deviations of a binomial count.
    assert all(abs(found - expected) < 6 * expected**0.5 for found in seen.values()), seen
    assert abs(np.mean(signs)) < 6 / len(signs) ** 0.5


def test_batches_apply_it_last(tmp_path):
    from basic_tf.data import records
    from tests import tiny_data

    folder = tiny_data.make(str(tmp_path))
    source = records.RecordSource.open(f"{folder}/train.json")
    augmentation = ImageAugmentation(output_size=24)
    for cached in (False, True):
        plain = LabelledBatches(source, augmentation, 8, 5, cache_decoded=cached)
        policy = RandAugment(2, 8.0)
        augmented = LabelledBatches(source, augmentation, 8, 5, cache_decoded=cached, policy=policy)
        before, after = plain.at(4), augmented.at(4)
        expected = policy(before["images"], step_key_numpy(5, 4), before["examples"])
        np.testing.assert_array_equal(after["images"], expected)
        assert (after["images"] != before["images"]).any()
        np.testing.assert_array_equal(after["labels"], before["labels"])
        second = augmented.at(4, host=1, hosts=2)
        np.testing.assert_array_equal(second["images"], expected[4:])


@pytest.mark.parametrize("options", [{"layers": -1}, {"layers": 1.5}, {"magnitude": 11}])
def test_impossible_numbers_are_said(options):
    with pytest.raises(ValueError, match=f"RandAugment.{next(iter(options))}"):
        RandAugment(**options)
