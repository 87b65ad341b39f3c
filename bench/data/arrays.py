"""Read images in arrays: .npy, IDX and CIFAR's binary files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.core.errors import MissingDataError, UsageError
from bench.data.content_hash import Files, open_files
from bench.data.decode import decode_array
from bench.data.imageset import Labels, checked_labels

_MOST_IDX = 2 << 30
"""Bytes of the largest IDX file that is read, three times those of EMNIST."""


@dataclass(frozen=True, eq=False)
class ArraySet:
    """Rows of images uint8 [n, h, w, 3] or [n, h, w], in memory or memory-mapped from `files`."""

    where: str
    images: NDArray[np.uint8]
    labels: Labels
    classes: tuple[str, ...]
    key: str
    first: int = 0
    skipped: int = 0
    files: Files | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return f"{self.where}[{self.first + row}]"

    def read(self, row: int) -> Image.Image:
        return decode_array(np.asarray(self.images[self.first + row]), self.name(row))

    def check(self) -> None:
        if self.files is not None:
            self.files.check()


def read_npy(
    images: Path, labels: Path, classes: Sequence[str], severity: int | None = None, whole: int | None = None
) -> ArraySet:
    """Read images and labels from `.npy` files; with `severity` (1 to 5), that fifth of a published corruption file.

    The labels file may be as long as all images or as one fifth of them; the five severities show the same images, so
    their labels must repeat five times. `whole` is the published number of images at one severity. Pickled arrays are
    refused. Raises MissingDataError or UsageError with the name of the file.
    """
    files = open_files([images, labels], "fetch the published files and give their folder")
    pixels, numbers = _load_npy(images), _load_npy(labels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3):
        raise UsageError(f"{images} holds {pixels.dtype} {list(pixels.shape)}; it must be uint8 [n, height, width, 3]")
    count, first = len(pixels), 0
    if severity is not None:
        _need_five_severities(images, len(pixels), np.asarray(numbers), whole)
        if count % 5:
            raise UsageError(f"{images} holds {count} images, not five severities of equal size; fetch it again")
        count //= 5
        first = (severity - 1) * count
    if len(numbers) == len(pixels):
        numbers = numbers[first : first + count]
    elif len(numbers) != count:
        raise UsageError(
            f"{labels} holds {len(numbers)} labels but {images} {len(pixels)} images; fetch both from one release"
        )
    checked = checked_labels(np.asarray(numbers), len(classes), str(labels))
    files.check()
    key = f"npy:{files.digest}:{first}:{count}"
    return ArraySet(str(images), pixels, checked, tuple(classes), key, first, files=files)


def _need_five_severities(images: Path, count: int, labels: NDArray[Any], whole: int | None) -> None:
    """Raise UsageError for a file that holds one severity instead of five."""
    alike = len(labels) != count or count % 5 or (labels.reshape(5, -1) == labels[: count // 5]).all()
    if count == whole or not alike:
        raise UsageError(
            f"{images} holds one severity, not the published five: its {count} images are not five times the same "
            f"ones; get the whole file, or score it unchanged with: --shift folder:{images} --corruption natural"
        )


def _load_npy(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MissingDataError(f"no file {path}; fetch the published files and give their folder") from None
    except (ValueError, OSError, EOFError, TokenError, SyntaxError, RecursionError, OverflowError) as error:
        raise UsageError(f"{path} is not a whole .npy file of numbers ({error}); fetch it again") from None


def read_idx(images: Path, labels: Path, classes: Sequence[str]) -> ArraySet:
    """Read grey images from the IDX files of MNIST and Fashion-MNIST, gzipped or not.

    Raises MissingDataError or UsageError with the name of the file.
    """
    files = open_files([images, labels], "fetch the IDX files and give their folder")
    pixels, numbers = _read_idx_file(images), _read_idx_file(labels)
    files.check()
    if pixels.ndim != 3 or numbers.ndim != 1:
        raise UsageError(f"{images} and {labels} are not images and labels in IDX; fetch them again")
    if len(pixels) != len(numbers):
        raise UsageError(f"{labels} holds {len(numbers)} labels but {images} {len(pixels)} images; fetch both again")
    checked = checked_labels(numbers, len(classes), str(labels))
    return ArraySet(str(images), pixels, checked, tuple(classes), f"idx:{files.digest}")


def _read_idx_file(path: Path) -> NDArray[np.uint8]:
    """Read IDX: two zero bytes, type 8 (uint8), number of dimensions, their sizes as big-endian int32, the values."""
    try:
        # No more is unpacked than the header promises.
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            mark, sizes = file.read(3), file.read(4 * (file.read(1) or b"\0")[0])
            if mark != b"\0\0\x08" or not 4 <= len(sizes) <= 16 or len(sizes) % 4:
                raise UsageError(f"{path} is not an IDX file of bytes; fetch it again")
            shape = tuple(np.frombuffer(sizes, ">u4").tolist())
            if (promised := math.prod(shape)) > _MOST_IDX:
                raise UsageError(f"{path} promises {promised / 1e9:.3g} GB, more than a set in IDX has; fetch it again")
            values = np.frombuffer(file.read(promised + 1), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a whole gzip file ({error}); fetch it again") from None
    if values.size != promised:
        what = "more" if values.size > promised else values.size
        raise UsageError(f"{path} holds {what} values but promises {list(shape)}; fetch it again")
    return values.reshape(shape)


def read_cifar_binary(files: Sequence[Path], classes: Sequence[str], label_bytes: int = 1) -> ArraySet:
    """Read CIFAR's "binary version": records of `label_bytes` labels (the last one is used) and 3072 pixel bytes.

    Raises MissingDataError or UsageError with the name of the file.
    """
    opened = open_files(files, "fetch the binary version of CIFAR")
    parts = []
    for path in files:
        raw = np.fromfile(path, dtype=np.uint8)
        if raw.size == 0 or raw.size % (label_bytes + 3072):
            raise UsageError(f"{path} is not a whole file of CIFAR's binary version; fetch it again")
        parts.append(raw.reshape(-1, label_bytes + 3072))
    opened.check()
    rows = np.concatenate(parts)
    labels = checked_labels(rows[:, label_bytes - 1], len(classes), str(files[0]))
    pixels = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySet(str(files[0]), pixels, labels, tuple(classes), f"cifar:{opened.digest}:{label_bytes}")


def numbered(labels: Path) -> tuple[str, ...]:
    """Return class names 0, 1, … up to the largest label in a `.npy` file."""
    numbers = _load_npy(labels)
    return tuple(str(label) for label in range(int(numbers.max()) + 1)) if len(numbers) else ()
