"""The fields that identify each record of a plan, of which its key is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.core.components import (
    HARNESS,
    corruption_name,
    identity,
    identity_of_path,
    is_corruption,
    method_name,
)
from bench.core.conditions import Condition, Trial, digest_of
from bench.evaluation.protocols import Segment
from bench.planning.context import PlanContext
from bench.settings.methods import Method
from bench.shifts.shift import Shift
from bench.training.job_cache import all_jobs
from leaderboards.identity import labels_digest
from methods.base import Job, Labelled
from methods.table import MethodRow


@dataclass(frozen=True)
class RowIdentity:
    """What the records of one row share: the trial, the part of its recipe's result, and the code behind it.

    `met` names the conditions that a classifier has seen before the stream, `pool` is the digest of the images that
    its recipe adapted on, `learnt` that of all its training images, `ingredients` the seed of what it learnt without
    labels where that is another than the trial's.
    """

    trial: Trial
    part: str
    components: Mapping[str, str]
    met: tuple[str, ...]
    pool: str | None
    learnt: str | None
    ingredients: int | None


def code_behind(context: PlanContext, method: Method) -> dict[str, str]:
    """The versions of the harness and of the methods, and what identifies the user's own code."""
    made = {HARNESS: identity(HARNESS), **context.made_by}
    return made | {method_name(row): identity_of_path(row.path) for row in rows_behind(context, method)}


def record_identities(
    context: PlanContext, row: RowIdentity, segments: Sequence[Segment], labels: Callable[[np.ndarray], str]
) -> dict[Condition, dict[str, Any]]:
    """The fields that identify the record of each condition (`leaderboards.identity`): the trial, the versions of the
    code, the condition's images, and the images met before them or in a pool.
    """
    identities: dict[Condition, dict[str, Any]] = {}
    before: list[Any] = []
    for segment in segments:
        content = [context.digests[condition] for condition in segment.conditions]
        if segment.reset:
            before = []
        beside = content if len(content) > 1 else []
        seen = digest_of([beside, before, row.pool]) if beside or before or row.pool else None
        for number, condition in enumerate(segment.conditions):
            ids = segment.ids if len(content) == 1 else segment.ids[segment.which == number]
            corruptions = _corruptions_of(context.shift, segment, condition)
            identities[condition] = _identity(context, row, condition, corruptions, labels(ids), seen)
        before = [*before, content]
    return identities


def _identity(
    context: PlanContext,
    row: RowIdentity,
    condition: Condition,
    corruptions: Mapping[str, str],
    labels: str,
    seen: str | None,
) -> dict[str, Any]:
    """The fields of one record. `labels` is the digest of its labels, `seen` that of images met before or beside."""
    shift, trial = context.shift, row.trial
    return {
        "method": trial.method,
        "part": row.part or None,
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
        "components": {**row.components, **corruptions},
        "weights": {"digest": context.base_digest, "ready": not context.from_stock},
        "data": {
            "digest": context.digests[condition],
            "seed": shift.data_seed,
            "storage": shift.storage,
            "profile": shift.profile,
            "labels_per_class": trial.labels_per_class,
            "history": list(row.met),
            "tiles": shift.tiles,
            "labels": labels,
            "source": row.learnt,
            "seen": seen,
            "ingredients": row.ingredients,
        },
    }


class LabelDigests:
    """Digests of labels by ids, computed once for streams that several methods share."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._known: dict[bytes, str] = {}

    def __call__(self, ids: np.ndarray) -> str:
        name = ids.tobytes()
        if name not in self._known:
            self._known[name] = labels_digest(ids, self._shift.labels(ids))
        return self._known[name]


def rows_behind(context: PlanContext, method: Method) -> list[MethodRow]:
    """The rows of the table whose code makes a number."""
    return [*([method.recipe] if context.from_stock else []), *([method.adapter] if method.adapter else [])]


def training_data_digest(shifts: Sequence[Shift], job: Job | None, given: str | None) -> str | None:
    """A digest of all images that a classifier was trained on and its adapter is given; None if these are bundled."""
    trained = {part.data.digest for part in all_jobs([job] if job else []) if part.data is not None}
    found = sorted(trained | ({given} if given else set()))
    return digest_of(found) if found and not all(shift.bundled for shift in shifts) else None


def ingredient_seed(trial: Trial, job: Job | None) -> int | None:
    """The seed of trainings without labels, if a classifier has some and their seed is not the trial's."""
    jobs = all_jobs([job] if job else [])
    alone = any(part.data is not None and not isinstance(part.data, Labelled) for part in jobs)
    return trial.draws.ingredients if alone and trial.draws.ingredients != trial.draws.labels else None


def _corruptions_of(shift: Shift, segment: Segment, condition: Condition) -> dict[str, str]:
    """The versions of the built-in corruptions that make a condition's images."""
    if not shift.made_here:
        return {}
    steps = [step for blend in segment.blends for step in blend] if segment.blends else [condition]
    ours = sorted({str(step.corruption) for step in steps if is_corruption(str(step.corruption))})
    return {corruption_name(name): identity(corruption_name(name)) for name in ours}
