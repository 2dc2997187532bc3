"""Text to token ids: a SentencePiece model through tensorflow_text, in Python, in tf.data and inside a
SavedModel.
"""

import tensorflow as tf


class Tokenizer(tf.Module):
    """Strings [N] -> int32 [N, length]: SentencePiece ids, cut at `length`, filled up with 0 = padding.

    The model carries its own normaliser (tools/train_tokenizer.py uses NFKC with case folding), so "A Cat"
    and "a cat" have the same ids. There are no begin and end tokens: the text tower is bidirectional and
    averages over the tokens that are not padding. As a tf.Module its table is saved with whatever module
    holds it; a process that loads such a SavedModel must `import tensorflow_text`.
    """

    def __init__(self, model_file: str, length: int = 64):
        """model_file: a SentencePiece model (any tf.io.gfile path) whose id 0 is padding. length: tokens per
        text.
        """
        super().__init__(name="tokenizer")
        import tensorflow_text as text  # 0.15 s, and its ops are needed here alone

        if length < 1:
            raise ValueError(f"length must be at least 1 token, got {length}")
        try:
            with tf.io.gfile.GFile(model_file, "rb") as file:
                model = file.read()
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(
                f"no tokenizer model at {model_file}; train one with tools/train_tokenizer.py"
            ) from error
        self.length = int(length)
        try:
            self._sentencepiece = text.SentencepieceTokenizer(model=model, out_type=tf.int32)
            self.vocabulary_size = int(self._sentencepiece.vocab_size().numpy())
        except (tf.errors.OpError, RuntimeError) as error:
            raise ValueError(
                f"{model_file} ({len(model)} bytes) is no SentencePiece model: {error}"
            ) from error
        padding = self._sentencepiece.id_to_string(tf.constant([0])).numpy()[0]
        if padding != b"<pad>":
            raise ValueError(
                f"{model_file} has the piece {padding!r} at id 0, but id 0 must be <pad>: train it with "
                "--pad_id=0 (tools/train_tokenizer.py does)"
            )

    def __call__(self, texts) -> tf.Tensor:
        """texts: string [N] (UTF-8) -> int32 [N, length]."""
        tokens = self._sentencepiece.tokenize(tf.reshape(tf.convert_to_tensor(texts, tf.string), [-1]))
        return tokens.to_tensor(default_value=0, shape=[None, self.length])

    def lengths(self, texts) -> tf.Tensor:
        """int32 [N]: the number of tokens of each text before it is cut."""
        tokens = self._sentencepiece.tokenize(tf.reshape(tf.convert_to_tensor(texts, tf.string), [-1]))
        return tf.cast(tokens.row_lengths(), tf.int32)
