"""How the files of a shift are found and read: the data root, the model's preprocessing, and whether to go online."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cache import cache_dir
from bench.data.decode import Preprocessing
from bench.errors import MissingDataError
from bench.shifts.table import ShiftRow


@dataclass(frozen=True)
class Reading:
    """`preprocessing` is the model's (None: the shift's usual one); `workers` threads decode, 0 the calling one.

    `added` are corruptions of files beside those of the shift; see `bench.shifts.added`.
    """

    data_root: Path | None = None
    preprocessing: Preprocessing | None = None
    offline: bool = False
    workers: int = 0
    added: tuple[tuple[str, str], ...] = ()

    @property
    def root(self) -> Path:
        """The data root: as given, else $SOUPBENCH_DATA, else the `data` folder of the cache, where fetches go."""
        if self.data_root is not None:
            return self.data_root.expanduser()
        if chosen := os.environ.get("SOUPBENCH_DATA"):
            return Path(chosen).expanduser()
        return cache_dir() / "data"

    def find(self, places: Sequence[str]) -> Path | None:
        """The first of these places below the data root that exists."""
        return next((self.root / place for place in places if (self.root / place).exists()), None)

    def need(self, row: ShiftRow, what: str) -> Path:
        """Where the scored images of a shift are; raises MissingDataError that says what to do where they are not."""
        found = self.find(row.places)
        if found is None:
            looked = ", ".join(str(self.root / place) for place in row.places)
            brings = row.how_to_get
            fix = f"bring it with: {brings}" if brings.startswith("bench ") else f"get it from {brings}"
            raise MissingDataError(
                f"missing for {row.name}: {what} (looked at {looked}); {fix}; or give its folder with --data-root"
            )
        return found
