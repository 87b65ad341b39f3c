"""Records in, boards out: what was measured, how it is stored, checked, compared and shown. Never imports torch.

The names below are loaded when first used, so that `import leaderboards` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaderboards.metrics import score as score
    from leaderboards.record import Access as Access
    from leaderboards.record import Cost as Cost
    from leaderboards.record import Data as Data
    from leaderboards.record import Metrics as Metrics
    from leaderboards.record import Record as Record
    from leaderboards.record import RecordError as RecordError
    from leaderboards.record import Weights as Weights
    from leaderboards.store import Predictions as Predictions
    from leaderboards.store import Store as Store
    from leaderboards.store import StoreError as StoreError
    from leaderboards.store import find_predictions as find_predictions
    from leaderboards.store import read as read

_HOMES: dict[str, tuple[str, ...]] = {
    "record": ("Access", "Cost", "Data", "Metrics", "Record", "RecordError", "Weights"),
    "metrics": ("score",),
    "store": ("Predictions", "Store", "StoreError", "find_predictions", "read"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"leaderboards has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"leaderboards.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
