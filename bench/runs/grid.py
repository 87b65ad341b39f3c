"""Run a grid: all runs in one folder and one pool of workers, without those that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.core.errors import MissingDataError, UsageError
from bench.evaluation.protocols import parse_protocol
from bench.planning.plan import Plan
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
    """Plan every run of a grid. Raises UsageError for an unknown shift or protocol, and if none of the runs can be."""
    for cell in cells:
        find_row(cell.spec.shift)
        parse_protocol(cell.spec.protocol)
    out = folder_of(cells)
    plans: list[tuple[GridCell, Plan]] = []
    refused: list[tuple[GridCell, str]] = []
    for each in cells:
        cell = replace(each, spec=each.spec.model_copy(update={"out": out}))
        try:
            plans.append((cell, planned(cell.spec, callback)))
        except (UsageError, MissingDataError) as error:
            refused.append((cell, str(error)))
    if not plans:
        raise UsageError(f"no run of this grid can be; the first, {refused[0][0].name}: {refused[0][1]}")
    return PlannedGrid(tuple(plans), tuple(refused))


def run_grid(grid: PlannedGrid, callback: RunCallback) -> list[tuple[GridCell, Outcome]]:
    """Do the missing work of a grid; what several runs share is done once. Returns an outcome for each run."""
    for cell, reason in grid.refused:
        callback.noted(f"left out: {cell.name}: {reason}")
    outcomes = run_plans([plan for _, plan in grid.plans], callback)
    return [(cell, outcome) for (cell, _), outcome in zip(grid.plans, outcomes, strict=True)]
