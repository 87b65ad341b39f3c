"""soupbench: benchmark test-time adaptation under distribution shift.

    from bench import RunSpec, run
    outcome = run(RunSpec(method="source,tent", shift="digits-c"))
    outcome.board().rows

Names load on first use, so that `import bench` costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Condition": "bench.core.conditions",
    "Trial": "bench.core.conditions",
    "RunSpec": "bench.settings.run_spec",
    "Outcome": "bench.runs.outcome",
    "run": "bench.runs.run",
    "load_shift": "bench.shifts",
    "load_stock": "bench.models.weights_io",
}
__all__ = ["Condition", "Outcome", "RunSpec", "Trial", "__version__", "load_shift", "load_stock", "run"]

if TYPE_CHECKING:
    __version__: str
    from bench.core.conditions import Condition, Trial
    from bench.models.weights_io import load_stock
    from bench.runs.outcome import Outcome
    from bench.runs.run import run
    from bench.settings.run_spec import RunSpec
    from bench.shifts import load_shift


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from bench.core.version import version

        return version()
    if name not in _EXPORTS:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def _one_home() -> None:
    """Say so where a user's own folder shadows one of the four packages, instead of failing oddly."""
    home = Path(__file__).resolve().parent.parent
    for package in ("corruptions", "methods", "leaderboards"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != home:
            found = spec.origin if spec and spec.origin else "nothing"
            raise ImportError(
                f"the package '{package}' beside bench is shadowed by {found}; "
                "run from another folder or rename that one, then try again"
            )


_one_home()
