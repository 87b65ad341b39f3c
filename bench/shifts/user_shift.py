"""FILE.py:CLASS: a user's own shift, defined by one class in a file."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.core.conditions import NATURAL, Condition, digest_of, stream_rng
from bench.core.errors import MissingDataError, UsageError
from bench.core.import_object import code_of, load_object
from bench.data.arrays import ArraySet
from bench.data.classes import match, synsets
from bench.data.decode import Preprocessing
from bench.data.imageset import checked_labels
from bench.shifts.catalog import Family, ShiftRow
from bench.shifts.data_root import Reading
from bench.shifts.image_shift import Facts, ImageShift, Part, Stores, stores_at

Arrays = tuple[NDArray[np.uint8], NDArray[Any]]


class OwnShift(ABC):
    """Clean images and their corruptions: `bench run --shift FILE.py:CLASS`, with a --stock or a --model.

    classes: their number or their names, in the order of the labels; where all are ImageNet's (synsets or words), an
    ImageNet classifier is scored on its outputs of those names. corruptions: names of the reported ones;
    tuning_corruptions are only for choosing options (`--split dev`). severities: the available ones (None: any).
    family: selects the published options of methods. default_labels: labelled clean images of each class that recipes
    get (None: all). root: the data root.
    """

    classes: ClassVar[int | Sequence[str]]
    corruptions: ClassVar[tuple[str, ...]]
    tuning_corruptions: ClassVar[tuple[str, ...]] = ()
    severities: ClassVar[tuple[float, ...] | None] = None
    family: ClassVar[Family] = "cifar"
    default_labels: ClassVar[int | None] = None
    root: Path = Path()

    @abstractmethod
    def images(self, part: Literal["test", "train"]) -> Arrays | None:
        """Return clean images uint8 [n, height, width, 3] (or [n, height, width]) and labels [n], always in one order.

        Return None for "train" if there are no train images; recipes, which learn from them, cannot run then.
        """

    @abstractmethod
    def corrupt(self, images: Tensor, corruption: str, severity: float, ids: NDArray[np.int64]) -> Tensor:
        """Return corrupted images, uint8 [n, 3, h, w] like the clean ones, which are preprocessed for the model.

        Do not modify `images`. The result for an image must be the same in every batch, order and process: take random
        numbers from `draws` alone. ids: the images' ids, for test images their rows in `images("test")`.
        """

    def draws(self, corruption: str, ids: NDArray[np.int64]) -> list[np.random.Generator]:
        """Return a generator for each image, seeded by the corruption and the image's id."""
        return [stream_rng(0, corruption, str(number)) for number in ids.tolist()]


@dataclass(frozen=True)
class _UserCorruptions:
    """The corruptions of a user's class, applied to clean images."""

    stores: Stores
    shift: OwnShift
    name: str
    code: str

    def pixels(self, part: Part, ids: np.ndarray, condition: Condition, device: str) -> Tensor:
        clean = torch.from_numpy(self.stores(part.images).read(part.at(ids))).to(device)
        made = self.shift.corrupt(clean, str(condition.corruption), condition.severity, ids)
        if not isinstance(made, Tensor) or made.shape != clean.shape or made.dtype != torch.uint8:
            what = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise UsageError(f"{self.name}: corrupt gave {what} for {condition}; return uint8 {list(clean.shape)}")
        return made

    def digest(self, part: Part, ids: np.ndarray, condition: Condition) -> str:
        return digest_of([self.stores(part.images).digest(part.at(ids)), self.code])


def own(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load the shift that a user's class defines. Raises UsageError if the class is invalid.

    `row.profile` is the code digest if another process loaded the shift before; a file that changed since then is
    refused.
    """
    file, _, cls = row.name.rpartition(":")
    user_shift = user_shift_of(row.name, reading)
    code = f"file:{code_of(row.name)}"
    if row.profile not in ("auto", code):
        raise UsageError(f"{file} has changed since the run was planned; start the run again")
    name = f"{Path(file).name}:{cls}"
    names = _names(user_shift.classes, name)

    @cache
    def part(which: Literal["test", "train"]) -> ArraySet | None:
        try:
            found = user_shift.images(which)
        except FileNotFoundError as error:
            raise MissingDataError(f"{name}: there is no {error.filename}; put the {which} images there") from None
        return _array_set(found, f"{name} {which}", names)

    def needed(which: Literal["test", "train"]) -> Part:
        found = part(which)
        if found is None:
            raise UsageError(f"{name}: images('{which}') returned None; return images and labels")
        return Part.whole(found)

    test = needed("test")
    side = min(test.images.images.shape[1:3]) if isinstance(test.images, ArraySet) else 0
    stores = stores_at(reading.preprocessing or Preprocessing(side, side), reading.workers)
    facts = Facts(
        name,
        len(names),
        user_shift.corruptions,
        user_shift.tuning_corruptions,
        code,
        "uint8",
        user_shift.family,
        default_labels=user_shift.default_labels,
        severities=user_shift.severities,
        members=(members := _of_imagenet(names)),
        source_classes=len(synsets()) if members is not None else None,
    )
    train = (lambda: needed("train")) if part("train") is not None else None
    shift = ImageShift(facts, lambda: test, train, _UserCorruptions(stores, user_shift, name, code), stores)
    shift.made_by = (own, replace(row, profile=code), reading)
    return shift


def user_shift_of(path: str, reading: Reading) -> OwnShift:
    """Return an instance of the class FILE.py:CLASS. Raises UsageError if it is not a complete OwnShift."""
    cls = load_object(path)
    if not (inspect.isclass(cls) and issubclass(cls, OwnShift)) or inspect.isabstract(cls):
        raise UsageError(f"{path} is no shift; derive it from bench.shifts.user_shift.OwnShift")
    for attribute in ("classes", "corruptions"):
        if not hasattr(cls, attribute):
            raise UsageError(f"{path} does not define {attribute}; see `bench new shift`")
    names = (*cls.corruptions, *cls.tuning_corruptions)
    if not cls.corruptions or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise UsageError(f"{path}: corruptions must be names as in ('shadow', 'grain'), not {names!r}")
    if len(set(names)) < len(names) or NATURAL in names or "clean" in names:
        raise UsageError(f"{path}: each corruption needs a name of its own, and neither clean nor {NATURAL}")
    if cls.severities is not None and not (cls.severities and all(level > 0 for level in cls.severities)):
        raise UsageError(f"{path}: severities must be numbers above 0, or None for those asked for")
    shift: OwnShift = cls()
    shift.root = reading.root
    return shift


def _names(classes: int | Sequence[str], where: str) -> tuple[str, ...]:
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    if len(names) < 2:
        raise UsageError(f"{where} has {len(names)} classes; there must be two or more")
    return names


def _of_imagenet(names: tuple[str, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Return the output of an ImageNet classifier for each class; None if one is not ImageNet's or all are in order."""
    places = match(names, synsets())
    found = tuple((place,) for place in places if place is not None)
    if len(found) < len(names) or len(set(found)) < len(found) or places == list(range(len(synsets()))):
        return None
    return found


def _array_set(found: Arrays | None, where: str, names: tuple[str, ...]) -> ArraySet | None:
    if found is None:
        return None
    try:
        images, labels = (np.asarray(each) for each in found)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: images must give two arrays, images and labels") from None
    grey = images.ndim == 3
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not (grey or images.shape[3] == 3) or not images.size:
        raise UsageError(
            f"{where}: images must be uint8 [n, height, width, 3], not {images.dtype} {list(images.shape)}"
        )
    if len(labels) != len(images):
        raise UsageError(f"{where}: {len(images)} images have {len(labels)} labels; give one for each")
    checked = checked_labels(labels, len(names), where)
    sha = hashlib.sha256(f"{images.shape}".encode())
    sha.update(np.ascontiguousarray(images).data)
    sha.update(checked.tobytes())
    return ArraySet(where, images, checked, names, f"own:{sha.hexdigest()}")
