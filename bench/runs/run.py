"""Run a plan: train what is missing, stream what is not measured yet, write records."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from bench.core.cache_dir import need_cache, remove, write_bytes
from bench.core.errors import BenchError, ValidationError
from bench.core.extras import SLURM, need
from bench.evaluation.protocols import Segment, chains
from bench.evaluation.shared_pass import run_streams
from bench.evaluation.stream_tasks import checkpoint, forget
from bench.execution.task_pool import Executor
from bench.planning.board_entry import BoardEntry
from bench.planning.plan import Plan, make_plan
from bench.planning.streams import groups_of, missing_streams, stream_name
from bench.planning.work_items import work_items_of
from bench.runs.callbacks import RunCallback
from bench.runs.make_record import records_of
from bench.runs.manifest import ManifestRow, write_manifest
from bench.runs.outcome import Outcome as Outcome
from bench.runs.trackers import open_tracker
from bench.settings.grid import default_folder, settings_of
from bench.settings.run_spec import RunSpec
from leaderboards.record import Record
from leaderboards.store import Store, StoreError

log = logging.getLogger(__name__)


def run(spec: RunSpec, callback: RunCallback | None = None) -> Outcome:
    """Do the work of a spec that is not done yet. A failed trial is a record; it never stops the others.

    Raises UsageError, MissingDataError or BenchError before any task starts.
    """
    return run_all([spec], callback)[0]


def run_all(specs: Sequence[RunSpec], callback: RunCallback | None = None) -> list[Outcome]:
    """Run several specs in one pool of workers and return an outcome for each; shared trainings run once."""
    callback = callback or RunCallback()
    return run_plans([planned(spec, callback) for spec in specs], callback)


def run_plans(plans: Sequence[Plan], callback: RunCallback) -> list[Outcome]:
    """Do the missing work of several plans in one pool of workers and return an outcome for each."""
    trainings = {task.key: task for plan in plans for task in plan.trainings}
    streams: dict[str, tuple[Plan, BoardEntry, tuple[Segment, ...]]] = {}
    tasks = list(trainings.values())
    if any(plan.missing for plan in plans):
        need_cache()
    write_settings(plans)
    for plan in plans:
        rows = _manifest(plan)
        write_manifest(plan.out, rows, [task.key for task in plan.trainings])
        _forget_done(plan, rows)
        for task, entry, chain in missing_streams(plan):
            if task.key not in streams:
                tasks.append(task)
            streams[task.key] = (plan, entry, chain)
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        callback.noted(note)
    executor = executor_of(plans[0])
    groups = groups_of(plans[0], tasks)
    callback.planned(
        work_items_of(plans, groups, {key: entry for key, (_, entry, _) in streams.items()}), plans[0].jobs
    )
    counts = {id(plan): Counter[str]() for plan in plans}
    errors: dict[int, dict[str, None]] = {id(plan): {} for plan in plans}
    try:
        with open_tracker(plans[0].spec, plans[0].out) as tracker:
            for finished in run_streams(groups, plans[0].jobs, plans[0].threads, callback.started, executor):
                callback.finished(finished.task, finished.error)
                if finished.error is not None:
                    log.error("%s failed", finished.task.label, exc_info=finished.error)
                if finished.task.key not in streams:
                    continue
                plan, entry, chain = streams[finished.task.key]
                if finished.error is not None:
                    errors[id(plan)][f"{finished.task.label}: {finished.error}"] = None
                for record, predictions in records_of(plan, entry, chain, finished):
                    if record.key in plan.missing and _write(plan, record, predictions):
                        counts[id(plan)][record.status] += 1
                        tracker.take(record)
                forget(plan.out, finished.task.key)
    finally:
        for out in {plan.out for plan in plans}:
            with _as_bench_error(out):
                Store(out).compile()
    return [
        Outcome(
            plan.out,
            plan.keys,
            counts[id(plan)]["done"],
            counts[id(plan)]["failed"],
            len(plan.keys) - len(plan.missing),
            tuple(errors[id(plan)]),
            plan.notes,
        )
        for plan in plans
    ]


def planned(spec: RunSpec, callback: RunCallback) -> Plan:
    """Return the plan; damaged records are renamed, so that they are measured again."""
    try:
        return make_plan(spec)
    except StoreError as error:
        out = spec.out or default_folder(spec)
        with _as_bench_error(out):
            moved = Store(out).set_aside_broken()
        if not moved:
            raise ValidationError(str(error)) from None
        callback.noted(f"{len(moved)} damaged records renamed to {moved[0].parent}/*.broken; they are measured again")
        return make_plan(spec)


def _write(plan: Plan, record: Record, predictions: Any) -> bool:
    with _as_bench_error(plan.out):
        return Store(plan.out).write(record, predictions, replace=plan.spec.rerun or plan.spec.only_failed)


@contextlib.contextmanager
def _as_bench_error(out: Path) -> Iterator[None]:
    """Convert errors of writing records into a BenchError."""
    try:
        yield
    except OSError as error:
        raise BenchError(
            f"cannot write records in {out}: {error.strerror or error}; free space or fix permissions, "
            "then run this again: finished work is kept"
        ) from error
    except StoreError as error:
        raise BenchError(str(error)) from None


def executor_of(plan: Plan) -> Executor | None:
    """Return the executor of a plan; None: this machine. Raises MissingDataError if a package is missing."""
    if plan.spec.launch != "slurm":
        return None
    need(SLURM, "--launch slurm")
    from bench.execution.slurm import SlurmJobs

    settings = plan.spec.slurm
    if plan.device.startswith("cuda") and plan.devices > 1:
        settings = settings.model_copy(update={"gpus": plan.devices})
    return SlurmJobs(settings, plan.out / "slurm", plan.jobs, plan.threads)


def _manifest(plan: Plan) -> list[ManifestRow]:
    return [
        ManifestRow(
            plan.spec.shift,
            entry.trial.method,
            entry.part,
            entry.trial.seed,
            {
                stream_name(entry, number): tuple(entry.keys[c] for segment in chain for c in segment.conditions)
                for number, chain in enumerate(chains(entry.segments))
            },
        )
        for entry in plan.entries
    ]


def _forget_done(plan: Plan, rows: Sequence[ManifestRow]) -> None:
    """Remove checkpoints of streams whose records exist, left by a run that was killed between the two steps."""
    for name, keys in (stream for row in rows for stream in row.streams.items()):
        if plan.missing.isdisjoint(keys):
            remove(checkpoint(plan.out, name))


def write_settings(plans: Sequence[Plan]) -> None:
    """Write the resolved settings of all plans of a folder into it, as a run file that repeats them."""
    for out in dict.fromkeys(plan.out for plan in plans):
        specs = [plan.spec for plan in plans if plan.out == out]
        write_bytes(out / "run.toml", tomli_w.dumps(settings_of(specs)).encode())
