"""Detect the format of labelled images at a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.core.errors import UsageError
from bench.data.arrays import numbered, read_npy
from bench.data.classes import KnownClasses
from bench.data.folders import read_folder
from bench.data.hf_tables import read_arrow, read_parquet
from bench.data.imageset import ImageSet


def find_set(
    where: Path,
    classes: Sequence[str] | KnownClasses | None = None,
    *,
    as_published: bool = False,
    label_column: str | None = None,
) -> ImageSet:
    """Read the images at a path in the detected format: parquet, a saved arrow folder, `.npy` pair or class folders."""
    known = KnownClasses.of(classes)
    if where.suffix == ".parquet":
        return read_parquet([where], label_column, as_published=as_published, classes=known)
    if where.suffix == ".npy":
        names = known.classes if known is not None and known.classes else numbered(where.with_name("labels.npy"))
        return read_npy(where, where.with_name("labels.npy"), names)
    if where.is_dir():
        if (where / "state.json").is_file() or (where / "dataset_info.json").is_file():
            return read_arrow(where, label_column, as_published=as_published, classes=known)
        tables = sorted(where.glob("*.parquet"), key=lambda table: table.name)
        if tables:
            return read_parquet(tables, label_column, as_published=as_published, classes=known)
        if label_column is not None:
            raise UsageError(f"{where} has no table with a column {label_column}; leave --label out")
    return read_folder(where, known, as_published=as_published)
