"""Pictures of packages cut to what they show, made square, small and opaque, as PNGs."""

import io
import warnings
from collections.abc import Callable

from PIL import Image, ImageChops

from tools.sources.rows import FILTERED, BadRow

MOST_PIXELS = 16_000_000  # of a source picture: Open Clip Art has one of 623 million
_WHITE = (255, 255, 255, 255)
_MARGIN = 32  # one part in so many of the side, on each side
_FAINT = 8  # of 255: less ink than that cannot be seen


def on_white(encoded: bytes, size: int) -> Callable[[], bytes]:
    """A function that gives the picture as a square PNG on white, its side at most `size`; BadRow if it cannot.

    What is drawn fills the square but for a margin: many drawings are a small thing on a large empty page.
    """

    def made() -> bytes:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is checked here
                with Image.open(io.BytesIO(encoded)) as image:
                    if image.width * image.height > MOST_PIXELS:
                        raise BadRow("too many pixels", f"{image.width} x {image.height}", kind=FILTERED)
                    image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
            box = _ink(image)
            if box is None:
                raise BadRow("nothing to see on white", kind=FILTERED)
            image = image.crop(box)
            inner = size - 2 * (size // _MARGIN)
            image.thumbnail((inner, inner), Image.Resampling.LANCZOS, reducing_gap=3)
        except Image.DecompressionBombError as error:  # Pillow's own limit, far above ours
            raise BadRow("too many pixels", str(error), kind=FILTERED) from error
        except (OSError, SyntaxError) as error:
            raise BadRow("undecodable PNG", str(error)) from error
        side = max(image.size)
        side += 2 * (side // _MARGIN)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return png(square)

    return made


def _ink(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The box of all pixels that stand out from white; None if there is none."""
    difference = ImageChops.difference(image, Image.new("RGB", image.size, "white")).convert("L")
    return difference.point(lambda value: 255 * (value > _FAINT)).getbbox()


def png(image: Image.Image) -> bytes:
    """A picture encoded."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
