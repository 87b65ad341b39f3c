"""Shifts of image sets: numbered train, dev and test images, and generated or published corruptions of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

import corruptions
from bench.core.components import corruption_marks
from bench.core.conditions import Condition, digest_of
from bench.core.errors import MissingDataError, UsageError
from bench.core.extras import need_photographs
from bench.data.classes import synsets
from bench.data.decode import Preprocessing
from bench.data.decoded_store import PixelStore
from bench.data.folders import FolderSet
from bench.data.imageset import ImageSet, Labels
from bench.shifts.catalog import Family, ShiftRow
from bench.shifts.data_root import Reading
from bench.shifts.photographs import LazyPhotographs, stretched
from bench.shifts.shift import NATURAL
from corruptions.tiles import TilePool

if TYPE_CHECKING:
    from bench.shifts.folder_or_hub import Sources

TRAIN_FROM = 1 << 40
"""The first id of train images; test images have ids from 0, so neither depends on the size of the other part."""

_DEV_EVERY = 10
_DEV_MOST = 5000


@dataclass(frozen=True)
class Part:
    """Selected rows of an image set with the labels that the shift assigns to them."""

    images: ImageSet
    rows: np.ndarray
    labels: Labels

    @staticmethod
    def whole(images: ImageSet) -> Part:
        return Part(images, np.arange(len(images)), images.labels)

    def at(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows in the image set of these ids."""
        rows: np.ndarray = self.rows[ids % TRAIN_FROM]
        return rows

    def keep(self, chosen: np.ndarray) -> Part:
        """Return a part with only these rows (positions, or bool for each row)."""
        return Part(self.images, self.rows[chosen], self.labels[chosen])

    def of_classes(self, members: Sequence[Sequence[int]]) -> Part:
        """Return a part with only images of these groups of classes; group i becomes class i."""
        target = {old: new for new, group in enumerate(members) for old in group}
        mapped = np.array([target.get(int(label), -1) for label in self.labels], dtype=np.int64)
        chosen = mapped >= 0
        return replace(self.keep(chosen), labels=mapped[chosen])


@dataclass(frozen=True)
class Facts:
    """The metadata of a shift that the harness uses; see `bench.shifts.shift.Shift`."""

    name: str
    classes: int
    corruptions: tuple[str, ...]
    tuning_corruptions: tuple[str, ...]
    profile: str
    storage: str
    family: Family
    default_labels: int | None = None
    members: tuple[tuple[int, ...], ...] | None = None
    source_classes: int | None = None
    severities: tuple[float, ...] | None = None
    has_clean: bool = True
    natural: bool = False

    @staticmethod
    def of(row: ShiftRow, classes: int, corruptions: Sequence[str], tuning: Sequence[str], **more: Any) -> Facts:
        """Return the metadata of a shift that has name, profile, storage and family of its row."""
        own = (row.name, classes, tuple(corruptions), tuple(tuning), row.profile, row.storage, row.family)
        return Facts(*own, **more)


class Shifted(Protocol):
    """A source of test images under a condition."""

    def pixels(self, part: Part, ids: np.ndarray, condition: Condition, device: str) -> Tensor:
        """Return pixels uint8 [n, 3, h, w] of these ids, which belong to this part."""

    def digest(self, part: Part, ids: np.ndarray, condition: Condition) -> str:
        """Return a hash of everything that determines these pixels."""


Stores = Callable[[ImageSet], PixelStore]
Loader = Callable[[ShiftRow, Reading], "ImageShift"]


@dataclass(frozen=True)
class OurCorruptions:
    """Corruptions of this project, applied to clean images on demand and seeded by the id of each image.

    `pool` opens the pictures for corruptions that paste tiles; None: procedural pictures.
    """

    stores: Stores
    profile: str
    storage: str
    seed: int = 0
    pool: Callable[[], TilePool] | None = None

    def pixels(self, part: Part, ids: np.ndarray, condition: Condition, device: str) -> Tensor:
        clean = torch.from_numpy(self.stores(part.images).read(part.at(ids))).to(device)
        if condition.corruption == NATURAL:
            return clean
        assert condition.corruption is not None
        return corruptions.corrupt(
            clean,
            condition.corruption,
            condition.severity,
            seed=self.seed,
            ids=ids.tolist(),
            profile=self.profile,
            storage=self.storage,
            pool=self.pool() if self.pool is not None and _of_tiles(condition) else None,
        )

    def digest(self, part: Part, ids: np.ndarray, condition: Condition) -> str:
        need_photographs(condition.corruption)
        settings = [self.stores(part.images).digest(part.at(ids)), self.seed, self.profile, self.storage]
        settings += corruption_marks(condition.corruption)
        return digest_of([*settings, self.pool().name] if self.pool is not None and _of_tiles(condition) else settings)


def _of_tiles(condition: Condition) -> bool:
    """Whether a condition pastes tiles from a pool."""
    name = condition.corruption
    return name is not None and name != NATURAL and corruptions.describe(name).pool


@dataclass(frozen=True)
class PublishedFiles:
    """Published files: one image set for each condition, in the order of the clean images."""

    stores: Stores
    open: Callable[[Condition], ImageSet]

    def pixels(self, part: Part, ids: np.ndarray, condition: Condition, device: str) -> Tensor:
        store = self.stores(self.aligned(part, condition))
        return torch.from_numpy(store.read(part.at(ids))).to(device)

    def digest(self, part: Part, ids: np.ndarray, condition: Condition) -> str:
        return self.stores(self.aligned(part, condition)).digest(part.at(ids))

    def aligned(self, part: Part, condition: Condition) -> ImageSet:
        """Open the files of a condition. Raises UsageError if they do not match the clean images one by one."""
        images = self.open(condition)
        if len(images) != len(part.images):
            raise UsageError(
                f"{condition} has {len(images)} images ({images.name(0)}, …) but there should be {len(part.images)} as "
                f"with {part.images.name(0)}; fetch what is incomplete again"
            )
        if not np.array_equal(images.labels, part.images.labels):
            row = int(np.flatnonzero(images.labels != part.images.labels)[0])
            raise UsageError(
                f"{images.name(row)} has another class than {part.images.name(row)}, which has the same position; "
                "fetch both from one release"
            )
        if isinstance(images, FolderSet) and isinstance(part.images, FolderSet):
            here, there = map(_photographs, (images, part.images))
            pairs = enumerate(zip(here, there, strict=True))
            for row in (row for row, (one, other) in pairs if one != other):
                raise UsageError(
                    f"{images.name(row)} is not named like {part.images.name(row)}, which has the same position; "
                    "fetch both from one release"
                )
        return images


_LAION_SUFFIX = re.compile(r"\.?_(?:glitched|mosaic|stickers?|vertical_lines|geometric_shapes|luminance\w*)_[1-5]$")


def _photographs(images: FolderSet) -> Iterator[str]:
    """Yield the names of the source photographs of files; LAION-C appends the distortion and its level to them."""
    return (_LAION_SUFFIX.sub("", Path(file).stem) for file in images.files)


def _without_images(part: Part, classes: int) -> Sequence[str]:
    """Return a note on classes without a scored image, except for sets with a subset of ImageNet's classes."""
    missing = np.flatnonzero(np.bincount(part.labels, minlength=classes) == 0)
    names = part.images.classes
    if not len(missing) or names == synsets():
        return ()
    shown = ", ".join(names[label] if len(names) == classes else str(label) for label in missing[:5])
    more = ", …" if len(missing) > 5 else ""
    return (f"no scored image is of {len(missing)} of the {classes} classes: {shown}{more}",)


class ImageShift:
    """A shift of images on disk or from the hub. Parts are opened on first use.

    `dev` is every tenth train image (5000 at most), which `train` then excludes; `test` is the part that is shifted.
    `whole_source` opens the train images of all classes where recipes learn more classes than are scored; `dev` is then
    chosen among all of them.
    `clean` opens images of the same classes that are scored as unshifted where the originals of the shifted images are
    not published. Decoded pixels are in `PixelStore`s, so memory does not grow with the data.
    """

    data_seed = 0

    def __init__(
        self,
        facts: Facts,
        test: Callable[[], Part],
        train: Callable[[], Part] | None,
        shifted: Shifted | None,
        stores: Stores,
        answers: Callable[[np.ndarray], np.ndarray] | None = None,
        clean: Callable[[], ImageSet] | None = None,
    ) -> None:
        self.facts = facts
        self.name = facts.name
        self.classes = facts.classes
        self.corruptions = facts.corruptions
        self.tuning_corruptions = facts.tuning_corruptions
        self.profile = facts.profile
        self.storage = facts.storage
        self.family: Family = facts.family
        self.default_labels = facts.default_labels
        self.members = facts.members
        self.source_classes = facts.source_classes
        self.severities = facts.severities
        self.has_clean = facts.has_clean
        self.natural = facts.natural
        self.bundled = False
        self.open_test = cache(test)
        self._open_train = cache(train) if train is not None else None
        self._shifted = shifted
        self._stores = stores
        self._answers = answers
        self._own_clean = clean
        self.whole_source: Callable[[], ImageShift] | None = None
        self.made_by: tuple[Loader, ShiftRow, Reading] | None = None
        self.loading_notes: tuple[str, ...] = ()
        self.sources: Sources | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the loader and its arguments; another process loads the shift once from them."""
        if self.made_by is None:
            raise TypeError(f"{self.name} was not loaded by its name, so another process cannot load it")
        return _loaded_again, (*self.made_by, self.open_test().images.key)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user on how the images were found and read."""
        part = self.open_test()
        return (*self.loading_notes, *getattr(part.images, "notes", ()), *_without_images(part, self.classes))

    @property
    def has_train(self) -> bool:
        """Whether the shift has train images."""
        return self._open_train is not None

    @property
    def skipped(self) -> int:
        """The number of test images that the user left out."""
        return self.open_test().images.skipped

    def ids(self, part: str) -> np.ndarray:
        if part == "test":
            return np.arange(len(self.open_test().rows), dtype=np.int64)
        train = self._train()
        count = len(train.rows)
        if self.whole_source is None:
            dev = _dev_rows(count)
        else:
            dev = np.flatnonzero(np.isin(train.rows, _dev_rows(len(train.images))))
        rows = dev if part == "dev" else np.setdiff1d(np.arange(count, dtype=np.int64), dev)
        return TRAIN_FROM + rows

    def labels(self, ids: np.ndarray) -> np.ndarray:
        labels: np.ndarray = self._part(ids).labels[ids % TRAIN_FROM]
        return labels

    def answers(self, ids: np.ndarray) -> np.ndarray | None:
        """Return which classes are correct for each image, bool [n, classes]; None if only the label is."""
        return self._answers(ids) if self._answers is not None else None

    @property
    def tiles(self) -> str | None:
        """The name of the pictures that tiles are cut from, None if no corruption of the shift uses tiles."""
        made = self._shifted
        return made.pool().name if isinstance(made, OurCorruptions) and made.pool is not None else None

    def images(self, ids: np.ndarray, condition: Condition, device: str = "cpu") -> Tensor:
        part = self._part(ids)
        if condition.corruption is None:
            if not self.has_clean and part is self.open_test():
                raise MissingDataError(f"{self.name} has no clean images of its own; ask for its corruptions only")
            return torch.from_numpy(self._stores(self._clean(part)).read(part.at(ids))).to(device)
        if self._shifted is None:
            raise UsageError(f"{self.name} has no corruptions; ask for its images as they are")
        return self._shifted.pixels(part, ids, condition, device)

    def photographs(self, ids: np.ndarray) -> LazyPhotographs | None:
        """Return the photographs whose centres are the clean images of these ids; None where these are all of them."""
        form = stretched(self._stores(self._part(ids).images).preprocessing)
        return None if form is None else LazyPhotographs(self, ids, form)

    def source_of(self, ids: np.ndarray) -> tuple[ImageSet, np.ndarray, int]:
        """Return the image set of ids of one part, the row of each in it, and the number of threads that decode."""
        part = self._part(ids)
        return part.images, part.at(ids), self._stores(part.images).workers

    def digest(self, ids: np.ndarray, condition: Condition) -> str:
        part = self._part(ids)
        labels = hashlib.sha256(ids.tobytes() + self.labels(ids).tobytes()).hexdigest()
        if condition.corruption is None or self._shifted is None:
            pixels = self._stores(self._clean(part)).digest(part.at(ids))
        else:
            pixels = self._shifted.digest(part, ids, condition)
        return "sha256:" + digest_of([labels, pixels, str(condition)])

    def listing(self, ids: np.ndarray) -> str:
        part = self._part(ids)
        sha = hashlib.sha256(ids.tobytes() + self.labels(ids).tobytes())
        images = self._clean(part)
        for row in part.at(ids).tolist():
            sha.update(os.fsencode(os.path.basename(images.name(row))) + b"\0")  # noqa: PTH119 - millions of names
        return "names:" + sha.hexdigest()[:32]

    def _clean(self, part: Part) -> ImageSet:
        """Return the unshifted images of a part; for test images others of the same classes if `clean` was given."""
        own = self._own_clean is not None and part is self.open_test()
        return self._own_clean() if own and self._own_clean is not None else part.images

    def published(self, condition: Condition) -> ImageSet | None:
        """Return the files of a condition, None if its images are the test images or generated from them.

        Raises MissingDataError if they are missing, UsageError if they do not match the test images.
        """
        if not isinstance(self._shifted, PublishedFiles):
            return None
        found = self._shifted.aligned(self.open_test(), condition)
        return None if found is self.open_test().images else found

    @property
    def made_here(self) -> bool:
        """Whether this project generates the shifted images from the clean ones."""
        return isinstance(self._shifted, OurCorruptions)

    def drop_damaged(self, images: ImageSet) -> list[str]:
        """Drop stored pixels that changed, to be decoded again on next use; return the names of their images."""
        return self._stores(images).drop_damaged()

    def _train(self) -> Part:
        if self._open_train is None:
            raise MissingDataError(
                f"{self.name} has no train images, which this needs; use a method and a --model that need none"
            )
        return self._open_train()

    def _part(self, ids: np.ndarray) -> Part:
        """Return the part of these ids, which must all belong to one part."""
        return self._train() if len(ids) and ids[0] >= TRAIN_FROM else self.open_test()


def _dev_rows(count: int) -> np.ndarray:
    """Return the rows of `count` train images that are dev images."""
    dev = np.arange(0, count, _DEV_EVERY, dtype=np.int64)
    if len(dev) > _DEV_MOST:
        dev = dev[np.linspace(0, len(dev) - 1, _DEV_MOST).round().astype(np.int64)]
    return dev


@lru_cache(maxsize=4)
def _loaded_again(load: Loader, row: ShiftRow, reading: Reading, test: str) -> ImageShift:
    """Load a shift that another process sent; the key `test` of its test images tells versions of the files apart."""
    shift = load(row, reading)
    shift.made_by = (load, row, reading)
    return shift


def stores_at(preprocessing: Preprocessing, workers: int) -> Stores:
    """Return a function that gives the pixel store of an image set, one for each key, with this preprocessing."""
    made: dict[str, PixelStore] = {}

    def store(images: ImageSet) -> PixelStore:
        if images.key not in made:
            made[images.key] = PixelStore(images, preprocessing, workers)
        return made[images.key]

    return store
