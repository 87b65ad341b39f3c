"""Which corruptions each named shift has, known before its data is opened. Imports no torch."""

from __future__ import annotations

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
    "imagenet:natural": ((), ()),
    "imagenet:real": ((), ()),
    "vtab:load": ((), ()),
}


def sets_of(row: ShiftRow) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the synthetic corruptions that a shift reports and those for tuning; None if the user's file decides."""
    loader = row.path.removeprefix("bench.shifts.")
    return None if loader.startswith("user_shift:") else _OF_LOADER.get(loader, (COMMON, EXTRA))


def corruptions_of(row: ShiftRow) -> tuple[str, ...] | None:
    """Return the corruptions that a run on a shift may name, reported ones first; None if the user's file decides."""
    from bench.core.conditions import NATURAL  # loads numpy, which `bench show` does without

    found = sets_of(row)
    return None if found is None else tuple(dict.fromkeys((*found[0], *found[1], NATURAL)))
