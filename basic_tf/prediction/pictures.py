"""Reading people's own files: each one becomes bytes that the SavedModel can decode, or one clear line.

Files come from anywhere: cut short by a download, text named .png, photographs taken with the camera on its
side, pictures with a transparent background. What the graph decodes exactly as Pillow does goes through
untouched; the rest that Pillow can read (rotated photographs, palettes with transparency, TIFF, 1-bit BMP) is
laid upright on white and handed over as PNG.

Local files go through Python, as its names may be any bytes; TensorFlow's, which reads the others, must be UTF-8.
"""

import dataclasses
import io
import os
import posixpath
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from basic_tf.data.pillow_pictures import upright_on_white
from basic_tf.data.shards import is_local

PICTURE_ENDINGS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".gif",
        ".bmp",
        ".dib",
        ".webp",
        ".tif",
        ".tiff",
        ".ico",
        ".ppm",
        ".pgm",
        ".pbm",
    ]
)
MAX_MEGAPIXELS = 100
MAX_MEGABYTES = 256
_ORIENTATION = 0x0112  # EXIF tag


@dataclasses.dataclass(frozen=True)
class Picture:
    """A readable file. encoded: bytes for the SavedModel. thumbnail: RGB, at most 160 px wide and high."""

    path: str
    encoded: bytes
    thumbnail: Image.Image | None = None


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A file that gave no picture, and why, in one line."""

    path: str
    reason: str


class _NotReadableError(Exception):
    """Carries the reason."""


@dataclasses.dataclass
class Listing:
    """Files to try, and how many files of the given folders were passed over for not ending like a
    picture.
    """

    files: list[str]
    passed_over: int
    problems: list[Unreadable]


def find_files(paths: Sequence[str], recursive: bool = False) -> Listing:
    """The files behind `paths` (files or folders, local or gs://), sorted within each folder.

    A file named by itself is always tried. Of a folder, the files whose names end like a picture's or have no
    ending; hidden ones are left out, folders inside it only with `recursive`, each once whatever links lead to it.
    """
    listing = Listing([], 0, [])
    walked: set[str] = set()
    for path in paths:
        if _is_folder(path):
            _walk(path, recursive, listing, walked)
        else:
            listing.files.append(path)
    listing.files = list(dict.fromkeys(listing.files))
    return listing


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) if is_local(path) else tf.io.gfile.isdir(path)


def _walk(folder: str, recursive: bool, listing: Listing, walked: set[str]) -> None:
    real = os.path.realpath(folder) if is_local(folder) else folder
    if real in walked:
        return
    walked.add(real)
    try:
        names = os.listdir(folder) if is_local(folder) else tf.io.gfile.listdir(folder)
    except OSError as error:
        listing.problems.append(Unreadable(folder, f"folder cannot be listed: {error.strerror}"))
        return
    except tf.errors.OpError as error:
        listing.problems.append(Unreadable(folder, f"folder cannot be listed: {_first_line(error.message)}"))
        return
    names = sorted(name.rstrip("/") for name in names)
    for name in names:
        if name.startswith(".") or not name:
            continue
        path = posixpath.join(folder, name)
        ending = os.path.splitext(name)[1].lower()
        if _is_folder(path):
            if recursive:
                _walk(path, recursive, listing, walked)
            elif ending in PICTURE_ENDINGS:
                listing.problems.append(Unreadable(path, "is a folder, not a picture"))
        elif ending in PICTURE_ENDINGS or not ending:
            listing.files.append(path)
        else:
            listing.passed_over += 1


def read_pictures(
    paths: Iterable[str], thumbnails: bool = False, max_megapixels: float = MAX_MEGAPIXELS
) -> Iterator[Picture | Unreadable]:
    """Reads the files one by one, in order; never raises for what is in a file."""
    for path in paths:
        try:
            encoded = _read(path)
            yield Picture(path, *_check(encoded, thumbnails, max_megapixels))
        except _NotReadableError as error:
            yield Unreadable(path, str(error))


def _read(path: str) -> bytes:
    try:
        if is_local(path):
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device would wait for ever
                raise _NotReadableError(
                    "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
                )
            size = status.st_size
        else:
            size = tf.io.gfile.stat(path).length
        if size == 0:
            raise _NotReadableError("is empty (0 bytes)")
        if size > MAX_MEGABYTES * 1e6:
            raise _NotReadableError(f"has {size / 1e6:.0f} MB; the limit is {MAX_MEGABYTES} MB")
        with open(path, "rb") if is_local(path) else tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except (tf.errors.NotFoundError, FileNotFoundError) as error:
        raise _NotReadableError("does not exist") from error
    except (tf.errors.PermissionDeniedError, PermissionError) as error:
        raise _NotReadableError("may not be read (permission denied)") from error
    except tf.errors.OpError as error:
        raise _NotReadableError(f"cannot be read: {_first_line(error.message)}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _NotReadableError(f"cannot be read: {_first_line(str(error))}") from error


def _check(encoded: bytes, thumbnails: bool, max_megapixels: float) -> tuple[bytes, Image.Image | None]:
    """Bytes the graph can decode, and a thumbnail where asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities in metadata, which nobody asked about
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the limit below is ours
        try:
            picture = Image.open(io.BytesIO(encoded))
        except UnidentifiedImageError:
            raise _NotReadableError(_what_it_is(encoded)) from None
        except Exception as error:  # a damaged header can raise anything inside Pillow's parsers
            raise _NotReadableError(f"is damaged: {_first_line(str(error))}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit
        megapixels = picture.width * picture.height / 1e6
        if megapixels > max_megapixels:  # from the header: nothing is decoded yet
            raise _NotReadableError(
                f"has {picture.width} x {picture.height} pixels ({megapixels:.0f} megapixels); the limit is "
                f"{max_megapixels:g} (--max_megapixels)"
            )
        try:
            plain = _graph_decodes_alike(picture)
            picture.load()
            if plain and not thumbnails:
                return encoded, None
            upright = upright_on_white(picture)
        except Exception as error:
            raise _NotReadableError(f"is damaged or cut short: {_first_line(str(error))}") from None
    if not plain:
        buffer = io.BytesIO()
        upright.save(buffer, "PNG", compress_level=1)
        encoded = buffer.getvalue()
    thumbnail = None
    if thumbnails:
        thumbnail = upright.copy()
        thumbnail.thumbnail((160, 160))
    return encoded, thumbnail


def _graph_decodes_alike(picture: Image.Image) -> bool:
    """Whether TensorFlow's decoder gives what Pillow gives.

    It ignores the camera's rotation and the transparent colour of grey and RGB pictures, puts transparent
    GIFs on black, and reads palette BMPs as grey; 16-bit PNGs it reads better than Pillow converts them.
    """
    if picture.getexif().get(_ORIENTATION, 1) not in (0, 1):
        return False
    if picture.format == "JPEG":
        return picture.mode in ("L", "RGB")
    if picture.format == "PNG":
        return picture.mode in ("L", "LA", "RGB", "RGBA", "I;16", "I") and "transparency" not in picture.info
    if picture.format == "GIF":
        return "transparency" not in picture.info
    return False


def _what_it_is(encoded: bytes) -> str:
    try:
        text = encoded[:512].decode("utf-8")
        if all(character.isprintable() or character.isspace() for character in text):
            return "is not a picture (it holds text)"
    except UnicodeDecodeError:
        pass
    return "is not a picture in a format known here (JPEG, PNG, GIF, BMP, WebP, TIFF)"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else "no reason given"
