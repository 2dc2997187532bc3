"""AdaFactorW against the float64 oracle, against AdamW, and its contract with variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from basic_tf.optimization.adafactorw import AdaFactorW, global_norm
from basic_tf.optimization.rules import Rule, RuleTable
from basic_tf.optimization.update_rule import UpdateRule
from basic_tf.towers import coatnet, dual_encoder, text_transformer
from tests.optimization import oracles

SHAPES = {
    "a/convolution/kernel": (3, 3, 37, 51),
    "a/depthwise/depthwise_kernel": (3, 3, 41, 1),
    "a/dense/kernel": (67, 45),
    "a/heads/kernel": (64, 3, 33),
    "a/attention/relative_bias": (3, 47, 47),
    "a/dense/bias": (45,),
    "temperature": (),
}
STEPS = 50
RATES = np.linspace(1e-2, 1e-3, STEPS).astype(np.float32)


def _schedule(step):
    return tf.gather(tf.constant(RATES), tf.cast(step, tf.int32))


def _problem(seed, shapes=None):
    """Values, and gradients whose scale differs by element and by step."""
    rng = np.random.default_rng(seed)
    values, gradients = {}, {}
    for path, shape in (shapes or SHAPES).items():
        values[path] = (rng.normal(size=shape) * 0.1).astype(np.float32)
        scale = np.exp(rng.normal(size=shape)) * 10.0 ** rng.uniform(-4, 0, size=(STEPS,) + (1,) * len(shape))
        gradients[path] = (rng.normal(size=(STEPS, *shape)) * scale).astype(np.float32)
    return values, gradients


def _run(optimizer, values, gradients, steps=STEPS, graph=True):
    """path -> [steps, *shape] values after each step; the whole update is one traced function."""
    variables = {path: tf.Variable(value) for path, value in values.items()}
    optimizer.build(variables)

    def update(step, current):
        optimizer.apply(current, step=step)

    function = tf.function(update) if graph else update
    history = {path: [] for path in variables}
    for step in range(steps):
        function(tf.constant(step), {path: tf.constant(g[step]) for path, g in gradients.items()})
        for path, variable in variables.items():
            history[path].append(variable.numpy())
    return {path: np.stack(rows) for path, rows in history.items()}


def _oracle_arguments(path):
    return {"decay": 0.03 if path.endswith("kernel") else 0.0, "full": "relative" in path}


def _error(got, expected, start):
    """Largest error over the steps, relative to how far the oracle has been by then (2-norms)."""
    axes = tuple(range(1, got.ndim))
    # A scalar may wander back to its start: the furthest point so far, not the present one.
    moved = np.maximum.accumulate(np.sqrt(np.sum((expected - start) ** 2, axis=axes)))
    return np.max(np.sqrt(np.sum((got - expected) ** 2, axis=axes)) / moved)


@pytest.mark.parametrize("momentum,bound", [("float32", 1e-5), ("bfloat16", 1e-3)])
@pytest.mark.parametrize("clip", [1.0, 0.3, None])
def test_fifty_steps_equal_the_oracle(momentum, bound, clip):
    values, gradients = _problem(3)
    optimizer = AdaFactorW(_schedule, weight_decay=0.03, momentum_dtype=momentum, update_clip=clip)
    history = _run(optimizer, values, gradients)
    for path, got in history.items():
        expected = oracles.adafactorw(
            values[path],
            gradients[path],
            RATES,
            clip=clip,
            bfloat16=momentum == "bfloat16",
            **_oracle_arguments(path),
        )
        assert _error(got, expected, values[path]) < bound, path
        if momentum == "bfloat16":  # each update by itself, not only their sum
            updates, right = (np.diff(rows.reshape(STEPS, -1), axis=0) for rows in (got, expected))
            assert np.max(np.linalg.norm(updates - right, axis=1) / np.linalg.norm(right, axis=1)) < bound, (
                path
            )


def test_the_clip_and_the_rounding_of_the_oracle_are_seen():
    """The bounds above mean something: without clip, or with other rounding, the same run fails them."""
    values, gradients = _problem(3, {"kernel": (67, 45)})
    got = _run(AdaFactorW(_schedule, weight_decay=0.0, momentum_dtype="bfloat16"), values, gradients)[
        "kernel"
    ]
    start = values["kernel"]
    exact = oracles.adafactorw(start, gradients["kernel"], RATES, bfloat16=False)
    unclipped = oracles.adafactorw(start, gradients["kernel"], RATES, bfloat16=True, clip=None)
    assert _error(got, exact, start) > 3e-4
    assert _error(got, unclipped, start) > 1e-2


def test_without_bias_correction_and_without_momentum():
    values, gradients = _problem(5)
    options = {"beta1": 0.0, "bias_correction": False, "momentum_dtype": "float32"}
    optimizer = AdaFactorW(_schedule, weight_decay=0.03, beta2=0.97, **options)
    history = _run(optimizer, values, gradients)
    assert not any(path.endswith("/momentum") for path in optimizer.slots())
    for path, got in history.items():
        expected = oracles.adafactorw(
            values[path],
            gradients[path],
            RATES,
            beta1=0.0,
            beta2=0.97,
            correct=False,
            **_oracle_arguments(path),
        )
        assert _error(got, expected, values[path]) < 1e-5, path


def test_full_second_moment_without_clip_is_adamw():
    """The limit: keras.optimizers.AdamW, and the textbook formula in float64."""
    values, gradients = _problem(7)
    optimizer = AdaFactorW(
        1e-3, weight_decay=0.03, second_moment="full", update_clip=None, momentum_dtype=None, eps=1e-8
    )
    history = _run(optimizer, values, gradients)
    ours = {path: rows[-1] for path, rows in history.items()}
    reference = keras.optimizers.AdamW(1e-3, weight_decay=0.03, beta_1=0.9, beta_2=0.999, epsilon=1e-12)
    theirs = {path: keras.Variable(value, name=path.replace("/", "_")) for path, value in values.items()}
    reference.build(list(theirs.values()))
    reference.exclude_from_weight_decay([v for path, v in theirs.items() if not path.endswith("kernel")])
    for step in range(STEPS):
        reference.apply([tf.constant(g[step]) for g in gradients.values()], list(theirs.values()))
    for path, start in values.items():
        decay = 0.03 if path.endswith("kernel") else 0.0
        value, m, v = start.astype(np.float64), 0.0, 0.0
        for step, gradient in enumerate(gradients[path].astype(np.float64), start=1):
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            direction = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
            value = value - 1e-3 * direction - 1e-3 * decay * value
        moved = np.linalg.norm(value - start)
        assert np.linalg.norm(ours[path] - value) < 1e-5 * moved, path
        # Keras puts eps before the bias correction and computes 1 - 0.999^t in float32: about 5e-5 at the
        # first step.
        assert np.linalg.norm(ours[path] - theirs[path].numpy()) < 2e-4 * moved, path


def test_float64_parameters_are_float64_throughout():
    values, gradients = _problem(9)
    values = {path: value.astype(np.float64) for path, value in values.items()}
    gradients = {path: gradient.astype(np.float64) for path, gradient in gradients.items()}
    optimizer = AdaFactorW(2.0**-7, weight_decay=0.03, momentum_dtype=None)
    history = _run(optimizer, values, gradients)
    assert {slot.dtype for slot in optimizer.slots().values()} == {tf.float64}
    for path, got in history.items():
        expected = oracles.adafactorw(
            values[path], gradients[path], [2.0**-7] * STEPS, **_oracle_arguments(path)
        )
        assert _error(got, expected, values[path]) < 1e-12, path


def test_graph_equals_eager():
    values, gradients = _problem(11)
    traced = _run(AdaFactorW(1e-3, momentum_dtype="float32"), values, gradients, steps=5)
    eager = _run(AdaFactorW(1e-3, momentum_dtype="float32"), values, gradients, steps=5, graph=False)
    for path in values:
        np.testing.assert_allclose(traced[path], eager[path], rtol=0, atol=1e-7, err_msg=path)


def test_compiled_equals_graph():
    values, gradients = _problem(12, {"kernel": (65, 33), "t": ()})
    traced = _run(AdaFactorW(1e-3, momentum_dtype="float32"), values, gradients, steps=5)
    optimizer = AdaFactorW(1e-3, momentum_dtype="float32")
    variables = {path: tf.Variable(value) for path, value in values.items()}
    optimizer.build(variables)
    compiled = tf.function(lambda g, s: optimizer.apply(g, step=s), jit_compile=True)
    for step in range(5):
        compiled({path: tf.constant(g[step]) for path, g in gradients.items()}, tf.constant(step))
    for path, variable in variables.items():
        np.testing.assert_allclose(variable.numpy(), traced[path][-1], rtol=0, atol=1e-7)


def test_what_is_factored():
    rule = UpdateRule()
    expected = {
        (3, 3, 64, 160): (2, 3),
        (3072, 768): (0, 1),
        (32, 32): (0, 1),
        (31, 4096): None,
        (3, 3, 512, 1): None,
        (3, 3, 3, 64): None,
        (169, 12): None,
        (1024, 16, 64): (0, 2),
        (768,): None,
        (): None,
    }
    assert {shape: rule.factored_axes("x/kernel", shape) for shape in expected} == expected
    assert rule.factored_axes("block/attention/relative_bias", (16, 63, 63)) is None
    assert UpdateRule(second_moment="full").factored_axes("x/kernel", (64, 64)) is None
    specs = rule.slot_specs("x/kernel", (3, 5, 64, 160))
    assert specs["second_moment_rows"].shape == (3, 5, 64)
    assert specs["second_moment_columns"].shape == (3, 5, 160)
    assert specs["momentum"].dtype == "bfloat16"


def test_no_gradient_so_far_is_no_update_and_no_nan():
    variable = tf.Variable(tf.ones([40, 50]))
    optimizer = AdaFactorW(0.1, weight_decay=0.0)
    optimizer.build({"kernel": variable})
    optimizer.apply([tf.zeros([40, 50])], [variable])
    np.testing.assert_array_equal(variable.numpy(), np.ones([40, 50]))
    # One row alone gets gradients, as in an embedding table: the others must stay where they are.
    gradient = np.zeros([40, 50], np.float32)
    gradient[7] = 1e-4
    optimizer.apply([tf.constant(gradient)], [variable])
    assert np.isfinite(variable.numpy()).all()
    assert (variable.numpy()[7] < 1).all()
    np.testing.assert_array_equal(np.delete(variable.numpy(), 7, 0), np.ones([39, 50]))


def test_state_is_at_most_055_of_basic_s():
    """From the towers' own specs, nothing allocated; then what is allocated is what was announced."""
    specs = dual_encoder.DualEncoder(
        coatnet.CoAtNet("coatnet_0"), text_transformer.TextTransformer("basic_s")
    ).specs()
    shapes = {spec.path: tuple(spec.shape) for spec in specs if spec.trainable}
    optimizer = AdaFactorW(1e-3)
    parameter_bytes = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    assert parameter_bytes > 4 * 120_000_000
    assert 0.5 < optimizer.state_bytes(shapes) / parameter_bytes < 0.55
    small = {path: shape for path, shape in shapes.items() if path.startswith("image_tower/")}
    assert len(small) > 100
    optimizer.build({path: tf.Variable(tf.zeros(shape)) for path, shape in small.items()})
    allocated = sum(slot.dtype.size * slot.shape.num_elements() for slot in optimizer.slots().values())
    assert allocated == optimizer.state_bytes(small)
    undecayed = {path for path, rule in RuleTable([Rule(".*")]).resolve(shapes).items() if not rule.decay}
    assert {path.split("/")[-1] for path in undecayed} == {
        "bias",
        "scale",
        "relative_bias",
        "log_inverse_temperature",
    }


def test_slots_are_named_by_path_and_restore_the_run():
    """A run carried over through the slots' paths alone goes on as if nothing had happened."""
    values, gradients = _problem(13, {"a/kernel": (40, 33), "a/bias": (33,)})
    whole = _run(AdaFactorW(1e-3), values, gradients, steps=6)
    first = AdaFactorW(1e-3)
    half = _run(first, values, gradients, steps=3)
    assert list(first.slots()) == [
        "a/kernel/momentum",
        "a/kernel/second_moment_rows",
        "a/kernel/second_moment_columns",
        "a/bias/momentum",
        "a/bias/second_moment",
    ]
    variables = {path: tf.Variable(rows[-1]) for path, rows in half.items()}
    second = AdaFactorW(1e-3)
    second.build(variables)
    for path, slot in second.slots().items():
        slot.assign(first.slots()[path].numpy())
    resume = tf.function(lambda g, s: second.apply(g, step=s))
    for step in range(3, 6):
        resume({path: tf.constant(g[step]) for path, g in gradients.items()}, tf.constant(step))
    for path, variable in variables.items():
        np.testing.assert_array_equal(variable.numpy(), whole[path][-1])


def test_frozen_parameters_are_bit_identical_and_have_no_slots():
    variables = [
        keras.Variable(np.random.default_rng(0).normal(size=(33, 40)), name="kernel"),
        tf.Variable(tf.random.stateless_normal([33, 40], [1, 2]), name="live"),
        tf.Variable(tf.ones([40]), trainable=False, name="moving_mean"),
    ]
    paths = ["image_tower/kernel", "text_tower/kernel", "text_tower/moving_mean"]
    before = [np.array(variable) for variable in variables]
    optimizer = AdaFactorW(0.1, rules=RuleTable([Rule("image_tower/.*", frozen=True), Rule(".*")]))
    optimizer.build(dict(zip(paths, variables)))
    gradients = [tf.ones([33, 40]), tf.ones([33, 40]), None]
    optimizer.apply(gradients, variables, step=0)
    np.testing.assert_array_equal(np.array(variables[0]), before[0])
    np.testing.assert_array_equal(np.array(variables[2]), before[2])
    assert (np.array(variables[1]) < before[1]).all()
    assert optimizer.trained_paths() == ["text_tower/kernel"]
    assert all(path.startswith("text_tower/kernel/") for path in optimizer.slots())


def test_rules_give_factor_and_decay():
    values, gradients = _problem(
        15, {"slow/kernel": (40, 33), "bare/kernel": (40, 33), "decayed/bias": (33,)}
    )
    rules = RuleTable(
        [
            Rule("slow/.*", learning_rate_factor=0.1),
            Rule("bare/.*", decay=False),
            Rule("decayed/.*", decay=True),
        ]
    )
    history = _run(
        AdaFactorW(_schedule, weight_decay=0.5, rules=rules, momentum_dtype="float32"), values, gradients
    )
    for path, factor, decay in (("slow/kernel", 0.1, 0.5), ("bare/kernel", 1, 0), ("decayed/bias", 1, 0.5)):
        expected = oracles.adafactorw(values[path], gradients[path], RATES * factor, decay=decay)
        assert _error(history[path], expected, values[path]) < 1e-5, path


def test_a_mapping_of_rules_decays_like_a_table():
    moved = []
    for rules in (None, {"x/kernel": Rule("x/kernel")}, {"x/kernel": Rule("x/kernel", decay=False)}):
        kernel = tf.Variable(tf.ones([2, 2]))
        optimizer = AdaFactorW(0.1, weight_decay=1.0, rules=rules)
        optimizer.build({"x/kernel": kernel})
        optimizer.apply({"x/kernel": tf.zeros([2, 2])})
        moved.append(float(kernel[0, 0]))
    assert moved == pytest.approx([0.9, 0.9, 1.0])


def test_blocks_applied_one_by_one_equal_the_whole():
    values, gradients = _problem(17)
    whole = _run(AdaFactorW(1e-3), values, gradients, steps=3)
    variables = {path: tf.Variable(value) for path, value in values.items()}
    optimizer = AdaFactorW(1e-3)
    optimizer.build(variables)
    apply_one = tf.function(lambda g, v, s: optimizer.apply([g], [v], step=s))
    for step in range(3):
        for path in reversed(list(variables)):
            apply_one(tf.constant(gradients[path][step]), variables[path], tf.constant(step))
    for path, variable in variables.items():
        np.testing.assert_array_equal(variable.numpy(), whole[path][-1])


def test_global_clip_norm_scales_all_gradients_together():
    values, gradients = _problem(19, {"a/kernel": (33, 40), "a/bias": (40,)})
    options = {
        "momentum_dtype": "float32",
        "eps": 1e-3,
        "update_clip": None,
    }  # a large eps sees the gradients' scale
    clipped = _run(AdaFactorW(_schedule, global_clip_norm=0.7, **options), values, gradients, steps=6)
    scaled = {path: gradient.copy() for path, gradient in gradients.items()}
    for step in range(STEPS):
        norm = np.sqrt(sum(np.sum(g[step].astype(np.float64) ** 2) for g in gradients.values()))
        for gradient in scaled.values():
            gradient[step] *= min(1.0, 0.7 / norm)
    expected = _run(AdaFactorW(_schedule, **options), values, scaled, steps=6)
    for path in values:
        assert _error(clipped[path], expected[path], values[path]) < 1e-5
    norm = global_norm([tf.constant([3.0]), tf.constant([[4.0]], tf.bfloat16)])
    assert norm.numpy() == 5.0


def test_own_step_counts_and_an_outer_step_leaves_it_alone():
    values, gradients = _problem(21, {"kernel": (33, 40)})
    outer = _run(AdaFactorW(_schedule), values, gradients, steps=4)["kernel"]
    variable = tf.Variable(values["kernel"], name="kernel")
    optimizer = AdaFactorW(_schedule)
    update = tf.function(lambda g: optimizer.apply([g], [variable]))  # builds itself, inside the first trace
    for step in range(4):
        update(tf.constant(gradients["kernel"][step]))
    np.testing.assert_array_equal(variable.numpy(), outer[-1])
    assert optimizer.step.numpy() == 4
    optimizer.apply([tf.zeros([33, 40])], [variable], step=9)
    assert optimizer.step.numpy() == 4
    assert list(optimizer.slots()) == [
        "kernel/momentum",
        "kernel/second_moment_rows",
        "kernel/second_moment_columns",
    ]


def test_indexed_slices_and_bfloat16_weights():
    table = tf.Variable(tf.ones([40, 33]), name="embedding")
    dense = tf.Variable(tf.ones([40, 33]), name="embedding")
    with tf.GradientTape(persistent=True) as tape:
        sparse_loss = tf.reduce_sum(tf.gather(table, [3, 3, 5]) ** 2)
    gradient = tape.gradient(sparse_loss, table)
    assert isinstance(gradient, tf.IndexedSlices)
    for variable, value in ((table, gradient), (dense, tf.convert_to_tensor(gradient))):
        optimizer = AdaFactorW(0.1)
        optimizer.build({"embedding": variable})
        optimizer.apply([value], [variable], step=0)
    np.testing.assert_array_equal(table.numpy(), dense.numpy())
    narrow = tf.Variable(tf.ones([40, 33], tf.bfloat16))
    optimizer = AdaFactorW(0.25, weight_decay=0.0, update_clip=None)
    optimizer.build({"kernel": narrow})
    optimizer.apply([tf.ones([40, 33], tf.bfloat16)], [narrow], step=0)
    np.testing.assert_allclose(narrow.numpy().astype(np.float32), 0.75, atol=1e-6)
    assert optimizer.slots()["kernel/second_moment_rows"].dtype == tf.float32


def test_errors_name_the_parameter_and_the_remedy():
    a, b = tf.Variable(tf.zeros([3]), name="a"), tf.Variable(tf.zeros([4]), name="b")
    other = tf.Variable(0.0, name="stranger")
    optimizer = AdaFactorW(0.1)
    with pytest.raises(ValueError, match="build"):
        optimizer.slots()
    optimizer.build({"x/a": a, "x/b": b})
    cases = [
        (([tf.zeros([3])], [a]), "x/b.*explicit step"),
        (([tf.zeros([3]), None], [a, b]), "x/b is trained but has no gradient"),
        (([tf.zeros([3]), tf.zeros([5])], [a, b]), r"x/b has shape \(4,\) but its gradient \(5,\)"),
        (([tf.zeros([3])], [a, b]), "1 gradients for 2 variables"),
        (([tf.zeros([])], [other]), "stranger.*build"),
        (({"x/c": tf.zeros([3])},), "x/c"),
        (([tf.zeros([3]), tf.zeros([3])], [a, a]), "two gradients"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            optimizer.apply(*arguments)
    assert not a.numpy().any()
    with pytest.raises(ValueError, match="built already"):
        optimizer.build({"x/a": a})
    with pytest.raises(ValueError, match="one variable"):
        AdaFactorW(0.1).build({"x/a": a, "y/a": a})
    with pytest.raises(ValueError, match="2 variables have 1 names"):
        AdaFactorW(0.1).apply([0.0, 0.0], [tf.Variable(1.0), tf.Variable(2.0)])
    with pytest.raises(ValueError, match="global_clip_norm=None"):
        clipped = AdaFactorW(0.1, global_clip_norm=1.0)
        clipped.build({"x/a": a, "x/b": b})
        clipped.apply([tf.zeros([3])], [a], step=0)
    for options, message in (
        ({"beta2": 1.0}, "beta2"),
        ({"second_moment": "half"}, "half"),
        ({"momentum_dtype": "int8"}, "floating"),
        ({"update_clip": 0.0}, "update_clip"),
        ({"momentum_rounding": "up"}, "momentum_rounding"),
        ({"eps": 0.0}, "eps"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaFactorW(0.1, **options)
