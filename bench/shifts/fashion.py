"""fashion-c: Fashion-MNIST at 32 px under the corruptions of digits-c."""

from __future__ import annotations

from pathlib import Path

from bench.data.arrays import read_idx
from bench.data.classes import KnownClasses
from bench.data.decode import Preprocessing
from bench.data.hf_tables import read_hub
from bench.data.imageset import ImageSet
from bench.shifts.catalog import ShiftRow
from bench.shifts.data_root import Reading
from bench.shifts.digits import Digits
from bench.shifts.image_shift import Facts, ImageShift, OurCorruptions, Part, stores_at

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PREFIX = {"train": "train", "test": "t10k"}


def load(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load IDX files from the data root, torchvision's folder or Debian's dataset-fashion-mnist, else from the hub."""
    stores = stores_at(reading.preprocessing or Preprocessing(32, 32, "bicubic"), reading.workers)
    root = reading.find(row.places)
    facts = Facts.of(
        row,
        len(CLASSES),
        Digits.corruptions,
        Digits.tuning_corruptions,
        default_labels=10,
    )
    return ImageShift(
        facts,
        lambda: Part.whole(_read(row, root, "test", reading)),
        lambda: Part.whole(_read(row, root, "train", reading)),
        OurCorruptions(stores, row.profile, row.storage),
        stores,
    )


def _read(row: ShiftRow, root: Path | None, split: str, reading: Reading) -> ImageSet:
    if root is None:
        known = KnownClasses(CLASSES, published=True)
        return read_hub(
            row.hub, None, split, offline=reading.offline, label_column=reading.label, as_published=True, classes=known
        )
    stem = _PREFIX[split]
    images, labels = (root / f"{stem}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    if not images.is_file():
        images, labels = (path.with_name(path.name + ".gz") for path in (images, labels))
    return read_idx(images, labels, CLASSES)
