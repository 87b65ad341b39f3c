"""Plan a run: resolve names, data and options, and work out the key of every record. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bench.core.devices import cores, pick_device, pick_jobs
from bench.core.errors import MissingDataError, UsageError
from bench.core.offline import go_offline
from bench.execution.task_pool import Task
from bench.models.weights_io import preprocessing_of, shown_name
from bench.planning.board_entry import BoardEntry
from bench.planning.context import PlanContext, make_context
from bench.planning.entries import board_entries
from bench.planning.other_pool import pool_note
from bench.planning.run_methods import methods_of
from bench.planning.starting_weights import Base, reading_for, resolve_base
from bench.planning.training_cost import (
    TrainingCost,
    TrainingSetting,
    cost_of,
    expected_cost,
    published_setting,
    sentences,
)
from bench.settings.grid import default_folder
from bench.settings.run_spec import RunSpec
from bench.shifts import find_row
from bench.shifts.class_match import fitted
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift, trained_on
from bench.shifts.user_corruption import added
from bench.training.job_cache import all_jobs, job_key, training_tasks
from leaderboards.store import Store
from methods.nets.weights import Weights
from methods.selfsoup.objectives import mae

_JOBS_OF_A_CLUSTER = 256


@dataclass(frozen=True)
class Plan:
    """Everything a run will do."""

    spec: RunSpec
    out: Path
    shift: Shift
    reading: Reading
    model: str | None
    ready: bool
    device: str
    devices: int
    jobs: int
    threads: int
    entries: tuple[BoardEntry, ...]
    missing: frozenset[str]
    trainings: tuple[Task, ...]
    training_cost: TrainingCost
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for entry in self.entries for key in entry.keys.values())


def make_plan(spec: RunSpec) -> Plan:
    """Resolve names, data, options and keys, and find which records exist. Starts nothing and writes nothing.

    Where data or a stock is missing, the error also says what the run would train and cost, if its shift has budgets.
    """
    try:
        return _plan(spec)
    except MissingDataError as error:
        raise MissingDataError("\n".join([str(error), *_expected_cost_notes(spec)])) from None


def _plan(spec: RunSpec) -> Plan:
    devices = spec.devices or max(1, spec.slurm.gpus)
    device, jobs, threads = _placement(spec, devices)
    out = spec.out or default_folder(spec)
    if spec.offline:
        go_offline()
    row = find_row(spec.shift)
    if row.protocol and spec.protocol.partition(":")[0] != row.protocol:
        raise UsageError(f"{row.name} is one stream, not conditions side by side; add --protocol {row.protocol}")
    name, base = resolve_base(spec, device, make_plan)
    workers = cores() if spec.workers is None else spec.workers
    own = added(spec.corruption)
    reading = reading_for(spec, Reading(spec.data_root, preprocessing_of(base), spec.offline, workers, added=own))
    shift, reading = fitted(spec.shift, base, reading)
    context = make_context(spec, shift, device, name, base, reading)
    entries = tuple(board_entries(context))
    missing = _missing(spec, out, entries)
    trainings = _trainings(entries, missing, device, devices)
    cost = _training_cost(entries, trainings)
    model = name if isinstance(base, nn.Module) else None
    return Plan(
        spec=spec,
        out=out,
        shift=shift,
        reading=reading,
        model=model,
        ready=not isinstance(base, Weights),
        device=device,
        devices=devices,
        jobs=jobs,
        threads=threads,
        entries=entries,
        missing=missing,
        trainings=trainings,
        training_cost=cost,
        notes=(
            *sentences(spec, context.methods, cost, _cost_setting(context)),
            *getattr(base, "notes", ()),
            *getattr(shift, "notes", ()),
            *_decoder_note(base, name, entries),
            *([pool_note(context.pool, shift.name, context.takers)] if context.pool is not None else []),
            *_borrowed_option_notes(context),
        ),
    )


def _expected_cost_notes(spec: RunSpec) -> list[str]:
    """What a run on a shift with budgets would train and cost with the published stock and images."""
    row, methods = find_row(spec.shift), methods_of(spec)
    setting = published_setting(row)
    ready = row.default_model and all(method.recipe.name == "source" for method in methods)
    if setting is None or spec.model or spec.stock or spec.init_from or ready:
        return []
    notes = list(sentences(spec, methods, expected_cost(spec, methods, setting), setting))
    first = f"bench run --method {','.join(spec.method)} --shift digits-c"
    return [*notes, f"without any download, right now: {first}"] if notes else []


def _placement(spec: RunSpec, devices: int) -> tuple[str, int, int]:
    """The device, the number of processes or jobs that run at a time, and the threads of each."""
    if spec.launch == "slurm":
        # The nodes that compute may differ from the machine that plans.
        device = spec.device if spec.device != "auto" else "cuda" if spec.slurm.gpus else "cpu"
        return device, spec.jobs or _JOBS_OF_A_CLUSTER, 1
    device = pick_device(spec.device)
    return device, *pick_jobs(1 if spec.launch == "serial" else spec.jobs, device, devices)


def _missing(spec: RunSpec, out: Path, entries: Sequence[BoardEntry]) -> frozenset[str]:
    """The keys of the records to measure. Raises UsageError if failed ones are wanted where none of the run are."""
    keys = frozenset(key for entry in entries for key in entry.keys.values())
    if spec.rerun:
        return keys
    if not spec.only_failed:
        return keys - Store(out).done()
    if not any(record.key in keys for record in Store(out).records()):
        raise UsageError(f"{out} holds no record of this run, so none failed; leave out --only-failed")
    return keys & Store(out).failed()


def _trainings(entries: Sequence[BoardEntry], missing: frozenset[str], device: str, devices: int) -> tuple[Task, ...]:
    """The training tasks that missing records wait for, each once."""
    tasks: dict[str, Task] = {}
    for entry in entries:
        if entry.job is not None and missing.intersection(entry.keys.values()):
            targets = [entry.job, *([entry.report] if entry.report is not None else [])]
            for task in training_tasks(targets, entry.trial.draws, device, devices):
                tasks.setdefault(task.key, task)
    return tuple(tasks.values())


def _training_cost(entries: Sequence[BoardEntry], trainings: Sequence[Task]) -> TrainingCost:
    """The cost of the missing trainings."""
    wanted = {task.key for task in trainings}
    targets = [(job, entry.trial.draws) for entry in entries for job in (entry.job, entry.report) if job is not None]
    jobs = {job_key(job, seed): job for target, seed in targets for job in all_jobs([target])}
    return cost_of(job for key, job in jobs.items() if key in wanted)


def _cost_setting(context: PlanContext) -> TrainingSetting | None:
    """What decides the cost of another budget; None for a ready classifier."""
    scored = context.shift if context.pool is None else context.pool.shift
    shift, weights = trained_on(scored), context.options.weights
    if not isinstance(context.base, Weights) or weights is None:
        return None
    count = len(shift.ids("train"))
    return TrainingSetting(scored.name, shift.family, shift.classes, count, context.base.architecture, weights)


def _decoder_note(base: Base, name: str, entries: Sequence[BoardEntry]) -> tuple[str, ...]:
    """A note if MAE ingredients start from a stock without a decoder."""
    if not isinstance(base, Weights) or base.part("decoder"):
        return ()
    jobs = all_jobs([entry.job for entry in entries if entry.job is not None])
    if not any(isinstance(getattr(job.config, "objective", None), mae.Config) for job in jobs):
        return ()
    return (f"the stock {shown_name(name, base)} has no decoder: MAE ingredients start from a fresh one",)


def _borrowed_option_notes(context: PlanContext) -> list[str]:
    """One note for each adapter that runs with options published for other data or norms."""
    rows = {method.adapter.name: method.adapter for method in context.methods if method.adapter is not None}
    return [note for row in rows.values() if (note := context.options.note(row))]
