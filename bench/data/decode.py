"""Decode an image's bytes to the pixels that a model gets; every source uses this decoder."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from bench.core.errors import UsageError

Pixels = NDArray[np.uint8]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
_ORIENTATION = 0x0112
_DAMAGE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ZeroDivisionError,
    OverflowError,
    MemoryError,
    struct.error,
)
"""Exceptions that Pillow's readers raise for invalid bytes."""
_PLAIN_MODES = ("RGB", "L", "P", "1", "RGBA", "LA")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes [3, size, size]: shorter side to `resize`, then the central square of `size` pixels.

    With `resize` None nothing is resampled: the image must be `size` x `size` already (published corrupted files,
    which another resize would change). `interpolation` is Pillow's filter. With `squash` both sides become `resize`,
    regardless of the aspect ratio. Normalisation is part of the model.
    """

    size: int
    resize: int | None = None
    interpolation: str = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS:
            raise UsageError(f"unknown interpolation '{self.interpolation}'; choose from {', '.join(_FILTERS)}")
        if self.size < 1 or (self.resize is not None and self.resize < self.size):
            raise UsageError(f"resize ({self.resize}) must be at least the size ({self.size}); check the model's data")

    def __call__(self, image: Image.Image, name: str) -> Pixels:
        """Return pixels uint8 [3, size, size] of an RGB image. Raises UsageError if it needs a forbidden resize."""
        width, height = image.size
        if self.resize is None:
            if (width, height) != (self.size, self.size):
                raise UsageError(
                    f"{name} is {width} x {height} px but the model takes {self.size} x {self.size}, and published "
                    f"files are never resized; choose a model for {min(width, height)} px"
                )
            return _planes(image)
        short, long = min(width, height), max(width, height)
        if self.squash and (width, height) != (self.resize, self.resize):
            width = height = self.resize
            image = image.resize((width, height), _FILTERS[self.interpolation])
        elif short != self.resize:
            other = int(self.resize * long / short)
            size = (self.resize, other) if width <= height else (other, self.resize)
            image = image.resize(size, _FILTERS[self.interpolation])
            width, height = size
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return _planes(image.crop((left, top, left + self.size, top + self.size)))


def _planes(image: Image.Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def decode(content: bytes, name: str, fix: str, *, as_published: bool) -> Image.Image:
    """Decode bytes to an RGB image; errors use its `name` and `fix`, what to do with an unreadable image.

    `as_published` decodes as the reference code of public benchmarks does: Pillow's conversion to RGB, EXIF rotation
    ignored. Otherwise images that this would silently change (CMYK, 16-bit, EXIF-rotated) are errors. Raises UsageError
    with the name of the image and the fix.
    """
    if not content:
        raise UsageError(f"{name} is an empty file of 0 bytes; {fix}")
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except _DAMAGE as error:
        whole = "is not an image that Pillow reads" if isinstance(error, UnidentifiedImageError) else "is damaged"
        raise UsageError(f"{name} {whole} ({_short(error)}); {fix}") from None
    if not as_published:
        _refuse_surprises(image, name)
    return image.convert("RGB")


def _short(error: Exception) -> str:
    return str(error).split("<")[0].strip().rstrip(".")[:80]


def _refuse_surprises(image: Image.Image, name: str) -> None:
    if image.mode not in _PLAIN_MODES:
        kind = "a CMYK image" if image.mode == "CMYK" else f"an image of mode {image.mode}, not 8-bit RGB"
        raise UsageError(f"{name} is {kind}; save it as RGB: mogrify -colorspace sRGB -depth 8 '{name}'")
    try:
        turned = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        return  # unreadable EXIF data is ignored, as in other programs
    if turned in range(2, 9):
        raise UsageError(f"{name} is rotated by its EXIF tag only; turn its pixels: mogrify -auto-orient '{name}'")


def decode_array(pixels: Pixels, name: str) -> Image.Image:
    """Convert an array uint8 [h, w, 3] or [h, w] to an RGB image. Raises UsageError for another type."""
    if pixels.dtype != np.uint8:
        raise UsageError(f"{name} holds {pixels.dtype}, not uint8; save pixels as 0 .. 255 in uint8")
    return Image.fromarray(pixels).convert("RGB")
