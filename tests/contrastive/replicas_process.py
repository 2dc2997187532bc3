"""One process, one MirroredStrategy over logical CPUs: Algorithm 1 against the full batch.

Usage: python -m tests.contrastive.replicas_process REPLICAS DTYPE. Prints one JSON object.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import tensorflow as tf

from basic_tf import randomness
from basic_tf.contrastive.gradients import contrastive_gradients
from basic_tf.contrastive.loss import OneReplica, contrastive_loss
from basic_tf.parallel import strategies
from tests.contrastive import dense_reference, small_dual_encoder

PAIRS, GROUP = 24, 2


def build(dtype: str):
    return small_dual_encoder.SmallModel(dtype=dtype, group=GROUP, normalization="ghost")


def main(replicas: int, dtype: str) -> None:
    runtime = strategies.create("mirrored", logical_devices=replicas)
    collectives = runtime.collectives or OneReplica()
    with runtime.scope():
        model = build(dtype)
    images, token_ids = small_dual_encoder.random_batch(PAIRS, seed=replicas)
    key = randomness.step_key(7, 11)
    local = PAIRS // replicas

    def cut(x):
        if replicas == 1:  # one device takes plain tensors
            return x
        return runtime.strategy.experimental_distribute_values_from_function(
            lambda context: x[context.replica_id_in_sync_group * local :][:local]
        )

    parts = cut(images), cut(token_ids)
    parameters = model.parameters()
    trainable = {id(v) for v in model.trainable_variables}
    trained = [path for path, v in parameters.items() if id(v) in trainable]
    text_only = [path for path in trained if not path.startswith("image_")]
    report = {}
    for case, paths, smoothing in (("all", trained, 0.0), ("frozen_image", text_only, 0.1)):
        variables = [parameters[path] for path in paths]
        reference = build(dtype)
        expected = dense_reference.full_batch_gradients(
            reference, images, token_ids, key, [reference.parameters()[p] for p in paths], smoothing
        )
        for microbatch in sorted({local, local // 3}):

            def replica_half(
                images, token_ids, variables=variables, microbatch=microbatch, smoothing=smoothing
            ):
                found = contrastive_gradients(
                    model,
                    images,
                    token_ids,
                    microbatch,
                    noise_key=key,
                    variables=variables,
                    tile=(5, 7),
                    label_smoothing=smoothing,
                    collectives=collectives,
                )
                total = [collectives.sum(g) for g in found.gradients]
                return found.loss, total, found.statistics, found.metrics

            run = tf.function(lambda half=replica_half: runtime.run(half, parts))
            loss, gradients, statistics, metrics = runtime.local(run())
            report[f"{case}, microbatch {microbatch}"] = {
                "error": dense_reference.exactness(gradients, expected[1]),
                "loss": abs(float(loss) - float(expected[0])),
                "statistics": max(
                    [0.0, *(float(np.abs(a - b).max()) for a, b in zip(statistics, expected[2], strict=True))]
                ),
                "accuracy": float(metrics["text_to_image_accuracy"]),
            }
    report["embeddings"] = embedding_errors(runtime, dtype, local)
    print(json.dumps(report))


def embedding_errors(runtime, dtype: str, local: int) -> dict:
    """`contrastive_loss` under a tape in each replica: own rows, and the temperature's shares."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2, PAIRS, 6))
    rows[1] += 0.5 * rows[0]
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    images, texts = (tf.constant(x, dtype) for x in rows)

    collectives = runtime.collectives or OneReplica()

    def replica_half():
        start = collectives.replica_index() * local
        own = images[start : start + local], texts[start : start + local], tf.constant(4.4, dtype)
        with tf.GradientTape() as tape:
            tape.watch(own)
            loss = contrastive_loss(*own, tile=(3, 10), collectives=collectives)
        found = tape.gradient(loss, own)
        gather = collectives.all_gather
        return loss, gather(found[0]), gather(found[1]), collectives.sum(found[2])

    found = runtime.local(tf.function(lambda: runtime.run(replica_half, ()))())
    expected = dense_reference.numpy_loss_and_gradients(images, texts, 4.4)
    names = ("loss", "images", "texts", "temperature")
    return {
        name: float(np.linalg.norm(np.asarray(f) - e) / np.linalg.norm(e))
        for name, f, e in zip(names, found, expected)
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
