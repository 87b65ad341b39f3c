"""Locate the data of shifts, its size, and the command or place to get missing data from."""

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
"""The file of a data set's checksums in its folder, as sha256sum writes it: one `sha256  path` per line."""


@dataclass(frozen=True)
class Found:
    """The locations of a shift's scored images, their clean copies and its train images ("" if not found).

    `looked` are the paths that were searched. `fetch` is the command that downloads the data, or the place to get it
    from. `source` is the common prefix of the names of its scored images, `decoded` the bytes of their cached pixels.
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
    """Locate the data of one shift without downloads and without opening images.

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
    """Locate the data of every shift that takes no argument."""
    return [look(name, reading) for name in SHIFTS if name not in ("folder", "hf", "mini-vtab", "mini-vtab-c")]


def _places(row: ShiftRow) -> tuple[str, ...]:
    kind, _, argument = row.name.partition(":")
    if kind == "folder":
        return (str(Path(argument).expanduser().absolute()),)
    return tuple(f"{place}/{argument}" for place in row.places) if argument else row.places


def _in_hub_cache(repo: str) -> bool:
    """Whether the cache folder of `datasets` has a repository; importing `datasets` to ask would take seconds."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    place = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    return (place / repo.replace("/", "___").lower()).is_dir()


def kept() -> dict[str, Any]:
    """Return path and bytes of everything in the cache that comes from data: decoded and corrupted pixels, converted
    tables, file hashes, stored classifier outputs, and downloaded data sets.
    """
    from bench.data.imageset import folder_size

    places = {name: cache_dir() / name for name in ("pixels", "pools", "tables", "identities", "answers", "data")}
    return {name: {"path": str(path), "bytes": folder_size(path)} for name, path in places.items() if path.is_dir()}
