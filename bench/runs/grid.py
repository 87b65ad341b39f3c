"""Run a grid: all runs in one folder and one pool of workers, without those that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.core.errors import MissingDataError, UsageError
from bench.evaluation.protocols import parse_protocol
from bench.planning.plan import Plan
from bench.planning.run_methods import methods_with_options
from bench.runs.callbacks import RunCallback
from bench.runs.outcome import Outcome
from bench.runs.run import planned, run_plans
from bench.settings.grid import GridCell, folder_of
from bench.shifts import find_row


@dataclass(frozen=True)
class PlannedGrid:
    """The runs of a grid with their plans, and those that cannot be, with the reason."""

    plans: tuple[tuple[GridCell, Plan], ...]
    refused: tuple[tuple[GridCell, str], ...]


def plan_grid(cells: Sequence[GridCell], callback: RunCallback) -> PlannedGrid:
    """Plan every run of a grid; options of a method go to the runs that have it.

    Raises UsageError for an unknown shift, protocol or method, for options of a method that no run has, and if none of
    the runs can be.
    """
    for cell in cells:
        find_row(cell.spec.shift)
        find_row(cell.spec.recipe_shift)
        parse_protocol(cell.spec.protocol)
    out = folder_of(cells)
    plans: list[tuple[GridCell, Plan]] = []
    refused: list[tuple[GridCell, str]] = []
    for each in _with_own_options(cells):
        cell = replace(each, spec=each.spec.model_copy(update={"out": out}))
        try:
            plans.append((cell, planned(cell.spec, callback)))
        except (UsageError, MissingDataError) as error:
            refused.append((cell, str(error)))
    if not plans:
        raise UsageError(f"no run of this grid can be; the first, {refused[0][0].name}: {refused[0][1]}")
    return PlannedGrid(tuple(plans), tuple(refused))


def _with_own_options(cells: Sequence[GridCell]) -> list[GridCell]:
    """Return the runs without options of methods that other runs have. Raises UsageError if none has them."""
    known = [methods_with_options(cell.spec) for cell in cells]
    anywhere = set().union(*known)
    asked = dict.fromkeys(name for cell in cells for name in cell.spec.options)
    if unknown := next((name for name in asked if name not in anywhere), None):
        raise UsageError(f"--set {unknown}.…: no run has a method '{unknown}'; they have {', '.join(sorted(anywhere))}")
    found = []
    for cell, own in zip(cells, known, strict=True):
        options = {name: values for name, values in cell.spec.options.items() if name in own}
        found.append(replace(cell, spec=cell.spec.model_copy(update={"options": options})))
    return found


def run_grid(grid: PlannedGrid, callback: RunCallback) -> list[tuple[GridCell, Outcome]]:
    """Do the missing work of a grid; what several runs share is done once. Returns an outcome for each run."""
    for cell, reason in grid.refused:
        callback.noted(f"left out: {cell.name}: {reason}")
    outcomes = run_plans([plan for _, plan in grid.plans], callback)
    return [(cell, outcome) for (cell, _), outcome in zip(grid.plans, outcomes, strict=True)]
