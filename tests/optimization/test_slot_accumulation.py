"""Gradients that go straight into the slots: the float64 oracle, the simulation of the second moment, what must fail."""

import numpy as np
import pytest
import tensorflow as tf

from basic_tf import randomness
from basic_tf.optimization import slot_accumulation
from basic_tf.optimization.adafactorw import AdaFactorW
from basic_tf.optimization.update_rule import UpdateRule
from tests.optimization import oracles

# The last three are too small for a sketch, or have no two large axes.
SHAPES = {
    "convolution/kernel": (3, 2, 37, 51),
    "dense/kernel": (67, 45),
    "heads/kernel": (64, 3, 35),
    "depthwise/kernel": (3, 3, 41, 1),
    "bias": (45,),
    "temperature": (),
}
NUMBER, PIECES, STEPS, WIDTH, RATE = 5, 3, 4, 4, 2.0**-7


def problem(seed, dtype=np.float64, shapes=None):
    """Values, and for each parameter [steps, N, R, *shape] pieces with a mean and noise of another scale."""
    rng = np.random.default_rng(seed)
    values, pieces = {}, {}
    for path, shape in (shapes or SHAPES).items():
        values[path] = np.asarray(0.1 * rng.normal(size=shape), dtype)
        scale = np.exp(rng.normal(size=shape)) * 10.0 ** rng.uniform(-3, 0)
        noise = rng.normal(size=(STEPS, NUMBER, PIECES, *shape))
        mean = rng.normal(size=(STEPS, 1, 1, *shape))
        pieces[path] = np.asarray(scale * (mean + 2 * noise) / (NUMBER * PIECES), dtype)
    return values, pieces


def run(values, pieces, correction, mode="loop", seed=3, counts=None, **options):
    """path -> [steps, *shape]. mode: "eager", "graph" (Python loop, traced) or "loop" (tf.while_loop, traced)."""
    variables = {path: tf.Variable(value) for path, value in values.items()}
    optimizer = AdaFactorW(RATE, weight_decay=0.03, seed=seed, **({"momentum_dtype": None} | options))
    optimizer.build(variables)
    number = next(iter(pieces.values())).shape[1]

    def one_step(step, current):  # current: path -> [N, R, *shape]
        accumulation = optimizer.accumulation(
            list(variables.values()), step, correction=correction, sketch_width=WIDTH, pieces=PIECES
        )

        def add(i, *state):
            cut = accumulation.pieces > 1
            found = {
                k: [c[i][r] for r in range(PIECES)] if cut else [tf.reduce_sum(c[i], 0)]
                for k, c in enumerate(current.values())
            }
            return i + 1, *accumulation.add(list(state), found)

        loop = (tf.constant(0), *accumulation.start(counts or [number] * len(variables)))
        if mode == "loop":
            loop = tf.while_loop(lambda i, *_: i < number, add, loop, parallel_iterations=1)
        else:
            for _ in range(number):
                loop = add(*loop)
        accumulation.apply(list(loop[1:]))

    function = one_step if mode == "eager" else tf.function(one_step, autograph=False)
    history = {path: [] for path in variables}
    for step in range(STEPS):
        function(tf.constant(step), {path: tf.constant(p[step]) for path, p in pieces.items()})
        for path, variable in variables.items():
            history[path].append(variable.numpy())
    return {path: np.stack(rows) for path, rows in history.items()}, optimizer


def signs_of(path, shape, seed=3):
    row_axis, column_axis = UpdateRule().factored_axes(path, shape)

    def draw(step, name, size):
        key = randomness.step_key_numpy(seed, step)
        words = randomness.bits_numpy(key, np.zeros([1], np.int32), f"{path}/{name}/sketch", size * WIDTH)
        return np.where(words >> np.uint32(31), -1.0, 1.0).reshape(size, WIDTH)

    return lambda step: (
        draw(step, "second_moment_rows", shape[column_axis]),
        draw(step, "second_moment_columns", shape[row_axis]),
    )


def expected_of(path, value, pieces, correction):
    decay = 0.03 if path.endswith("kernel") else 0.0
    if correction != "sketch":
        return oracles.accumulated(value, pieces, [RATE] * STEPS, correction, decay=decay)
    if not slot_accumulation.sketched(UpdateRule(), path, value.shape, WIDTH):
        return oracles.adafactorw(value, pieces.sum((1, 2)), [RATE] * STEPS, decay=decay)
    signs = signs_of(path, value.shape)
    return oracles.accumulated(value, pieces, [RATE] * STEPS, correction, signs, decay=decay)


def error(got, expected, start):
    moved = np.sqrt(np.sum((expected - start) ** 2, axis=tuple(range(1, got.ndim))))
    return np.max(np.sqrt(np.sum((got - expected) ** 2, axis=tuple(range(1, got.ndim)))) / moved)


@pytest.mark.parametrize(
    ("correction", "mode", "dtype", "bound"),
    [
        ("sketch", "loop", np.float64, 1e-12),
        ("pieces", "loop", np.float64, 1e-12),
        ("uncorrected", "loop", np.float64, 1e-12),
        ("sketch", "eager", np.float64, 1e-12),
        ("sketch", "loop", np.float32, 1e-5),
        ("pieces", "graph", np.float64, 1e-12),
    ],
)
def test_equals_the_oracle(correction, mode, dtype, bound):
    # A Python loop makes N copies of the graph: two parameters will do there.
    shapes = {path: SHAPES[path] for path in ("heads/kernel", "bias")} if mode == "graph" else SHAPES
    values, pieces = problem(1, dtype, shapes)
    history, optimizer = run(values, pieces, correction, mode)
    for path, got in history.items():
        expected = expected_of(path, values[path], pieces[path], correction)
        assert error(got, expected, values[path]) < bound, path
    assert all((s.numpy() >= 0).all() for path, s in optimizer.slots().items() if "second" in path)


def test_the_oracle_sees_a_missing_or_a_stray_factor(monkeypatch):
    """The check above must fail for: no correction, the whole variance subtracted, a contribution that is not 1/N."""
    shapes = {"dense/kernel": (67, 45), "bias": (45,)}
    values, pieces = problem(2, shapes=shapes)
    broken = {
        "no correction": run(values, pieces, "uncorrected")[0],
        "not divided by N": run(values, {path: NUMBER * p for path, p in pieces.items()}, "uncorrected")[0],
    }
    monkeypatch.setattr(slot_accumulation, "excess", lambda number: 1.0)
    broken["missing 1 / N"] = run(values, pieces, "pieces")[0]
    for name, history in broken.items():
        reference = "uncorrected" if name == "not divided by N" else "pieces"
        for path, got in history.items():
            expected = oracles.accumulated(
                values[path], pieces[path], [RATE] * STEPS, reference, decay=0.03 if "kernel" in path else 0.0
            )
            # Adam does not see a factor but for the decay: the clip apart, it is the slots that show it.
            if name != "not divided by N":
                assert error(got, expected, values[path]) > 1e-2, (name, path)
    right, wrong = (
        run(values, {path: factor * p for path, p in pieces.items()}, "uncorrected")[1].slots()
        for factor in (1, NUMBER)
    )
    for path, slot in right.items():
        power = 1 if path.endswith("momentum") else 2
        np.testing.assert_allclose(wrong[path].numpy(), NUMBER**power * slot.numpy(), rtol=1e-10)


@pytest.mark.parametrize(("correction", "momentum"), [("sketch", "bfloat16"), ("pieces", "float32")])
def test_one_contribution_is_the_ordinary_update(correction, momentum):
    values, pieces = problem(3, np.float32, {"dense/kernel": (67, 45), "bias": (45,)})
    whole = {path: p.sum((1, 2), keepdims=True) for path, p in pieces.items()}
    variables = {path: tf.Variable(value) for path, value in values.items()}
    ordinary = AdaFactorW(RATE, weight_decay=0.03, momentum_dtype=momentum)
    ordinary.build(variables)
    update = tf.function(lambda gradients, step: ordinary.apply(gradients, step=step))
    copies = {path: tf.Variable(value) for path, value in values.items()}
    optimizer = AdaFactorW(RATE, weight_decay=0.03, momentum_dtype=momentum)
    optimizer.build(copies)

    @tf.function
    def one_step(gradients, step):
        accumulation = optimizer.accumulation(list(copies.values()), step, correction=correction)
        state = accumulation.start([1] * len(copies))
        state = accumulation.add(state, {k: [g] for k, g in enumerate(gradients.values())})
        accumulation.apply(state)

    for step in range(STEPS):
        gradients = {path: tf.constant(p[step, 0, 0]) for path, p in whole.items()}
        update(gradients, tf.constant(step))
        one_step(gradients, tf.constant(step))
    state = {**variables, **ordinary.slots()}
    for path, variable in {**copies, **optimizer.slots()}.items():
        np.testing.assert_array_equal(variable.numpy(), state[path].numpy(), err_msg=path)


@pytest.mark.parametrize("correction", ["sketch", "uncorrected"])
def test_the_first_moment_is_that_of_the_whole_gradient(correction):
    values, pieces = problem(4)
    accumulated = run(values, pieces, correction)[1].slots()
    exact = dict.fromkeys(values, 0.0)
    for step in range(STEPS):
        exact = {path: 0.9 * exact[path] + 0.1 * p[step].sum((0, 1)) for path, p in pieces.items()}
    for path, moment in exact.items():
        got = accumulated[f"{path}/momentum"].numpy()
        assert np.linalg.norm(got - moment) < 1e-13 * np.linalg.norm(moment), path


def increments(correction, mean, number=16, pieces=8, elements=20_000, shape=None, seed=0):
    """The second-moment slots' share of one step: by name (v - b2 v_old) / (1 - b2), from a v_old far from the clamp.

    Pieces have unit noise, as in the simulation that basic_paper 5.3 describes.
    """
    rng = np.random.default_rng(seed)
    shape = shape or (elements,)
    variable = tf.Variable(np.zeros(shape))
    optimizer = AdaFactorW(0.1, momentum_dtype=None, beta2=0.5)
    optimizer.build({"x": variable})
    slots = {name: s for name, s in optimizer.slots().items() if "second" in name}
    for slot in slots.values():
        slot.assign(tf.fill(slot.shape, tf.constant(100.0, slot.dtype)))
    accumulation = optimizer.accumulation([variable], 0, correction=correction, pieces=pieces)
    state = accumulation.start([number])
    total = 0.0
    for _ in range(number):
        drawn = (mean + rng.normal(size=(pieces, *shape))) / (number * pieces)
        total = total + drawn.sum(0)
        found = list(drawn) if accumulation.pieces > 1 else [drawn.sum(0)]
        state = accumulation.add(state, {0: [tf.constant(part) for part in found]})
    accumulation.apply(state)
    return {name: (slot.numpy() - 50.0) / 0.5 for name, slot in slots.items()}, total


def test_the_simulation_of_the_second_moment(monkeypatch):
    """N = 16, 8 pieces, unit noise, mean 0 / .3 / 1: the table of basic_paper 5.3."""
    exact, uncorrected, whole = (0.0078, 0.098, 1.008), (0.125, 0.215, 1.125), (0.0, 0.090, 1.0)
    for k, mean in enumerate((0.0, 0.3, 1.0)):
        got, total = increments("pieces", mean, seed=k)
        assert np.mean(total**2) == pytest.approx(exact[k], abs=0.002 + 0.004 * mean)
        assert np.mean(got["x/second_moment"]) == pytest.approx(exact[k], abs=0.002 + 0.004 * mean)
        if not mean:
            assert np.mean(got["x/second_moment"] < 0) == pytest.approx(0.47, abs=0.03)
        got, _ = increments("uncorrected", mean, seed=k)
        assert np.mean(got["x/second_moment"]) == pytest.approx(uncorrected[k], abs=0.002 + 0.004 * mean)
    monkeypatch.setattr(slot_accumulation, "excess", lambda number: 1.0)
    for k, mean in enumerate((0.0, 0.3, 1.0)):
        got, _ = increments("pieces", mean, seed=k)
        assert np.mean(got["x/second_moment"]) == pytest.approx(whole[k], abs=0.002 + 0.004 * mean)


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_the_sketch_is_unbiased_and_as_noisy_as_announced(mean):
    """Many rows, one sketch each: against the very gradient, not its expectation. K = 16."""
    # Means of random sign: all rows of a matrix are projected on the same vectors, and rows that are alike err alike.
    mean = mean * np.random.default_rng(8).choice([-1.0, 1.0], size=(3000, 36))
    got, total = increments("sketch", mean, shape=(3000, 36))
    rows = (total**2).mean(1)
    ratio = got["x/second_moment_rows"] / rows
    assert (got["x/second_moment_rows"] > 0).all()
    assert np.mean(ratio) == pytest.approx(1, abs=5 * np.sqrt(2 / 16 / 3000))
    assert np.std(ratio) == pytest.approx(np.sqrt(2 / 16), rel=0.1)
    # The columns see the same gradient through 3,000 rows each; there are only 36 of them.
    ratio = got["x/second_moment_columns"] / (total**2).mean(0)
    assert np.mean(ratio) == pytest.approx(1, abs=5 * np.sqrt(2 / 16 / 36))
    uncorrected, _ = increments("uncorrected", mean, shape=(3000, 36))
    assert np.mean(uncorrected["x/second_moment_rows"] / rows) > 1.5


def test_bfloat16_momentum_keeps_small_contributions():
    """64 contributions, each below half a unit in the last place: right on average, lost when rounded to nearest."""
    shape, number = (40, 41), 64
    variable = tf.Variable(tf.zeros(shape))
    optimizer = AdaFactorW(0.0)
    optimizer.build({"x": variable})
    slot = optimizer.slots_of("x")["momentum"]
    slot.assign(tf.ones(shape, tf.bfloat16))
    gradient = 1.0 / number  # m: 0.9 + 64 x 0.1 / 64 = 1.0; a unit near 1 is 2^-8 below and 2^-7 above

    @tf.function
    def one_step(step):
        accumulation = optimizer.accumulation([variable], step, correction="uncorrected")
        state = accumulation.start([number])
        loop = tf.while_loop(
            lambda i, *_: i < number,
            lambda i, *s: (i + 1, *accumulation.add(list(s), {0: [tf.fill(shape, gradient)]})),
            (tf.constant(0), *state),
            parallel_iterations=1,
        )
        accumulation.apply(list(loop[1:]))

    one_step(tf.constant(5))
    values = slot.numpy().astype(np.float64)
    assert abs(values.mean() - 1.0) < 5 * values.std() / np.sqrt(values.size)
    assert 0.003 < values.std() < 0.05
    nearest = np.full([1], 0.9, tf.bfloat16.as_numpy_dtype)
    for _ in range(number):
        nearest = (nearest.astype(np.float32) + np.float32(0.1 / number)).astype(tf.bfloat16.as_numpy_dtype)
    assert nearest.astype(np.float64)[0] < 0.95


def test_what_cannot_be_is_said_in_one_line():
    variable, other = tf.Variable(tf.zeros([40, 50]), name="x"), tf.Variable(tf.zeros([3]), name="y")

    def accumulation(options=None, variables=(variable,), **arguments):
        optimizer = AdaFactorW(0.1, **(options or {}))
        optimizer.build({"x": variable})
        return optimizer.accumulation(list(variables), 0, **arguments)

    for arguments, message in (
        ({"options": {"global_clip_norm": 1.0}}, "global_clip_norm is 1.0.*unknown until the end"),
        ({"options": {"big_vision": True}}, "big_vision averages normalised"),
        ({"options": {"beta1": 0.0}}, "no momentum slot"),
        ({"options": {"momentum_dtype": "float16"}}, "float16.*lost"),
        ({"options": {"second_moment": "full"}}, "full second moment"),
        ({"correction": "guess"}, "guess.*sketch, pieces, uncorrected"),
        ({"pieces": 1, "correction": "pieces"}, "at least 2"),
        ({"variables": ()}, "without x"),
        ({"variables": (variable, other)}, "y: not among"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            accumulation(**arguments)
        assert "\n" not in str(caught.value)
    accumulation({"second_moment": "full"}, correction="pieces").start([2])
    with pytest.raises(ValueError, match="fixed size"):
        accumulation().start([tf.constant(2)])


def test_carried_bytes_are_small():
    rule = UpdateRule()
    shapes = {"a/kernel": (768, 3072), "a/bias": (3072,), "b/kernel": (32, 32)}
    assert slot_accumulation.state_bytes(rule, shapes, width=16) == {
        "sketches": 4 * 16 * (768 + 3072),
        "sums": 4 * (3072 + 32 * 32),
    }
    variables = {path: tf.Variable(tf.zeros(shape)) for path, shape in shapes.items()}
    optimizer = AdaFactorW(0.1)
    optimizer.build(variables)
    state = optimizer.accumulation(list(variables.values()), 0).start([2, 2, 2])
    carried = sum(4 * t.shape.num_elements() for t in tf.nest.flatten(state) if t.dtype == tf.float32)
    assert carried == sum(slot_accumulation.state_bytes(rule, shapes, width=16).values())
