"""The graph that is served: encoded pictures and plain sentences in, unit embeddings and probabilities out.

Signatures (every result is a dictionary):

- `encode_image`: `image_bytes` string [N], encoded JPEG, PNG, GIF (first frame), BMP or WebP -> `embeddings`
[N, E]
- `encode_pixels`: `images` uint8 [N, S, S, 3] -> `embeddings` [N, E]
- `encode_text`: `texts` string [N] -> `embeddings` [N, E]
- `classify`: `image_bytes` string [N] and `classes` string [C], names or whole prompts, embedded as they are
->
  `probabilities` [N, C]
- `classify_names`: the same inputs; each name is put into the templates stored at export and its prompts are
averaged
- `serving_default` is `classify`

All results are float32; embeddings are unit rows; probabilities are softmax(cosine / learned temperature).
Decoding and resizing are those of the evaluation (`decoding`). An empty text has no embedding: its row is zeros, its cosine
with every picture 0.

Transparency of PNG and WebP is laid on white. TensorFlow's decoders ignore how a camera was held, put transparent GIFs on
black, and read BMPs with a palette as if its numbers were shades of grey; animated WebP is refused. predict.py hands such
files over as PNG. A row that is no picture at all fails the
request with an error that lists the rows; a picture that is cut short fails it with the decoder's own
message, so send doubtful files one by one (predict.py checks each first).
"""

from collections.abc import Sequence

import tensorflow as tf

from basic_tf.data.images import ImageAugmentation
from basic_tf.serving import decoding


class ServingModule(tf.Module):
    """Tokenizer, picture decoding and towers behind string inputs.

    model: offers `encode_image(uint8 [N, S, S, 3])`, `encode_text(int32 [N, T])` (unit rows [N, E]),
    `log_inverse_temperature` and `parameters()`. tokenizer: a trackable callable, string [N] -> int32 [N, T].
    preprocessing: the augmentation of the training data, whose `evaluation()` is used, or S alone for whole
    pictures made square. templates: the prompts of `classify_names`, each with one `{}`.
    """

    def __init__(
        self, model, tokenizer, preprocessing: ImageAugmentation | int, templates: Sequence[str] = ("{}",)
    ):
        super().__init__(name="basic")
        self.view = decoding.evaluation_view(preprocessing)
        self.image_size = self.view.output_size
        self.tokenizer = tokenizer
        # The plain variables are what is saved: the process that loads them then needs neither Keras nor this
        # code.
        self.weights = [_plain_variable(weight) for weight in model.parameters().values()]
        self.log_inverse_temperature = _plain_variable(model.log_inverse_temperature)
        size = self.image_size
        # Each tower is traced once and called by all signatures that need it.
        self._embed_pixels = tf.function(
            lambda images: tf.cast(model.encode_image(images), tf.float32),
            input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)],
        )
        self._embed_bytes = tf.function(
            lambda image_bytes: self._embed_pixels(decoding.decode_batch(image_bytes, self.view)),
            input_signature=[tf.TensorSpec([None], tf.string)],
        )
        self.tokens = tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])
        ids = self.tokens.get_concrete_function().structured_outputs  # [None, T]
        self.embed_tokens = tf.function(
            lambda ids: tf.cast(model.encode_text(ids), tf.float32),
            input_signature=[tf.TensorSpec(ids.shape, ids.dtype)],
        )
        self._embed_texts = tf.function(
            lambda texts: self.embed_tokens(self.tokens(texts)),
            input_signature=[tf.TensorSpec([None], tf.string)],
        )
        before, after = zip(*(template.split("{}") for template in templates))
        self._before, self._after = tuple(before), tuple(after)

    def _probabilities(self, image_embeddings: tf.Tensor, class_embeddings: tf.Tensor) -> tf.Tensor:
        cosines = tf.matmul(image_embeddings, class_embeddings, transpose_b=True)  # [N, C]
        return tf.nn.softmax(tf.exp(tf.cast(self.log_inverse_temperature, tf.float32)) * cosines)

    def _embed_names(self, names: tf.Tensor) -> tf.Tensor:
        """Embed, normalise, mean over templates, normalise; one template at a time bounds the memory."""
        total = tf.map_fn(
            lambda template: self._embed_texts(tf.strings.join([template[0], names, template[1]])),
            (tf.constant(self._before), tf.constant(self._after)),
            fn_output_signature=tf.float32,
            parallel_iterations=1,
        )  # [templates, C, E]
        return tf.math.l2_normalize(tf.reduce_mean(total, axis=0), axis=-1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def encode_image(self, image_bytes):
        """See the module's table."""
        return {"embeddings": self._embed_bytes(image_bytes)}

    @tf.function
    def encode_pixels(self, images):
        """See the module's table."""
        return {"embeddings": self._embed_pixels(images)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")])
    def encode_text(self, texts):
        """See the module's table."""
        return {"embeddings": self._embed_texts(texts)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="image_bytes"),
            tf.TensorSpec([None], tf.string, name="classes"),
        ]
    )
    def classify(self, image_bytes, classes):
        """See the module's table."""
        return {
            "probabilities": self._probabilities(self._embed_bytes(image_bytes), self._embed_texts(classes))
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="image_bytes"),
            tf.TensorSpec([None], tf.string, name="classes"),
        ]
    )
    def classify_names(self, image_bytes, classes):
        """See the module's table."""
        return {
            "probabilities": self._probabilities(self._embed_bytes(image_bytes), self._embed_names(classes))
        }

    def signatures(self) -> dict:
        """The concrete functions by signature name."""
        size = self.image_size
        pixels = tf.TensorSpec([None, size, size, 3], tf.uint8, name="images")
        classify = self.classify.get_concrete_function()
        return {
            "encode_image": self.encode_image.get_concrete_function(),
            "encode_pixels": self.encode_pixels.get_concrete_function(pixels),
            "encode_text": self.encode_text.get_concrete_function(),
            "classify": classify,
            "classify_names": self.classify_names.get_concrete_function(),
            "serving_default": classify,
        }


def _plain_variable(weight) -> tf.Variable:
    """The tf.Variable inside a Keras variable."""
    value = weight.value if hasattr(weight, "value") and not callable(weight.value) else weight
    if not isinstance(value, tf.Variable):
        raise TypeError(
            f"expected a variable of TensorFlow or of Keras on TensorFlow, received {type(value).__name__}"
        )
    return value
