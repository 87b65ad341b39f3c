"""Which corruptions each named shift has, known before its data is opened. Imports no torch."""

from __future__ import annotations

from bench.core.conditions import NATURAL
from bench.shifts.catalog import ShiftRow
from corruptions.catalog import names

COMMON = names("imagenet_c")
EXTRA = names("imagenet_c_extra")
BAR = names("imagenet_c_bar")
LAION = names("laion_c")
DIGITS = tuple(name for name in COMMON if name not in ("glass_blur", "snow", "frost"))
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
