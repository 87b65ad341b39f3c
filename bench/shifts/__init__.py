"""The table of shifts, readable without torch, and `load_shift`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import nearest

if TYPE_CHECKING:
    from bench.shifts.base import Shift


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """What is known of a shift before its data is touched. `path` is "module:function" of its loader."""

    name: str
    path: str
    summary: str
    size: str
    licence: str
    citation: str
    default_stock: str


_ROWS = (
    ShiftRow(
        "digits-c",
        "bench.shifts.digits:load",
        "Handwritten digits at 32 px under 12 corruptions; ships with scikit-learn, no download",
        "1797 images",
        "CC BY 4.0",
        "E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. UCI 1998. doi:10.24432/C50P49",
        "digits",
    ),
    ShiftRow(
        "imagenet-c",
        "bench.shifts.imagenet_c:load",
        "ImageNet validation images under 15 corruptions at 5 severities, the published JPEG files",
        "about 75 GB",
        "CC BY 4.0",
        "D. Hendrycks, T. Dietterich. Benchmarking Neural Network Robustness to Common Corruptions and Perturbations. "
        "ICLR 2019. arXiv:1903.12261",
        "mae-vit-base-patch16",
    ),
)

SHIFTS: dict[str, ShiftRow] = {row.name: row for row in _ROWS}


def load_shift(name: str, data_root: Path | None = None) -> Shift:
    """The shift of that name. Raises UsageError for an unknown name, MissingDataError where its files are not found."""
    row = SHIFTS[nearest(name, SHIFTS, "shift")]
    module, _, function = row.path.partition(":")
    shift: Shift = getattr(importlib.import_module(module), function)(data_root)
    return shift
