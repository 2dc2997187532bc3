"""An encoder without weights, for tests that ask what is read and written and not how well it is told apart."""

import hashlib
import io

import numpy as np
from PIL import Image


class HashEncoder:
    """Every text and every picture has a random direction of its own."""

    embedding_dim = 16
    image_size = 8
    temperature = 0.1

    def __init__(self, salt=b""):
        self.salt = salt
        self.metadata = {"templates": ("{}",), "provenance": {"step": 3}}
        self.texts = 0

    def _row(self, key):
        seed = int.from_bytes(hashlib.sha256(self.salt + key).digest()[:8], "little")
        row = np.random.default_rng(seed).normal(size=self.embedding_dim)
        return row / np.linalg.norm(row)

    def encode_image_bytes(self, images):
        for image in images:
            Image.open(io.BytesIO(image)).load()  # it is a picture
        return np.stack([self._row(image) for image in images]).astype(np.float32)

    def encode_text(self, texts):
        count = len(texts)
        self.texts += count
        return np.stack([self._row(text.encode()) for text in texts]).astype(np.float32)
