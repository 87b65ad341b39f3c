"""What a board holds: rows with their cells, over one comparable group of records. `leaderboards.boards` makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leaderboards.comparable import line_name
from leaderboards.record import Access, Track
from leaderboards.settings import setting_name
from leaderboards.uncertainty import Interval

TRACKS: tuple[Track, ...] = ("R", "A", "B", "C", "D", "E", "F")
MEANING: Mapping[Track, str] = {
    "R": "no test data",
    "A": "the scored stream, batch by batch, without source data",
    "B": "the scored stream, and source data or statistics",
    "C": "unlabelled shifted images before scoring",
    "D": "unlabelled shifted images before scoring, and labelled source images",
    "E": "other shift seen: as C, but images of another shift than the scored one",
    "F": "other shift seen: as D, but images of another shift than the scored one",
}
INGREDIENT = "ingredient:"
REFERENCE = "source"  # the classifier without adaptation; forgetting is measured from its clean accuracy


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition of one row: means over its seeds in [0, 1], None unless all are done, and the underlying records.

    `corruption` is None for the clean condition, which has severity 0. `keys` are in the order of the seeds.
    """

    corruption: str | None
    severity: float
    accuracy: float | None
    ece: float | None
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BoardRow:
    """One method with one setting, or one part of it, over the conditions of a board. Fractions lie in [0, 1].

    `setting` says what differs from the setting that has the plain name of the method (`leaderboards.settings`), None
    for that one. `seeds` are those of the row, which another row need not have.

    `accuracy` is the mean over corrupted conditions and seeds, `interval` its confidence interval (None without
    predictions, or where `withheld` says why the outcomes allow none), `ece` the mean calibration error over the same
    conditions and seeds; `clean_accuracy` is separate.
    `forgetting` is the loss of clean accuracy on the seeds that the row shares with the row `source` of the same board
    (that of the same training if there are several): that of `source` minus that of this row, negative for a gain, None
    if there is no such seed. `mce` and `relative_mce` are those of `leaderboards.robustness` as
    fractions of AlexNet's (1 is as robust as it), None if they are not defined. `per_corruption` averages over
    severities and seeds; `cells` holds every condition, clean first. `fit_seconds` is the training time for one
    condition, `forwards` and `backwards` the passes for each scored image, `peak_memory_mb` the largest over all
    conditions, None unless it was measured in all. `rank` is 1 + the number of main rows of the same track that are
    significantly better; parts are not ranked. `among_best` says whether the row is the best of its track or does not
    differ from it significantly, None without a rank. `keys` are those of the row's records.

    `incomplete` says what failed or is missing; such a row has no mean, no interval and no rank.
    """

    method: str
    setting: str | None
    part: str | None
    track: Track
    access: Access
    rank: int | None
    accuracy: float | None
    interval: Interval | None
    clean_accuracy: float | None
    forgetting: float | None
    ece: float | None
    mce: float | None
    relative_mce: float | None
    per_corruption: Mapping[str, float | None]
    cells: tuple[Cell, ...]
    fit_seconds: float | None
    forwards: float | None
    backwards: float | None
    peak_memory_mb: float | None
    seeds: tuple[int, ...]
    n: int | None
    batch_size: int
    incomplete: str | None
    keys: tuple[str, ...]
    withheld: str | None = None
    among_best: bool | None = None

    @property
    def main(self) -> bool:
        """Whether the row represents its method; other rows are parts of it."""
        return self.part in (None, "soup")

    @property
    def name(self) -> str:
        """The method, its setting in brackets, and its part in parentheses."""
        return line_name((setting_name(self.method, self.setting), self.part))

    def at_severity(self, severity: float) -> float | None:
        """Mean accuracy over the corruptions at one severity; None if any is missing."""
        return mean_of([c.accuracy for c in self.cells if c.corruption is not None and c.severity == severity])


@dataclass(frozen=True, slots=True)
class BoardData:
    """Rows over one comparable group of records, by track (R, A to F), then from best to worst, incomplete last.

    `n` is the number of images scored in each corrupted condition, `level` the confidence of all intervals and ranks;
    `seeds` are those of all rows together.
    `versions` lists, in sentences, results that come from different versions of code. `suite` names the suite, with its
    version, of which its records are ("digits v1"; "partly digits v1" if some were made otherwise), None for none.
    """

    shift: str
    model: str
    protocol: str
    split: str
    limit: int | None
    labels_per_class: int | None
    corruptions: tuple[str, ...]
    severities: tuple[float, ...]
    seeds: tuple[int, ...]
    n: int | None
    level: float
    rows: tuple[BoardRow, ...]
    versions: tuple[str, ...] = ()
    suite: str | None = None


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is missing or there are none: missing values are never skipped."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present and len(present) == len(values) else None
