import numpy as np
import pytest
import tensorflow as tf

from basic_tf.randomness import uniform
from basic_tf.towers.coatnet import CoAtNet
from basic_tf.towers.coatnet_blocks import (
    MBConv,
    NormPolicy,
    RelativeTransformer,
    Size,
    Stem,
    relative_positions,
    resized_relative_bias,
)
from basic_tf.towers.coatnet_table import CoAtNetTable
from tests.towers import tower_oracle as oracle
from tests.towers.tower_contract import (
    assert_tower_contract,
    noise_for,
    randomize,
    relative_difference,
    value_and_gradients,
)

# (with both head layers, trunk and final LN only) in millions, and GMACs at 224 px with the stride in the
# expand and in the depthwise convolution: arithmetic on CoAtNet's tables 3, 11 and 12, each within 0.7% of
# the published parameters.
FAMILY = {
    "coatnet_0": (25.04, 23.68, 4.14, 4.54),
    "coatnet_1": (42.23, 40.87, 8.24, 8.64),
    "coatnet_2": (74.69, 72.61, 15.50, 16.42),
    "coatnet_3": (166.97, 163.07, 34.37, 36.45),
    "coatnet_4": (275.43, 271.53, None, None),
    "coatnet_5": (687.05, 680.81, None, None),
    "coatnet_6": (1471.13, 1458.61, None, None),
    "coatnet_6_as_printed": (1348.44, 1342.19, None, None),
    "coatnet_7": (2441.97, 2429.46, 457.8, 462.2),
}
PUBLISHED = {0: 25, 1: 42, 2: 75, 3: 168, 4: 275, 5: 688, 6: 1470, 7: 2440}

TINY = CoAtNetTable(
    (2, 8), (("mbconv", 1, 8), ("mbconv", 2, 12), ("attention", 2, 16), ("attention", 1, 24)), 8
)
MIXED = CoAtNetTable(
    (2, 8), (("mbconv", 1, 8), ("mbconv", 1, 8, 2), ("attention", 1, 16, 1), ("attention", 1, 24)), 8
)


def millions(specs, prefix=""):
    return sum(s.size for s in specs if s.trainable and s.path.startswith(prefix)) / 1e6


@pytest.mark.parametrize("variant", FAMILY)
def test_parameter_counts_and_multiply_adds_of_the_family(variant):
    whole, trunk, expand, depthwise = FAMILY[variant]
    tower = CoAtNet(variant, num_classes=1000)
    specs = tower.specs()
    assert not tower.weights  # the counts need no allocation: CoAtNet-7 has 2.4B parameters
    assert round(millions(specs), 2) == whole
    assert round(millions(specs) - millions(specs, "head/"), 2) == trunk
    if not variant.endswith("printed"):
        assert abs(millions(specs) / PUBLISHED[int(variant[-1])] - 1) < 0.007
    if expand:
        assert sum(tower.multiply_adds().values()) / 1e9 == pytest.approx(expand, rel=2e-3)
        strided = CoAtNet(variant, downsample="depthwise")
        assert sum(strided.multiply_adds().values()) / 1e9 == pytest.approx(depthwise, rel=2e-3)


@pytest.mark.parametrize(
    "variant, size, downsample, gmacs",
    [
        ("coatnet_5", 512, "expand", 804),
        ("coatnet_3", 384, "depthwise", 111.9),
        ("coatnet_3", 512, "depthwise", 209.0),
        ("coatnet_7", 512, "expand", 2539),
        ("coatnet_7", 512, "depthwise", 2561),
    ],
)
def test_multiply_adds_at_other_sizes(variant, size, downsample, gmacs):
    tower = CoAtNet(variant, image_size=size, downsample=downsample)
    assert sum(tower.multiply_adds().values()) / 1e9 == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize(
    "variant, stages",
    [
        ("coatnet_0", {"stem": 0.039, "stage1": 0.190, "stage2": 1.085, "stage3": 8.769, "stage4": 13.594}),
        ("coatnet_3", {"stem": 0.338, "stage1": 0.760, "stage2": 8.763, "stage3": 98.885, "stage4": 54.320}),
        ("coatnet_7", {"stem": 0.338, "stage1": 1.325, "stage2": 10.214, "stage4": 223.436}),
    ],
)
def test_parameters_of_each_stage(variant, stages):
    specs = CoAtNet(variant).specs()
    for stage, expected in stages.items():
        assert millions(specs, stage) == pytest.approx(expected, abs=6e-4), stage


def test_mixed_third_stage_of_coatnet_7():
    specs = CoAtNet("coatnet_7").specs()
    convolutional = sum(millions(specs, f"stage3/block{i}/") for i in range(8))
    assert convolutional == pytest.approx(82.799, abs=6e-4)
    assert millions(specs, "stage3/") - convolutional == pytest.approx(2111.343, abs=6e-4)


@pytest.mark.parametrize("batch_norm", ["frozen", "ghost", "layer"])
@pytest.mark.parametrize("table", [TINY, MIXED], ids=["tiny", "mixed"])
def test_contract(batch_norm, table):
    if table is MIXED and batch_norm != "ghost":
        pytest.skip("the mixed stage is one policy's work")

    def make(dtype, remat):
        return CoAtNet(
            table, image_size=(33, 21), batch_norm=batch_norm, ghost_size=3, stochastic_depth=0.6,
            downsample="depthwise" if table is MIXED else "expand", dtype=dtype, remat=remat,
        )  # fmt: skip

    pictures = np.random.default_rng(0).uniform(-1, 1, (6, 33, 21, 3))
    unreached = {
        s.path for s in make("float64", "none").specs() if s.path.endswith("key/bias")
    }  # softmax is blind to it
    assert_tower_contract(make, pictures, row_independent=batch_norm != "ghost", unreached=unreached)


def norm_of(policy, group):
    def norm(x, p, path):
        if policy == "layer":
            return oracle.layer_norm(x, p, path)
        return oracle.batch_norm(x, p, path, group)

    return norm


class Holder:
    """One block with the two methods that `randomize` needs."""

    def __init__(self, block):
        block.create(0)
        self.parameters = block.parameters


@pytest.mark.parametrize(
    "policy, training", [("frozen", True), ("ghost", True), ("ghost", False), ("layer", True)]
)
@pytest.mark.parametrize(
    "stride, downsample, inputs", [(1, "expand", 8), (2, "expand", 6), (2, "depthwise", 6)]
)
def test_mbconv_against_numpy(policy, training, stride, downsample, inputs):
    norms = NormPolicy(policy, 2, 0.99, 1e-3, 1e-5)
    block = MBConv("b", inputs, 8, stride, norms, downsample=downsample, dtype="float64")
    p = randomize(Holder(block))
    x = np.random.default_rng(1).normal(size=(4, 5, 7, inputs))
    group = 2 if policy == "ghost" and training else None
    expected = oracle.mbconv(x, p, "b", norm_of(policy, group), stride, downsample)
    found, statistics = block.apply(tf.constant(x), training, None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-11)
    assert len(statistics) == (6 if group else 0)
    if group:  # the first two are the pre-norm's: means over the groups of mean and (biased) variance
        halves = x[:2], x[2:]
        np.testing.assert_allclose(statistics[0], np.mean([h.mean((0, 1, 2)) for h in halves], 0), rtol=1e-12)
        np.testing.assert_allclose(statistics[1], np.mean([h.var((0, 1, 2)) for h in halves], 0), rtol=1e-12)


@pytest.mark.parametrize("policy", ["frozen", "ghost", "layer"])
def test_stem_against_numpy(policy):
    block = Stem("stem", 2, 6, NormPolicy(policy, 3, 0.99, 1e-3, 1e-5), dtype="float64")
    p = randomize(Holder(block))
    pictures = np.random.default_rng(1).integers(0, 256, (3, 9, 12, 3)).astype(np.uint8)
    expected = oracle.stem(
        pictures / 127.5 - 1.0, p, "stem", norm_of(policy, 3 if policy == "ghost" else None)
    )
    found = block.apply(tf.constant(pictures), True, None)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "stride, inputs, pool", [(1, 12, "max"), (1, 8, "max"), (2, 8, "max"), (2, 12, "average")]
)
def test_relative_transformer_against_numpy(stride, inputs, pool):
    size = Size((3, 4)) if stride == 2 else Size((5, 7))
    block = RelativeTransformer("b", inputs, 12, stride, 4, size, pool=pool, dtype="float64")
    p = randomize(Holder(block))
    x = np.random.default_rng(1).normal(size=(3, 5, 7, inputs))
    function = oracle.max_pool if pool == "max" else oracle.average_pool
    expected = oracle.relative_transformer(x, p, "b", 3, stride, function)
    np.testing.assert_allclose(
        block.apply(tf.constant(x), True, None)[0].numpy(), expected, rtol=1e-10, atol=1e-11
    )


def test_whole_tower_against_numpy():
    tower = CoAtNet(TINY, image_size=(21, 26), dtype="float64")
    p = randomize(tower)
    x = pictures = np.random.default_rng(3).uniform(-1, 1, (2, 21, 26, 3))
    norm = norm_of("frozen", None)
    x = oracle.mbconv(oracle.stem(x, p, "stem", norm), p, "stage1/block0", norm, 2)
    x = oracle.mbconv(oracle.mbconv(x, p, "stage2/block0", norm, 2), p, "stage2/block1", norm, 1)
    x = oracle.relative_transformer(x, p, "stage3/block0", 2, 2)
    x = oracle.relative_transformer(x, p, "stage3/block1", 2, 1)
    x = oracle.relative_transformer(x, p, "stage4/block0", 3, 2)
    expected = oracle.layer_norm(x.mean((1, 2)), p, "features/norm")
    np.testing.assert_allclose(tower(pictures).numpy(), expected, rtol=1e-10, atol=1e-11)


def test_averages_of_bfloat16_weights_arrive_at_the_statistics():
    """In bfloat16 they would stop where a hundredth of the difference is less than half of a last bit."""
    tower = CoAtNet(TINY, 32, batch_norm="ghost", ghost_size=2, dtype="bfloat16")
    statistics = [tf.fill(variable.shape, 3.0) for variable in tower.statistic_variables]
    move = tf.function(lambda: tower.update_statistics(statistics))
    for _ in range(1000):
        move()
    for variable in tower.statistic_variables:
        np.testing.assert_allclose(tf.cast(variable.value, tf.float32), 3.0, rtol=1e-4)


def test_ghost_statistics_move_the_averages_once_and_inference_uses_them():
    tower = CoAtNet(TINY, image_size=16, batch_norm="ghost", ghost_size=2, dtype="float64")
    pictures = np.random.default_rng(0).uniform(-1, 1, (6, 16, 16, 3))
    before = [v.numpy() for v in tower.statistic_variables]
    whole = value_and_gradients(tower, pictures, None)[1]
    for value, variable in zip(before, tower.statistic_variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())  # computing moves nothing
    parts = [value_and_gradients(tower, pictures[i : i + 2], None)[1] for i in (0, 2, 4)]
    for statistic, *pieces in zip(whole, *parts, strict=True):  # whatever the microbatch
        np.testing.assert_allclose(statistic, np.mean(pieces, 0), rtol=1e-12, atol=1e-14)
    tower.update_statistics([tf.constant(s) for s in whole])
    for value, statistic, variable in zip(before, whole, tower.statistic_variables):
        np.testing.assert_allclose(variable.numpy(), 0.99 * value + 0.01 * statistic, rtol=1e-12, atol=1e-14)
    assert tower.forward(pictures, False)[1] == []
    with pytest.raises(ValueError, match="3 statistics for 20"):
        tower.update_statistics([tf.constant(s) for s in whole[:3]])


def test_keras_exports_what_the_tower_computes(tmp_path):
    tower = CoAtNet(TINY, 32)
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    features = tower(pictures).numpy()
    tower.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(loaded.serve(pictures), features, rtol=1e-5, atol=1e-6)


def test_ghost_groups_must_fit():
    tower = CoAtNet(TINY, image_size=16, batch_norm="ghost", ghost_size=4)
    with pytest.raises(ValueError, match="6 rows cannot be cut into ghost BatchNorm groups of 4"):
        tower.forward(np.zeros((6, 16, 16, 3), np.float32), True)


def test_float32_ghost_path_agrees_with_float64():
    pictures = np.random.default_rng(0).uniform(-1, 1, (6, 16, 16, 3)).astype(np.float32)
    results = []
    for dtype in ("float64", "float32"):
        tower = CoAtNet(TINY, image_size=16, batch_norm="ghost", ghost_size=3, dtype=dtype)
        randomize(tower)
        results.append(value_and_gradients(tower, pictures, None))
    assert relative_difference(results[1][0], results[0][0]) < 1e-4
    for a, b in zip(results[1][1], results[0][1], strict=True):
        assert relative_difference(a, b) < 1e-4
    scale = np.sqrt(sum(np.sum(g.numpy() ** 2) for g in results[0][2].values()))
    for path, gradient in results[0][2].items():
        assert np.linalg.norm(results[1][2][path].numpy() - gradient.numpy()) < 1e-4 * scale, path


def test_stochastic_depth_drops_rows_at_a_rate_linear_in_the_block_index():
    tower = CoAtNet(TINY, image_size=16, stochastic_depth=0.6)
    rates = [block.drop_rate for block in tower.blocks[1:-1]]
    np.testing.assert_allclose(rates, [0.6 * i / 6 for i in range(6)])
    block = tower.blocks[3]  # stage2/block1: rate 0.2, no projection
    tower.build()
    randomize(tower)
    x = np.random.default_rng(0).normal(size=(64, 2, 2, 12)).astype(np.float32)
    x = tf.constant(x)
    noise = noise_for(64)
    dropped = uniform(noise, "stage2/block1/stochastic_depth").numpy() < block.drop_rate
    assert 0 < dropped.sum() < 32
    plain, noisy = block.apply(x, True, None)[0].numpy(), block.apply(x, True, noise)[0].numpy()
    np.testing.assert_array_equal(noisy[dropped], x.numpy()[dropped])
    np.testing.assert_allclose(
        noisy[~dropped],
        (x.numpy() + (plain - x.numpy()) / (1 - block.drop_rate))[~dropped],
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_array_equal(
        block.apply(x, False, noise)[0].numpy(), block.apply(x, False, None)[0].numpy()
    )


def test_uint8_and_float_pictures_are_one():
    tower = CoAtNet(TINY, image_size=16)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    a = tower(pictures.astype(np.uint8)).numpy()
    b = tower((pictures / 127.5 - 1.0).astype(np.float32)).numpy()
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_classifier():
    tower = CoAtNet(TINY, image_size=16, num_classes=7, dtype="float64")
    p = randomize(tower)
    features = tower(np.zeros((2, 16, 16, 3)))
    hidden = np.tanh(oracle.dense(features.numpy(), p, "head/pre_logits"))
    np.testing.assert_allclose(tower.logits(features), oracle.dense(hidden, p, "head/classifier"), rtol=1e-10)
    with pytest.raises(ValueError, match="num_classes"):
        CoAtNet(TINY, image_size=16).logits(features)


def test_relative_positions_by_hand():
    np.testing.assert_array_equal(relative_positions(1, 2), [[1, 0], [2, 1]])
    table = np.random.default_rng(0).normal(size=(2, 5, 7))
    found = table.reshape(2, -1)[:, relative_positions(3, 4)]
    np.testing.assert_array_equal(found, oracle.relative_bias(table, 3, 4)[0])


def test_resized_relative_bias_keeps_its_centre_and_a_linear_ramp():
    table = np.random.default_rng(0).normal(size=(3, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(resized_relative_bias(table, (3, 3)), table, rtol=1e-6)
    larger = resized_relative_bias(table, (6, 4))
    assert larger.shape == (3, 11, 7)
    np.testing.assert_allclose(larger[:, 5, 3], table[:, 2, 2], rtol=1e-5)


def test_initial_values_follow_from_seed_and_path():
    wide = CoAtNet(TINY, image_size=16, seed=3).parameters()
    other = CoAtNet(MIXED, image_size=16, seed=3).parameters()
    path = "stage1/block0/expand/kernel"
    np.testing.assert_array_equal(wide[path].numpy(), other[path].numpy())
    kernel = CoAtNet("coatnet_0", image_size=32).blocks[4]
    kernel.create(0)
    values = kernel.parameters()["stage2/block1/shrink/kernel"].numpy()
    assert abs(values.mean()) < 1e-3 and abs(values.std() - 0.02) < 5e-4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"variant": "coatnet_9"}, "coatnet_9.*expected"),
        ({"batch_norm": "sync"}, "frozen, ghost, layer"),
        ({"batch_norm": "ghost", "ghost_size": 0}, "ghost_size"),
        ({"downsample": "input"}, "'expand' or 'depthwise'"),
        ({"attention_pool": "median"}, "attention_pool"),
        ({"stochastic_depth": 1.0}, "stochastic_depth"),
        ({"remat": "all"}, "norms_and_activations"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoAtNet(**{"variant": TINY, "image_size": 16, **arguments})


def test_bad_pictures_are_named():
    tower = CoAtNet(TINY, image_size=16)
    with pytest.raises(ValueError, match=r"expected \[B, 16, 16, 3\]"):
        tower.forward(np.zeros((2, 24, 24, 3), np.float32))
    with pytest.raises(ValueError, match="expected uint8"):
        tower.forward(np.zeros((2, 16, 16, 3), np.int32))
