"""Pictures of packages made smaller and opaque, as PNGs."""

import io
import warnings
from collections.abc import Callable

from PIL import Image

from tools.sources.rows import FILTERED, BadRow

MOST_PIXELS = 16_000_000  # of a source picture: Open Clip Art has one of 623 million
_WHITE = (255, 255, 255, 255)


def on_white(encoded: bytes, size: int) -> Callable[[], bytes]:
    """A function that gives the picture as a PNG on white, its longer side at most `size`; BadRow if it cannot."""

    def made() -> bytes:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is checked here
                with Image.open(io.BytesIO(encoded)) as image:
                    if image.width * image.height > MOST_PIXELS:
                        raise BadRow("too many pixels", f"{image.width} x {image.height}", kind=FILTERED)
                    image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
            image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadRow("undecodable PNG", str(error)) from error
        if image.getextrema() == ((255, 255),) * 3:
            raise BadRow("nothing to see on white", kind=FILTERED)
        return png(image)

    return made


def png(image: Image.Image) -> bytes:
    """A picture encoded."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
