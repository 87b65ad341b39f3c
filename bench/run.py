"""A run from start to end: cook what is missing, stream what is not measured yet, write records."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from bench.cache import write_bytes
from bench.components import identity_of_path
from bench.errors import BenchError, UsageError, ValidationError
from bench.fingerprint import environment
from bench.kitchen import connectivity_of, fit_seconds, job_key, mixture_of
from bench.ledger import Planned, write_ledger
from bench.measure import checkpoint, forget, measure
from bench.pieces import pieces_of
from bench.plan import Lane, Plan, default_folder, make_plan
from bench.predict import Evaluation, Expected
from bench.protocols import Segment, chains
from bench.spec import RunSpec
from bench.tally import Measured
from bench.together import run_streams, share_passes
from bench.track import open_sink
from bench.trial import CLEAN, Condition, digest_of
from bench.watch import Watcher
from bench.workers import Executor, Finished, Task
from leaderboards.metrics import diagnose, score
from leaderboards.record import SCHEMA, Record
from leaderboards.store import Store, StoreError
from methods import PLAIN

if TYPE_CHECKING:
    from leaderboards.boards import Board

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: its folder, and how many records are done, failed, or were there before."""

    out: Path
    keys: tuple[str, ...]
    done: int
    failed: int
    reused: int
    errors: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0

    def records(self) -> list[Record]:
        """The records of this run, other runs in the same folder left out."""
        wanted = set(self.keys)
        return [record for record in Store(self.out).records() if record.key in wanted]

    def board(self) -> Board:
        """The board over the records of this run."""
        from leaderboards.boards import make_board

        return make_board(self.records(), Store(self.out).predictions)


def run(spec: RunSpec, watcher: Watcher | None = None) -> Outcome:
    """Do all that a spec asks for and is not done yet. A failed trial is a record; it never stops the others.

    Raises UsageError, MissingDataError or BenchError before anything is started.
    """
    return run_all([spec], watcher)[0]


def run_all(specs: Sequence[RunSpec], watcher: Watcher | None = None) -> list[Outcome]:
    """Several specs in one pool of workers, an outcome for each; what they share is trained once."""
    watcher = watcher or Watcher()
    plans = [_planned(spec, watcher) for spec in specs]
    cooking = {task.key: task for plan in plans for task in plan.cooking}
    streams: dict[str, tuple[Plan, Lane, tuple[Segment, ...]]] = {}
    tasks = list(cooking.values())
    for plan in plans:
        write_settings(plan)
        rows = _ledger(plan)
        write_ledger(plan.out, rows, [task.key for task in plan.cooking])
        _forget_done(plan, rows)
        for task, lane, chain in missing_streams(plan):
            if task.key not in streams:
                tasks.append(task)
            streams[task.key] = (plan, lane, chain)
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        watcher.noted(note)
    executor = executor_of(plans[0])
    groups = groups_of(plans[0], tasks)
    watcher.planned(pieces_of(plans, groups, {key: lane for key, (_, lane, _) in streams.items()}), plans[0].jobs)
    counts = {id(plan): Counter[str]() for plan in plans}
    errors: dict[int, dict[str, None]] = {id(plan): {} for plan in plans}
    try:
        with open_sink(plans[0].spec, plans[0].out) as sink:
            for finished in run_streams(groups, plans[0].jobs, plans[0].threads, watcher.started, executor):
                watcher.finished(finished.task, finished.error)
                if finished.error is not None:
                    log.error("%s failed", finished.task.label, exc_info=finished.error)
                if finished.task.key not in streams:
                    continue
                plan, lane, chain = streams[finished.task.key]
                if finished.error is not None:
                    errors[id(plan)][f"{finished.task.label}: {finished.error}"] = None
                for record, predictions in _records(plan, lane, chain, finished):
                    if record.key in plan.missing and _write(plan, record, predictions):
                        counts[id(plan)][record.status] += 1
                        sink.take(record)
                forget(plan.out, finished.task.key)
    finally:
        for out in {plan.out for plan in plans}:
            with _told(out):
                Store(out).compile()
    return [
        Outcome(
            plan.out,
            plan.keys,
            counts[id(plan)]["done"],
            counts[id(plan)]["failed"],
            len(plan.keys) - len(plan.missing),
            tuple(errors[id(plan)]),
        )
        for plan in plans
    ]


def _planned(spec: RunSpec, watcher: Watcher) -> Plan:
    """The plan; records that cannot be read are set aside, so that they are measured again."""
    try:
        return make_plan(spec)
    except StoreError as error:
        out = spec.out or default_folder(spec)
        with _told(out):
            moved = Store(out).set_aside_broken()
        if not moved:
            raise ValidationError(str(error)) from None
        watcher.noted(f"{len(moved)} damaged records are set aside as {moved[0].parent}/*.broken and measured again")
        return make_plan(spec)


def _write(plan: Plan, record: Record, predictions: Any) -> bool:
    with _told(plan.out):
        return Store(plan.out).write(record, predictions, replace=plan.spec.rerun or plan.spec.only_failed)


@contextlib.contextmanager
def _told(out: Path) -> Iterator[None]:
    """What keeps records from being written becomes one sentence."""
    try:
        yield
    except OSError as error:
        raise BenchError(
            f"cannot write records in {out}: {error.strerror or error}; free space or allow it, then run this again: "
            "what is finished is kept"
        ) from error
    except StoreError as error:
        raise BenchError(str(error)) from None


def executor_of(plan: Plan) -> Executor | None:
    """Where the tasks of a plan run if not on this machine. Raises UsageError where that cannot be reached."""
    if plan.spec.launch != "slurm":
        return None
    try:
        from bench.slurm import SlurmJobs
    except ImportError:
        raise UsageError(
            "--launch slurm needs the extra scale; install it with: pip install 'soupbench[scale]'"
        ) from None
    settings = plan.spec.slurm
    if plan.device.startswith("cuda") and plan.devices > 1:
        settings = settings.model_copy(update={"gpus": plan.devices})
    return SlurmJobs(settings, plan.out / "slurm", plan.jobs, plan.threads)


def groups_of(plan: Plan, tasks: Sequence[Task]) -> list[list[Task]]:
    """What runs as one: streams of the same images where they share a pass, and everything else alone."""
    return [[task] for task in tasks] if plan.spec.launch == "slurm" else share_passes(tasks, plan.jobs)


def missing_streams(plan: Plan) -> Iterator[tuple[Task, Lane, tuple[Segment, ...]]]:
    """The streams that a plan has still to run, each with its row and its segments."""
    for lane in plan.lanes:
        for number, chain in enumerate(chains(lane.segments)):
            if any(lane.keys[c] in plan.missing for segment in chain for c in segment.conditions):
                yield _evaluation_task(plan, lane, chain, number), lane, chain


def _ledger(plan: Plan) -> list[Planned]:
    return [
        Planned(
            plan.spec.shift,
            lane.trial.method,
            lane.part,
            lane.trial.seed,
            {
                _stream_name(lane, number): tuple(lane.keys[c] for segment in chain for c in segment.conditions)
                for number, chain in enumerate(chains(lane.segments))
            },
        )
        for lane in plan.lanes
    ]


def _forget_done(plan: Plan, rows: Sequence[Planned]) -> None:
    """Remove checkpoints of streams whose records are there: a run was killed between the two."""
    for name, keys in (stream for row in rows for stream in row.streams.items()):
        if plan.missing.isdisjoint(keys):
            checkpoint(plan.out, name).unlink(missing_ok=True)


def _stream_name(lane: Lane, number: int) -> str:
    return f"{digest_of(list(lane.keys.values()))}-{number}"


def write_settings(plan: Plan) -> None:
    """Leave the resolved settings beside the records, as a run file that repeats the run."""
    values = plan.spec.model_dump(
        mode="json",
        by_alias=True,
        exclude={"out", "rerun", "only_failed", "launch", "slurm", "track"},
        exclude_none=True,
    )
    # TOML has no word for nothing; options that are None are so by default.
    values["set"] = {
        method: {name: value for name, value in options.items() if value is not None}
        for method, options in values["set"].items()
    }
    write_bytes(plan.out / "run.toml", tomli_w.dumps(values).encode())


def _evaluation_task(plan: Plan, lane: Lane, chain: tuple[Segment, ...], number: int) -> Task:
    weights = job_key(lane.job, lane.trial.seed) if lane.job is not None else None
    evaluation = Evaluation(
        method=lane.trial.method,
        shift=plan.spec.shift,
        reading=plan.reading,
        weights=weights,
        model=plan.model,
        adapter=lane.adapter.path,
        config=lane.config,
        seed=lane.trial.seed,
        segments=chain,
        clean=_clean_after(lane, chain),
        batch_size=lane.trial.batch_size,
        precision=lane.trial.precision,
        device=plan.device,
        expected=Expected(
            lane.scored,
            lane.digests,
            lane.base_digest if plan.model is not None else None,
            _components(lane, chain),
            identity_of_path(lane.adapter.path),
        ),
        plain=lane.adapter is PLAIN,
        fresh=plan.spec.rerun,
    )
    name = lane.trial.method if lane.part is None else f"{lane.trial.method} ({lane.part})"
    where = ", ".join(str(c) for segment in chain for c in segment.conditions)
    key = _stream_name(lane, number)
    after = frozenset(job_key(job, lane.trial.seed) for job in (lane.job, lane.report) if job is not None)
    again = plan.spec.rerun or plan.spec.only_failed
    keys = None if again else [lane.keys[c] for segment in chain for c in segment.conditions]
    label = f"{name} seed {lane.trial.seed}"
    return Task(key, measure, (evaluation, plan.out.absolute(), key, keys, label), after, f"{label}: {where}")


def _components(lane: Lane, chain: tuple[Segment, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for condition in (condition for segment in chain for condition in segment.conditions):
        found |= lane.identities[condition]["components"]
    return found


def _clean_after(lane: Lane, chain: tuple[Segment, ...]) -> Segment | None:
    """The clean stream that shows what a chain made the adapter forget; None where it met one condition only."""
    if sum(len(segment.conditions) for segment in chain) < 2 and not chain[0].blends:
        return None
    clean = next((segment for segment in lane.segments if segment.conditions == (CLEAN,)), None)
    return clean and replace(clean, reset=False)


def _records(plan: Plan, lane: Lane, chain: tuple[Segment, ...], finished: Finished) -> Iterator[tuple[Record, Any]]:
    """The records of a finished chain: measured ones, or failed ones with the error for each of its conditions."""
    if finished.error is not None:
        message = str(finished.error) or type(finished.error).__name__
        for segment in chain:
            for condition in segment.conditions:
                yield (
                    _record(
                        plan,
                        lane,
                        condition,
                        int((segment.which == segment.conditions.index(condition)).sum()),
                        error=message,
                    ),
                    None,
                )
        return
    seconds = fit_seconds(lane.job, lane.trial.seed) if lane.job is not None else 0.0
    lines = connectivity_of(lane.report, lane.trial.seed) if lane.report is not None else None
    mixture = mixture_of(lane.job, lane.trial.seed) if lane.job is not None else None
    found = {"connectivity": lines, "mixture": mixture}
    measured: Measured
    for measured in finished.value or ():
        n = len(measured.predictions.id)
        record = _record(plan, lane, measured.condition, n, measured=measured, fit=seconds, found=found)
        yield record, measured.predictions


def _record(
    plan: Plan,
    lane: Lane,
    condition: Condition,
    n: int,
    measured: Measured | None = None,
    fit: float = 0.0,
    found: Mapping[str, Any] | None = None,
    error: str | None = None,
) -> Record:
    """The one place where records are made."""
    key = lane.keys[condition]
    identified = lane.identities[condition]
    cost: dict[str, Any] = {"fit_seconds": fit, "device_name": measured.device_name if measured else plan.device}
    for name in ("predict_seconds", "forwards", "backwards"):
        cost[name] = getattr(measured, name) if measured else 0
    cost["peak_memory_mb"] = (
        measured.peak_memory_mb
        if measured and (plan.jobs == 1 or plan.spec.launch == "slurm" or plan.device == "cuda")
        else None
    )
    return Record.model_validate(
        {
            **identified,
            "schema": SCHEMA,
            "key": key,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "status": "failed" if error else "done",
            "access": {name: getattr(lane.access, name) for name in ("source", "test", "state", "backprop")},
            "track": lane.access.track,
            "n": n,
            "metrics": score(measured.predictions) if measured else None,
            "diagnostics": diagnose(measured.predictions, measured.clean_accuracy_after) if measured else None,
            "cost": cost,
            **(found or {}),
            "data": {
                **identified["data"],
                "history": tuple(identified["data"]["history"]),
                "skipped": plan.shift.skipped,
                **plan.reading.said,
            },
            "env": measured.env if measured else environment(),
            "predictions": f"predictions/{key}.npz" if measured else None,
            "error": error,
        }
    )
