"""Where a step runs: tf.distribute and DTensor behind one small interface."""
