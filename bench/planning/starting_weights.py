"""What a run starts from: a stock, a ready classifier, or the classifier of another run; and whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from bench.core.errors import UsageError
from bench.models.classifiers import for_classes
from bench.models.load_model import load_model
from bench.models.weights_io import find_stock, load_stock
from bench.planning.init_from import Inherited, Planned, inherit
from bench.planning.run_methods import methods_of
from bench.settings.run_spec import RunSpec
from bench.shifts import find_row, load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift
from methods.nets.weights import Weights

Base = Weights | Inherited | nn.Module
"""A stock, the classifiers of another run, or a ready classifier."""


def resolve_base(spec: RunSpec, device: str, make_plan: Callable[[RunSpec], Planned]) -> tuple[str, Base]:
    """The name and the weights of the given model or stock, else of the shift's default.

    Without either, methods that need no stock get the shift's default model, if it has one.
    """
    row = find_row(spec.shift)
    if spec.model:
        return spec.model, load_model(spec.model)
    if spec.init_from:
        found = inherit(spec.init_from, spec.seed_list, device, make_plan)
        return found.name, found
    if spec.stock:
        return spec.stock, load_stock(spec.stock)
    # Open the shift first: its files are what is missing most often.
    load_shift(spec.shift, reading=reading_for(spec, Reading(spec.data_root, offline=spec.offline)))
    fixed = spec.head == "fine-tuned" and all(m.recipe.name == "source" for m in methods_of(spec))
    if row.default_model and fixed:
        return row.default_model, load_model(row.default_model)
    stock = find_stock(row, Reading(spec.data_root).root)
    return stock, load_stock(stock)


def check_base(base: Base, name: str, shift: Shift, image: Tensor) -> None:
    """Raise UsageError where a model, stock or classifier of another run does not fit the images or classes."""
    if isinstance(base, nn.Module):
        for_classes(base, shift, image.float() / 255)
        return
    _check_size(image.shape[2], base.architecture.image_size, shift.name, name)
    if isinstance(base, Inherited) and base.classes not in (shift.classes, shift.source_classes):
        raise UsageError(
            f"{name} tells {base.classes} classes apart but {shift.name} has {shift.classes}; give a run of that task"
        )


def _check_size(found: int, wanted: int, shift: str, name: str) -> None:
    """Raise UsageError unless the stock takes images of the shift's size: this shift cannot resize its images."""
    if found != wanted:
        other = f"as {name.split(':')[0]}:…:{found}" if name.startswith("timm:") else f"as bench stock --arch …_{found}"
        raise UsageError(
            f"{shift} has images of {found} px but the stock takes {wanted} px; give one of {found}, {other}"
        )


def reading_for(spec: RunSpec, reading: Reading) -> Reading:
    return replace(reading, classes=spec.classes, label=spec.label, part=spec.part)
