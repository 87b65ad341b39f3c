"""Implement `bench train`: train a classifier on clean labelled images by a seeded and documented recipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.core.cache_dir import cache_dir, write_bytes
from bench.core.conditions import CLEAN, digest_of
from bench.core.devices import pick_device, pick_precision
from bench.core.errors import BenchError, UsageError
from bench.execution.checkpointing import SECONDS, FileCheckpointer, ReportProgress
from bench.execution.task_pool import set_threads
from bench.models.weights_io import preprocessing_of, save_weights
from bench.settings.training_specs import TrainSpec as TrainSpec
from bench.shifts.class_match import class_names
from bench.shifts.data_root import Reading
from bench.shifts.lazy_images import pooled
from bench.shifts.shift import Shift, limit_ids
from bench.training.job_cache import job_key
from bench.training.pretrain_stock import (
    ShownCheckpointer,
    architecture,
    check_size,
    clean_source,
    curves,
    normalised,
    origin,
    prepared,
    row_of,
)
from methods.base import Job, Labelled
from methods.nets.weights import Architecture, Weights
from methods.training.supervised import Course, Supervised, train_classifier

FIRST = 20
"""How many losses of the first steps a file names, by which a repetition is recognised."""


@dataclass(frozen=True)
class TrainPlan:
    """A planned training; `key` names its checkpoint and changes with everything that changes the result's bits.

    dev: labelled images of the train part that are not trained on, the ones on which `bench tune` chooses options.
    """

    recipe: Supervised
    data: Labelled
    dev: Labelled
    classes: tuple[str, ...]
    source: str
    device: str
    threads: int
    key: str


@dataclass(frozen=True)
class Trained:
    """A trained classifier and its accuracy on the dev images, in [0, 1]."""

    weights: Weights
    accuracy: float


def plan_training(spec: TrainSpec) -> TrainPlan:
    """Load the images and choose the recipe. Only clean train images are used; test images are never read.

    Raises UsageError for settings that cannot be trained and images without labels, MissingDataError for missing
    images.
    """
    device = pick_device(spec.device)
    shape = architecture(spec.arch)
    if isinstance(shape, Architecture) or shape.tokens:
        raise UsageError(
            f"--arch {spec.arch} is a transformer, which this recipe does not train well; choose resnet20, resnet20-gn "
            "or a network of convolutions as timm:NAME:PIXELS, or pretrain it with `bench stock`"
        )
    shift = clean_source(spec.data, Reading(spec.data_root, preprocessing_of(Weights(shape, {})), spec.offline))
    ids = limit_ids(shift.ids("train"), spec.limit)
    data, dev = _labelled(shift, ids), _labelled(shift, shift.ids("dev"))
    if data.classes < 2:
        raise UsageError(f"{spec.data} has no labels, and a classifier needs them; give images in one folder per class")
    check_size(spec.data, data.images, shape)
    shape = normalised(shape, data.images)
    recipe = _recipe(spec, replace(Supervised(shape), bf16=pick_precision(spec.precision, device) == "bf16"))
    threads = spec.threads or torch.get_num_threads()
    job = Job(train_classifier, recipe, (), data, "classifier")
    key = digest_of([job_key(job, spec.seed), dev.digest, torch.device(device).type, threads])
    source = f"{len(ids)} clean train images of {spec.data}"
    return TrainPlan(recipe, data, dev, class_names(shift) or (), source, device, threads, key)


def _labelled(shift: Shift, ids: np.ndarray) -> Labelled:
    labels = torch.from_numpy(shift.labels(ids))
    return Labelled(pooled(shift, ids, [CLEAN]), shift.digest(ids, CLEAN), labels, shift.classes)


def _recipe(spec: TrainSpec, usual: Supervised) -> Supervised:
    given = {
        name: value
        for name in ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing")
        if (value := getattr(spec, name)) is not None
    }
    # Mirrored digits are other signs.
    flip = spec.data not in ("digits", "digits-c")
    try:
        return replace(usual, flip=flip, **given)
    except ValueError as error:
        raise UsageError(f"{error}; choose another value") from None


def run_training(plan: TrainPlan, seed: int, keep: FileCheckpointer | None = None, stop: int | None = None) -> _Run:
    """Train, and return the weights and the accuracy of each epoch. Raises BenchError if training diverges."""
    set_threads(plan.threads)
    course = Course(plan.dev)
    generator = torch.Generator(plan.device).manual_seed(seed)
    try:
        weights = train_classifier((), plan.data, replace(plan.recipe, stop=stop), generator, keep, course)
    except FloatingPointError as error:
        raise BenchError(f"{error} (--lr is {plan.recipe.lr:g})") from None
    return _Run(weights, course)


@dataclass(frozen=True)
class _Run:
    weights: Weights
    course: Course


def where_to(spec: TrainSpec, out: Path | None) -> Path:
    """Return the file to write, by default DATA-ARCH.safetensors in the current folder.

    Creates its folder. Raises UsageError if there is no default, for another ending and if the folder is not writable.
    """
    row_of(spec.data)
    if out is None:
        if ":" in spec.data + spec.arch:
            raise UsageError("say where to write the classifier: -o FILE.safetensors")
        out = Path(f"{spec.data}-{spec.arch}.safetensors")
    return prepared(out, "a classifier")


def make_classifier(
    spec: TrainSpec, out: Path, report: ReportProgress, plan: TrainPlan | None = None, seconds: float = SECONDS
) -> Trained:
    """Train a classifier, or resume an interrupted training, and write it and its curves (.png) beside it.

    `report` receives the completed steps; `seconds` is the time between two checkpoints.
    """
    plan = plan or plan_training(spec)
    keep = ShownCheckpointer(cache_dir() / "training" / f"train-{plan.key}.pt", report, seconds)
    start = time.perf_counter()
    run = run_training(plan, spec.seed, keep)
    seconds_taken = time.perf_counter() - start + keep.seconds_before
    save_weights(out, run.weights, facts_of_training(plan, spec, run, keep, seconds_taken))
    title = f"{out.stem}: {run.course.held_out[-1]:.2%} of {len(plan.dev)} dev images"
    right = {"augmented train images": run.course.learnt, "dev images": run.course.held_out}
    errors = {name: [1 - share for share in shares] for name, shares in right.items()}
    write_bytes(out.with_suffix(".png"), curves(keep.curve, title, errors))
    keep.forget()
    return Trained(run.weights, run.course.held_out[-1])


def facts_of_training(
    plan: TrainPlan, spec: TrainSpec, run: _Run, keep: ShownCheckpointer, seconds: float
) -> dict[str, object]:
    """Return what a file says of its origin, its classes, accuracies and losses."""
    return origin("train", spec, plan, run.weights, seconds) | {
        "classes": list(plan.classes),
        "accuracy": {"dev": run.course.held_out[-1], "dev_images": len(plan.dev), "dev_data": plan.dev.digest},
        "epochs": {"augmented": _rounded(run.course.learnt), "dev": _rounded(run.course.held_out)},
        "first_losses": keep.curve[:FIRST],
        "losses": keep.losses,
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]
