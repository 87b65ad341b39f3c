"""Plan a run: resolve names, data and options, and work out the key of every record. Starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from bench.core.errors import MissingDataError, UsageError
from bench.core.import_object import code_of, load_object
from bench.core.offline import go_offline
from bench.evaluation.protocols import Protocol, Segment, chains, parse_protocol, plan_stream
from bench.execution.task_pool import Task
from bench.models.classifiers import for_classes
from bench.models.weights_io import find_stock, load_model, load_stock, model_digest, preprocessing_of, shown_name
from bench.planning.bill import Bill, Setting, bill_of, expected, published_setting, sentences
from bench.planning.init_from import Inherited, inherit
from bench.settings.grid import default_folder
from bench.settings.method_options import MethodOptions
from bench.settings.methods import Method, parse_method, plain_values
from bench.settings.run_spec import RunSpec
from bench.settings.shift_options import budget_of
from bench.shifts import find_row, load_shift
from bench.shifts.adaptation_pools import AdaptationPools, CleanImages, PoolGroup, groups
from bench.shifts.class_match import fitted
from bench.shifts.data_root import Reading
from bench.shifts.shift import (
    Shift,
    labelled_source,
    limit_ids,
    pick_conditions,
    pick_corruptions,
    split_ids,
    trained_on,
)
from bench.shifts.user_corruption import added
from bench.training.job_cache import all_jobs, job_key, training_tasks
from leaderboards.identity import key_of, labels_digest
from leaderboards.store import Store
from methods import METHODS, PLAIN
from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.nets.weights import Weights
from methods.norms import norm_family
from methods.selfsoup.mixing_options import CONNECTIVITY
from methods.selfsoup.objectives import mae
from methods.selfsoup.recipe import SelfSoup
from methods.table import Access, Row

Base = Weights | Inherited | nn.Module
_JOBS_OF_A_CLUSTER = 256
_PUBLISHED = "selfsoup_diverse_clean"
"""The soup on clean images that a paper compares with; a baseline where a budget says how it was made."""
BASELINES = (
    "source",
    "supervised_soup",
    "continued_ssl_soup",
    "selfsoup_clean",
    _PUBLISHED,
    "selfsoup_single",
    "ssl_clean",
    "tent_pool",
    "shot_im_pool",
)


@dataclass(frozen=True)
class BoardEntry:
    """One row of a board: a classifier (trained by `job`, or the user's own) and the adapter that runs on it.

    `report` is the job that measures how the ingredients connect (`methods.soups.soup.connectivity`). `identities`
    holds, per condition, the fields of its record that the key is made of; `digests`, per condition, the digest of its
    images; `scored`, the ids of the scored images; `given`, the clean images that the adapter gets besides the stream.
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
    given: CleanImages


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
    cooking: tuple[Task, ...]
    bill: Bill
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
        raise MissingDataError("\n".join([str(error), *_before_the_data(spec)])) from None


def _before_the_data(spec: RunSpec) -> list[str]:
    """What a run on a shift with budgets would train and cost with the published stock and images."""
    row, methods = find_row(spec.shift), _methods(spec)
    setting = published_setting(row)
    ready = row.default_model and all(method.recipe.name == "source" for method in methods)
    if setting is None or spec.model or spec.stock or spec.init_from or ready:
        return []
    said = list(sentences(spec, methods, expected(spec, methods, setting), setting))
    first = f"bench run --method {','.join(spec.method)} --shift digits-c"
    return [*said, f"without any download, right now: {first}"] if said else []


def _plan(spec: RunSpec) -> Plan:
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
    scene = _scene(spec, shift, device, name, base, reading)
    entries = tuple(_entries(scene))
    missing = _missing(spec, out, entries)
    cooking = _trainings(entries, missing, device, devices)
    bill = _bill(entries, cooking)
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
        cooking=cooking,
        bill=bill,
        notes=(
            *sentences(spec, scene.methods, bill, _setting(scene)),
            *getattr(base, "notes", ()),
            *getattr(shift, "notes", ()),
            *_notes(base, name, entries),
            *_borrowed(scene),
        ),
    )


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
            for task in training_tasks(targets, entry.trial.seed, device, devices):
                tasks.setdefault(task.key, task)
    return tuple(tasks.values())


def _bill(entries: Sequence[BoardEntry], cooking: Sequence[Task]) -> Bill:
    """The bill of the trainings that are missing."""
    wanted = {task.key for task in cooking}
    targets = [(job, entry.trial.seed) for entry in entries for job in (entry.job, entry.report) if job is not None]
    jobs = {job_key(job, seed): job for target, seed in targets for job in all_jobs([target])}
    return bill_of(job for key, job in jobs.items() if key in wanted)


def _setting(scene: _Scene) -> Setting | None:
    """What decides the bill of another budget; None for a ready classifier."""
    shift, weights = trained_on(scene.shift), scene.options.weights
    if not isinstance(scene.base, Weights) or weights is None:
        return None
    count = len(shift.ids("train"))
    return Setting(scene.shift.name, shift.family, shift.classes, count, scene.base.architecture, weights)


def _as_said(spec: RunSpec, reading: Reading) -> Reading:
    return replace(reading, classes=spec.classes, label=spec.label, part=spec.part)


def _notes(base: Base, name: str, entries: Sequence[BoardEntry]) -> tuple[str, ...]:
    """Notes for the user, shown before the run starts."""
    if not isinstance(base, Weights) or base.part("decoder"):
        return ()
    jobs = all_jobs([entry.job for entry in entries if entry.job is not None])
    if not any(isinstance(getattr(job.config, "objective", None), mae.Config) for job in jobs):
        return ()
    return (f"the stock {shown_name(name, base)} has no decoder: MAE ingredients start from a fresh one",)


def _borrowed(scene: _Scene) -> list[str]:
    """One note for each adapter that runs with options published for other data or norms."""
    rows = {method.adapter.name: method.adapter for method in scene.methods if method.adapter is not None}
    return [note for row in rows.values() if (note := scene.options.note(row))]


def _where(spec: RunSpec, devices: int) -> tuple[str, int, int]:
    """The device, the number of processes or jobs that run at a time, and the threads of each."""
    if spec.launch == "slurm":
        # The nodes that compute may differ from the machine that plans.
        device = spec.device if spec.device != "auto" else "cuda" if spec.slurm.gpus else "cpu"
        return device, spec.jobs or _JOBS_OF_A_CLUSTER, 1
    device = pick_device(spec.device)
    return device, *pick_jobs(1 if spec.launch == "serial" else spec.jobs, device, devices)


def _base(spec: RunSpec, device: str) -> tuple[str, Base]:
    """The name and the weights of the given model or stock, else of the shift's default.

    Without either, methods that need no stock get the shift's default model, if it has one.
    """
    row = find_row(spec.shift)
    if spec.model:
        return spec.model, load_model(spec.model)
    if spec.init_from:
        found = inherit(spec.init_from, spec.seed_list, device)
        return found.name, found
    if spec.stock:
        return spec.stock, load_stock(spec.stock)
    # Open the shift first: its files are what is missing most often.
    load_shift(spec.shift, reading=_as_said(spec, Reading(spec.data_root, offline=spec.offline)))
    if row.default_model and all(m.recipe.name == "source" for m in _methods(spec)):
        return row.default_model, load_model(row.default_model)
    stock = find_stock(row, Reading(spec.data_root).root)
    return stock, load_stock(stock)


@dataclass(frozen=True)
class _Scene:
    """What all entries of a plan share: the shift's images and conditions, the base and how options are chosen.

    `made_by` holds the identities of the user's own code; `digests` those of each condition's images.
    """

    spec: RunSpec
    shift: Shift
    device: str
    name: str
    base: Base
    methods: tuple[Method, ...]
    protocol: Protocol
    conditions: tuple[Condition, ...]
    adapt: np.ndarray
    scored: np.ndarray
    digests: dict[Condition, str]
    pool_of: Callable[[str], Unlabelled]
    base_digest: str
    made_by: Mapping[str, str]
    options: MethodOptions

    @property
    def from_stock(self) -> bool:
        return isinstance(self.base, Weights)

    @property
    def labels(self) -> int | None:
        """Labelled clean images per class; None for all."""
        return self.shift.default_labels if self.spec.labels is None else (self.spec.labels or None)


def _entries(scene: _Scene) -> Iterator[BoardEntry]:
    shift = scene.shift
    pools = AdaptationPools(shift, scene.adapt, scene.spec.split)
    for seed in scene.spec.seed_list:
        labelled = _Labels(shift)
        source = labelled_source(trained_on(shift), scene.labels, seed) if scene.from_stock else None
        for method in scene.methods:
            yield from _entries_of(scene, method, seed, source, pools, labelled)


def _pool_of(spec: RunSpec, base: Base, reading: Reading, name: str) -> Unlabelled:
    """The adapt half of another shift under all of its corruptions, read and limited as that of the run."""
    shift, _ = fitted(name, base, replace(reading, added=(), classes=None, label=None, part=None))
    conditions = pick_conditions(shift, spec.conditions(pick_corruptions(shift, None, spec.split)))
    adapt, _ = split_ids(shift.ids("dev" if spec.split == "dev" else "test"), spec.split)
    (group,) = groups(conditions, "mixed")
    return AdaptationPools(shift, limit_ids(adapt, spec.limit), spec.split).shifted(group)


def _scene(spec: RunSpec, shift: Shift, device: str, name: str, base: Base, reading: Reading) -> _Scene:
    """Pick conditions and images. Raises UsageError where the methods, the base or the shift do not fit each other."""
    methods = tuple(_methods(spec))
    _check_options(spec, methods)
    conditions = pick_conditions(shift, spec.conditions(pick_corruptions(shift, spec.corruption, spec.split)))
    ids = shift.ids("dev" if spec.split == "dev" else "test")
    adapt, scored = (limit_ids(half, spec.limit) for half in split_ids(ids, spec.split))
    if not len(scored):
        raise UsageError(f"{shift.name} has no image to score with split {spec.split}")
    shown = scored if isinstance(base, nn.Module) or not len(adapt) else adapt
    _check_base(base, name, shift, shift.images(shown[:1], conditions[0]))
    made_by = {"model": code_of(name)} if ".py:" in name else {}
    if shift.members is not None:
        made_by["classes"] = digest_of(shift.members)
    if isinstance(base, Weights) and (source := trained_on(shift)) is not shift:
        made_by["learnt"] = f"{source.classes} classes"
    network = base if isinstance(base, nn.Module) else base.architecture.build()
    weights = sum(map(torch.numel, network.state_dict().values())) if isinstance(base, Weights) else None
    return _Scene(
        spec=spec,
        shift=shift,
        device=device,
        name=name,
        base=base,
        methods=methods,
        protocol=parse_protocol(spec.protocol),
        conditions=conditions,
        adapt=adapt,
        scored=scored,
        digests={condition: shift.digest(scored, condition) for condition in conditions},
        pool_of=cache(partial(_pool_of, spec, base, reading)),
        base_digest=model_digest(base) if isinstance(base, nn.Module) else base.digest,
        made_by=made_by,
        options=MethodOptions(spec, shift, norm_family(network), device, weights),
    )


def _check_options(spec: RunSpec, methods: Sequence[Method]) -> None:
    known = {row.options_of or row.name for method in methods for row in (method.recipe, method.adapter) if row}
    for asked in spec.options:
        if asked not in known:
            raise UsageError(f"--set {asked}.…: this run has no method '{asked}'; it has {', '.join(sorted(known))}")


def _check_base(base: Base, name: str, shift: Shift, image: Tensor) -> None:
    """Raise UsageError where a model, stock or classifier of another run does not fit the images or classes."""
    if isinstance(base, nn.Module):
        for_classes(base, shift, image.float() / 255)
        return
    _check_size(image.shape[2], base.architecture.image_size, shift.name, name)
    if isinstance(base, Inherited) and base.classes not in (shift.classes, shift.source_classes):
        raise UsageError(
            f"{name} tells {base.classes} classes apart but {shift.name} has {shift.classes}; give a run of that task"
        )


def _entries_of(
    scene: _Scene,
    method: Method,
    seed: int,
    source: Labelled | None,
    pools: AdaptationPools,
    labelled: Callable[[np.ndarray], str],
) -> Iterator[BoardEntry]:
    """The board entries of one method and seed: one for each part of what its recipe makes, for each of its pools."""
    base, conditions = scene.base, scene.conditions
    trial = _trial(scene, method, seed)
    segments = _segments(scene, seed)
    adapter = method.adapter or PLAIN
    recipe = _recipe(method, scene.options, from_stock=scene.from_stock)
    pooled = method.recipe.access.test == "pool"
    given = pools.given_to(adapter.access)
    shifted = tuple(str(condition) for condition in conditions if condition.corruption is not None)
    met = shifted if pooled or len(chains(segments)) < len(conditions) else _met(base)
    for group in _groups(recipe, conditions, segments):
        own = segments if group is None else _of_group(segments, group)
        others = _others(recipe, scene)
        parts = _parts(method, recipe, base, source, pools, group, others)
        report = parts.pop(CONNECTIVITY, None)
        if isinstance(base, Inherited):
            parts = {"": base.jobs[seed]}
        pool = pools.shifted(group).digest if pooled and group is not None else None
        if pool is not None and others:
            pool = digest_of([pool, *(images.digest for images in others.values())])
        for number, (part, job) in enumerate(_named(parts, method).items()):
            learnt = _learnt_from(scene.shift, job, given.digest)
            identities = _identities(scene, trial, method, part, own, met, pool, labelled, learnt)
            yield BoardEntry(
                trial=trial,
                part=part or None,
                job=job,
                report=report if number == 0 else None,
                adapter=adapter,
                config=scene.options.config(adapter),
                access=method.access | base.access if isinstance(base, Inherited) else method.access,
                segments=own,
                keys={condition: key_of(content) for condition, content in identities.items()},
                identities=identities,
                digests=scene.digests,
                scored=scene.scored,
                base_digest=scene.base_digest,
                history=met,
                given=given,
            )


def _learnt_from(shift: Shift, job: Job | None, given: str | None) -> str | None:
    """A digest of all images that a classifier was trained on and its adapter is given; None if these are bundled."""
    trained = {part.data.digest for part in all_jobs([job] if job else []) if part.data is not None}
    found = sorted(trained | ({given} if given else set()))
    return digest_of(found) if found and not shift.bundled else None


def _rows(scene: _Scene, method: Method) -> list[Row]:
    """The rows of the table whose code makes a number."""
    return [*([method.recipe] if scene.from_stock else []), *([method.adapter] if method.adapter else [])]


def _trial(scene: _Scene, method: Method, seed: int) -> Trial:
    spec = scene.spec
    return Trial(
        method=method.text,
        recipe=method.recipe.name,
        adapter=method.adapter.name if method.adapter else None,
        options={row.options_of or row.name: plain_values(scene.options.config(row)) for row in _rows(scene, method)},
        shift=scene.shift.name,
        conditions=scene.conditions,
        model=scene.name if isinstance(scene.base, Inherited) else shown_name(scene.name, scene.base),
        protocol=str(scene.protocol),
        split=spec.split,
        seed=seed,
        batch_size=spec.batch_size,
        precision=pick_precision(spec.precision, scene.device),
        labels_per_class=scene.labels,
        limit=spec.limit,
    )


def _segments(scene: _Scene, seed: int) -> tuple[Segment, ...]:
    """The stream of a seed. A segment that blends corruptions is one cell, whose digest is added to the others."""
    shift, scored, conditions = scene.shift, scene.scored, scene.conditions
    segments = tuple(plan_stream(scene.protocol, conditions, scored, shift.labels(scored), seed))
    for segment in segments:
        if segment.blends:
            # The identity of the whole stream: its clean images, and every corruption that may be applied to them.
            content = [shift.digest(scored, CLEAN), *map(str, conditions), shift.profile, shift.storage]
            content += [mark for condition in conditions for mark in corruption_marks(condition.corruption)]
            scene.digests[segment.conditions[0]] = "sha256:" + digest_of([*content, shift.data_seed])
    return segments


def _check_size(found: int, wanted: int, shift: str, name: str) -> None:
    """Raise UsageError unless the stock takes images of the shift's size: this shift cannot resize its images."""
    if found != wanted:
        other = f"as {name.split(':')[0]}:…:{found}" if name.startswith("timm:") else f"as bench stock --arch …_{found}"
        raise UsageError(
            f"{shift} has images of {found} px but the stock takes {wanted} px; give one of {found}, {other}"
        )


def _met(base: Base) -> tuple[str, ...]:
    """The conditions whose images a ready classifier was trained on."""
    return base.met if isinstance(base, Inherited) else ()


def _recipe(method: Method, chosen: MethodOptions, *, from_stock: bool) -> Recipe | None:
    """The recipe with its options; None for a ready classifier."""
    if not from_stock:
        if method.recipe.name != "source" and not method.implied:
            raise UsageError(
                f"{method.recipe.name} starts from a stock, not from a ready classifier; give --stock instead"
            )
        return None
    adapter = method.adapter or PLAIN
    if adapter.needs not in (None, method.recipe.name) and METHODS.get(method.recipe.name) is method.recipe:
        raise UsageError(
            f"{method.text}: {method.recipe.name} does not train what {adapter.name} needs; "
            f"use {adapter.needs}+{adapter.name}"
        )
    recipe: Recipe = load_object(method.recipe.path)(chosen.config(method.recipe))
    return recipe


def _groups(
    recipe: Recipe | None, conditions: tuple[Condition, ...], segments: Sequence[Segment]
) -> Sequence[PoolGroup | None]:
    """The pools that a recipe trains one classifier on each; [None] for a recipe without a shifted pool.

    Raises UsageError if the stream would carry an adapter from the conditions of one classifier to those of another.
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
        budget = budget_of(spec.shift, spec.budget)
        published = budget is not None and _PUBLISHED in budget.options
        names += [name for name in BASELINES if name not in names and (published or name != _PUBLISHED)]
    return [parse_method(name) for name in names]


def _others(recipe: Recipe | None, scene: _Scene) -> dict[str, Unlabelled]:
    """The pools of the other shifts on which a Self-Soup has ingredients, by name. Raises UsageError."""
    if not isinstance(recipe, SelfSoup) or not recipe.config.also_on:
        return {}
    if scene.shift.name in recipe.config.also_on:
        raise UsageError(f"selfsoup.also_on names {scene.shift.name}, the shift of the run; name others")
    return {name: scene.pool_of(name) for name in recipe.config.also_on}


def _parts(
    method: Method,
    recipe: Recipe | None,
    base: Base,
    source: Labelled | None,
    pools: AdaptationPools,
    group: PoolGroup | None,
    others: Mapping[str, Unlabelled],
) -> dict[str, Job | None]:
    """The jobs that a recipe plans, by part. Raises UsageError for options that exclude each other."""
    if recipe is None or source is None or not isinstance(base, Weights):
        return {"": None}
    pool = pools.shifted(group) if group is not None else pools.clean() if recipe.pool == "clean" else None
    more: dict[str, Any] = {"val": pools.val()} if getattr(recipe.config, "select_on", "") == "val" else {}
    more |= {"others": others} if others else {}
    try:
        return dict(recipe.plan(base, source, pool, **more))
    except ValueError as error:
        raise UsageError(f"{method.text}: {error}") from None


def _named(parts: Mapping[str, Job | None], method: Method) -> Mapping[str, Job | None]:
    """The jobs by part name ("" for a method of one row); an adapter runs on the first part only."""
    if method.adapter or len(parts) == 1:
        return {"": next(iter(parts.values()))}
    return parts


def _identities(
    scene: _Scene,
    trial: Trial,
    method: Method,
    part: str,
    segments: Sequence[Segment],
    met: tuple[str, ...],
    pool: str | None,
    labels: Callable[[np.ndarray], str],
    learnt: str | None,
) -> dict[Condition, dict[str, Any]]:
    """The fields that identify the record of each condition (`leaderboards.identity`): the trial, the versions of the
    code, the condition's images, and the images met before them or in a pool.
    """
    shift = scene.shift
    made = {HARNESS: identity(HARNESS), **scene.made_by}
    made |= {method_name(row): identity_of_path(row.path) for row in _rows(scene, method)}
    found: dict[Condition, dict[str, Any]] = {}
    before: list[Any] = []
    for segment in segments:
        content = [scene.digests[condition] for condition in segment.conditions]
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
                "weights": {"digest": scene.base_digest, "ready": not scene.from_stock},
                "data": {
                    "digest": scene.digests[condition],
                    "seed": shift.data_seed,
                    "storage": shift.storage,
                    "profile": shift.profile,
                    "labels_per_class": trial.labels_per_class,
                    "history": list(met),
                    "tiles": shift.tiles,
                    "labels": labels(ids),
                    "source": learnt,
                    "seen": digest_of([beside, before, pool]) if beside or before or pool else None,
                },
            }
        before = [*before, content]
    return found


class _Labels:
    """Digests of labels by ids, computed once for streams that several methods share."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._known: dict[bytes, str] = {}

    def __call__(self, ids: np.ndarray) -> str:
        name = ids.tobytes()
        if name not in self._known:
            self._known[name] = labels_digest(ids, self._shift.labels(ids))
        return self._known[name]


def _corruptions_of(shift: Shift, segment: Segment, condition: Condition) -> dict[str, str]:
    """The versions of the built-in corruptions that make a condition's images."""
    if not shift.made_here:
        return {}
    steps = [step for blend in segment.blends for step in blend] if segment.blends else [condition]
    ours = sorted({str(step.corruption) for step in steps if is_corruption(str(step.corruption))})
    return {corruption_name(name): identity(corruption_name(name)) for name in ours}
