"""Boards from records: how results are stored, checked, compared and shown. Never imports torch.

The names below are loaded on first use, so `import leaderboards` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaderboards.boards import Board as Board
    from leaderboards.boards import BoardError as BoardError
    from leaderboards.boards import BoardRow as BoardRow
    from leaderboards.boards import make_board as make_board
    from leaderboards.boards import make_boards as make_boards
    from leaderboards.bundle import Bundle as Bundle
    from leaderboards.bundle import BundleError as BundleError
    from leaderboards.bundle import read_bundle as read_bundle
    from leaderboards.bundle import write_bundle as write_bundle
    from leaderboards.compare import Comparison as Comparison
    from leaderboards.compare import compare_rows as compare_rows
    from leaderboards.memory import Memory as Memory
    from leaderboards.metrics import diagnose as diagnose
    from leaderboards.metrics import score as score
    from leaderboards.record import Access as Access
    from leaderboards.record import Cost as Cost
    from leaderboards.record import DataIdentity as DataIdentity
    from leaderboards.record import Diagnostics as Diagnostics
    from leaderboards.record import Metrics as Metrics
    from leaderboards.record import Record as Record
    from leaderboards.record import RecordError as RecordError
    from leaderboards.record import WeightsIdentity as WeightsIdentity
    from leaderboards.record import schema as schema
    from leaderboards.reference import ReferenceRow as ReferenceRow
    from leaderboards.reference import reference_rows as reference_rows
    from leaderboards.robustness import mean_corruption_error as mean_corruption_error
    from leaderboards.robustness import relative_mean_corruption_error as relative_mean_corruption_error
    from leaderboards.store import Predictions as Predictions
    from leaderboards.store import Store as Store
    from leaderboards.store import StoreError as StoreError
    from leaderboards.store import find_predictions as find_predictions
    from leaderboards.store import find_scored as find_scored
    from leaderboards.store import read as read
    from leaderboards.submit import Checker as Checker
    from leaderboards.submit import check_file as check_file
    from leaderboards.submit import check_folder as check_folder
    from leaderboards.submit import make_bundle as make_bundle
    from leaderboards.tables import to_csv as to_csv
    from leaderboards.tables import to_json as to_json
    from leaderboards.tables import to_latex as to_latex
    from leaderboards.tables import to_markdown as to_markdown
    from leaderboards.tables import to_terminal as to_terminal
    from leaderboards.uncertainty import Difference as Difference
    from leaderboards.uncertainty import Interval as Interval
    from leaderboards.uncertainty import Outcomes as Outcomes
    from leaderboards.uncertainty import Withheld as Withheld
    from leaderboards.uncertainty import holm as holm
    from leaderboards.uncertainty import image_scores as image_scores
    from leaderboards.uncertainty import mean_accuracy_interval as mean_accuracy_interval
    from leaderboards.uncertainty import paired_difference as paired_difference
    from leaderboards.verify import Problem as Problem
    from leaderboards.verify import Report as Report

_HOMES: dict[str, tuple[str, ...]] = {
    "record": (
        "Access",
        "Cost",
        "DataIdentity",
        "Diagnostics",
        "Metrics",
        "Record",
        "RecordError",
        "WeightsIdentity",
        "schema",
    ),
    "reference": ("ReferenceRow", "reference_rows"),
    "bundle": ("Bundle", "BundleError", "read_bundle", "write_bundle"),
    "submit": ("Checker", "check_file", "check_folder", "make_bundle"),
    "store": ("Predictions", "Store", "StoreError", "find_predictions", "find_scored", "read"),
    "memory": ("Memory",),
    "metrics": ("diagnose", "score"),
    "robustness": ("mean_corruption_error", "relative_mean_corruption_error"),
    "verify": ("Problem", "Report"),
    "uncertainty": (
        "Difference",
        "Interval",
        "Outcomes",
        "Withheld",
        "holm",
        "image_scores",
        "mean_accuracy_interval",
        "paired_difference",
    ),
    "boards": ("Board", "BoardError", "BoardRow", "make_board", "make_boards"),
    "compare": ("Comparison", "compare_rows"),
    "tables": ("to_csv", "to_json", "to_latex", "to_markdown", "to_terminal"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"leaderboards has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"leaderboards.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
