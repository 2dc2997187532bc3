"""The type that sums and statistics are taken in."""

import tensorflow as tf


def wide(dtype) -> tf.DType:
    """At least float32: bfloat16 and float16 are widened, for sums stand still in them; float64 stays float64."""
    return tf.float64 if tf.as_dtype(dtype) == tf.float64 else tf.float32
