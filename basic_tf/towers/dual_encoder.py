"""The dual encoder: two towers, two linear maps to a shared unit sphere, one learned temperature."""

import math

import keras
import tensorflow as tf

from basic_tf.precision import wide
from basic_tf.randomness import Noise
from basic_tf.towers import ops
from basic_tf.towers.layers import Block, Dense, WeightSpec
from basic_tf.towers.tower import Tower


class DualEncoder(keras.Model):
    """Pictures and texts as unit vectors of one space (BASIC section 3; ALIGN for `image_projection=False`).

    Args:
      image_tower, text_tower: the towers.
      embedding_dim: E, the width of the shared space. Without a projection the tower's own width must equal
        it.
      image_projection, text_projection: whether a bias-free linear map follows the tower.
      initial_temperature: tau at step 0; the variable is log(1 / tau).
      dtype: Keras dtype policy of the projections; None takes the image tower's.
      seed: initial values of the projections follow from (seed, path).
    """

    def __init__(
        self,
        image_tower: Tower,
        text_tower: Tower,
        embedding_dim: int = 512,
        image_projection: bool = True,
        text_projection: bool = True,
        initial_temperature: float = 0.07,
        dtype: str | None = None,
        seed: int = 0,
        name: str = "dual_encoder",
    ):
        super().__init__(name=name, dtype=dtype or image_tower.dtype_policy, autocast=False)
        if initial_temperature <= 0:
            raise ValueError(f"initial_temperature is {initial_temperature}; expected a positive number")
        self.image_tower, self.text_tower = image_tower, text_tower
        self.embedding_dim, self.initial_temperature, self.seed = (
            embedding_dim,
            initial_temperature,
            int(seed),
        )
        self.image_projection = self._projection("image", image_tower, image_projection)
        self.text_projection = self._projection("text", text_tower, text_projection)
        self.log_inverse_temperature = None

    def _projection(self, side: str, tower: Tower, wanted: bool) -> Dense | None:
        if wanted:
            path = f"{side}_projection"
            return Dense(
                path, tower.output_width, self.embedding_dim, use_bias=False, dtype=self.dtype_policy
            )
        if tower.output_width != self.embedding_dim:
            raise ValueError(
                f"without {side}_projection the embeddings are as wide as the {side} tower's features: set "
                f"embedding_dim to {tower.output_width} (it is {self.embedding_dim})"
            )
        return None

    def add_seed(self, seed: int) -> None:
        """Adds a run's seed to those of towers and projections, before their weights are made."""
        self.image_tower.add_seed(seed)
        self.text_tower.add_seed(seed)
        self.seed += int(seed)

    def _parts(self) -> list[tuple[str, Tower | Block]]:
        parts = [("image_tower/", self.image_tower), ("text_tower/", self.text_tower)]
        parts += [("", block) for block in (self.image_projection, self.text_projection) if block is not None]
        return parts

    def specs(self) -> list[WeightSpec]:
        """Every weight, declared; the temperature is last (it starts at log(1 / tau), not at zero)."""
        found = [s._replace(path=prefix + s.path) for prefix, part in self._parts() for s in part.specs()]
        return [*found, WeightSpec("log_inverse_temperature", (), "zeros")]

    def build(self, input_shape=None) -> None:
        """Creates exactly the weights of `specs`."""
        with tf.init_scope():
            for _, part in self._parts():
                if isinstance(part, Tower):
                    if not part.built:
                        part.build()
                else:
                    part.create(self.seed)
            if self.log_inverse_temperature is None:
                # At least float32, whatever the other weights are: bfloat16 would hold it to 3 digits only.
                self.log_inverse_temperature = self.add_weight(
                    shape=(),
                    initializer=keras.initializers.Constant(-math.log(self.initial_temperature)),
                    dtype=wide(self.compute_dtype).name,
                    autocast=False,
                    name="log_inverse_temperature",
                )
        self.built = True

    def parameters(self) -> dict:
        """path -> Keras variable, in the order of `specs`, moving statistics included; builds if needed."""
        if not self.built:
            self.build()
        found = {prefix + path: v for prefix, part in self._parts() for path, v in part.parameters().items()}
        return {**found, "log_inverse_temperature": self.log_inverse_temperature}

    def image_features(self, images, training: bool = False, noise: Noise | None = None):
        """images [B, H, W, 3], uint8 or float in [-1, 1] -> (features [B, width], BatchNorm statistics).

        What a frozen image tower says of a picture: computed once while `project_image` learns. Images [B, width] are
        such features already (data/features.py) and pass as they are. ValueError for another width.
        """
        if not self.built:
            self.build()
        if len(images.shape) == 2:
            if images.shape[-1] != self.image_tower.output_width:
                raise ValueError(
                    f"features of width {images.shape[-1]} for an image tower whose features are "
                    f"{self.image_tower.output_width} wide: they are another tower's"
                )
            return images, []
        return self.image_tower.forward(images, training, noise)

    def text_features(self, token_ids, training: bool = False, noise: Noise | None = None):
        """token_ids [B, T] -> (features [B, width], statistics: always empty)."""
        if not self.built:
            self.build()
        return self.text_tower.forward(token_ids, training, noise)

    def project_image(self, features) -> tf.Tensor:
        """Image features [B, width] -> unit rows [B, E]."""
        return self._unit_rows(self.image_projection, features)

    def project_text(self, features) -> tf.Tensor:
        """Text features [B, width] -> unit rows [B, E]."""
        return self._unit_rows(self.text_projection, features)

    @staticmethod
    def _unit_rows(projection: Dense | None, features) -> tf.Tensor:
        if projection is not None:
            features = projection.project(tf.cast(features, projection.compute_dtype))
        return ops.unit_rows(features)

    def image_embeddings(self, images, training: bool = False, noise: Noise | None = None):
        """images [B, H, W, 3], uint8 or float in [-1, 1] -> (unit rows [B, E], BatchNorm statistics)."""
        features, statistics = self.image_features(images, training, noise)
        return self.project_image(features), statistics

    def text_embeddings(self, token_ids, training: bool = False, noise: Noise | None = None):
        """token_ids [B, T] -> (unit rows [B, E], statistics: always empty)."""
        features, statistics = self.text_features(token_ids, training, noise)
        return self.project_text(features), statistics

    def encode_image(self, images) -> tf.Tensor:
        """images -> unit rows [B, E], for inference."""
        return self.image_embeddings(images)[0]

    def encode_text(self, token_ids) -> tf.Tensor:
        """token_ids -> unit rows [B, E], for inference."""
        return self.text_embeddings(token_ids)[0]

    def call(self, inputs, training: bool = False, noise: Noise | None = None):
        """Keras' entry: (images, token_ids) -> (image rows, text rows)."""
        images, token_ids = inputs
        return (
            self.image_embeddings(images, bool(training), noise)[0],
            self.text_embeddings(token_ids, bool(training), noise)[0],
        )

    @property
    def statistic_variables(self) -> list:
        """The image tower's moving statistics."""
        return self.image_tower.statistic_variables

    def moved_statistics(self, statistics: list) -> list[tuple]:
        """(variable, new value) pairs; assigns nothing."""
        return self.image_tower.moved_statistics(statistics)

    def update_statistics(self, statistics: list) -> None:
        """Advances the image tower's moving statistics by those of one step."""
        self.image_tower.update_statistics(statistics)
