"""What both towers share: a sequence of blocks, run in order, with rematerialisation by policy."""

import keras
import tensorflow as tf

from basic_tf.randomness import Noise
from basic_tf.towers.layers import INITIALIZERS, REMATERIALISATIONS, Block, WeightSpec


class Tower(keras.Model):
    """A sequence of blocks from inputs to features [B, output_width].

    Subclasses set `blocks` (each maps a state to a state; `encode_inputs` makes the first state) and
    `output_width`. `head_blocks` are blocks that `forward` does not run (a classifier).
    """

    def __init__(self, *, dtype, seed: int, initializer: str, remat: str, name: str):
        super().__init__(name=name, dtype=dtype, autocast=False)
        if remat not in REMATERIALISATIONS:
            raise ValueError(f"remat is {remat!r}; expected one of {', '.join(REMATERIALISATIONS)}")
        if initializer not in INITIALIZERS:
            raise ValueError(f"initializer is {initializer!r}; expected one of {', '.join(INITIALIZERS)}")
        self.seed, self.initializer, self.remat = int(seed), initializer, remat
        self.blocks: list[Block] = []
        self.head_blocks: list[Block] = []
        self.output_width = 0

    def add_seed(self, seed: int) -> None:
        """Adds a run's seed to the tower's own, before its weights are made. Raises RuntimeError afterwards."""
        if self.built:
            raise RuntimeError(
                f"the weights of {self.name} exist already; add the run's seed before they are made"
            )
        self.seed += int(seed)

    def get_config(self):
        """Raises NotImplementedError. Keras would write down the defaults in place of the arguments."""
        raise NotImplementedError(
            f"{self.name} cannot be saved with its configuration (model.save, clone_model). Keep its weights with "
            f"save_weights and construct {type(self).__name__} with the same arguments before load_weights; for serving, "
            "python -m basic_tf.export writes a run as a SavedModel"
        )

    def specs(self) -> list[WeightSpec]:
        """Every weight, declared, in order; no weight is allocated."""
        return [spec for block in (*self.blocks, *self.head_blocks) for spec in block.specs()]

    def build(self, input_shape=None) -> None:
        """Creates exactly the weights of `specs`; the input shape is not needed."""
        with tf.init_scope():
            for block in (*self.blocks, *self.head_blocks):
                block.create(self.seed, self.initializer)
        self.built = True

    def parameters(self) -> dict:
        """path -> Keras variable, in the order of `specs`, moving statistics included; builds if needed."""
        if not self.built:
            self.build()
        found = {}
        for block in (*self.blocks, *self.head_blocks):
            found.update(block.parameters())
        return found

    @property
    def group_size(self) -> int:
        """Consecutive rows that ghost BatchNorm normalises together in training, of which every microbatch must hold whole
        groups; 1 where there is none.
        """
        norms = (norm for block in self.blocks for norm in block.normalizations())
        return max((norm.group for norm in norms if norm.policy == "ghost"), default=1)

    def encode_inputs(self, inputs):
        """The first state from the inputs."""
        return inputs

    @tf.autograph.experimental.do_not_convert
    def forward(self, inputs, training: bool = False, noise: Noise | None = None):
        """(features [B, output_width] in at least float32, statistics: see `statistic_variables`)."""
        if not self.built:
            self.build()
        state, statistics = self.encode_inputs(inputs), []
        for index in range(len(self.blocks)):
            state, found = self.run_block(index, state, training, noise)
            statistics += found
        return state, statistics

    @tf.autograph.experimental.do_not_convert
    def run_block(self, index: int, state, training: bool = False, noise: Noise | None = None):
        """One block: (next state, its statistics), recomputed on the way back if `remat` is 'blocks'."""
        block = self.blocks[index]
        if self.remat != "blocks":
            return block.apply(state, training, noise)
        # Gradients reach a recomputed function through its arguments alone: float tensors are arguments, the
        # rest (token ids, masks, noise) is closed over. Statistics are outputs; no variable changes inside.
        flat = tf.nest.flatten(state)
        floats = [i for i, tensor in enumerate(flat) if tensor.dtype.is_floating]

        structure: list = []

        def recomputed(*tensors):
            inside = list(flat)
            for i, tensor in zip(floats, tensors):
                inside[i] = tensor
            outcome, found = block.apply(tf.nest.pack_sequence_as(state, inside), training, noise)
            structure.append(outcome)
            return (*tf.nest.flatten(outcome), *found)

        outputs = list(tf.recompute_grad(recomputed)(*[flat[i] for i in floats]))
        size = len(tf.nest.flatten(structure[0]))
        return tf.nest.pack_sequence_as(structure[0], outputs[:size]), outputs[size:]

    def call(self, inputs, training: bool = False, noise: Noise | None = None):
        """Keras' entry: features [B, output_width]."""
        return self.forward(inputs, bool(training), noise)[0]

    @property
    def statistic_variables(self) -> list:
        """BatchNorm's moving means and variances, ordered as the statistics; builds if needed."""
        if not self.built:
            self.build()
        return [v for block in self.blocks for norm in block.normalizations() for v in norm.moving_statistics]

    def moved_statistics(self, statistics: list) -> list[tuple]:
        """(variable, new value) pairs: moving averages advanced by one step's statistics. Assigns nothing."""
        if not statistics:
            return []
        momenta = [
            n.momentum for block in self.blocks for n in block.normalizations() for _ in n.moving_statistics
        ]
        variables = self.statistic_variables
        if len(statistics) != len(variables):
            raise ValueError(
                f"{len(statistics)} statistics for {len(variables)} moving averages of {self.name}"
            )
        moved = []
        for variable, statistic, momentum in zip(variables, statistics, momenta):
            value = tf.convert_to_tensor(variable.value)
            moved.append((variable, value + (1.0 - momentum) * (tf.cast(statistic, value.dtype) - value)))
        return moved

    def update_statistics(self, statistics: list) -> None:
        """Advances the moving averages: once a step, outside any recomputed region."""
        for variable, value in self.moved_statistics(statistics):
            variable.assign(value)
