"""What is known of the inputs of published results: digests where they can be pinned, definitions where they cannot."""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from leaderboards.bundle import ids_of
from leaderboards.files import StoreError
from leaderboards.identity import labels_digest
from leaderboards.record import Name, Record, strict_json

Runs = list[tuple[int, int, int]]
SPLITS = ("disjoint", "joint", "transductive")
"""The splits of published results; "dev" is for choosing options."""


class _KnownPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KnownSplit(_KnownPart):
    """The scored images of a split as runs [first id, step, count], with digests.

    The digests are those of each condition ("fog@5") and of the images' labels (`leaderboards.identity.labels_digest`).
    """

    ids: Runs
    conditions: dict[Name, Name]
    labels: Name | None = None

    @property
    def n(self) -> int:
        """Number of images scored in each condition."""
        return sum(count for _, _, count in self.ids)

    @cached_property
    def images(self) -> NDArray[np.int64]:
        """The ids of the scored images, ascending, int64 [n]."""
        return ids_of(self.ids)


class Definition(_KnownPart):
    """How the data of a shift are made, for everybody who has them on a disk of their own.

    `images` is the number of test images, numbered from 0 in the order of the shift (None: not fixed). `per_class`: the
    images of each class are that many and follow one another, so their labels are known too. Conditions are
    `corruptions` at `severities`, and "clean" always, never or where the original images are there. `made_here` says
    that this project makes the shifted images, so the versions of corruptions count. `protocol` is the only protocol
    ("": any).
    """

    classes: Annotated[int, Field(ge=2)] | None
    images: Annotated[int, Field(ge=2)] | None
    per_class: Annotated[int, Field(ge=1)] | None = None
    corruptions: Annotated[list[Name], Field(min_length=1)]
    severities: Annotated[list[float], Field(min_length=1)]
    clean: Literal["always", "optional", "never"]
    storage: Name
    profile: Name
    made_here: bool
    tiles: bool = False
    protocol: str = ""

    @cached_property
    def conditions(self) -> frozenset[str]:
        """The names of all conditions, with "clean" if there may be clean images."""
        shifted = {f"{name}@{severity:g}" for name in self.corruptions for severity in self.severities}
        return frozenset(shifted | (set() if self.clean == "never" else {"clean"}))

    def most(self, split: str) -> int | None:
        """Return the number of scored images of a split of the whole set; None if it is not fixed."""
        return None if self.images is None else len(scored(split, self.images))

    def labels(self, split: str, n: int) -> str | None:
        """Return the digest of the labels of a split with n scored images; None if they are not known."""
        if self.per_class is None or self.images is None or n != self.most(split):
            return None
        ids = scored(split, self.images)
        return labels_digest(ids, ids // self.per_class)


def scored(split: str, images: int) -> NDArray[np.int64]:
    """Return the ids of the scored images of a split of `images` test images, int64 [n], ascending."""
    first, step = {"disjoint": (1, 2), "joint": (0, 2), "transductive": (0, 1)}[split]
    return np.arange(first, images, step, dtype=np.int64)


class Known(_KnownPart):
    """The required inputs of published results.

    Pinned splits by shift and name, digests of weights by model, and the content of the packages (`package` in `env`)
    by release. `definitions` say of every other shift how its data are made: what its digests are, submitters propose
    and confirm. A split holds only the reported conditions, so results on tuning corruptions or dev images are never
    published.
    """

    shifts: dict[Name, dict[Name, KnownSplit]] = Field(default_factory=dict)
    models: dict[Name, Name] = Field(default_factory=dict)
    releases: dict[Name, Name] = Field(default_factory=dict)
    definitions: dict[Name, Definition] = Field(default_factory=dict)

    def labels_of(self, record: Record) -> str | None:
        """Return the digest of the labels of a record's images; None if they are not those of a known split."""
        if record.limit is not None or record.split not in SPLITS:
            return None
        split = self.shifts.get(record.shift, {}).get(record.split)
        if split is not None:
            return split.labels if record.n == split.n else None
        definition = self.definitions.get(record.shift)
        return definition.labels(record.split, record.n) if definition is not None else None


def known() -> Known:
    """Return the known data and weights that ship with the project."""
    with resources.as_file(resources.files("leaderboards") / "reference" / "known.json") as path:
        return read_known(path)


def read_known(path: Path) -> Known:
    """Read a table of known data and weights. Raises StoreError if the file is broken."""
    try:
        content = path.read_bytes()
        strict_json(content)
        return Known.model_validate_json(content)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is no table of known data ({error}); restore it from the repository") from None
