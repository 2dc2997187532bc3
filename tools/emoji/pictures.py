"""Rendered pictures of the styles, kept in one zip file for each."""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tools.sources.render import Picture, pixels, render_all

_DATE = (1980, 1, 1, 0, 0, 0)  # the same pictures make the same file


def rendered(
    style: str, pictures: Mapping[str, Picture], size: int, cache_dir: Path, advance: Callable[[int], None]
) -> dict[str, bytes]:
    """The PNGs of a style by concept code, from the cache if they were rendered before.

    advance: is told how many pictures more are done.
    """
    drawn = sorted((code, p.svg, p.text, p.font) for code, p in pictures.items())
    digest = hashlib.sha256(repr((size, drawn)).encode()).hexdigest()[:12]
    file = Path(cache_dir) / f"{style}-{size}px-{digest}.zip"
    kept = _read(file)
    if kept is not None and kept.keys() == pictures.keys():
        advance(len(kept))
        return kept
    file.parent.mkdir(parents=True, exist_ok=True)
    pngs = {}
    for code, png in zip(pictures, render_all(pictures.values(), size), strict=True):
        pngs[code] = png
        advance(1)
    partial = file.with_suffix(".partial")  # one that a killed run left is written over
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for code, png in pngs.items():
            archive.writestr(zipfile.ZipInfo(f"{code}.png", _DATE), png)
    os.replace(partial, file)
    for old in file.parent.glob(f"{style}-{size}px-*.zip"):  # drawn from other versions of the package
        if old != file:
            old.unlink()
    return pngs


def _read(file: Path) -> dict[str, bytes] | None:
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".png"): archive.read(name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return None


def contact_sheet(pngs: Mapping[str, Mapping[str, bytes]], codes: list[str], size: int) -> bytes:
    """A PNG: concepts as rows, styles as columns (as in `pngs`); grey where a style lacks the concept."""
    sheet = Image.new("RGB", ((size + 4) * len(pngs), (size + 4) * len(codes)), (200, 200, 200))
    for column, of_style in enumerate(pngs.values()):
        for row, code in enumerate(codes):
            if code in of_style:
                picture = Image.fromarray(np.ascontiguousarray(pixels(of_style[code])))
                sheet.paste(picture, (column * (size + 4) + 2, row * (size + 4) + 2))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
