"""How the files of a shift are found and read: the data root, the preprocessing, and network access."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.core.cache_dir import cache_dir
from bench.core.errors import MissingDataError
from bench.data.decode import Preprocessing
from bench.shifts.catalog import ShiftRow


@dataclass(frozen=True)
class Reading:
    """Settings for loading a shift.

    `preprocessing` is the model's (None: the shift's usual one); `workers` threads decode (0: the calling thread).

    The user may set these for their own images: `classes` is the order of the classes ("natural", "imagefolder" or a
    file with one name per line), `label` the label column, `part` the scored part.

    `added` are user corruptions in addition to those of the shift; see `bench.shifts.user_corruption`.
    """

    data_root: Path | None = None
    preprocessing: Preprocessing | None = None
    offline: bool = False
    workers: int = 0
    classes: str | None = None
    label: str | None = None
    part: str | None = None
    added: tuple[tuple[str, str], ...] = ()

    @property
    def user_settings(self) -> dict[str, str | None]:
        """The user's settings of the images, for records; a file of classes appears by its name and digest."""
        classes = self.classes
        if classes is not None and classes not in ("natural", "imagefolder"):
            file = Path(classes).expanduser()
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else "gone"
            classes = f"{file.name} sha256:{digest}"
        return {"classes": classes, "label": self.label, "part": self.part}

    @property
    def root(self) -> Path:
        """The data root: as given, else $SOUPBENCH_DATA, else the `data` folder of the cache, the target of fetches."""
        if self.data_root is not None:
            return self.data_root.expanduser()
        if chosen := os.environ.get("SOUPBENCH_DATA"):
            return Path(chosen).expanduser()
        return cache_dir() / "data"

    def find(self, places: Sequence[str]) -> Path | None:
        """Return the first of these places that exists below the data root, or that it ends in, else None."""
        below = next((self.root / place for place in places if (self.root / place).exists()), None)
        return below or next((found for place in places if (found := self._around(place)) is not None), None)

    def _around(self, place: str) -> Path | None:
        """Return the folder of a place if the data root ends in (the first components of) that place, else None."""
        wanted = Path(place).parts
        have = self.root.absolute().parts
        for count in range(len(wanted), 0, -1):
            if have[-count:] == wanted[:count] and (found := self.root.joinpath(*wanted[count:])).exists():
                return found
        if wanted[0].lower() != "imagenet":
            return None
        # A copy of ImageNet under another name: the data root is one of its parts, or the folder of its parts.
        last = wanted[-1]
        inside = (
            self.root if self.root.name == last else self.root / last,
            *([self.root.parent / last] if self.root.name in ("val", "validation", "train") else []),
        )
        return next((folder for folder in inside if folder.is_dir() and _holds_synsets(folder)), None)

    def need(self, row: ShiftRow, what: str) -> Path:
        """Return the folder of a shift's scored images. Raises MissingDataError, with the fix, if there is none."""
        found = self.find(row.places)
        if found is None:
            looked = ", ".join(str(self.root / place) for place in row.places)
            how = row.how_to_get
            fix = f"fetch it with: {how}" if how.startswith("bench ") else f"get it from {how}"
            raise MissingDataError(
                f"missing for {row.name}: {what} (looked at {looked}); {fix}; or give its folder with --data-root"
            )
        return found


def _holds_synsets(folder: Path) -> bool:
    names = [entry.name for entry in islice(folder.iterdir(), 50)]
    return any(re.fullmatch(r"n\d{8}|ILSVRC2012_val_\d{8}\.JPEG", name) for name in names)
