"""CIFAR-10 and CIFAR-100 under corruptions: the published `.npy` files, and our own from clean images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from bench.core.conditions import Condition
from bench.core.errors import MissingDataError, UsageError
from bench.data.arrays import read_cifar_binary, read_npy
from bench.data.classes import CIFAR10, CIFAR100, KnownClasses
from bench.data.decode import Preprocessing
from bench.data.hf_tables import read_hub, read_parquet
from bench.data.imageset import ImageSet
from bench.data.sources import find_set
from bench.data.split_folders import find_parts, tables_of
from bench.shifts.catalog import SHIFTS, ShiftRow
from bench.shifts.corruption_sets import COMMON, EXTRA
from bench.shifts.data_root import Reading
from bench.shifts.image_shift import Facts, ImageShift, OurCorruptions, Part, PublishedFiles, stores_at

USUAL = Preprocessing(32, 32)
_IMAGES = 10_000
"""The number of test images at each published severity."""


def generated(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load clean test images under this project's 15 corruptions at CIFAR-C's severities."""
    classes = _classes(row)
    stores = stores_at(reading.preprocessing or USUAL, reading.workers)
    root = reading.find(row.places)
    facts = Facts.of(row, classes, COMMON, EXTRA)
    return ImageShift(
        facts,
        lambda: Part.whole(read_clean(row, root, "test", reading)),
        lambda: Part.whole(read_clean(row, root, "train", reading)),
        OurCorruptions(stores, row.profile, row.storage),
        stores,
    )


def published(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load the published arrays CORRUPTION.npy (five severities one after another) and labels.npy.

    Clean test images are scored if the data root has a clean copy in the same order (equal labels).
    """
    classes = _classes(row)
    root = reading.need(row, f"the published .npy files ({row.size})")
    clean_row = SHIFTS[f"{row.name}-gen"]
    clean_root = reading.find(row.clean)
    stores = stores_at(reading.preprocessing or USUAL, reading.workers)
    untouched = stores_at(Preprocessing((reading.preprocessing or USUAL).size), reading.workers)
    open_one = cache(partial(_open_condition, root, _names(row)))

    @cache
    def test() -> Part:
        first = next((name for name in (*COMMON, *EXTRA) if (root / f"{name}.npy").is_file()), None)
        if first is None:
            raise MissingDataError(f"{root} has none of the files {COMMON[0]}.npy, …; fetch {row.name} again")
        return Part.whole(open_one(Condition(first, 1)))

    train: Callable[[], Part] | None = None
    has_clean = False
    notes: tuple[str, ...] = ()
    if clean_root is not None:
        train = lambda: Part.whole(read_clean(clean_row, clean_root, "train", reading))  # noqa: E731
        clean = read_clean(clean_row, clean_root, "test", reading)
        labels = test().labels
        if len(clean) == len(labels) and bool((clean.labels == labels).all()):
            has_clean = True
            test = cache(lambda: Part.whole(clean))
        else:
            notes = (f"{clean_root}: {len(clean)} test images have other labels than {root}; they are not scored",)
    facts = Facts.of(row, classes, COMMON, EXTRA, has_clean=has_clean)
    shift = ImageShift(facts, test, train, PublishedFiles(untouched, open_one), stores)
    shift.loading_notes = notes
    return shift


def _names(row: ShiftRow) -> tuple[str, ...]:
    return CIFAR100 if row.name.startswith("cifar100") else CIFAR10


def _classes(row: ShiftRow) -> int:
    return len(_names(row))


def _open_condition(root: Path, classes: tuple[str, ...], condition: Condition) -> ImageSet:
    if condition.severity != int(condition.severity):
        raise UsageError(f"published files have the severities 1 to 5, not {condition.severity:g}; choose one of them")
    images = root / f"{condition.corruption}.npy"
    return read_npy(images, root / "labels.npy", classes, int(condition.severity), _IMAGES)


def read_clean(row: ShiftRow, root: Path | None, split: str, reading: Reading) -> ImageSet:
    """Read clean images of a split: parquet, CIFAR's binary version, class folders, else the hub.

    CIFAR's "python version" is a pickle, which is never loaded.
    """
    names = _names(row)
    known = KnownClasses(names, published=True)
    label = reading.label or ("fine_label" if len(names) == 100 else None)
    if root is None:
        return read_hub(
            row.hub, None, split, offline=reading.offline, label_column=label, as_published=True, classes=known
        )
    if tables := tables_of(root, split):
        return read_parquet(tables, label, as_published=True, classes=known)
    binary = _binary_files(root, split, _classes(row))
    if binary:
        return read_cifar_binary(binary, names, 2 if _classes(row) == 100 else 1)
    part = find_parts(root).one_of_role(split)
    if part is not None:
        return find_set(part.places[0], known, as_published=True)
    if any(root.rglob("data_batch_1")) or any(root.rglob("meta")):
        raise UsageError(
            f"{root} holds CIFAR's python version, a pickle, which can run code and is not loaded; "
            "fetch the binary version or parquet files instead: bench data fetch " + row.name
        )
    raise MissingDataError(
        f"{root} has no {split}*.parquet, no binary version of CIFAR and no folder {split}; "
        f"fetch it with: bench data fetch {row.name}"
    )


def _binary_files(root: Path, split: str, classes: int) -> list[Path]:
    if classes == 100:
        return sorted(root.rglob(f"{split}.bin"), key=lambda file: file.parts)
    found = root.rglob("data_batch_*.bin" if split == "train" else "test_batch.bin")
    return sorted(found, key=lambda file: file.parts)
