"""folder:PATH and hf:REPO[:CONFIG]: anything with images and labels, as it is and under our corruptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from bench.data.imageset import ImageSet
from bench.data.sources import find_set
from bench.data.tables import read_hub, read_parquet, tables_of
from bench.errors import MissingDataError, UsageError
from bench.shifts.imagenet import COMMON, EXTRA, USUAL, synsets
from bench.shifts.parts import Facts, ImageShift, OurCorruptions, Part, stores_at
from bench.shifts.reading import Reading
from bench.shifts.table import ShiftRow

_TEST = ("test", "val", "validation")


def folder(row: ShiftRow, reading: Reading) -> ImageShift:
    """folder:PATH, from here or the data root. PATH/train and PATH/test (or val) where they exist, else all is tested.

    Folders named by ImageNet synsets take ImageNet's class indices, so that its classifiers can be scored.
    """
    asked = Path(row.name.partition(":")[2]).expanduser()
    root = next((path for path in (asked, reading.root / asked) if path.exists()), None)
    if root is None:
        looked = asked if asked.is_absolute() else f"{asked} here or in {reading.root}"
        raise MissingDataError(f"{row.name}: there is no {looked}; give the folder that holds the class folders")
    # Neither numbers nor published records depend on where somebody keeps the images.
    whole = root.resolve()
    row = replace(row, name=f"folder:{whole.parent.name if whole.name in _TEST else whole.name}")
    parts = {name: _part_of(root, name) for name in (*_TEST, "train")}
    tested = next((parts[name] for name in _TEST if parts[name]), None)
    trained = parts["train"]
    if trained and tested is None:
        raise UsageError(f"{root} has a train part but no test part; name the other one {root / 'test'}")

    @cache
    def test() -> ImageSet:
        return _read(tested) if tested else find_set(root, _synsets_if(root))

    return _shift(row, reading, test, (lambda: _read(trained, test().classes)) if trained else None)


def _part_of(root: Path, name: str) -> list[Path]:
    """A part of a folder: its folder of that name, or all parquet files whose names begin with it."""
    return [root / name] if (root / name).is_dir() else tables_of(root, name)


def _read(places: list[Path], classes: Sequence[str] | None = None) -> ImageSet:
    if places[0].is_dir():
        return find_set(places[0], classes if classes is not None else _synsets_if(places[0]))
    return read_parquet(places, classes=classes)


def train_source(row: ShiftRow, reading: Reading) -> ImageShift:
    """The train images of folder:PATH alone, to learn from: PATH/train where it exists, else all of PATH."""
    root = Path(row.name.partition(":")[2]).expanduser()
    parquet = next(iter(sorted(root.glob("train*.parquet"))), None)
    trained = next((path for path in (root / "train", parquet) if path is not None and path.exists()), root)
    images = cache(lambda: find_set(trained))
    return _shift(row, reading, images, images)


def _synsets_if(root: Path) -> tuple[str, ...] | None:
    if not root.is_dir():
        return None  # one file of a table
    names = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return synsets() if names and set(names) <= set(synsets()) else None


def hub(row: ShiftRow, reading: Reading) -> ImageShift:
    """hf:REPO or hf:REPO:CONFIG, with the split test (else validation, else train alone as the test part)."""
    _, repo, config = [*row.name.split(":", 2), ""][:3]

    @cache
    def scored() -> tuple[str, ImageSet]:
        for split in (*_TEST, "train"):
            try:
                return split, read_hub(repo, config or None, split, offline=reading.offline)
            except MissingDataError as error:
                if "nknown split" not in str(error):
                    raise
        raise MissingDataError(f"{row.name} has no split test, validation or train; choose another data set")

    def train() -> ImageSet:
        return read_hub(repo, config or None, "train", offline=reading.offline, classes=scored()[1].classes)

    return _shift(row, reading, lambda: scored()[1], train if scored()[0] != "train" else None)


def _shift(
    row: ShiftRow,
    reading: Reading,
    test: Callable[[], ImageSet],
    train: Callable[[], ImageSet] | None,
) -> ImageShift:
    stores = stores_at(reading.preprocessing or USUAL, reading.workers)
    facts = Facts(row.name, len(test().classes), COMMON, EXTRA, row.profile, row.storage, row.family, natural=True)
    return ImageShift(
        facts,
        lambda: Part.whole(test()),
        (lambda: Part.whole(train())) if train is not None else None,
        OurCorruptions(stores, row.profile, row.storage),
        stores,
    )
