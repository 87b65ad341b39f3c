"""Which corruptions each named shift has, known before its data is opened. Imports no torch."""

from __future__ import annotations

from bench.core.conditions import NATURAL
from bench.shifts.catalog import ShiftRow

COMMON = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
BAR = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)
LAION = (
    "glitched",
    "mosaic",
    "stickers",
    "vertical_lines",
    "geometric_shapes",
    "luminance_checkerboard",
)
DIGITS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "motion_blur",
    "zoom_blur",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
DIGITS_TUNING = ("speckle_noise", "gaussian_blur")

_OF_LOADER = {
    "digits:load": (DIGITS, DIGITS_TUNING),
    "fashion:load": (DIGITS, DIGITS_TUNING),
    "imagenet:bar": (BAR, ()),
    "imagenet:bar_generated": (BAR, EXTRA),
    "imagenet:laion": (LAION, ()),
    "imagenet:laion_generated": (LAION, EXTRA),
    "imagenet:natural": ((NATURAL,), ()),
    "imagenet:real": ((NATURAL,), ()),
    "vtab:load": ((NATURAL,), ()),
}


def corruptions_of(row: ShiftRow) -> tuple[str, ...] | None:
    """Return the corruptions that a run on a shift may name, reported ones first; None if the user's file decides."""
    loader = row.path.removeprefix("bench.shifts.")
    if loader.startswith("user_shift:"):
        return None
    reported, tuning = _OF_LOADER.get(loader, (COMMON, EXTRA))
    return tuple(dict.fromkeys((*reported, *tuning, NATURAL)))
