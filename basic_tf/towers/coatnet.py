"""CoAtNet, the image tower of BASIC (arXiv 2106.04803; BASIC section on the models)."""

import tensorflow as tf

from basic_tf.towers.coatnet_blocks import (
    POOLS,
    Classifier,
    MBConv,
    NormPolicy,
    PooledFeatures,
    RelativeTransformer,
    Size,
    Stem,
)
from basic_tf.towers.coatnet_table import CoAtNetTable, table_of
from basic_tf.towers.tower import Tower


class CoAtNet(Tower):
    """Pictures [B, H, W, 3] -> features [B, D].

    Args:
      variant: 'coatnet_0' ... 'coatnet_7', 'coatnet_6_as_printed', or a `CoAtNetTable`.
      image_size: side of the square pictures in pixels, or (height, width). The relative biases depend on it.
      downsample: where the stride of a stage's first MBConv sits: 'expand' or 'depthwise'.
      mbconv_pool, attention_pool: pooling of the shortcuts ('average' or 'max'); the attention branch pools
        alike.
      se_ratio: width of the SE bottleneck in units of the block's width; 0 switches SE off.
      expansion: inner width of MBConv and FFN in units of the block's width.
      stochastic_depth: rate of a hypothetical block after the last; block i of n drops rows at rate * i / n.
      batch_norm: 'frozen', 'ghost' (groups of `ghost_size` consecutive rows) or 'layer'.
      num_classes: adds the classification head, used by `logits`.
      pre_logits: whether a tanh layer as wide as the features comes before the classifier, as in CoAtNet.
      remat: 'none', 'blocks' or 'norms_and_activations'.
      dtype: a Keras dtype policy by name: 'float32', 'mixed_bfloat16', 'bfloat16', 'float64'.
      seed: initial values follow from (seed, weight path).
      initializer: 'normal' is N(0, 0.02) for every kernel, as in CoAtNet; 'fan_in' scales each by
        its fan in, for narrow towers and short runs.
    """

    def __init__(
        self,
        variant: str | CoAtNetTable = "coatnet_0",
        image_size: int | tuple[int, int] = 224,
        downsample: str = "expand",
        mbconv_pool: str = "average",
        attention_pool: str = "max",
        se_ratio: float = 0.25,
        expansion: int = 4,
        stochastic_depth: float = 0.0,
        batch_norm: str = "frozen",
        ghost_size: int = 32,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        layer_norm_epsilon: float = 1e-5,
        num_classes: int | None = None,
        pre_logits: bool = True,
        remat: str = "none",
        dtype: str | None = None,
        seed: int = 0,
        initializer: str = "normal",
        name: str = "coatnet",
    ):
        super().__init__(dtype=dtype, seed=seed, initializer=initializer, remat=remat, name=name)
        for option, pool in (("mbconv_pool", mbconv_pool), ("attention_pool", attention_pool)):
            if pool not in POOLS:
                raise ValueError(f"{option} is {pool!r}; expected one of {', '.join(POOLS)}")
        if not 0.0 <= stochastic_depth < 1.0:
            raise ValueError(f"stochastic_depth is {stochastic_depth}; expected a rate in [0, 1)")
        self.table = table = table_of(variant)
        self.image_size = Size((image_size, image_size) if isinstance(image_size, int) else image_size)
        self.num_classes = num_classes
        norms = NormPolicy(
            batch_norm, ghost_size, batch_norm_momentum, batch_norm_epsilon, layer_norm_epsilon
        )
        policy = self.dtype_policy

        width, size = table.stem[1], self.image_size.halved()
        blocks = [Stem("stem", *table.stem, norms, dtype=policy, remat=remat)]
        total = sum(stage.blocks for stage in table.stages)
        number = position = done = 0  # stage number, block within it, blocks so far
        for stage in table.stages:
            if stage.stride == 2:
                number, position = number + 1, 0
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                size = size.halved() if stride == 2 else size
                path = f"stage{max(number, 1)}/block{position}"
                common = {
                    "expansion": expansion,
                    "drop_rate": stochastic_depth * done / total,
                    "dtype": policy,
                    "remat": remat,
                }
                if stage.kind == "mbconv":
                    block = MBConv(
                        path, width, stage.width, stride, norms,
                        se_ratio=se_ratio, downsample=downsample, shortcut_pool=mbconv_pool, **common,
                    )  # fmt: skip
                else:
                    block = RelativeTransformer(
                        path, width, stage.width, stride, table.head_dim, size,
                        pool=attention_pool, layer_norm_epsilon=layer_norm_epsilon, **common,
                    )  # fmt: skip
                blocks.append(block)
                width, position, done = stage.width, position + 1, done + 1
        blocks.append(PooledFeatures("features", width, layer_norm_epsilon, dtype=policy, remat=remat))
        self.blocks = blocks
        self.output_width = width
        self.head_blocks = []
        if num_classes:
            self.head_blocks = [Classifier("head", width, num_classes, pre_logits, dtype=policy)]

    def encode_inputs(self, inputs):
        """Checks the pictures; scaling happens in the stem, so that uint8 pictures stay small until then."""
        pictures = tf.convert_to_tensor(inputs)
        expected = (*self.image_size, 3)
        if pictures.shape.rank != 4 or any(n not in (None, e) for n, e in zip(pictures.shape[1:], expected)):
            raise ValueError(
                f"pictures have shape {tuple(pictures.shape)}; expected [B, {', '.join(map(str, expected))}]"
            )
        return tf.ensure_shape(pictures, (None, *expected)) if None in tuple(pictures.shape[1:]) else pictures

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """features [B, D] of `forward` -> class logits [B, num_classes] in at least float32."""
        if not self.head_blocks:
            raise ValueError(f"{self.name} has no classifier: construct it with num_classes")
        return self.head_blocks[0].apply(features)[0]

    def multiply_adds(self, image_size: int | None = None) -> dict[str, int]:
        """Multiply-adds of one example's forward pass: block path -> count (times 2 for FLOPs)."""
        size = self.image_size if image_size is None else Size((image_size, image_size))
        counts = {}
        for block in self.blocks:
            counts[block.block_path], size = block.multiply_adds(size)
        return counts
