"""folder:PATH and hf:REPO[:CONFIG]: anything with images and labels, as it is and under our corruptions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from bench.data.sources import ImageSet, find_set, read_hub
from bench.errors import MissingDataError, UsageError
from bench.shifts.imagenet import COMMON, EXTRA, USUAL, synsets
from bench.shifts.parts import Facts, ImageShift, OurCorruptions, Part, stores_at
from bench.shifts.reading import Reading
from bench.shifts.table import ShiftRow

_TEST = ("test", "val", "validation")


def folder(row: ShiftRow, reading: Reading) -> ImageShift:
    """folder:PATH. PATH/train and PATH/test (or val) where they exist, else all of PATH is the test part.

    Folders named by ImageNet synsets take ImageNet's class indices, so that its classifiers can be scored.
    """
    root = Path(row.name.partition(":")[2]).expanduser()
    if not root.exists():
        raise MissingDataError(f"{row.name}: there is no {root}; give the folder that holds the class folders")
    tested = next((root / name for name in _TEST if (root / name).exists()), None)
    tested = tested or next((path for name in _TEST for path in sorted(root.glob(f"{name}*.parquet"))[:1]), root)
    trained = next((path for path in (root / "train", root / "train.parquet") if path.exists()), None)
    if trained is not None and tested == root:
        raise UsageError(f"{root} has a train part but no test part; name the other one {root / 'test'}")

    @cache
    def test() -> ImageSet:
        return find_set(tested, _synsets_if(tested))

    def train(path: Path) -> ImageSet:
        return find_set(path, test().classes if path.is_dir() else None)

    return _shift(row, reading, test, (lambda: train(trained)) if trained is not None else None)


def _synsets_if(root: Path) -> tuple[str, ...] | None:
    if not root.is_dir():
        return None
    names = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return synsets() if names and set(names) <= set(synsets()) else None


def hub(row: ShiftRow, reading: Reading) -> ImageShift:
    """hf:REPO or hf:REPO:CONFIG, with the split test (else validation, else train alone as the test part)."""
    _, repo, config = [*row.name.split(":", 2), ""][:3]

    @cache
    def test() -> ImageSet:
        for split in (*_TEST, "train"):
            try:
                return read_hub(repo, config or None, split, offline=reading.offline)
            except MissingDataError as error:
                if "nknown split" not in str(error):
                    raise
        raise MissingDataError(f"{row.name} has no split test, validation or train; choose another data set")

    def train() -> ImageSet:
        return read_hub(repo, config or None, "train", offline=reading.offline)

    return _shift(row, reading, test, train)


def _shift(
    row: ShiftRow,
    reading: Reading,
    test: Callable[[], ImageSet],
    train: Callable[[], ImageSet] | None,
) -> ImageShift:
    stores = stores_at(reading.preprocessing or USUAL, reading.workers)
    facts = Facts(row.name, len(test().classes), COMMON, EXTRA, row.profile, row.storage, row.family)
    return ImageShift(
        facts,
        lambda: Part.whole(test()),
        (lambda: Part.whole(train())) if train is not None else None,
        OurCorruptions(stores, row.profile, row.storage),
        stores,
    )
