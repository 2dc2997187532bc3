"""basic_tf: a TensorFlow reproduction of BASIC, combined scaling for zero-shot transfer (arXiv 2111.10050)."""

__version__ = "0.1.0"
