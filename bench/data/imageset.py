"""What every source of labelled images gives, and what all of them check."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.core.errors import UsageError

Labels = NDArray[np.int64]


class ImageSet(Protocol):
    """Images with labels, in an order that never changes while the files do not.

    `classes` names them, `labels` (int64 [n]) are positions in it. `key` says which pixels each row is: it follows from
    the content of the files (see `bench.data.content_hash` for very large sets) and from which rows of them are taken.
    `skipped` counts images that the user chose to leave out.
    """

    @property
    def key(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> Labels: ...

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What an error calls that image."""

    def read(self, row: int) -> Image.Image:
        """The image in RGB. Raises UsageError where it cannot be read."""

    def check(self) -> None:
        """Raise UsageError where rows that were read since the last check may be others than `key` says."""


def checked_labels(labels: NDArray[Any], classes: int, where: str) -> Labels:
    """Labels as int64 [n]. Raises UsageError where they are not whole numbers of that many classes."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UsageError(f"{where} holds {labels.dtype} {list(labels.shape)}; labels must be whole numbers [n]")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise UsageError(f"{where} has the label {bad}, outside of 0 .. {classes - 1}; check that it fits the classes")
    return labels.astype(np.int64)


def clean_folder(path: Path) -> int:
    """Remove a folder of what can be made again; gives the bytes that were freed. Open files stay whole."""
    freed = folder_size(path) if path.is_dir() else 0
    shutil.rmtree(path, ignore_errors=True)
    return freed


def folder_size(path: Path) -> int:
    """Bytes of all files below a folder (or of one file): of those with holes, what they take on the disk."""
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    return sum(min(facts.st_size, facts.st_blocks * 512) for facts in (file.stat() for file in files))
