"""The trained model as one TensorFlow SavedModel: decoding, tokenizer and towers inside."""
