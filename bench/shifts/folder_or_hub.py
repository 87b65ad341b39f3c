"""folder:PATH and hf:REPO[:CONFIG]: any images with labels, unchanged and under this project's corruptions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from bench.core.errors import MissingDataError, UsageError
from bench.data.classes import ORDERS, KnownClasses, in_order, joined, places_of, read_classes, synsets
from bench.data.flat import is_flat, read_flat
from bench.data.folders import FolderSet, list_folder, unsorted_folder
from bench.data.hf_tables import TableSet, UnlabelledError, named_in, read_hub, read_parquet
from bench.data.imageset import ImageSet
from bench.data.sources import find_set
from bench.data.split_folders import SCORED, PartFiles, Parts, find_parts
from bench.shifts.catalog import ShiftRow
from bench.shifts.corruption_sets import COMMON, EXTRA
from bench.shifts.data_root import Reading
from bench.shifts.image_shift import Facts, ImageShift, OurCorruptions, Part, stores_at
from bench.shifts.imagenet import USUAL

_TEST = ("test", "val", "validation")


@dataclass(frozen=True)
class Sources:
    """The images of a shift: the scored ones, an opener of the train ones (None: there are none), and notes."""

    test: ImageSet
    train: Callable[[], ImageSet] | None
    notes: tuple[str, ...] = ()
    parts: Parts | None = None
    part: str | None = None


def folder(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load folder:PATH, relative to the current folder or the data root.

    PATH/train and PATH/test (or val) are used if they exist; otherwise all images are test images. Folders named by
    ImageNet synsets get ImageNet's class indices, so that its classifiers can be scored.
    """
    root, row = _place(row, reading)
    return _shift(row, reading, sources_of(root, reading))


def train_source(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load only the train images of folder:PATH or hf:REPO, for training without labels.

    These are the train part, or all images of a folder without parts. Raises UsageError if there are only scored parts,
    because a stock is never trained on test images.
    """
    kind, _, argument = row.name.partition(":")
    if kind == "hf" and not Path(argument).expanduser().is_dir():
        return _hub_train(row, reading)
    root, row = _place(row, reading)
    found = find_parts(root)
    part = found.named(reading.part) if reading.part is not None else found.one_of_role("train")
    if part is None and found.has_roles:
        there = ", ".join(each.name for each in found.parts)
        raise UsageError(
            f"{root} has the parts {there} and no train images, and a stock is never made of test images; put train "
            f"images into {root / 'train'}, or name a part to learn from with --part"
        )

    reader = _Reader(found, reading)

    @cache
    def images() -> ImageSet:
        if not _unsorted(part.places[0] if part is not None else root):
            with contextlib.suppress(UnlabelledError):
                return reader.read(part, _known(found, reading))
        return reader.read(part, KnownClasses(unlabelled=True))

    return _shift(row, reading, Sources(images(), images))


def _hub_train(row: ShiftRow, reading: Reading) -> ImageShift:
    repo, config = row.repository

    @cache
    def images() -> ImageSet:
        read = partial(read_hub, repo, config, reading.part or "train", offline=reading.offline)
        with contextlib.suppress(UnlabelledError):
            return read(label_column=reading.label)
        return read(classes=KnownClasses(unlabelled=True))

    return _shift(row, reading, Sources(images(), images))


def _unsorted(place: Path) -> bool:
    """Whether a folder directly holds images and no class folders."""
    if not place.is_dir():
        return False
    listing = list_folder(place)
    return bool(listing.images) and not listing.folders


@dataclass(frozen=True)
class _Reader:
    """Reads the parts of one folder with the user's settings."""

    found: Parts
    reading: Reading
    as_published: bool = False

    def read(self, part: PartFiles | None, known: KnownClasses | None) -> ImageSet:
        """Read the images of a part, or of the whole folder if `part` is None."""
        every = tuple(file for each in self.found.parts for file in each.places)
        places = part.places if part is not None else every or (self.found.root,)
        first, column, as_published = places[0], self.reading.label, self.as_published
        if first.suffix == ".parquet" and first.is_file():
            return read_parquet(places, column, as_published=as_published, classes=known)
        if is_flat(first):
            return read_flat(first, as_published=as_published)
        if known is not None and known.unlabelled and first.is_dir() and list_folder(first).images:
            return unsorted_folder(first)
        return find_set(first, known, as_published=as_published, label_column=column)


def _place(row: ShiftRow, reading: Reading) -> tuple[Path, ShiftRow]:
    """Return the folder, and the row with the name that records use."""
    asked = Path(row.name.partition(":")[2]).expanduser()
    root = next((path for path in (asked, reading.root / asked) if path.exists()), None)
    if root is None:
        looked = asked if asked.is_absolute() else f"{asked} here or in {reading.root}"
        raise MissingDataError(f"{row.name}: there is no {looked}; give the folder that holds the class folders")
    # Neither numbers nor published records depend on the location of the images.
    whole = root.resolve()
    return root, replace(row, name=f"folder:{whole.parent.name if whole.name in _TEST else whole.name}")


def sources_of(root: Path, reading: Reading, *, as_published: bool = False) -> Sources:
    """Return the scored and the train images of a folder, with the classes of both combined.

    Raises UsageError if the folder has no images to score, or its parts name their classes differently.
    """
    found = find_parts(root)
    known = _known(found, reading)
    reader = _Reader(found, reading, as_published)
    if not found.has_roles and reading.part is None:
        return Sources(reader.read(None, known), None, (), found)
    test, part, notes = _scored(reader, known)
    trained = found.one_of_role("train") if part.name.lower() not in ("train", "training") else None
    if trained is None:
        return Sources(test, None, notes, found, part.name)
    if known is None or known.order in ORDERS:
        test = _with_classes_of(test, trained, part, reading)
    known = known if known is not None and known.classes else KnownClasses(test.classes)
    known = replace(known, column=_column(test), order=None)
    return Sources(test, lambda: reader.read(trained, known), notes, found, part.name)


def _known(found: Parts, reading: Reading) -> KnownClasses | None:
    """Return the classes known beforehand: the user's, else ImageNet's if all folders are named by its synsets."""
    if reading.classes in ORDERS:
        return KnownClasses(order=reading.classes)
    if reading.classes is not None:
        return KnownClasses(read_classes(Path(reading.classes)), published=True)
    folders = [part.places[0] for part in found.parts if part.places[0].is_dir()]
    names = [name for place in (folders or [found.root]) for name in _class_folders(place)]
    return KnownClasses(synsets()) if names and set(names) <= set(synsets()) else None


def _class_folders(place: Path) -> list[str]:
    return [folder.name for folder in list_folder(place).folders] if place.is_dir() else []


def _scored(reader: _Reader, known: KnownClasses | None) -> tuple[ImageSet, PartFiles, tuple[str, ...]]:
    """Return the scored images, their part and notes: the user's part, else the first of `SCORED` with labels."""
    found = reader.found
    if reader.reading.part is not None:
        part = found.named(reader.reading.part)
        return reader.read(part, known), part, ()
    notes: list[str] = []
    without: UnlabelledError | None = None
    for role in SCORED:
        part_ = found.one_of_role(role)
        if part_ is None:
            continue
        try:
            images = reader.read(part_, known)
        except UnlabelledError as error:
            without = error
            notes.append(f"{part_.where} has no labels and is not scored")
        else:
            if notes:
                notes[-1] += f"; the part {part_.name} is"
            return images, part_, tuple(notes)
    if without is not None:
        raise without
    raise UsageError(
        f"{found.root} has a train part but no test part; name the other one {found.root / 'test'}, or score the train "
        "images themselves with --part train"
    )


def _column(images: ImageSet) -> str | None:
    return images.label_column or None if isinstance(images, TableSet) else None


def _with_classes_of(test: ImageSet, trained: PartFiles, part: PartFiles, reading: Reading) -> ImageSet:
    """Return the test images with the classes of both parts, which are matched by name."""
    if trained.places[0].suffix == ".parquet":
        column = reading.label or _column(test)
        names = named_in(trained.places, column) if column is not None else None
    else:
        names = tuple(_class_folders(trained.places[0])) or None
        names = in_order(names, "natural", trained.where) if names is not None else None
    if names is None:
        return test
    classes = joined(test.classes, names, part.where, trained.where)
    if reading.classes in ORDERS:
        classes = in_order(classes, reading.classes, part.where)
    if classes == test.classes or not isinstance(test, FolderSet | TableSet):
        return test
    places = np.array(places_of(test.classes, classes, part.where), dtype=np.int64)
    return replace(test, classes=classes, labels=places[test.labels])


def hub(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load hf:REPO or hf:REPO:CONFIG; the scored split is test, else val or validation, else train.

    A local folder is loaded like folder:PATH.
    """
    _, repo, config = [*row.name.split(":", 2), ""][:3]
    if not config and Path(repo).expanduser().is_dir():
        return folder(replace(row, name=f"folder:{repo}"), reading)
    known = None
    if reading.classes in ORDERS:
        known = KnownClasses(order=reading.classes)
    elif reading.classes is not None:
        known = KnownClasses(read_classes(Path(reading.classes)), published=True)

    def read(split: str, classes: KnownClasses | None) -> TableSet:
        return read_hub(
            repo, config or None, split, offline=reading.offline, label_column=reading.label, classes=classes
        )

    @cache
    def scored() -> tuple[str, TableSet, tuple[str, ...]]:
        notes: list[str] = []
        without: UnlabelledError | None = None
        for split in (reading.part,) if reading.part is not None else (*_TEST, "train"):
            try:
                found = read(split, known)
            except MissingDataError as error:
                if "nknown split" not in str(error) or reading.part is not None:
                    raise
            except UnlabelledError as error:
                if reading.part is not None:
                    raise
                without = error
                notes.append(f"{row.name} has no labels in its split {split}, which is not scored")
            else:
                if notes:
                    notes[-1] += f"; its split {split} is"
                elif split == "train" and reading.part is None:
                    notes.append(f"{row.name} has no split test or validation; its split train is scored")
                return split, found, tuple(notes)
        raise without or MissingDataError(
            f"{row.name} has no split test, validation or train; name one with --part, or choose another data set"
        )

    def train() -> ImageSet:
        test = scored()[1]
        classes = known if known is not None and known.classes else KnownClasses(test.classes)
        return read("train", replace(classes, column=test.label_column, order=None))

    split, test, notes = scored()
    return _shift(row, reading, Sources(test, train if split != "train" else None, notes, part=split))


def _shift(row: ShiftRow, reading: Reading, sources: Sources) -> ImageShift:
    stores = stores_at(reading.preprocessing or USUAL, reading.workers)
    test, train = sources.test, sources.train
    classes = test.classes
    facts = Facts.of(row, len(classes), COMMON, EXTRA, natural=True)
    shift = ImageShift(
        facts,
        lambda: Part.whole(test),
        (lambda: Part.whole(train())) if train is not None else None,
        OurCorruptions(stores, row.profile, row.storage),
        stores,
    )
    shift.loading_notes = sources.notes
    shift.sources = sources
    return shift
