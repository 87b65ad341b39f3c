"""Everything a run will do, before it does any of it: names to rows, rows to lanes, lanes to keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bench.core.components import (
    HARNESS,
    corruption_marks,
    corruption_name,
    identity,
    identity_of_path,
    is_corruption,
    method_name,
)
from bench.core.conditions import CLEAN, Condition, Trial, digest_of
from bench.core.devices import cores, pick_device, pick_jobs, pick_precision
from bench.core.errors import UsageError
from bench.core.import_object import code_of, load_object
from bench.core.offline import go_offline
from bench.evaluation.protocols import Segment, chains, parse_protocol, plan_stream
from bench.execution.task_pool import Task
from bench.models.classifiers import for_classes
from bench.models.weights_io import find_stock, load_model, load_stock, model_digest, preprocessing_of, shown_name
from bench.planning.init_from import Inherited, inherit
from bench.settings.method_options import MethodOptions
from bench.settings.methods import Method, parse_method, plain_values
from bench.settings.run_spec import RunSpec
from bench.shifts import find_row, load_shift
from bench.shifts.adaptation_pools import AdaptationPools, PoolGroup, groups
from bench.shifts.class_match import fitted
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift, labelled_source, limit_ids, pick_conditions, pick_corruptions, split_ids
from bench.shifts.user_corruption import added
from bench.training.job_cache import all_jobs, training_tasks
from leaderboards.identity import key_of, labels_digest
from leaderboards.store import Store
from methods import PLAIN
from methods.base import Job, Labelled, Recipe
from methods.nets.weights import Weights
from methods.norms import norm_family
from methods.selfsoup.mixing_options import CONNECTIVITY
from methods.selfsoup.objectives import mae
from methods.table import Access, Row

Base = Weights | Inherited | nn.Module
_JOBS_OF_A_CLUSTER = 256
BASELINES = (
    "source",
    "supervised_soup",
    "continued_ssl_soup",
    "selfsoup_clean",
    "selfsoup_single",
    "ssl_clean",
    "tent_pool",
    "shot_im_pool",
)


@dataclass(frozen=True)
class BoardEntry:
    """One row of a trial: a classifier (cooked by `job`, or the user's own) and the adapter that runs on it.

    `report` measures what the classifier was mixed from; see methods.soup.connectivity. `identities` holds, for each
    condition, the fields of its record that its key is made of; `digests` say what the images of each condition are,
    `scored` which images these are.
    """

    trial: Trial
    part: str | None
    job: Job | None
    report: Job | None
    adapter: Row
    config: Any
    access: Access
    segments: tuple[Segment, ...]
    keys: Mapping[Condition, str]
    identities: Mapping[Condition, Mapping[str, Any]]
    digests: Mapping[Condition, str]
    scored: np.ndarray
    base_digest: str
    history: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything a run will do, before it does any of it."""

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
    cooking: tuple[Task, ...]
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for entry in self.entries for key in entry.keys.values())


def make_plan(spec: RunSpec) -> Plan:
    """Resolve names, data, options and keys; see what is done. Starts nothing and writes nothing."""
    devices = spec.devices or max(1, spec.slurm.gpus)
    device, jobs, threads = _where(spec, devices)
    out = spec.out or default_folder(spec)
    if spec.offline:
        go_offline()
    row = find_row(spec.shift)
    if row.protocol and spec.protocol.partition(":")[0] != row.protocol:
        raise UsageError(f"{row.name} is one stream, not conditions side by side; add --protocol {row.protocol}")
    name, base = _base(spec, device)
    workers = cores() if spec.workers is None else spec.workers
    own = added(spec.corruption)
    reading = _as_said(spec, Reading(spec.data_root, preprocessing_of(base), spec.offline, workers, added=own))
    shift, reading = fitted(spec.shift, base, reading)
    entries = tuple(_entries(spec, shift, device, name, base))
    store = Store(out)
    if spec.rerun:
        missing = {key for entry in entries for key in entry.keys.values()}
    elif spec.only_failed:
        missing = {key for entry in entries for key in entry.keys.values()} & store.failed()
    else:
        missing = {key for entry in entries for key in entry.keys.values()} - store.done()
    cooking: dict[str, Task] = {}
    for entry in entries:
        if entry.job is not None and missing.intersection(entry.keys.values()):
            targets = [entry.job, *([entry.report] if entry.report is not None else [])]
            for task in training_tasks(targets, entry.trial.seed, device, devices):
                cooking.setdefault(task.key, task)
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
        missing=frozenset(missing),
        cooking=tuple(cooking.values()),
        notes=(*getattr(base, "notes", ()), *getattr(shift, "notes", ()), *_notes(base, name, entries)),
    )


def _as_said(spec: RunSpec, reading: Reading) -> Reading:
    return replace(reading, classes=spec.classes, label=spec.label, part=spec.part)


def _notes(base: Base, name: str, entries: Sequence[BoardEntry]) -> tuple[str, ...]:
    """What the user should know before it starts."""
    if not isinstance(base, Weights) or base.part("decoder"):
        return ()
    jobs = all_jobs([entry.job for entry in entries if entry.job is not None])
    if not any(isinstance(getattr(job.config, "objective", None), mae.Config) for job in jobs):
        return ()
    return (f"the stock {shown_name(name, base)} has no decoder: MAE ingredients start from a fresh one",)


def _where(spec: RunSpec, devices: int) -> tuple[str, int, int]:
    """The device, how many processes or jobs run at a time, and the threads of each."""
    if spec.launch == "slurm":
        # The machine that plans says nothing about those that compute.
        device = spec.device if spec.device != "auto" else "cuda" if spec.slurm.gpus else "cpu"
        return device, spec.jobs or _JOBS_OF_A_CLUSTER, 1
    device = pick_device(spec.device)
    return device, *pick_jobs(1 if spec.launch == "serial" else spec.jobs, device, devices)


def default_folder(spec: RunSpec) -> Path:
    """`runs/<shift>-<methods>`: the same command means the same folder, today and tomorrow."""
    name = "-".join([spec.shift, *spec.method])[:80].replace("/", "_").replace(":", "_")
    return Path("runs") / name


def _base(spec: RunSpec, device: str) -> tuple[str, Base]:
    """The name and the weights of what is asked for: a model or stock, else the shift's own.

    Without either, methods that need no stock get the shift's default model where it has one.
    """
    row = find_row(spec.shift)
    if spec.model:
        return spec.model, load_model(spec.model)
    if spec.init_from:
        found = inherit(spec.init_from, spec.seed_list, device)
        return found.name, found
    if spec.stock:
        return spec.stock, load_stock(spec.stock)
    # The files of the shift are looked for first: they are what most people lack.
    load_shift(spec.shift, reading=_as_said(spec, Reading(spec.data_root, offline=spec.offline)))
    if row.default_model and all(m.recipe.name == "source" for m in _methods(spec)):
        return row.default_model, load_model(row.default_model)
    stock = find_stock(row, Reading(spec.data_root).root)
    return stock, load_stock(stock)


def _entries(spec: RunSpec, shift: Shift, device: str, name: str, base: Base) -> Iterator[BoardEntry]:
    methods = _methods(spec)
    protocol = parse_protocol(spec.protocol)
    known = {row.options_of or row.name for method in methods for row in (method.recipe, method.adapter) if row}
    for asked in spec.options:
        if asked not in known:
            raise UsageError(f"--set {asked}.…: this run has no method '{asked}'; it has {', '.join(sorted(known))}")
    base_digest = model_digest(base) if isinstance(base, nn.Module) else base.digest
    made_by = {"model": code_of(name)} if ".py:" in name else {}
    if shift.members is not None:
        made_by["classes"] = digest_of(shift.members)
    norm = norm_family(base if isinstance(base, nn.Module) else base.architecture.build())
    model_name = name if isinstance(base, Inherited) else shown_name(name, base)
    conditions = pick_conditions(shift, spec.conditions(pick_corruptions(shift, spec.corruption, spec.split)))
    shifted = tuple(str(condition) for condition in conditions if condition.corruption is not None)
    adapt, scored = (
        limit_ids(ids, spec.limit) for ids in split_ids(shift.ids("dev" if spec.split == "dev" else "test"), spec.split)
    )
    if not len(scored):
        raise UsageError(f"{shift.name} has no image to score with split {spec.split}")
    if isinstance(base, nn.Module):
        for_classes(base, shift, shift.images(scored[:1], conditions[0]).float() / 255)
    else:
        _check_size(
            shift.images((adapt if len(adapt) else scored)[:1], conditions[0]).shape[2],
            base.architecture.image_size,
            shift.name,
            name,
        )
    labels = shift.default_labels if spec.labels is None else (spec.labels or None)
    digests = {condition: shift.digest(scored, condition) for condition in conditions}
    if isinstance(base, Inherited) and base.classes not in (shift.classes, shift.source_classes):
        raise UsageError(
            f"{name} tells {base.classes} classes apart but {shift.name} has {shift.classes}; give a run of that task"
        )
    from_stock = isinstance(base, Weights)
    chosen = MethodOptions(spec, shift, norm, device)
    pools = AdaptationPools(shift, adapt, spec.split)
    for seed in spec.seed_list:
        labelled = _Labels(shift)
        source = labelled_source(shift, labels, seed) if from_stock else None
        for method in methods:
            rows = [*([method.recipe] if from_stock else []), *([method.adapter] if method.adapter else [])]
            trial = Trial(
                method=method.text,
                recipe=method.recipe.name,
                adapter=method.adapter.name if method.adapter else None,
                options={row.options_of or row.name: plain_values(chosen.config(row)) for row in rows},
                shift=shift.name,
                conditions=conditions,
                model=model_name,
                protocol=str(protocol),
                split=spec.split,
                seed=seed,
                batch_size=spec.batch_size,
                precision=pick_precision(spec.precision, device),
                labels_per_class=labels,
                limit=spec.limit,
            )
            segments = tuple(plan_stream(protocol, conditions, scored, shift.labels(scored), seed))
            for segment in segments:
                if segment.blends:
                    # The whole stream is one cell: its identity is the clean images and all that may be done to them.
                    content = [shift.digest(scored, CLEAN), *map(str, conditions), shift.profile, shift.storage]
                    content += [mark for condition in conditions for mark in corruption_marks(condition.corruption)]
                    digests[segment.conditions[0]] = "sha256:" + digest_of([*content, shift.data_seed])
            adapter = method.adapter or PLAIN
            adapter_config = chosen.config(adapter)
            recipe = _recipe(method, chosen, from_stock=from_stock)
            pooled = method.recipe.access.test == "pool"
            made = (
                {HARNESS: identity(HARNESS)} | made_by | {method_name(row): identity_of_path(row.path) for row in rows}
            )
            met = shifted if pooled or len(chains(segments)) < len(conditions) else _met(base)
            for group in _groups(recipe, conditions, segments):
                own = segments if group is None else _of_group(segments, group)
                parts = _parts(method, recipe, base, source, pools, group)
                report = parts.pop(CONNECTIVITY, None)
                if isinstance(base, Inherited):
                    parts = {"": base.jobs[seed]}
                for number, (part, job) in enumerate(_named(parts, method).items()):
                    identities = _identities(
                        trial,
                        part,
                        own,
                        shift,
                        made,
                        digests,
                        {"digest": base_digest, "ready": not from_stock},
                        met,
                        pools.shifted(group).digest if pooled and group is not None else None,
                        labelled,
                    )
                    yield BoardEntry(
                        trial,
                        part or None,
                        job,
                        report if number == 0 else None,
                        adapter,
                        adapter_config,
                        method.access | base.access if isinstance(base, Inherited) else method.access,
                        own,
                        {condition: key_of(content) for condition, content in identities.items()},
                        identities,
                        digests,
                        scored,
                        base_digest,
                        met,
                    )


def _check_size(found: int, wanted: int, shift: str, name: str) -> None:
    """Raise UsageError where a stock takes images of another size than a shift has, which cannot resize its own."""
    if found != wanted:
        other = f"as {name.split(':')[0]}:…:{found}" if name.startswith("timm:") else f"as bench stock --arch …_{found}"
        raise UsageError(
            f"{shift} has images of {found} px but the stock takes {wanted} px; give one of {found}, {other}"
        )


def _met(base: Base) -> tuple[str, ...]:
    """Conditions whose images a ready classifier has met."""
    return base.met if isinstance(base, Inherited) else ()


def _recipe(method: Method, chosen: MethodOptions, *, from_stock: bool) -> Recipe | None:
    """The recipe with its options; None where a ready classifier is given."""
    if not from_stock:
        if method.recipe.name != "source":
            raise UsageError(
                f"{method.recipe.name} cooks from a stock, not from a ready classifier; give --stock instead"
            )
        return None
    recipe: Recipe = load_object(method.recipe.path)(chosen.config(method.recipe))
    return recipe


def _groups(
    recipe: Recipe | None, conditions: tuple[Condition, ...], segments: Sequence[Segment]
) -> Sequence[PoolGroup | None]:
    """The classifiers that a recipe makes, by what its pool holds; [None] for one that has none.

    Raises UsageError where the stream carries an adapter from one classifier's conditions to another's.
    """
    if recipe is None or recipe.pool != "shifted":
        return [None]
    how = getattr(recipe.config, "shift_pool", "mixed")
    try:
        found = groups(conditions, how)
    except ValueError as error:
        raise UsageError(f"shift_pool = {how}: {error}") from None
    if len(found) > 1 and len(chains(segments)) < len(conditions):
        raise UsageError(
            f"shift_pool = {how} has a classifier for each part of the conditions, so the stream must start anew in "
            "each; use --protocol reset_each_shift or episodic"
        )
    return found


def _of_group(segments: tuple[Segment, ...], group: PoolGroup) -> tuple[Segment, ...]:
    scored = set(group.scored)
    return tuple(segment for segment in segments if segment.blends or scored.issuperset(segment.conditions))


def _methods(spec: RunSpec) -> list[Method]:
    names = list(spec.method)
    if spec.with_baselines:
        names += [name for name in BASELINES if name not in names]
    return [parse_method(name) for name in names]


def _parts(
    method: Method,
    recipe: Recipe | None,
    base: Base,
    source: Labelled | None,
    pools: AdaptationPools,
    group: PoolGroup | None,
) -> dict[str, Job | None]:
    """What a recipe plans. Raises UsageError for options that do not go together."""
    if recipe is None or source is None or not isinstance(base, Weights):
        return {"": None}
    pool = pools.shifted(group) if group is not None else pools.clean() if recipe.pool == "clean" else None
    more: dict[str, Any] = {"val": pools.val()} if getattr(recipe.config, "select_on", "") == "val" else {}
    try:
        return dict(recipe.plan(base, source, pool, **more))
    except ValueError as error:
        raise UsageError(f"{method.text}: {error}") from None


def _named(parts: Mapping[str, Job | None], method: Method) -> Mapping[str, Job | None]:
    """Rows of a method by part name ("" where there is one row only); an adapter runs on the first part alone."""
    if method.adapter or len(parts) == 1:
        return {"": next(iter(parts.values()))}
    return parts


def _identities(
    trial: Trial,
    part: str,
    segments: Sequence[Segment],
    shift: Shift,
    made: Mapping[str, str],
    digests: Mapping[Condition, str],
    weights: Mapping[str, Any],
    met: tuple[str, ...],
    pool: str | None,
    labels: Callable[[np.ndarray], str],
) -> dict[Condition, dict[str, Any]]:
    """What identifies the record of each condition (`leaderboards.identity`): the trial, what made the number, the
    condition's images, and those that were met before them or in a pool.
    """
    found: dict[Condition, dict[str, Any]] = {}
    before: list[Any] = []
    for segment in segments:
        content = [digests[condition] for condition in segment.conditions]
        if segment.reset:
            before = []
        beside = content if len(content) > 1 else []
        for number, condition in enumerate(segment.conditions):
            ids = segment.ids if len(content) == 1 else segment.ids[segment.which == number]
            found[condition] = {
                "method": trial.method,
                "part": part or None,
                "shift": trial.shift,
                "corruption": condition.corruption,
                "severity": condition.severity,
                "model": trial.model,
                "protocol": trial.protocol,
                "split": trial.split,
                "seed": trial.seed,
                "batch_size": trial.batch_size,
                "precision": trial.precision,
                "options": trial.options,
                "limit": trial.limit,
                "components": {**made, **_corruptions_of(shift, segment, condition)},
                "weights": weights,
                "data": {
                    "digest": digests[condition],
                    "seed": shift.data_seed,
                    "storage": shift.storage,
                    "profile": shift.profile,
                    "labels_per_class": trial.labels_per_class,
                    "history": list(met),
                    "tiles": shift.tiles,
                    "labels": labels(ids),
                    "seen": digest_of([beside, before, pool]) if beside or before or pool else None,
                },
            }
        before = [*before, content]
    return found


class _Labels:
    """The digest of the labels of images, for orders that several methods share."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._known: dict[bytes, str] = {}

    def __call__(self, ids: np.ndarray) -> str:
        name = ids.tobytes()
        if name not in self._known:
            self._known[name] = labels_digest(ids, self._shift.labels(ids))
        return self._known[name]


def _corruptions_of(shift: Shift, segment: Segment, condition: Condition) -> dict[str, str]:
    """The corruptions of ours that make a condition's images."""
    if not shift.made_here:
        return {}
    steps = [step for blend in segment.blends for step in blend] if segment.blends else [condition]
    ours = sorted({str(step.corruption) for step in steps if is_corruption(str(step.corruption))})
    return {corruption_name(name): identity(corruption_name(name)) for name in ours}
