"""The interface of sources of labelled images, and helpers that they share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.core.errors import UsageError

Labels = NDArray[np.int64]


class ImageSet(Protocol):
    """Images with labels, in an order that is fixed as long as the files are.

    `classes` are the class names, `labels` (int64 [n]) positions among them. `key` identifies the pixels of every row
    by the content of the files (see `bench.data.content_hash` for very large sets) and the selected rows. `skipped`
    counts images that the user chose to leave out.
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
        """Return the name of an image for messages."""

    def read(self, row: int) -> Image.Image:
        """Return an image in RGB. Raises UsageError if it cannot be read."""

    def check(self) -> None:
        """Raise UsageError if rows that were read since the last check may not match `key`."""


def checked_labels(labels: NDArray[Any], classes: int, where: str) -> Labels:
    """Return labels as int64 [n]. Raises UsageError if they are not integers from 0 to `classes` - 1."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UsageError(f"{where} holds {labels.dtype} {list(labels.shape)}; labels must be whole numbers [n]")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise UsageError(f"{where} has the label {bad}, outside of 0 .. {classes - 1}; check that it fits the classes")
    return labels.astype(np.int64)


def clean_folder(path: Path) -> int:
    """Remove a folder of recomputable files and return the number of freed bytes.

    Open files stay readable; Windows does not remove them, and they do not count.
    """
    before = folder_size(path) if path.is_dir() else 0
    shutil.rmtree(path, ignore_errors=True)
    return before - (folder_size(path) if path.is_dir() else 0)


def folder_size(path: Path) -> int:
    """Return the bytes of all files below a folder (or of one file); sparse files count their allocated blocks."""
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    return sum(min(facts.st_size, bytes_on_disk(facts)) for facts in (file.stat() for file in files))


def bytes_on_disk(facts: os.stat_result) -> int:
    """Return the allocated bytes of a file; its size where the system (Windows) does not tell them."""
    blocks: int | None = getattr(facts, "st_blocks", None)
    return facts.st_size if blocks is None else blocks * 512
