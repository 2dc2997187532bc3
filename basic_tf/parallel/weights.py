"""The one reader of weights (design: a tower is written once and is sharded by configuration)."""

import tensorflow as tf


def gathered(weight, dtype=None) -> tf.Tensor:
    """The whole weight in the computation dtype.

    weight: a Keras variable, a tf.Variable or a DTensor variable. dtype: the computation dtype; None keeps the
    variable's own. A plain variable is cast. A sharded DTensor variable is cast shard by shard, then laid out as
    replicated: half the bytes on the wire when computing in bfloat16. Inside a recomputed block the gathered copy
    lives only as long as the block (BASIC section on SPMD weight sharding).
    """
    value = weight.value if hasattr(weight, "value") and not callable(weight.value) else weight
    layout = getattr(value, "layout", None)
    tensor = tf.convert_to_tensor(value)
    if dtype is not None:
        tensor = tf.cast(tensor, dtype)
    if layout is None:
        return tensor
    from tensorflow.experimental import dtensor

    return dtensor.relayout(tensor, dtensor.Layout.replicated(layout.mesh, rank=layout.rank))
