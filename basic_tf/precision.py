"""The type that sums and statistics are taken in."""

import tensorflow as tf


def wide(*dtypes) -> tf.DType:
    """At least float32: bfloat16 and float16 are widened, for sums stand still in them; with a float64, float64."""
    return tf.float64 if tf.float64 in map(tf.as_dtype, dtypes) else tf.float32
