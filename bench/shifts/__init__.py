"""The table of shifts, readable without torch, and `load_shift`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UsageError, nearest
from bench.shifts.table import OPEN, SHIFTS, ShiftRow

if TYPE_CHECKING:
    from bench.shifts.base import Shift
    from bench.shifts.reading import Reading

__all__ = ["SHIFTS", "ShiftRow", "find_row", "load_by", "load_shift"]


def find_row(name: str) -> ShiftRow:
    """The row of a shift; what follows a colon (`folder:PATH`) stays in the name of the row that is given.

    Raises UsageError for an unknown name, or where the part after the colon is missing or too much.
    """
    kind, colon, argument = name.partition(":")
    row = SHIFTS[nearest(kind, SHIFTS, "shift")]
    if colon and kind not in OPEN:
        raise UsageError(f"{kind} takes nothing after a colon; write {kind}")
    if kind in OPEN and not argument:
        raise UsageError(f"{kind} needs a name after a colon; {row.summary}")
    return replace(row, name=name)


def load_shift(name: str, data_root: Path | None = None, reading: Reading | None = None) -> Shift:
    """The shift of that name, read as `reading` says (by default: from `data_root` at the shift's usual size).

    Raises UsageError for an unknown name, MissingDataError where its files are not found.
    """
    from bench.shifts.reading import Reading

    row = find_row(name)
    module, _, function = row.path.partition(":")
    return load_by(getattr(importlib.import_module(module), function), row, reading or Reading(data_root))


def load_by(load: Callable[[ShiftRow, Reading], Shift], row: ShiftRow, reading: Reading) -> Shift:
    """What a loader makes of a row; it can then be sent to other processes, which load it in the same way."""
    shift = load(row, reading)
    if hasattr(shift, "made_by"):
        shift.made_by = (load, row, reading)
    return shift
