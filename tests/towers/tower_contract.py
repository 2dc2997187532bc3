"""What every tower must satisfy, whatever it computes."""

import numpy as np
import tensorflow as tf

from basic_tf.randomness import Noise, step_key


def randomize(tower, seed=0, scale=0.3):
    """Gives every weight a random value, so that no zero bias and no unit scale hides a mistake."""
    generator = np.random.default_rng(seed)
    for path, variable in tower.parameters().items():
        value = generator.normal(size=tuple(variable.shape)) * scale
        if path.endswith("moving_variance"):
            value = 0.5 + np.abs(value)
        elif path.endswith("scale"):
            value = 1.0 + value
        variable.assign(value.astype(np.float64))
    return {path: v.numpy().astype(np.float64) for path, v in tower.parameters().items()}


def copy_weights(source, target):
    values = source.parameters()
    for path, variable in target.parameters().items():
        variable.assign(values[path].numpy())


def noise_for(rows, step=3, first=0):
    return Noise(step_key(11, step), tf.range(first, first + rows))


def value_and_gradients(tower, inputs, noise, training=True, eager=False):
    """(features, statistics, gradient of every trainable weight by path) of a fixed linear function."""
    paths = {path: v for path, v in tower.parameters().items() if v.trainable}

    def run(inputs, noise):
        with tf.GradientTape() as tape:
            features, statistics = tower.forward(inputs, training, noise)
            width = features.shape[-1]
            rows = tf.shape(features)[0]
            ramp = tf.sin(tf.range(1.0, 1.0 + tf.cast(rows * width, tf.float32)))
            loss = tf.reduce_sum(features * tf.cast(tf.reshape(ramp, (-1, width)), features.dtype))
        return features, statistics, tape.gradient(loss, [v.value for v in paths.values()])

    features, statistics, gradients = (run if eager else tf.function(run))(inputs, noise)
    return features.numpy(), [s.numpy() for s in statistics], dict(zip(paths, gradients))


def relative_difference(a, b):
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300)


def assert_tower_contract(make, inputs, *, row_independent=True, unreached=()):
    """make(dtype, remat) constructs the tower, its random layers switched on; inputs: at least 6 rows.

    row_independent: False for ghost BatchNorm. unreached: weights whose gradient is zero by construction.
    """
    tower = make("float64", "none")
    specs = tower.specs()
    assert not tower.built and not tower.weights, "specs() must not allocate"
    parameters = tower.parameters()
    assert list(parameters) == [s.path for s in specs] and len(set(parameters)) == len(specs)
    for spec in specs:
        variable = parameters[spec.path]
        assert tuple(variable.shape) == spec.shape and variable.trainable == spec.trainable
    assert {id(v) for v in tower.variables} == {id(v) for v in parameters.values()}, (
        "Keras tracks the same variables"
    )
    assert [id(v) for v in tower.trainable_variables] == [id(v) for v in parameters.values() if v.trainable]

    again, other = make("float64", "none"), make("float64", "none")
    other.seed += 1
    for path, variable in again.parameters().items():
        np.testing.assert_array_equal(variable.numpy(), parameters[path].numpy())
    assert any(
        not np.array_equal(v.numpy(), parameters[path].numpy()) for path, v in other.parameters().items()
    )

    randomize(tower)
    rows = len(inputs)
    features, statistics, gradients = value_and_gradients(tower, inputs, noise_for(rows))
    assert features.dtype == np.float64 and features.shape == (rows, tower.output_width)
    assert np.isfinite(features).all()

    # The same step twice, and eagerly: the same numbers. Another step: other numbers. Noise off is
    # inference's path.
    repeated = value_and_gradients(tower, inputs, noise_for(rows))
    np.testing.assert_array_equal(features, repeated[0])
    for path, gradient in gradients.items():
        np.testing.assert_array_equal(gradient.numpy(), repeated[2][path].numpy())
    eager = value_and_gradients(tower, inputs, noise_for(rows), eager=True)
    assert relative_difference(eager[0], features) < 1e-12
    assert (
        relative_difference(tower.forward(inputs, True, noise_for(rows, step=4))[0].numpy(), features) > 1e-3
    )
    np.testing.assert_array_equal(tower(inputs).numpy(), tower.forward(inputs)[0].numpy())

    # A row's features do not depend on its neighbours, nor its noise on its place in the microbatch.
    if row_independent:
        part = tower.forward(inputs[2:5], True, noise_for(3, first=2))[0].numpy()
        assert relative_difference(part, features[2:5]) < 1e-12
    part = tower.forward(inputs[2:5])[0].numpy()
    assert relative_difference(part, tower.forward(inputs)[0].numpy()[2:5]) < 1e-12

    # Gradients reach every trainable weight, and are dense.
    for path, gradient in gradients.items():
        assert isinstance(gradient, tf.Tensor), f"{path}: {type(gradient)}"
        if path not in unreached:
            assert np.linalg.norm(gradient.numpy()) > 0, f"no gradient reaches {path}"

    # Gradients are right: a directional derivative by central differences.
    directions = {p: np.random.default_rng(5).normal(size=tuple(g.shape)) for p, g in gradients.items()}
    expected = sum(float(np.sum(directions[p] * g.numpy())) for p, g in gradients.items())
    start = {p: v.numpy() for p, v in parameters_of(tower).items()}
    step, sides = 1e-6, []
    ramp = (
        np.sin(np.arange(1.0, 1.0 + features.size, dtype=np.float32))
        .astype(np.float64)
        .reshape(features.shape)
    )
    for sign in (1.0, -1.0):
        for path, variable in parameters_of(tower).items():
            variable.assign(start[path] + sign * step * directions[path])
        sides.append(np.sum(tower.forward(inputs, True, noise_for(rows))[0].numpy() * ramp))
    for path, variable in parameters_of(tower).items():
        variable.assign(start[path])
    numeric = (sides[0] - sides[1]) / (2 * step)
    assert abs(numeric - expected) < 1e-5 * max(abs(expected), 1.0), (numeric, expected)

    # Rematerialisation changes memory alone.
    for remat in ("blocks", "norms_and_activations"):
        remade = make("float64", remat)
        copy_weights(tower, remade)
        found = value_and_gradients(remade, inputs, noise_for(rows))
        assert relative_difference(found[0], features) < 1e-12
        for one, two in zip(found[1], statistics, strict=True):
            assert relative_difference(one, two) < 1e-12
        scale = np.sqrt(sum(np.sum(g.numpy() ** 2) for g in gradients.values()))
        for path, gradient in gradients.items():
            difference = np.linalg.norm(found[2][path].numpy() - gradient.numpy())
            assert difference <= 1e-12 * max(np.linalg.norm(gradient.numpy()), 1e-3 * scale), (remat, path)

    # Precision: variables and features as the policy says; lower precision stays near float64.
    for dtype, variable_dtype, limit in (
        ("float32", "float32", 1e-4),
        ("mixed_bfloat16", "float32", 0.1),
        ("bfloat16", "bfloat16", 0.2),
    ):
        low = make(dtype, "none")
        copy_weights(tower, low)
        for variable in low.parameters().values():
            assert variable.dtype == (variable_dtype if variable.trainable else "float32"), variable.path
        found = low.forward(inputs)[0]
        assert found.dtype == tf.float32
        assert relative_difference(found.numpy(), tower.forward(inputs)[0].numpy()) < limit, dtype


def parameters_of(tower):
    return {path: v for path, v in tower.parameters().items() if v.trainable}
