"""Read the options that belong to a shift: those tuned on its dev images, and its budgets."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from bench.core.errors import UsageError, nearest
from bench.shifts import SHIFTS
from methods import METHODS

Options = Mapping[str, Mapping[str, Any]]
_BUDGETS = "budget"


@dataclass(frozen=True)
class Budget:
    """How much of a published recipe a run is: options by method, and settings of the run such as `labels`."""

    name: str
    summary: str
    options: Options
    settings: Mapping[str, Any]


@cache
def _table(shift: str) -> dict[str, dict[str, Any]]:
    row = SHIFTS.get(shift)
    if row is None:
        return {}
    file = resources.files("bench") / "assets" / f"{row.options_from or shift}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def tuned_options(shift: str, method: str) -> dict[str, Any]:
    """Return the tuned options of a method on a shift from `bench/assets/<shift>.toml`; empty if there are none."""
    return dict(_table(shift).get(method, {})) if method != _BUDGETS else {}


def has_options(shift: str) -> bool:
    """Return whether a shift has options of its own, tuned or as budgets."""
    return bool(_table(shift))


def budgets_of(shift: str) -> dict[str, Budget]:
    """Return the budgets of a shift by name, the default first; empty if it has none."""
    found: dict[str, Budget] = {}
    for name, entry in _table(shift).get(_BUDGETS, {}).items():
        start = found.get(entry.get("like", ""))
        known = {key for key in entry if key not in ("like", "summary", "every", "set")}
        every, own = entry.get("every", {}), entry.get("set", {})
        before: Options = start.options if start else {}
        names = dict.fromkeys((*before, *own))
        found[name] = Budget(
            name,
            entry["summary"],
            {method: {**before.get(method, {}), **_shared(every, method), **own.get(method, {})} for method in names},
            {**(start.settings if start else {}), **{key: entry[key] for key in known}},
        )
    return found


def _shared(every: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    """Return the options of every recipe; a recipe that starts as another one takes them from there."""
    return every if METHODS[method].starts_as is None else {}


def budget_of(shift: str, name: str | None) -> Budget | None:
    """Return the budget of a run, by default the first of its shift; None for a shift without budgets.

    Raises UsageError for a name that the shift does not have.
    """
    found = budgets_of(shift)
    if found:
        return found[nearest(name, found, "budget") if name is not None else next(iter(found))]
    if name is not None:
        having = ", ".join(each for each in SHIFTS if budgets_of(each))
        raise UsageError(f"--budget {name}: {shift} has no budgets; leave it out (they belong to {having})")
    return None
