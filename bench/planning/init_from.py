"""`--init-from RUN`: start from the classifier that another run trained, on the same or another shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.core.conditions import Draws, digest_of
from bench.core.errors import BenchError, MissingDataError, UsageError, nearest
from bench.planning.board_entry import BoardEntry
from bench.settings.grid import cells_of
from bench.settings.run_spec import RunSpec, read_run_file
from bench.shifts.class_match import class_names
from bench.shifts.shift import Shift
from bench.training.job_cache import all_jobs, job_key
from methods.base import Job, Labelled
from methods.nets.weights import AnyArchitecture, Weights
from methods.table import Access


class Planned(Protocol):
    """The parts of a plan that give its classifiers."""

    @property
    def entries(self) -> tuple[BoardEntry, ...]: ...

    @property
    def shift(self) -> Shift: ...


@dataclass(frozen=True)
class Inherited:
    """The classifiers of a method in another run, by seed, as jobs that are in the cache or run again.

    `draws` are the seeds of each. `access` is what the classifier has seen; every method that starts from it has seen
    that too. `met` names the conditions of its pool and `shift` theirs, `class_names` its classes (None: without
    names).
    """

    name: str
    jobs: Mapping[int, Job]
    draws: Mapping[int, Draws]
    access: Access
    architecture: AnyArchitecture
    classes: int
    met: tuple[str, ...]
    shift: str
    class_names: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        """A digest that identifies the classifiers of all seeds."""
        return "sha256:" + digest_of([job_key(job, self.draws[seed]) for seed, job in sorted(self.jobs.items())])


def inherit(text: str, seeds: Sequence[int], device: str, make_plan: Callable[[RunSpec], Planned]) -> Inherited:
    """Parse "RUN" or "RUN:METHOD": the folder of a run or grid and one of its methods (default: the first that trains).

    Each seed takes the classifier of the same seed in the other run. Raises MissingDataError if there is no run,
    UsageError for a method that is not in it, has no single classifier, or another one in another run of the grid.
    """
    folder, _, method = (text, "", "") if Path(text).is_dir() else text.rpartition(":")
    settings = Path(folder) / "run.toml"
    if not settings.is_file():
        raise MissingDataError(f"no run at {folder or text}; give the folder of one, which holds run.toml")
    first, *more = seeds
    overrides = {"seed": first, "seeds": 1 + len(more), "device": device, "out": folder}
    plans = _plans([cell.spec for cell in cells_of(read_run_file(settings), overrides)], make_plan)
    by_plan = [
        (plan, [entry for entry in plan.entries if entry.job is not None and entry.part in (None, "soup")])
        for plan in plans
    ]
    names = list(dict.fromkeys(entry.trial.method for _, trained in by_plan for entry in trained))
    if not names:
        raise UsageError(f"nothing was trained in {folder}, which ran a ready classifier; give that as --model")
    chosen = nearest(method, names, f"method of {folder}") if method else names[0]
    name = f"{chosen}@{Path(folder).name}"
    found = [
        _classifiers(name, plan, entries, folder)
        for plan, trained in by_plan
        if (entries := [entry for entry in trained if entry.trial.method == chosen])
    ]
    if len({one.digest for one in found}) > 1:
        raise UsageError(
            f"{chosen} has another classifier in each of several runs of {folder}; give the folder of one run, or "
            f"choose another method as RUN:METHOD"
        )
    return found[0]


def _plans(specs: Sequence[RunSpec], make_plan: Callable[[RunSpec], Planned]) -> list[Planned]:
    """The plans of the runs of a grid that can be. Raises the error of the first if none can."""
    plans: list[Planned] = []
    problems: list[BenchError] = []
    for spec in specs:
        try:
            plans.append(make_plan(spec))
        except (UsageError, MissingDataError) as problem:
            problems.append(problem)
    if not plans:
        raise problems[0]
    return plans


def _classifiers(name: str, plan: Planned, entries: Sequence[BoardEntry], folder: str) -> Inherited:
    """The classifiers of one method in one run: `entries` are its trained ones."""
    jobs: dict[int, Job] = {}
    for entry in entries:
        if entry.trial.seed in jobs:
            raise UsageError(
                f"{entry.trial.method} of {folder} has a classifier for each corruption; choose another as RUN:METHOD"
            )
        assert entry.job is not None
        jobs[entry.trial.seed] = entry.job
    entry, shift = entries[0], plan.shift
    draws = {entry.trial.seed: entry.trial.draws for entry in entries}
    return Inherited(name, jobs, draws, _access(entry), *_shape(entry), entry.history, shift.name, class_names(shift))


def _access(entry: BoardEntry) -> Access:
    """Return the access of the recipe alone: the adapter of the other run does not change the classifier."""
    from methods import METHODS

    return METHODS[entry.trial.recipe].access if entry.trial.recipe in METHODS else entry.access


def _shape(entry: BoardEntry) -> tuple[AnyArchitecture, int]:
    assert entry.job is not None
    jobs = all_jobs([entry.job])
    stock = next(part for job in jobs for part in job.inputs if isinstance(part, Weights))
    return stock.architecture, next(job.data.classes for job in jobs if isinstance(job.data, Labelled))
