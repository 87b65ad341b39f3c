"""What of a shift's data is found where, how large it is, and the one command or place that brings what is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.cache_dir import cache_dir
from bench.data.decoded_store import stored
from bench.data.split_folders import find_parts
from bench.shifts import SHIFTS, ShiftRow, find_row
from bench.shifts.data_root import Reading

SUMS = "SHA256SUMS"
"""Checksums of a data set's files, one `sha256  path` a line as sha256sum writes them, in the folder they belong to."""


@dataclass(frozen=True)
class Found:
    """One shift: where its scored images, their clean copies and its train images are ("" where they are not).

    `fetch` is the command that brings it, or where people get it. `source` is what the names of its scored images
    begin with, `decoded` the number of bytes that are kept of their pixels.
    """

    shift: str
    here: str
    clean: str
    train: str
    looked: tuple[str, ...]
    fetch: str
    size: str
    gigabytes: float
    licence: str
    citation: str
    sums: bool
    source: str
    decoded: int


def look(name: str, reading: Reading) -> Found:
    """What is found of one shift. Nothing is downloaded and no image is opened.

    Raises UsageError for an unknown name.
    """
    row = find_row(name)
    clean, train = (str(reading.find(places) or "") for places in (row.clean, row.train))
    root = reading.find(_places(row))
    if row.name.startswith("folder:") and root is not None:
        part = find_parts(root).one_of_role("train")
        train = part.where if part is not None else ""
    repo, config = row.repository
    here, source = "", ""
    if row.name == "digits-c":
        here = clean = train = "scikit-learn"
    elif root is not None:
        here, source = str(root), f"{root}/" if root.is_dir() else str(root)
    elif repo and _in_hub_cache(repo):
        here, source = f"hub cache ({repo})", f"hf:{repo}{f':{config}' if config else ''} "
    return Found(
        shift=name,
        here=here,
        clean=clean,
        train=train,
        looked=tuple(str(reading.root / place) for place in _places(row)),
        fetch=row.how_to_get,
        size=row.size,
        gigabytes=row.gigabytes,
        licence=row.licence,
        citation=row.citation,
        sums=root is not None and (root / SUMS).is_file(),
        source=source,
        decoded=sum(facts["bytes"] for facts in stored(source)) if source else 0,
    )


def look_everywhere(reading: Reading) -> list[Found]:
    """What is found of every shift with a name of its own."""
    return [look(name, reading) for name in SHIFTS if name not in ("folder", "hf", "mini-vtab", "mini-vtab-c")]


def _places(row: ShiftRow) -> tuple[str, ...]:
    kind, _, argument = row.name.partition(":")
    if kind == "folder":
        return (str(Path(argument).expanduser().absolute()),)
    return tuple(f"{place}/{argument}" for place in row.places) if argument else row.places


def _in_hub_cache(repo: str) -> bool:
    """Whether `datasets` has it, by its rules for where that is: loading it takes seconds."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    place = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    return (place / repo.replace("/", "___").lower()).is_dir()


def kept() -> dict[str, Any]:
    """Everything in the cache that comes from data: decoded pixels, corrupted ones, tables of parquet files, hashes of
    files, what classifiers answered, and fetched data sets.
    """
    from bench.data.imageset import folder_size

    places = {name: cache_dir() / name for name in ("pixels", "pools", "tables", "identities", "answers", "data")}
    return {name: {"path": str(path), "bytes": folder_size(path)} for name, path in places.items() if path.is_dir()}
