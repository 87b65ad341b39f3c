"""The trainings of a run in one sentence: how many, how long, what they cost, and which budget costs less.

The sentence comes from the jobs that the recipes plan. Before the data is there, the same recipes plan on stand-ins: a
stock without weights, and images without pixels of the published number.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from bench.core.import_object import load_object
from bench.models.weights_io import MAE_BASE
from bench.settings.method_options import MethodOptions
from bench.settings.methods import Method
from bench.settings.run_spec import RunSpec
from bench.settings.shift_options import Budget, budget_of, budgets_of
from bench.shifts.catalog import Family, ShiftRow
from bench.training.job_cache import all_jobs, job_key
from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.nets.weights import AnyArchitecture, Architecture, Weights
from methods.selfsoup.recipe import SelfSoup

TFLOPS = 300
"""Sustained speed, in TFLOP/s, of the hours in the sentence: two fifths of what an H100 does at most in bf16."""

CHEAP = "runs/cheap.toml"
"""The run file that costs least of those with the published ingredients."""

_VIT_BASE = Architecture(224, 16, 768, 12, 12, 512, 8, 16, pool="token")
_CLASSES = 1000
_POOL = 375_000  # half of ImageNet's validation images under 15 corruptions


@dataclass(frozen=True)
class TrainingCost:
    """How many trainings there are of each kind and length ("inter-training of 100,000 steps"), and all operations."""

    counts: tuple[tuple[str, int], ...]
    flops: float

    @property
    def hours(self) -> float:
        """Hours of one device that sustains TFLOPS."""
        return self.flops / (TFLOPS * 1e12) / 3600

    def __str__(self) -> str:
        kinds = [f"{count} {kind.replace('ing of', 'ings of') if count > 1 else kind}" for kind, count in self.counts]
        listed = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
        return (
            f"{listed}: {self.flops:.2g} FLOP, about {in_time(self.hours)} of one GPU at {TFLOPS} TFLOP/s (computed "
            "from operations, not measured; scoring comes on top)"
        )


def in_time(hours: float) -> str:
    """Return hours in words of two digits: "23 hours", "1.5 hours", "40 minutes"."""
    minutes = max(1, round(60 * hours))
    amount, unit = (f"{hours:.2g}" if hours < 99.5 else f"{hours:,.0f}", "hour") if hours >= 1 else (minutes, "minute")
    return f"{amount} {unit}{'' if str(amount) == '1' else 's'}"


def cost_of(jobs: Iterable[Job]) -> TrainingCost:
    """Return the cost of these jobs, each of which is counted."""
    found = list(jobs)
    counts = Counter(kind for job in found if (kind := _kind(job)))
    return TrainingCost(tuple(sorted(counts.items(), reverse=True)), sum(job.work.flops for job in found if job.work))


def _kind(job: Job) -> str:
    """Return the kind and length of a training; "" for what takes no steps."""
    if job.work is None or not job.work.steps:
        return ""
    epochs = getattr(job.config, "epochs", None)
    if epochs is not None:
        return f"fine-tuning of {epochs} epoch{'s' * (epochs > 1)}"
    return f"inter-training of {job.work.steps:,} step{'s' * (job.work.steps > 1)}"


@dataclass(frozen=True)
class TrainingSetting:
    """What trainings cost depends on, beside a run's settings: the shift, its train images and classes, the stock."""

    name: str
    family: Family
    classes: int
    train_images: int
    architecture: AnyArchitecture
    weights: int


def published_setting(row: ShiftRow) -> TrainingSetting | None:
    """Return the setting of a shift before its data is there; None if its stock or its train images are not known."""
    if not row.train_images or row.default_stock != MAE_BASE:
        return None
    weights = sum(map(torch.numel, _VIT_BASE.build().state_dict().values()))
    return TrainingSetting(row.name, row.family, _CLASSES, row.train_images, _VIT_BASE, weights)


def expected_cost(spec: RunSpec, methods: Sequence[Method], setting: TrainingSetting) -> TrainingCost:
    """Return the cost of a run whose recipes plan on stand-ins. Raises UsageError for invalid options."""
    jobs = expected_jobs(spec, methods, setting)
    return cost_of({job_key(job, spec.draws(seed)): job for seed in spec.seed_list for job in jobs}.values())


def expected_jobs(spec: RunSpec, methods: Sequence[Method], setting: TrainingSetting) -> list[Job]:
    """Return the jobs that the recipes of a run plan on stand-ins for stock and images, each once, for one seed.

    Raises UsageError for invalid options.
    """
    options = MethodOptions(spec, setting, "ln", "cpu", setting.weights)
    stock = Weights(setting.architecture, {})
    size = setting.architecture.image_size
    source = _labelled(setting, spec.labels or None, size)
    pools: dict[str, Unlabelled | None] = {
        "none": None,
        "clean": source.without_labels(),
        "shifted": Unlabelled(torch.empty(_POOL, 3, size, size, dtype=torch.uint8, device="meta"), "stand-in pool"),
    }
    jobs: dict[str, Job] = {}
    for method in methods:
        recipe: Recipe = load_object(method.recipe.path)(options.config(method.recipe))
        with contextlib.suppress(ValueError):  # what this stock cannot do trains nothing
            pool = pools[recipe.pool]
            also = recipe.config.also_on if isinstance(recipe, SelfSoup) else None
            others = {name: Unlabelled(pool.images, f"stand-in {name}") for name in also or () if pool is not None}
            more: dict[str, Any] = {"others": others} if others else {}
            parts = recipe.plan(stock, source, pool, **more)
            jobs |= {job_key(job, spec.seed): job for job in all_jobs(parts.values())}
    return list(jobs.values())


@lru_cache(maxsize=4)
def _labelled(setting: TrainingSetting, per_class: int | None, size: int) -> Labelled:
    count = min(setting.train_images, (per_class or setting.train_images) * setting.classes)
    labels = torch.arange(count) % max(1, min(setting.classes, count // 2))  # two of each class can be split
    images = torch.empty(count, 3, size, size, dtype=torch.uint8, device="meta")
    return Labelled(images, "stand-in source", labels, setting.classes)


def sentences(
    spec: RunSpec, methods: Sequence[Method], total: TrainingCost, setting: TrainingSetting | None
) -> Iterator[str]:
    """Yield what the trainings of a run on a shift with budgets are and cost, and which budgets cost less."""
    budget = budget_of(spec.recipe_shift, spec.budget)
    if budget is None or not total.counts:
        return
    yield f"budget {budget.name} ({budget.summary}): {total}"
    cheaper = [
        f"--budget {other.name} ({other.summary}): about {in_time(cost.hours)}"
        for other in budgets_of(spec.recipe_shift).values()
        if setting is not None
        and other.name != budget.name
        and (cost := expected_cost(_with(spec, budget, other), methods, setting)).flops < total.flops
    ]
    if cheaper:
        yield f"cheaper: {'; '.join(cheaper)}; {CHEAP} (encoders averaged first: a third of the fine-tunings)"


def _with(spec: RunSpec, now: Budget, other: Budget) -> RunSpec:
    """Return the run with another budget; settings that the present one did not decide stay."""
    own = {key: getattr(spec, key) for key in ("labels", "limit") if getattr(spec, key) != now.settings.get(key)}
    return spec.model_copy(update={"labels": None, "limit": None, **other.settings, **own, "budget": other.name})
