"""Labelled images where people keep them, found by their looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.data.arrays import numbered, read_npy
from bench.data.folders import read_folder
from bench.data.imageset import ImageSet
from bench.data.tables import read_arrow, read_parquet


def find_set(
    where: Path, classes: Sequence[str] | None = None, *, as_published: bool = False, label_column: str | None = None
) -> ImageSet:
    """What lies at a path, by its looks: parquet file(s), a saved arrow folder, `.npy` pair, or class folders."""
    if where.suffix == ".parquet":
        return read_parquet([where], label_column, as_published=as_published, classes=classes)
    if where.suffix == ".npy":
        return read_npy(where, where.with_name("labels.npy"), classes or numbered(where.with_name("labels.npy")))
    if where.is_dir():
        if (where / "state.json").is_file() or (where / "dataset_info.json").is_file():
            return read_arrow(where, label_column, as_published=as_published, classes=classes)
        tables = sorted(where.glob("*.parquet"))
        if tables:
            return read_parquet(tables, label_column, as_published=as_published, classes=classes)
    return read_folder(where, classes, as_published=as_published)
