"""Pictures: decoding, and augmentation as a pure function of plain numbers and the project's hash.

Two roads share all their random choices (`ImageAugmentation.choices`):

* per example, for large files: only the window that will be seen is decoded (JPEG: fused decode and crop,
  scaled down by the DCT where the window allows), then resized; `ImageAugmentation.cut`.
* batched, for small pictures that wait decoded in memory: crop, resize, rotation and aspect in one affine
  warp; `ImageAugmentation.warp`.

Colours are then changed together: gain, contrast, saturation, grey, inversion and recolouring are all affine
maps of the three channels, so they are one 3 x 4 matrix per picture.

Files are decoded by TensorFlow (as in the exported SavedModel). Pictures are warped and recoloured by OpenCV,
uint8 to uint8: TensorFlow's ImageProjectiveTransformV3 and a batched matmul give the same at a quarter of the
rate.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from basic_tf.data.colours import colour_maps, is_coloured
from basic_tf.data.decoding import Window, decode_planned, decode_window, resize
from basic_tf.data.picture_headers import PictureError, checked_header
from basic_tf.randomness import uniform_numpy

FITS = ("stretch", "pad", "crop")
BORDERS = ("white", "reflect")
_WHITE = (255, 255, 255)
_JPEG_RATIOS = (8, 4, 2)


class Choices(NamedTuple):
    """The random choices for B pictures, all float32.

    window: [B, 2] width and height of the window that is cut, as shares of the frame. place: [B, 2] in [-1,
    1], where in its room the window lies (x, y; 0 = centre). shift: [B, 2] extra shift in shares of the
    frame. angle: [B] radians.
    flip: [B] 0 or 1. paint: [B, 22] the draws behind the colour changes (`colours.colour_maps`).
    erased: [B, 4] top, left, bottom, right in shares of the output (empty box: nothing). blur: [B] 0 or 1.
    """

    window: np.ndarray
    place: np.ndarray
    shift: np.ndarray
    angle: np.ndarray
    flip: np.ndarray
    paint: np.ndarray
    erased: np.ndarray
    blur: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageAugmentation:
    """Everything that is done to a training picture between its file and the batch, as plain numbers.

    The default is that of the contrastive stages (basic_paper section 3): resize to a size a little larger
    than the output (268 for 224), cut an output-sized window at a random place, change nothing else.

    output_size: side of the square result in pixels.
    scale: side of the window as a share of the frame, drawn evenly from this range; below 1 zooms in, above 1
    zooms out
      and shows the border. aspect: width : height of the window, drawn log-evenly.
    fit: the frame of a picture that is not square. "stretch": the whole picture, made square (ALIGN). "pad":
    the
      smallest square around it. "crop": a square on its shorter side (windows still move over the longer
      one).
    rotation: degrees, drawn evenly from [-rotation, rotation]. translation: largest extra shift, as a share
    of the frame.
    border: what lies outside the picture, "white" or "reflect".
    flip: mirror half of the pictures left to right.
    gain: each channel is multiplied by a number from [1 - gain, 1 + gain]. brightness: a number from [-b, b],
    in units
      of full white, is added. contrast, saturation: the distance from mid-grey, and from the picture's own
      grey, is multiplied by a number from [1 - c, 1 + c].
    recolour_probability: the ink (white minus the colour) goes through a random linear map of the channels;
    white stays
      white, black becomes a random colour. grey_probability: colours become grey. invert_probability: black
      and white change places. monochrome_only: recolour and invert only pictures without colours of their
      own.
    erase_probability: a box, its area a share of the picture from `erase_area`, becomes white (border
    "white") or
      mid-grey. blur_probability: mean over 3 x 3 pixels.
    """

    output_size: int = 224
    scale: tuple[float, float] = (224 / 268, 224 / 268)
    aspect: tuple[float, float] = (1.0, 1.0)
    fit: str = "stretch"
    rotation: float = 0.0
    translation: float = 0.0
    border: str = "white"
    flip: bool = False
    gain: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    recolour_probability: float = 0.0
    grey_probability: float = 0.0
    invert_probability: float = 0.0
    monochrome_only: bool = False
    erase_probability: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.2)
    blur_probability: float = 0.0

    def __post_init__(self):
        if self.output_size < 1:
            raise ValueError(f"output_size must be at least 1 pixel, got {self.output_size}")
        for name in ("scale", "aspect", "erase_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"{name} must be (low, high) with 0 < low <= high, got {getattr(self, name)}"
                )
        for name in ("recolour", "grey", "invert", "erase", "blur"):
            if not 0 <= getattr(self, f"{name}_probability") <= 1:
                value = getattr(self, f"{name}_probability")
                raise ValueError(f"{name}_probability must lie in [0, 1], got {value}")
        if self.fit not in FITS or self.border not in BORDERS:
            raise ValueError(
                f"fit must be one of {FITS} and border of {BORDERS}, got {self.fit!r}, {self.border!r}"
            )

    @property
    def varying(self) -> tuple[str, ...]:
        """The settings by which two views of one picture differ; empty for an augmentation without chance."""
        fixed = {"output_size", "border", "erase_area", "monochrome_only", "scale", "aspect", "fit"}
        found = [f.name for f in dataclasses.fields(self) if f.name not in fixed and getattr(self, f.name)]
        # A window of any size but the frame's lies at a random place; a square one moves over the longer side.
        found += [name for name in ("scale", "aspect") if tuple(getattr(self, name)) != (1.0, 1.0)]
        return (*found, *(("fit",) if self.fit == "crop" else ()))

    def evaluation(self) -> "ImageAugmentation":
        """Without chance: the central window, at scale 1 or as near to it as `scale` allows."""
        side = float(np.clip(1.0, *self.scale))
        return ImageAugmentation(self.output_size, (side, side), fit=self.fit, border=self.border)

    def choices(self, key: np.ndarray, examples: np.ndarray, central: bool = False) -> Choices:
        """The choices for some rows of a batch.

        key: uint32 [2], `randomness.step_key_numpy(seed, step)`. examples: int [B], indices in the global
        batch; each row depends on its own index alone. central: the place of every window is the centre
        (evaluation).
        """
        count = len(examples)

        def draws(name, n):
            return uniform_numpy(key, examples, f"images/{name}", (n,))

        def between(low, high, u):
            return low + (high - low) * u

        where = draws("geometry", 8)
        side = between(*self.scale, where[:, 0])
        root = np.exp(0.5 * between(np.log(self.aspect[0]), np.log(self.aspect[1]), where[:, 1]))
        window = np.stack([side * root, side / root], 1)
        place = np.zeros((count, 2)) if central else 2 * where[:, 2:4] - 1
        shift = (2 * where[:, 4:6] - 1) * self.translation
        angle = (2 * where[:, 6] - 1) * np.deg2rad(self.rotation)
        flip = (where[:, 7] < 0.5) & self.flip
        paint = draws("colour", 22)

        box = draws("erase", 5)
        area = between(*self.erase_area, box[:, 1])
        ratio = np.exp((2 * box[:, 2] - 1) * np.log(2.0))  # between 1 : 2 and 2 : 1
        height = np.minimum(np.sqrt(area * ratio), 1)
        width = np.minimum(np.sqrt(area / ratio), 1)
        top, left = box[:, 3] * (1 - height), box[:, 4] * (1 - width)
        erased = np.stack([top, left, top + height, left + width], 1)
        erased *= (box[:, :1] < self.erase_probability).astype(erased.dtype)
        blur = draws("blur", 1)[:, 0] < self.blur_probability
        return Choices(
            *(
                np.asarray(value, np.float32)
                for value in (window, place, shift, angle, flip, paint, erased, blur)
            )
        )

    @property
    def _changes_colour(self) -> bool:
        return any(
            (
                self.gain,
                self.brightness,
                self.contrast,
                self.saturation,
                self.recolour_probability,
                self.grey_probability,
                self.invert_probability,
            )
        )

    def window_in(
        self, height: int, width: int, choices: Choices, row: int
    ) -> tuple[float, float, float, float]:
        """(centre x, centre y, width, height) in pixels of the window of one row in a picture of height x
        width.
        """
        short, long = min(height, width), max(height, width)
        frame = {"stretch": (width, height), "pad": (long, long), "crop": (short, short)}[self.fit]
        room = (long, long) if self.fit == "pad" else (width, height)
        # Python's floats: this runs once a picture, and NumPy takes 20 us for it.
        sizes = [share * side for share, side in zip(choices.window[row].tolist(), frame)]
        centre = [
            whole / 2 + place * (abs(space - size) / 2) + shift * side
            for whole, place, space, size, shift, side in zip(
                (width, height), choices.place[row].tolist(), room, sizes, choices.shift[row].tolist(), frame
            )
        ]
        return (*centre, *sizes)

    def cut(
        self,
        encoded: bytes,
        choices: Choices,
        row: int,
        max_pixels: int = 1 << 26,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The per-example road: uint8 [S, S, 3], the window of one row decoded, resized, flipped; into `out`, if given.
        PictureError.

        The window is rounded to whole pixels. A large JPEG is scaled down by 2, 4 or 8 while decoding, as far
        as the window keeps at least S pixels. Rotation and colours follow for the whole batch in `finish`.
        """
        if out is None:
            out = np.empty((self.output_size, self.output_size, 3), np.uint8)
        window, place = self._planned(encoded, choices, row, max_pixels)
        return self._placed(decode_window(encoded, window), place, choices.flip[row], out)

    def cut_together(
        self,
        encoded: Sequence[bytes],
        choices: Choices,
        rows: Sequence[int],
        max_pixels: int,
        out: np.ndarray,
    ) -> list[PictureError | None]:
        """`cut` of several rows into out[row] of each, at less cost; what is wrong with each picture, or None."""
        places = {}

        def planned(number: int) -> Window:
            window, places[number] = self._planned(encoded[number], choices, rows[number], max_pixels)
            return window

        errors: list[PictureError | None] = []
        for number, picture in enumerate(decode_planned(encoded, planned)):
            failed = isinstance(picture, PictureError)
            errors.append(picture if failed else None)
            if not failed:
                self._placed(picture, places[number], choices.flip[rows[number]], out[rows[number]])
        return errors

    def _planned(
        self, encoded: bytes, choices: Choices, row: int, max_pixels: int
    ) -> tuple[Window, tuple[int, int, int, int]]:
        """What `cut` decodes of a picture, and where in the output that goes (top, bottom, left, right). PictureError."""
        found = checked_header(encoded, max_pixels)
        size = self.output_size
        x, y, width, height = self.window_in(found.height, found.width, choices, row)
        ratio = 1
        if found.kind == "jpeg":
            ratio = next((r for r in _JPEG_RATIOS if min(width, height) >= r * size), 1)
        whole_height, whole_width = -(-found.height // ratio), -(-found.width // ratio)
        top, bottom, low, high = _span(y / ratio, height / ratio, whole_height, size)
        left, right, first, last = _span(x / ratio, width / ratio, whole_width, size)
        return Window(found, (top, left, bottom - top, right - left), ratio), (low, high, first, last)

    def _placed(
        self, picture: np.ndarray, place: tuple[int, int, int, int], flip: float, out: np.ndarray
    ) -> np.ndarray:
        """A decoded window resized to its place in `out`, uint8 [S, S, 3], with the border around it, flipped."""
        size = self.output_size
        low, high, first, last = place
        whole = (high - low, last - first) == (size, size)
        inner = resize(picture, high - low, last - first, out if whole and not flip else None)
        if not whole:
            edges = ((low, size - high), (first, size - last), (0, 0))
            if self.border == "reflect":
                inner = np.pad(inner, edges, mode="symmetric")
            else:
                inner = np.pad(inner, edges, constant_values=255)
        if flip:
            return cv2.flip(inner, 1, dst=out)
        if inner is not out:
            out[...] = inner
        return out

    def finish(self, pictures: np.ndarray, choices: Choices) -> np.ndarray:
        """After `cut`: rotation about the centre, then colours. uint8 [B, S, S, 3] -> uint8 [B, S, S, 3]."""
        if self.rotation:
            still = choices._replace(
                window=np.ones_like(choices.window),
                place=np.zeros_like(choices.place),
                shift=np.zeros_like(choices.shift),
                flip=np.zeros_like(choices.flip),
            )
            return self.recolour(self._warped(pictures, still), choices)
        return self.recolour(pictures, choices)

    def warp(self, pictures: Sequence[np.ndarray], choices: Choices) -> np.ndarray:
        """The batched road: B pictures uint8 [H, W, 3] of one size, fitted to a frame -> uint8 [B, S, S, 3],
        finished.
        """
        return self.recolour(self._warped(pictures, choices), choices)

    def _warped(self, pictures: Sequence[np.ndarray], choices: Choices) -> np.ndarray:
        """uint8 [B, S, S, 3]: the windows, bilinear."""
        size = self.output_size
        result = np.empty((len(pictures), size, size, 3), np.uint8)
        border = cv2.BORDER_CONSTANT if self.border == "white" else cv2.BORDER_REFLECT
        transforms = self.transforms(*pictures[0].shape[:2], choices)
        for row, picture in enumerate(pictures):
            cv2.warpAffine(
                picture,
                transforms[row],
                (size, size),
                dst=result[row],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=border,
                borderValue=_WHITE,
            )
        return result

    def transforms(self, height: int, width: int, choices: Choices) -> np.ndarray:
        """float64 [B, 2, 3]: output pixel (x, y) -> input pixel (a0 x + a1 y + a2, a3 x + a4 y + a5), both
        indices.

        With u, v in [-1/2, 1/2] across the output, window w x h (pixels of the input) around c, turned by t:
        input = c + (cos t * u w - sin t * v h, sin t * u w + cos t * v h) - 1/2.
        """
        frame = np.array([width, height], np.float64)
        size = choices.window * frame
        centre = frame / 2 + choices.place * np.abs(frame - size) / 2 + choices.shift * frame
        along = size[:, 0] * np.where(choices.flip > 0, -1.0, 1.0) / self.output_size
        down = size[:, 1] / self.output_size
        sin, cos = np.sin(choices.angle.astype(np.float64)), np.cos(choices.angle.astype(np.float64))
        half = 0.5 - self.output_size / 2  # (x + 1/2) / S - 1/2 = (x + half) / S
        a0, a1, a3, a4 = cos * along, -sin * down, sin * along, cos * down
        a2 = centre[:, 0] - 0.5 + (a0 + a1) * half
        a5 = centre[:, 1] - 0.5 + (a3 + a4) * half
        return np.stack([a0, a1, a2, a3, a4, a5], 1).reshape(-1, 2, 3)

    def recolour(self, pictures: np.ndarray, choices: Choices) -> np.ndarray:
        """Colours, blur, erasing, each row by its own choices, in place: uint8 [B, S, S, 3]."""
        if self._changes_colour:
            coloured = is_coloured(pictures) if self.monochrome_only else None
            matrix, offset = colour_maps(self, choices.paint, coloured)
            # OpenCV maps a column (r, g, b, 1) by a 3 x 4 matrix; rounding and clipping are its own.
            maps = np.concatenate([matrix.transpose(0, 2, 1), 255 * offset[:, :, None]], 2)
            for row in range(len(pictures)):
                cv2.transform(pictures[row], maps[row], dst=pictures[row])
        for row in np.flatnonzero(choices.blur):
            pictures[row] = cv2.blur(pictures[row], (3, 3), borderType=cv2.BORDER_REFLECT)
        if self.erase_probability:
            boxes = np.rint(choices.erased * self.output_size).astype(int)
            for row in np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])):
                top, left, bottom, right = boxes[row]
                pictures[row, top:bottom, left:right] = 255 if self.border == "white" else 128
        return pictures


def _span(centre: float, length: float, limit: int, size: int) -> tuple[int, int, int, int]:
    """One axis of a window: (start, stop) inside the picture and (start, stop) of that part within the
    output.

    At least one pixel of the picture is always taken, and at least one of the output is always filled.
    """
    start, stop = centre - length / 2, centre + length / 2
    inner_start = min(max(round(start), 0), limit - 1)
    inner_stop = min(max(round(stop), inner_start + 1), limit)
    low, high = 0, size
    if start < -0.5 or stop > limit + 0.5:
        low = min(max(round((inner_start - start) / length * size), 0), size - 1)
        high = min(max(round((inner_stop - start) / length * size), low + 1), size)
    return inner_start, inner_stop, low, high
