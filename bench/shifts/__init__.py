"""The table of shifts, readable without torch, and `load_shift`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bench.core.errors import UsageError, nearest
from bench.shifts.catalog import OPEN, SHIFTS, ShiftRow

if TYPE_CHECKING:
    from bench.shifts.data_root import Reading
    from bench.shifts.image_shift import Loader
    from bench.shifts.shift import Shift

__all__ = ["OWN", "SHIFTS", "ShiftRow", "find_row", "load_by", "load_shift"]


OWN = ShiftRow(
    name="FILE.py:CLASS",
    path="bench.shifts.user_shift:own",
    summary="your own images and what happens to them, in one small file: bench new shift NAME",
    size="yours",
    licence="yours",
    citation="",
    default_stock="",
)


def find_row(name: str) -> ShiftRow:
    """Return the row of a shift; the name of the row keeps an argument (`folder:PATH`, `FILE.py:CLASS`).

    Raises UsageError for an unknown name, and for an argument after the colon that is missing or not allowed.
    """
    kind, colon, argument = name.partition(":")
    if name.rpartition(":")[0].endswith(".py"):
        return replace(OWN, name=name)
    if name.endswith(".py"):
        raise UsageError(f"say which class of {name} the shift is, as in {name}:MyShift")
    row = SHIFTS[nearest(kind, SHIFTS, "shift")]
    if colon and kind not in OPEN:
        raise UsageError(f"{kind} takes nothing after a colon; write {kind}")
    if kind in OPEN and not argument:
        raise UsageError(f"{kind} needs a name after a colon; {row.summary}")
    return replace(row, name=name)


def load_shift(name: str, data_root: Path | str | None = None, reading: Reading | None = None) -> Shift:
    """Load a shift by name with the settings of `reading` (default: from `data_root` at the shift's usual size).

    Every call opens the files again, because they may have changed. Raises UsageError for an unknown name,
    MissingDataError if the files are not found.
    """
    from bench.shifts.data_root import Reading

    row = find_row(name)
    if reading is not None:
        refuse_settings(row, reading.classes, reading.part)
    module, _, function = row.path.partition(":")
    reading = reading or Reading(Path(data_root) if data_root is not None else None)
    shift = load_by(getattr(importlib.import_module(module), function), row, reading)
    if not reading.added:
        return shift
    from bench.shifts.user_corruption import with_added

    return with_added(shift, reading.added)


def refuse_settings(row: ShiftRow, classes: str | None, part: str | None) -> None:
    """Raise UsageError for settings that apply only to folder:PATH and hf:REPO."""
    kind = row.name.partition(":")[0]
    if kind not in ("folder", "hf") and (value := classes or part):
        option = "--classes" if classes else "--part"
        raise UsageError(f"{option} {value} belongs to folder:PATH and hf:REPO, not to {row.name}; leave it out")


def load_by(load: Callable[[ShiftRow, Reading], Shift], row: ShiftRow, reading: Reading) -> Shift:
    """Load the shift of a row such that it can be sent to other processes, which load it in the same way."""
    from bench.shifts.image_shift import ImageShift

    shift = load(row, reading)
    if isinstance(shift, ImageShift) and shift.made_by is None:
        shift.made_by = (cast("Loader", load), row, reading)
    return shift
