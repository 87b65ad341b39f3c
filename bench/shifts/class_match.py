"""Match the classes of a shift with those of the model to be scored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from bench.core.conditions import Condition
from bench.core.errors import UsageError
from bench.data.classes import places_of, synsets
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from bench.shifts.image_shift import ImageShift
from bench.shifts.shift import NATURAL, Shift

if TYPE_CHECKING:
    from methods.nets.weights import Weights


class HasClassNames(Protocol):
    """An object that may know the names of its classes, in the order of its outputs."""

    @property
    def class_names(self) -> tuple[str, ...] | None: ...


def fitted(asked: str, base: nn.Module | Weights | HasClassNames, reading: Reading) -> tuple[Shift, Reading]:
    """Load a shift with the classes that fit the model, and return it with the `Reading` that was used.

    A folder with a subset of ImageNet's synsets uses only its own classes if the model has as many outputs. Raises
    UsageError as `load_shift` does, and if a classifier of another run has other classes or another order of them.
    """
    shift = load_shift(asked, reading=reading)
    names = getattr(base, "class_names", None)
    own = class_names(shift)
    if names is not None and own is not None and len(names) == len(own) and names != own:
        refuse_other_classes(names, own, shift.name)
    if not isinstance(base, nn.Module) or not isinstance(shift, ImageShift) or shift.sources is None:
        return shift, reading
    if shift.sources.test.classes != synsets() or _outputs(base, shift) in (None, len(synsets())):
        return shift, reading
    own_reading = replace(reading, classes="imagefolder")
    narrow = load_shift(asked, reading=own_reading)
    if narrow.classes != _outputs(base, shift) or not isinstance(narrow, ImageShift):
        return shift, reading
    narrow.loading_notes = (
        f"{shift.name} has {narrow.classes} of ImageNet's classes, as many as the model has outputs: these are its "
        "classes, in sorted order",
        *narrow.loading_notes,
    )
    return narrow, own_reading


@torch.no_grad()
def _outputs(model: nn.Module, shift: ImageShift) -> int | None:
    """Return the number of outputs of a model, None if its output is not a tensor [n, classes]."""
    ids = shift.ids("test")[:1]
    scores = model(shift.images(ids, Condition(NATURAL, 1)).float() / 255)
    return scores.shape[1] if isinstance(scores, Tensor) and scores.ndim == 2 else None


def class_names(shift: Shift) -> tuple[str, ...] | None:
    """Return the names of a shift's classes in the order of its labels, None if it has none."""
    if not isinstance(shift, ImageShift) or shift.members is not None:
        return None
    names = shift.open_test().images.classes
    return names if len(names) == shift.classes else None


def refuse_other_classes(names: tuple[str, ...], own: tuple[str, ...], where: str) -> None:
    """Raise UsageError unless both lists name the same classes in the same order."""
    if places_of(names, own, "the classifier") != tuple(range(len(own))):
        raise UsageError(
            f"the classifier has the classes of {where} in another order ({', '.join(names[:3])}, …, not "
            f"{', '.join(own[:3])}, …); give the order that it was trained in with --classes FILE"
        )
