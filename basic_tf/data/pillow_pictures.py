"""Pictures by Pillow, upright on white: for the kinds that TensorFlow's decoders read otherwise than they are meant."""

import io

import numpy as np
from PIL import Image, ImageOps


def upright_on_white(picture: Image.Image) -> Image.Image:
    """The first frame as RGB, turned as the camera was held, transparency on white."""
    picture.seek(0)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits: the upper byte, as libpng does
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def decoded(encoded: bytes, kind: str) -> np.ndarray:
    """uint8 [h, w, 3], read only, of a picture of a known kind ("gif", "bmp", ...). Raises whatever Pillow does."""
    with Image.open(io.BytesIO(encoded), formats=[kind.upper()]) as picture:
        return np.asarray(upright_on_white(picture))
