"""A program of its own: what the mesh runtime and the loss on a mesh do, on a 2 x 2 mesh of logical CPU devices.

Run: python -m tests.parallel.on_mesh [batch|model]. Fails by itself; prints one word for each thing that held.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from basic_tf.contrastive import global_view
from basic_tf.optimization import rules
from basic_tf.parallel import mesh, weights
from tests.contrastive import dense_reference

RNG = np.random.default_rng(3)


def check_variables(runtime: mesh.MeshRuntime, axis: str) -> None:
    values = {"kernel": RNG.normal(size=(6, 8)).astype(np.float32), "bias": RNG.normal(size=5)}
    with runtime.scope():
        made = {
            name: keras.Variable(lambda shape, dtype, v=value: v, shape=value.shape, dtype=value.dtype.name)
            for name, value in values.items()
        }
    assert list(weights.layout_of(made["kernel"]).sharding_specs) == ["unsharded", axis]
    assert list(weights.layout_of(made["bias"]).sharding_specs) == ["unsharded"]
    runtime.place(made, {"kernel": ("model", None)})
    assert list(weights.layout_of(made["kernel"]).sharding_specs) == [axis, "unsharded"]
    for name, value in values.items():
        np.testing.assert_array_equal(weights.logical_array(made[name]), value)
        weights.assign_array(made[name], 2 * value)
        np.testing.assert_array_equal(weights.logical_array(made[name]), 2 * value)
    plain = {name: weights.underlying(variable) for name, variable in made.items()}
    assert runtime.replica_spread(plain) == {}
    # 48 float32 in halves, 5 float64 whole.
    assert runtime.bytes_per_device(list(made.values())) == [4 * 24 + 8 * 5] * 4
    check_spread(runtime, weights.underlying(made["bias"]))
    try:
        weights.packed(np.zeros((3, 8)), weights.layout_of(made["kernel"]))
    except ValueError as error:
        assert "cannot be cut into 2 parts" in str(error)
    else:
        raise AssertionError("uneven shards were made")
    print("variables")


def spread(runtime: mesh.MeshRuntime, array: np.ndarray):
    return weights.packed(array, dtensor.Layout.batch_sharded(runtime.mesh, "batch", array.ndim))


def whole(tensor) -> np.ndarray:
    """Put together from the shards on the host: no operation of DTensor's takes part."""
    found = np.empty(tensor.shape, tensor.dtype.as_numpy_dtype)
    slices = weights.local_slices(dtensor.fetch_layout(tensor), tensor.shape)
    for part, own in zip(dtensor.unpack(tensor), slices, strict=True):
        found[own] = part.numpy()
    return found


def check_spread(runtime: mesh.MeshRuntime, variable) -> None:
    """Copies that differ are found. `pack` makes replicated copies equal itself, so `unpack` is bent instead."""
    unpack = dtensor.unpack
    mesh.dtensor.unpack = lambda value: [part + 0.5 * (k == 3) for k, part in enumerate(unpack(value))]
    try:
        found = runtime.replica_spread({"bias": variable})
    finally:
        mesh.dtensor.unpack = unpack
    assert list(found) == ["bias"] and np.isclose(found["bias"], 0.5)


def check_input(runtime: mesh.MeshRuntime) -> None:
    rows = {"images": RNG.integers(0, 256, (2, 8, 3, 3), np.uint8), "examples": np.arange(16).reshape(2, 8)}
    batches = list(runtime.iterator(lambda host, hosts: tf.data.Dataset.from_tensor_slices(rows)))
    assert len(batches) == 2
    for step, batch in enumerate(batches):
        for key, value in rows.items():
            np.testing.assert_array_equal(whole(batch[key]), value[step])
        assert dtensor.unpack(batch["images"])[0].shape[0] == 4  # half of the rows
    print("input")


def check_microbatches(runtime: mesh.MeshRuntime) -> None:
    """24 rows on 2 devices, 3 microbatches: 4 consecutive rows of each device, and back to their place."""
    rows = RNG.integers(0, 1000, (24, 5)).astype(np.float32)
    collectives = runtime.collectives

    def taken(rows):
        parts = [collectives.microbatch(rows, i, 3) for i in range(3)]
        return *parts, tf.add_n([collectives.place_microbatch(part, i, 3) for i, part in enumerate(parts)])

    *parts, back = runtime.run(taken, (spread(runtime, rows),))
    for i, part in enumerate(parts):
        expected = np.concatenate([rows[4 * i : 4 * i + 4], rows[12 + 4 * i : 16 + 4 * i]])
        np.testing.assert_array_equal(whole(part), expected)
    np.testing.assert_array_equal(whole(back), rows)
    print("microbatches")


def check_loss(runtime: mesh.MeshRuntime) -> None:
    """Value, gradients and metrics against the dense NumPy form, with one block of columns and with several."""
    for pairs, tile, smoothing, log_scale in (
        (14, 100, 0.0, 2.3),
        (18, (1, 6), 0.2, 4.4),
        (6, (1, 1), 0.0, 9.0),
    ):
        rows = RNG.normal(size=(2, pairs, 5))
        rows[1] += 0.5 * rows[0]
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)

        def loss(images, texts, tile=tile, smoothing=smoothing, log_scale=log_scale):
            value = global_view.loss_value_and_gradients(
                images, texts, tf.constant(log_scale, tf.float64), runtime.collectives,
                tile=tile, label_smoothing=smoothing, max_inverse_temperature=100.0,
            )  # fmt: skip
            gathered = [runtime.collectives.all_gather(g) for g in value[1:3]]
            return value.loss, *gathered, value.log_inverse_temperature, value.metrics

        *found, metrics = runtime.local(runtime.run(loss, tuple(spread(runtime, x) for x in rows)))
        bound = min(log_scale, np.log(100.0))
        expected = list(dense_reference.numpy_loss_and_gradients(*rows, bound, smoothing))
        if log_scale > bound:
            expected[3] = 0.0
        for f, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(f.numpy(), e, rtol=1e-11, atol=1e-13)
        similarity = rows[0] @ rows[1].T
        i2t = np.mean(similarity.argmax(1) == np.arange(pairs))
        t2i = np.mean(similarity.argmax(0) == np.arange(pairs))
        assert [float(metrics[f"{name}_accuracy"]) for name in ("image_to_text", "text_to_image")] == [
            i2t,
            t2i,
        ]
        np.testing.assert_allclose(float(metrics["positive_similarity"]), np.trace(similarity) / pairs)
    print("loss")


def main(axis: str = "model") -> None:
    shape = mesh.MeshShape("2x2", smallest_sharded=16, shard_over=axis)
    runtime = mesh.create(shape, rules.default_layout)
    assert runtime.any_host([True, False]) == [True, False]
    check_variables(runtime, axis)
    if axis == "model":
        check_input(runtime)
        check_microbatches(runtime)
        check_loss(runtime)


if __name__ == "__main__":
    main(*sys.argv[1:])
