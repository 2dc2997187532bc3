"""SVGs and glyphs of fonts to small PNGs on white."""

import dataclasses
import io
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import resvg_py
from PIL import Image, ImageDraw, ImageFont

from basic_tf.machine import cores

_CHUNK = 32
_AHEAD = 2048


@dataclasses.dataclass(frozen=True)
class Picture:
    """What to draw: an SVG document, or a text (one glyph) in a font file. name: for messages."""

    name: str
    svg: str = ""
    text: str = ""
    font: str = ""


def svg_document(body: str, left: float, top: float, width: float, height: float) -> str:
    """An SVG document around the elements of an icon; what is not square is centred when rendered square."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}" width="{width:g}" height="{height:g}">{body}</svg>'
    )


def icon_document(icons: Mapping, name: str) -> str:
    """The SVG of an icon or alias of an iconify set; aliases may mirror and turn their parent (in this order)."""
    chain = []
    while name not in icons["icons"]:
        chain.append(icons["aliases"][name])
        name = chain[-1]["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body, middle = icon["body"], (left + width / 2, top + height / 2)
    for change in reversed(chain):
        if change.get("hFlip"):
            body = f'<g transform="translate({2 * middle[0]:g} 0) scale(-1 1)">{body}</g>'
        if change.get("vFlip"):
            body = f'<g transform="translate(0 {2 * middle[1]:g}) scale(1 -1)">{body}</g>'
        if change.get("rotate"):
            body = f'<g transform="rotate({90 * change["rotate"]} {middle[0]:g} {middle[1]:g})">{body}</g>'
    return svg_document(body, left, top, width, height)


def render(picture: Picture, size: int) -> bytes:
    """The picture as an RGB PNG, size x size pixels, on white. ValueError if it cannot be drawn."""
    try:
        return _render(picture, size)
    except (ValueError, OSError) as error:
        raise ValueError(f"{picture.name} cannot be drawn: {error}") from error


def _render(picture: Picture, size: int) -> bytes:
    if not picture.svg:
        return _png(_glyph(picture.text, picture.font, size))
    # resvg keeps the proportions of the document, so the longer side is `size` and the rest is filled below.
    drawn = resvg_py.svg_to_bytes(
        svg_string=picture.svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(drawn))).convert("RGB")
    if image.size != (size, size):
        square = Image.new("RGB", (size, size), "white")
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = square
    return _png(image)


def render_all(pictures: Iterable[Picture], size: int, workers: int | None = None) -> Iterator[bytes]:
    """PNGs in the order of the pictures, by `workers` processes (default: one per core, at most 8)."""
    for drawn in render_each(pictures, size, workers):
        if isinstance(drawn, ValueError):
            raise drawn
        yield drawn


def render_each(
    pictures: Iterable[Picture], size: int, workers: int | None = None
) -> Iterator[bytes | ValueError]:
    """The same, with an error in the place of a picture that cannot be drawn; a few thousand are read ahead."""
    workers = workers or min(8, cores())
    if workers == 1:
        yield from (_attempt(picture, size) for picture in pictures)
        return
    pictures = iter(pictures)
    # Spawned, not forked: the parent has threads (the progress bar's), and resvg holds the interpreter's
    # lock.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        while some := list(itertools.islice(pictures, _AHEAD)):
            yield from pool.map(_attempt, some, [size] * len(some), chunksize=_CHUNK)


def _attempt(picture: Picture, size: int) -> bytes | ValueError:
    try:
        return render(picture, size)
    except ValueError as error:
        return error


def pixels(png: bytes) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _glyph(text: str, font: str, size: int) -> Image.Image:
    """Black on white, centred, as large as fits with a margin; drawn at 4 times the size and reduced."""
    canvas, room = 4 * size, 4 * size - size // 4
    face = ImageFont.truetype(font, canvas)
    left, top, right, bottom = face.getbbox(text)
    if right <= left or bottom <= top:
        raise ValueError(f"{font} draws nothing for {text!r}")
    face = ImageFont.truetype(font, max(1, int(canvas * room / max(right - left, bottom - top))))
    left, top, right, bottom = face.getbbox(text)
    image = Image.new("L", (canvas, canvas), 255)
    at = ((canvas - left - right) / 2, (canvas - top - bottom) / 2)
    ImageDraw.Draw(image).text(at, text, fill=0, font=face)
    return image.resize((size, size), Image.Resampling.BOX).convert("RGB")
