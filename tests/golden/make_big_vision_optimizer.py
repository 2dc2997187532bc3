"""Makes big_vision_optimizer.npz: 50 steps of `optax.adafactor` as big_vision runs it.

Made with optax 0.2.8, jax 0.10.2 and numpy 2.4.6, in an environment of their own (`pip install optax jax`):
    python make_big_vision_optimizer.py
Gradients are not stored: they follow from the seed (NumPy's PCG64 and normal draws, which the test repeats).
The update is jitted, as everybody runs it. It matters: outside jit JAX also rounds the product of the
bfloat16 momentum.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {
    "convolution": (3, 3, 64, 160),
    "depthwise": (3, 3, 1, 160),
    "matrix": (96, 384),
    "relative_bias": (169, 12),
    "bias": (768,),
    "scalar": (),
}
STEPS = 50
RATE = 2.0**-10
KEPT = 997  # elements of each parameter that are stored, evenly spaced


def main():
    """Writes, per momentum dtype and parameter, the sampled values after steps 1, 10 and 50."""
    result = {}
    for dtype in ("float32", "bfloat16"):
        for number, (name, shape) in enumerate(SHAPES.items()):
            rng = np.random.default_rng(1000 + number)
            value = jnp.asarray(rng.normal(size=shape).astype(np.float32) * 0.02)
            optimizer = optax.adafactor(
                learning_rate=None,
                min_dim_size_to_factor=32,
                multiply_by_parameter_scale=False,
                clipping_threshold=None,
                momentum=0.9,
                dtype_momentum=jnp.dtype(dtype),
                eps=1e-30,
            )
            state = optimizer.init(value)
            update = jax.jit(optimizer.update)
            for step in range(STEPS):
                gradient = jnp.asarray(rng.normal(size=shape).astype(np.float32) * 10.0 ** rng.uniform(-4, 0))
                direction, state = update(gradient, state, value)
                value = value + RATE * direction  # optax has turned the sign
                if step + 1 in (1, 10, STEPS):
                    flat = np.asarray(value).reshape(-1)
                    spaced = np.linspace(0, flat.size - 1, min(KEPT, flat.size)).astype(int)
                    result[f"{dtype}/{name}/{step + 1}"] = flat[spaced]
    np.savez_compressed(pathlib.Path(__file__).with_suffix("").parent / "big_vision_optimizer.npz", **result)


if __name__ == "__main__":
    main()
