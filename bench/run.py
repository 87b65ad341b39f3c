"""A run from start to end: plan trials, cook what is missing, stream what is not measured yet, write records."""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from torch import nn

from bench.cache import write_bytes
from bench.devices import pick_device, pick_jobs, pick_precision
from bench.errors import UsageError
from bench.fingerprint import device_name, environment
from bench.kitchen import cooking_tasks, fit_seconds, job_key
from bench.models import load_model, load_stock
from bench.predict import Evaluation, Measured, chains, evaluate
from bench.protocols import Segment, plan_stream
from bench.registry import Method, build_config, load_object, parse_method, plain_values, source_digest
from bench.shifts import SHIFTS, load_shift
from bench.shifts.base import Shift, adapt_pool, labelled_source, limit_ids, pick_corruptions, split_ids
from bench.spec import RunSpec
from bench.trial import Condition, Trial, digest_of
from bench.tuned import tuned_options
from bench.watch import Watcher
from bench.workers import Finished, Task, run_tasks
from leaderboards.metrics import score
from leaderboards.record import Record
from leaderboards.store import Store
from methods import PLAIN
from methods.base import Job, Recipe
from methods.stock import Architecture, Weights
from methods.table import Row

if TYPE_CHECKING:
    from leaderboards.boards import Board

log = logging.getLogger(__name__)

BASELINES = ("source", "supervised_soup", "selfsoup_clean", "selfsoup_single")


@dataclass(frozen=True)
class Lane:
    """One row of a trial: a classifier (cooked by `job`, or the user's own) and the adapter that runs on it."""

    trial: Trial
    part: str | None
    job: Job | None
    adapter: Row
    config: Any
    access: Any
    segments: tuple[Segment, ...]
    keys: Mapping[Condition, str]
    digests: Mapping[Condition, str]
    base_digest: str
    history: tuple[str, ...]


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


@dataclass(frozen=True)
class Plan:
    """Everything a run will do, before it does any of it."""

    spec: RunSpec
    out: Path
    shift: Shift
    device: str
    jobs: int
    threads: int
    lanes: tuple[Lane, ...]
    missing: frozenset[str]
    cooking: tuple[Task, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for lane in self.lanes for key in lane.keys.values())


def run(spec: RunSpec, watcher: Watcher | None = None) -> Outcome:
    """Do all that a spec asks for and is not done yet. A failed trial is a record; it never stops the others.

    Raises UsageError, MissingDataError or BenchError before anything is started.
    """
    return run_all([spec], watcher)[0]


def run_all(specs: Sequence[RunSpec], watcher: Watcher | None = None) -> list[Outcome]:
    """Several specs in one pool of workers, an outcome for each; what they share is trained once."""
    plans = [make_plan(spec) for spec in specs]
    watcher = watcher or Watcher()
    cooking = {task.key: task for plan in plans for task in plan.cooking}
    streams: dict[str, tuple[Plan, Lane, tuple[Segment, ...]]] = {}
    tasks = list(cooking.values())
    for plan in plans:
        write_settings(plan)
        for lane in plan.lanes:
            for number, chain in enumerate(chains(lane.segments)):
                if any(lane.keys[c] in plan.missing for segment in chain for c in segment.conditions):
                    task = _evaluation_task(plan, lane, chain, number)
                    if task.key not in streams:
                        tasks.append(task)
                    streams[task.key] = (plan, lane, chain)
    watcher.planned(len(cooking), len(streams), plans[0].jobs)
    counts = {id(plan): Counter[str]() for plan in plans}
    errors: dict[int, dict[str, None]] = {id(plan): {} for plan in plans}
    try:
        for finished in run_tasks(tasks, plans[0].jobs, plans[0].threads, lambda task: watcher.started(task.label)):
            watcher.finished(finished.task.label, finished.error)
            if finished.error is not None:
                log.error("%s failed", finished.task.label, exc_info=finished.error)
            if finished.task.key not in streams:
                continue
            plan, lane, chain = streams[finished.task.key]
            if finished.error is not None:
                errors[id(plan)][f"{finished.task.label}: {finished.error}"] = None
            for record, predictions in _records(plan, lane, chain, finished):
                if record.key in plan.missing:
                    Store(plan.out).write(record, predictions, replace=plan.spec.rerun or plan.spec.only_failed)
                    counts[id(plan)][record.status] += 1
    finally:
        for out in {plan.out for plan in plans}:
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


def write_settings(plan: Plan) -> None:
    """Leave the resolved settings beside the records, as a run file that repeats the run."""
    values = plan.spec.model_dump(
        mode="json", by_alias=True, exclude={"out", "rerun", "only_failed"}, exclude_none=True
    )
    write_bytes(plan.out / "run.toml", tomli_w.dumps(values).encode())


def make_plan(spec: RunSpec) -> Plan:
    """Resolve names, data, options and keys; see what is done. Starts nothing and writes nothing."""
    shift = load_shift(spec.shift, spec.data_root)
    device = pick_device(spec.device)
    jobs, threads = pick_jobs(spec.jobs, device)
    out = spec.out or default_folder(spec)
    lanes = tuple(_lanes(spec, shift, device))
    store = Store(out)
    if spec.rerun:
        missing = {key for lane in lanes for key in lane.keys.values()}
    elif spec.only_failed:
        missing = {key for lane in lanes for key in lane.keys.values()} & store.failed()
    else:
        missing = {key for lane in lanes for key in lane.keys.values()} - store.done()
    cooking: dict[str, Task] = {}
    for lane in lanes:
        if lane.job is not None and missing.intersection(lane.keys.values()):
            for task in cooking_tasks([lane.job], lane.trial.seed, device):
                cooking.setdefault(task.key, task)
    return Plan(spec, out, shift, device, jobs, threads, lanes, frozenset(missing), tuple(cooking.values()))


def default_folder(spec: RunSpec) -> Path:
    """`runs/<date>-<name>`: the methods and the shift tell one run of a day from another."""
    name = "-".join([spec.shift, *spec.method])[:80].replace("/", "_").replace(":", "_")
    return Path("runs") / f"{datetime.date.today():%Y-%m-%d}-{name}"


def _lanes(spec: RunSpec, shift: Shift, device: str) -> Iterator[Lane]:
    methods = _methods(spec)
    known = {row.options_of or row.name for method in methods for row in (method.recipe, method.adapter) if row}
    for name in spec.options:
        if name not in known:
            raise UsageError(f"--set {name}.…: this run has no method '{name}'; it has {', '.join(sorted(known))}")
    base = load_model(spec.model) if spec.model else load_stock(spec.stock or SHIFTS[spec.shift].default_stock)
    base_digest = base.digest if isinstance(base, Weights) else _model_digest(base)
    model_name = Path(spec.model or spec.stock or SHIFTS[spec.shift].default_stock).name
    conditions = spec.conditions(pick_corruptions(shift, spec.corruption, spec.split))
    adapt, scored = (
        limit_ids(ids, spec.limit) for ids in split_ids(shift.ids("dev" if spec.split == "dev" else "test"), spec.split)
    )
    if not len(scored):
        raise UsageError(f"{shift.name} has no image to score with split {spec.split}")
    labels = shift.default_labels if spec.labels is None else (spec.labels or None)
    digests = {condition: shift.digest(scored, condition) for condition in conditions}
    pool = None
    if any(method.recipe.access.test == "pool" for method in methods):
        pool = adapt_pool(shift, adapt, conditions)
    for seed in spec.seed_list:
        source = labelled_source(shift, labels, seed)
        for method in methods:
            options = _options(spec, shift, method)
            trial = Trial(
                method=method.text,
                recipe=method.recipe.name,
                adapter=method.adapter.name if method.adapter else None,
                options=options,
                shift=shift.name,
                conditions=conditions,
                model=model_name,
                protocol=spec.protocol,
                split=spec.split,
                seed=seed,
                batch_size=spec.batch_size,
                precision=pick_precision(spec.precision, device),
                labels_per_class=labels,
                limit=spec.limit,
            )
            segments = tuple(plan_stream(spec.protocol, conditions, scored, seed))
            adapter = method.adapter or PLAIN
            adapter_config = build_config(adapter, _given(spec, shift, adapter))
            for part, job in _parts(method, base, spec, shift, source, pool).items():
                history = [base_digest, source_digest(method.recipe), source_digest(adapter)]
                pooled = method.recipe.access.test == "pool"
                if pool is not None and pooled:
                    history.append(pool.digest)
                yield Lane(
                    trial,
                    part or None,
                    job,
                    adapter,
                    adapter_config,
                    method.access,
                    segments,
                    _keys(trial, part, segments, digests, history),
                    digests,
                    base_digest,
                    tuple(map(str, conditions[1:])) if pooled or len(chains(segments)) < len(conditions) else (),
                )


def _methods(spec: RunSpec) -> list[Method]:
    names = list(spec.method)
    if spec.with_baselines:
        names += [name for name in BASELINES if name not in names]
    return [parse_method(name) for name in names]


def _given(spec: RunSpec, shift: Shift, row: Row) -> dict[str, Any]:
    name = row.options_of or row.name
    return {**tuned_options(shift.name, name), **spec.options.get(name, {})}


def _options(spec: RunSpec, shift: Shift, method: Method) -> dict[str, dict[str, Any]]:
    rows = [method.recipe] if spec.model is None else []
    if method.adapter:
        rows.append(method.adapter)
    return {row.options_of or row.name: plain_values(build_config(row, _given(spec, shift, row))) for row in rows}


def _parts(
    method: Method, base: Weights | nn.Module, spec: RunSpec, shift: Shift, source: Any, pool: Any
) -> dict[str, Job | None]:
    """Rows of a method by part name ("" where there is one row only); an adapter runs on the first part alone."""
    if not isinstance(base, Weights):
        if method.recipe.name != "source":
            raise UsageError(
                f"{method.recipe.name} cooks from a stock, not from a ready classifier; give --stock instead of --model"
            )
        return {"": None}
    recipe: Recipe = load_object(method.recipe.path)(build_config(method.recipe, _given(spec, shift, method.recipe)))
    parts = recipe.plan(base, source, pool if method.recipe.access.test == "pool" else None)
    if method.adapter or len(parts) == 1:
        return {"": next(iter(parts.values()))}
    return dict(parts)


def _keys(
    trial: Trial, part: str, segments: Sequence[Segment], digests: Mapping[Condition, str], history: list[Any]
) -> dict[Condition, str]:
    """A key for each condition: the trial's identity, the condition's data, and what the adapter saw before."""
    identity = {**trial.identity(), "part": part or None}
    keys: dict[Condition, str] = {}
    before: list[Any] = []
    for segment in segments:
        content = [digests[condition] for condition in segment.conditions]
        if segment.reset:
            before = []
        for condition in segment.conditions:
            keys[condition] = digest_of([identity, str(condition), digests[condition], content, before, history])
        before = [*before, content]
    return keys


def _evaluation_task(plan: Plan, lane: Lane, chain: tuple[Segment, ...], number: int) -> Task:
    weights = job_key(lane.job, lane.trial.seed) if lane.job is not None else None
    evaluation = Evaluation(
        method=lane.trial.method,
        shift=plan.spec.shift,
        data_root=plan.spec.data_root,
        weights=weights,
        model=plan.spec.model,
        adapter=lane.adapter.path,
        config=lane.config,
        seed=lane.trial.seed,
        segments=chain,
        batch_size=lane.trial.batch_size,
        precision=lane.trial.precision,
        device=plan.device,
    )
    name = lane.trial.method if lane.part is None else f"{lane.trial.method} ({lane.part})"
    where = ", ".join(str(c) for segment in chain for c in segment.conditions)
    key = f"{digest_of(list(lane.keys.values()))}:{number}"
    after = frozenset([weights]) if weights else frozenset[str]()
    return Task(key, evaluate, (evaluation,), after, f"{name} seed {lane.trial.seed}: {where}")


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
    measured: Measured
    for measured in finished.value:
        n = len(measured.predictions.id)
        record = _record(plan, lane, measured.condition, n, measured=measured, fit=seconds)
        yield record, measured.predictions


def _record(
    plan: Plan,
    lane: Lane,
    condition: Condition,
    n: int,
    measured: Measured | None = None,
    fit: float = 0.0,
    error: str | None = None,
) -> Record:
    """The one place where records are made."""
    trial = lane.trial
    key = lane.keys[condition]
    cost: dict[str, Any] = {"fit_seconds": fit, "device_name": device_name(plan.device)}
    for name in ("predict_seconds", "forwards", "backwards"):
        cost[name] = getattr(measured, name) if measured else 0
    cost["peak_memory_mb"] = measured.peak_memory_mb if measured and plan.jobs == 1 else None
    return Record.model_validate(
        {
            "schema": 1,
            "key": key,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "status": "failed" if error else "done",
            "method": trial.method,
            "part": lane.part,
            "access": {name: getattr(lane.access, name) for name in ("source", "test", "state", "backprop")},
            "track": lane.access.track,
            "shift": trial.shift,
            "corruption": condition.corruption,
            "severity": condition.severity,
            "model": trial.model,
            "protocol": trial.protocol,
            "split": trial.split,
            "seed": trial.seed,
            "batch_size": trial.batch_size,
            "precision": trial.precision,
            "options": {name: dict(values) for name, values in trial.options.items()},
            "limit": trial.limit,
            "n": n,
            "metrics": score(measured.predictions) if measured else None,
            "cost": cost,
            "data": {
                "digest": lane.digests[condition],
                "seed": plan.shift.data_seed,
                "storage": plan.shift.storage,
                "profile": plan.shift.profile,
                "labels_per_class": trial.labels_per_class,
                "history": lane.history,
            },
            "weights": {"digest": lane.base_digest},
            "env": environment(),
            "predictions": f"predictions/{key}.npz" if measured else None,
            "error": error,
        }
    )


def _model_digest(model: nn.Module) -> str:
    return Weights(Architecture(), model.state_dict()).digest
