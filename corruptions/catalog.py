"""The available corruptions and their parameters at a severity; readable without torch."""

from __future__ import annotations

import difflib
import math
import numbers
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from corruptions.tables import CLEAN, PROFILES, Parameters

Group = Literal["noise", "blur", "weather", "digital", "extra", "pasted", "pattern"]


@dataclass(frozen=True, slots=True)
class Row:
    """One corruption, a function of its name in `module`; a random one has a second, `draw_<name>`, beside it.

    `pool` says that it is made from the pictures of a pool (`tiles.TilePool`). `held_against` is the reference with
    which the tests compare its pixels, given the same random numbers. `version` is raised when the same image and draws
    give other pixels.
    """

    name: str
    suite: str
    group: Group
    summary: str
    module: str
    random: bool
    pool: bool = False
    held_against: Literal["official output", "nothing published"] = "official output"
    version: int = 1


ROWS = (
    Row("gaussian_noise", "imagenet_c", "noise", "normal noise", "noise", True),
    Row("shot_noise", "imagenet_c", "noise", "Poisson noise of few photons", "noise", True),
    Row("impulse_noise", "imagenet_c", "noise", "salt and pepper by channel", "noise", True),
    Row("defocus_blur", "imagenet_c", "blur", "a disc of confusion", "blur", False),
    Row("glass_blur", "imagenet_c", "blur", "pixels moved as by frosted glass", "blur", True),
    Row("motion_blur", "imagenet_c", "blur", "a one-sided trail", "blur", True),
    Row("zoom_blur", "imagenet_c", "blur", "mean over growing zooms", "blur", False),
    Row("snow", "imagenet_c", "weather", "blown flakes on a paler image", "weather", True),
    Row("frost", "imagenet_c", "weather", "a photograph of frost laid over", "weather", True),
    Row("fog", "imagenet_c", "weather", "diamond-square plasma", "weather", True),
    Row("brightness", "imagenet_c", "weather", "HSV value raised", "weather", False),
    Row("contrast", "imagenet_c", "digital", "pulled to the channel means", "digital", False),
    Row("elastic_transform", "imagenet_c", "digital", "a bent grid", "digital", True),
    Row("pixelate", "imagenet_c", "digital", "box-filtered down and up", "digital", False),
    Row("jpeg_compression", "imagenet_c", "digital", "low JPEG quality", "digital", False),
    Row("speckle_noise", "imagenet_c_extra", "extra", "multiplied normal noise", "extra", True),
    Row("gaussian_blur", "imagenet_c_extra", "extra", "a Gaussian blur", "extra", False),
    Row("spatter", "imagenet_c_extra", "extra", "drops of water or mud", "extra", True),
    Row("saturate", "imagenet_c_extra", "extra", "paler or gaudier colours", "extra", False),
    Row("glitched", "laion_c", "digital", "rolled chunks, scan lines", "laion", False),
    Row("mosaic", "laion_c", "pasted", "tiles of the nearest colour", "laion", False, True),
    Row("stickers", "laion_c", "pasted", "tiles stuck on anywhere", "laion", True, True),
    Row("vertical_lines", "laion_c", "pattern", "bent lines on black", "lines", False),
    Row("geometric_shapes", "laion_c", "pasted", "small plain shapes", "laion", True),
    Row("luminance_checkerboard", "laion_c", "pattern", "tiles lighter and darker in turn", "laion", True),
    Row("blue_noise_sample", "imagenet_c_bar", "noise", "black where blue noise is low", "bar", True),
    Row("brownish_noise", "imagenet_c_bar", "noise", "noise of low frequencies", "bar", True),
    Row("caustic_refraction", "imagenet_c_bar", "weather", "seen through rippled water", "bar", True),
    Row("checkerboard_cutout", "imagenet_c_bar", "pattern", "grey cells of a turned checkerboard", "bar", True),
    Row("cocentric_sine_waves", "imagenet_c_bar", "pattern", "wavy rings", "bar", True),
    Row("inverse_sparkles", "imagenet_c_bar", "pattern", "white but for a star burst", "bar", True),
    Row("perlin_noise", "imagenet_c_bar", "noise", "turbulence of Perlin noise", "bar", True),
    Row("plasma_noise", "imagenet_c_bar", "noise", "coloured warped sines", "bar", True),
    Row("single_frequency_greyscale", "imagenet_c_bar", "pattern", "a grey wave", "bar", True),
    Row("sparkles", "imagenet_c_bar", "pattern", "five white star bursts", "bar", True),
    Row(
        "frost_procedural",
        "procedural",
        "weather",
        "frost made of plasma",
        "weather",
        True,
        held_against="nothing published",
    ),
)

ALIASES = {
    "gaussian": "gaussian_noise",
    "shot": "shot_noise",
    "impulse": "impulse_noise",
    "defocus": "defocus_blur",
    "glass": "glass_blur",
    "motion": "motion_blur",
    "zoom": "zoom_blur",
    "elastic": "elastic_transform",
    "jpeg": "jpeg_compression",
    "speckle": "speckle_noise",
}

# Noise falls with the number of photons, so photons are interpolated by their inverse.
_HARMONIC = {"shot_noise"}

_BY_NAME = {row.name: row for row in ROWS}


def names(suite: str | None = None) -> tuple[str, ...]:
    """The corruptions of a suite in published order; of all suites if None. Raises ValueError for an unknown suite."""
    suites = sorted({row.suite for row in ROWS})
    if suite is not None and suite not in suites:
        raise ValueError(f"unknown suite {suite!r}; {_nearest(suite, suites)}")
    return tuple(row.name for row in ROWS if suite in (None, row.suite))


def group(name: str) -> tuple[str, ...]:
    """The corruptions of a group ("noise") over all suites; empty if there is no such group."""
    return tuple(row.name for row in ROWS if row.group == name)


def canonical(name: str) -> str:
    """Return the published name for a name or alias (elastic -> elastic_transform). Raises ValueError if unknown."""
    if name in _BY_NAME:
        return name
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    if key not in _BY_NAME:
        raise ValueError(f"unknown corruption {name!r}; {_nearest(key, list(_BY_NAME))}")
    return key


def describe(name: str) -> Row:
    """Return the row of a corruption. Raises ValueError for an unknown name."""
    return _BY_NAME[canonical(name)]


def profile_for(height: int, width: int) -> str:
    """Return the profile that "auto" selects for an image size in pixels: by the shorter side."""
    side = min(height, width)
    if side <= 48:
        return "cifar32"
    return "tiny64" if side <= 96 else "imagenet224"


def check_profile(profile: str, height: int = 1, width: int = 1) -> str:
    """Return the profile itself, or the one that "auto" selects. Raises ValueError for an unknown profile."""
    if profile == "auto":
        return profile_for(height, width)
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; {_nearest(profile, ['auto', *PROFILES])}")
    return profile


def check_severity(severity: Any) -> float:
    """Return the severity as a float in [0, 5]. Raises ValueError for anything else, including True, "3" and NaN."""
    if type(severity) not in (int, float) and (isinstance(severity, bool) or not isinstance(severity, numbers.Real)):
        raise ValueError(f"severity must be a number from 0 to 5, not {severity!r}; give 0 for the clean image")
    number = float(severity)
    if not 0 <= number <= 5:
        raise ValueError(f"severity must lie between 0 and 5, not {severity}; give 0 for the clean image")
    return number


def parameters(name: str, severity: float, profile: str) -> Parameters:
    """Return the parameters of a corruption at a severity in (0, 5]; fractions are interpolated between neighbours.

    Raises ValueError for an unknown name or profile and for a severity outside (0, 5].
    """
    name, severity = canonical(name), check_severity(severity)
    if severity == 0:
        raise ValueError("severity 0 is the clean image and has no parameters; give a severity above 0")
    return _interpolated(name, severity, check_profile(profile))


@lru_cache(maxsize=1024)
def _interpolated(name: str, severity: float, profile: str) -> Parameters:
    rows = [entry if isinstance(entry, tuple) else (entry,) for entry in PROFILES[profile][name]]
    above = rows[math.ceil(severity) - 1]
    share = severity - math.floor(severity)
    if share == 0:
        return above
    if severity > 1:
        below = rows[math.floor(severity) - 1]
    else:
        below = tuple(b if a is None else a for a, b in zip(CLEAN[name], above, strict=True))
    if name in _HARMONIC:
        return tuple(1 / ((1 / b - 1 / a) * share + 1 / a) for a, b in zip(below, above, strict=True))
    # In scipy's order, so that even the last bit equals CCC's numbers.
    return tuple((b - a) * share + a for a, b in zip(below, above, strict=True))


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
