"""Find the train, test and validation parts of a user's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import MissingDataError, UsageError
from bench.data.flat import is_flat
from bench.data.folders import Listing, list_folder

ROLES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "val", "valid", "dev"),
}
"""The usual names of the parts of a data set, in lower case; any case matches."""

SCORED = ("test", "validation")
"""Parts that may be scored; the first that exists and has labels is."""

_SHARD = re.compile(
    r"(?P<part>.+?)(?:[-_.]?(?P<number>\d+)(?:-of-(?P<count>\d+))?)?(?:-[0-9a-f]{12,})?\.parquet", re.IGNORECASE
)


@dataclass(frozen=True)
class PartFiles:
    """A part under its own name: one folder, or the files of a table in order."""

    name: str
    places: tuple[Path, ...]

    @property
    def where(self) -> str:
        """The name of the part in messages."""
        return str(self.places[0])


@dataclass(frozen=True)
class Parts:
    """The parts of a folder, none if the folder is a single set. `other` are entries that belong to no part."""

    root: Path
    parts: tuple[PartFiles, ...]
    other: tuple[str, ...]

    def named(self, name: str) -> PartFiles:
        """Return the part with this name or role. Raises UsageError if there is none, or several."""
        exact = [part for part in self.parts if part.name == name]
        found = exact or [part for part in self.parts if part.name.lower() == name.lower()] or self.of_role(name)
        if len(found) == 1:
            return found[0]
        there = ", ".join(part.name for part in self.parts) or "no parts"
        if found:
            raise UsageError(f"{self.root} has {there}; choose one with --part {found[0].name}")
        raise UsageError(f"{self.root} has no part {name}, but {there}; name one of these with --part, or leave it out")

    @property
    def has_roles(self) -> bool:
        """Whether there is a train, test or validation part."""
        return any(self.of_role(role) for role in ROLES)

    def of_role(self, role: str) -> list[PartFiles]:
        """Return the parts that match a role (train, test or validation)."""
        names = ROLES.get(role.lower(), ())
        exact = [part for part in self.parts if part.name.lower() in names]
        # A part called test_small or test-2 counts as test if there is no part called test.
        return exact or [part for part in self.parts if re.split(r"[-_. ]", part.name.lower())[0] in names]

    def one_of_role(self, role: str) -> PartFiles | None:
        """Return the part of a role, None if there is none. Raises UsageError if several match."""
        found = self.of_role(role)
        if len(found) > 1:
            names = " and ".join(part.name for part in found)
            raise UsageError(f"{self.root} has the parts {names}; choose one with --part {found[0].name}")
        return found[0] if found else None


def find_parts(root: Path) -> Parts:
    """Return the parts of a folder: sub-folders with the usual names of parts, or parquet files grouped by name.

    A folder called train, test or val that directly holds images, next to folders with other names, is a class and not
    a part. Raises MissingDataError if a shard of a table is missing.
    """
    if not root.is_dir() or (root / "state.json").is_file() or (root / "dataset_info.json").is_file():
        return Parts(root, (), ())
    listing = list_folder(root)
    tables = _tables(listing)
    if not tables and (root / "data").is_dir():
        tables = _tables(list_folder(root / "data"))
    if tables:
        skipped = [str(folder.name) for folder in listing.folders if folder.name != "data"]
        return Parts(root, tuple(tables), tuple(skipped))
    known = {name for names in ROLES.values() for name in names}
    called = [folder for folder in listing.folders if folder.name.lower() in known]
    others = [folder for folder in listing.folders if folder not in called]
    if others and any(_is_class(folder) and not is_flat(folder) for folder in called):
        called, others = [], list(listing.folders)
    if not called:
        return Parts(root, (), ())
    return Parts(
        root,
        tuple(PartFiles(folder.name, (folder,)) for folder in called),
        tuple(f"{folder.name}: none of the parts" for folder in others),
    )


def _is_class(folder: Path) -> bool:
    """Whether a folder directly holds images and no folders."""
    inside = list_folder(folder)
    return bool(inside.images) and not inside.folders


def _tables(listing: Listing) -> list[PartFiles]:
    """Group parquet files by part. Raises MissingDataError if a shard of a table is missing."""
    groups: dict[str, list[tuple[int, Path]]] = {}
    counts: dict[str, set[int]] = {}
    for file in listing.files:
        found = _SHARD.fullmatch(file.name)
        if found is None:
            continue
        part = found["part"]
        groups.setdefault(part, []).append((int(found["number"] or 0), file))
        if found["count"] is not None:
            counts.setdefault(part, set()).add(int(found["count"]))
    for part, wanted in counts.items():
        have = {number for number, _ in groups[part]}
        if len(wanted) == 1 and (lacking := set(range(*wanted)) - have):
            raise MissingDataError(
                f"{listing.files[0].parent} has {len(have)} of the {max(wanted)} files of {part}: number "
                f"{min(lacking)} is missing; copy it there"
            )
    return [
        PartFiles(part, tuple(sorted((file for _, file in files), key=lambda file: file.name)))
        for part, files in groups.items()
    ]


def tables_of(root: Path, role: str) -> list[Path]:
    """Return all parquet files of a part (train, test, validation) in a folder with the hub's layout, or none.

    Raises the errors of `find_parts` and `Parts.one_of_role`.
    """
    found = find_parts(root)
    part = found.one_of_role(role) if found.parts and found.parts[0].places[0].suffix == ".parquet" else None
    return list(part.places) if part is not None else []
