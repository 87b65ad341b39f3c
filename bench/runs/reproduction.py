"""Compare the board of a run with the published numbers of its reproduction card."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.core.errors import MissingDataError
from bench.settings.reproductions import Card, PublishedNumbers
from bench.settings.run_spec import RunSpec
from bench.shifts import load_shift
from bench.shifts.data_root import Reading

if TYPE_CHECKING:
    from leaderboards.boards import Board, BoardRow

Verdict = Literal["agrees", "differs", "not measured", "not comparable"]
# 43.6 and 43.5 are 0.1 apart, though their difference in floating point is larger.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class CardFinding:
    """One published number and ours, in percent.

    difference: ours minus theirs, in points. half_width: of our 95 % interval over images and seeds, where the board
    has one. n: images in each condition; seeds: how many. each: theirs and ours for every corruption that the source
    prints.
    """

    row: str
    quantity: str
    theirs: float
    ours: float | None
    difference: float | None
    half_width: float | None
    tolerance: float
    verdict: Verdict
    n: int | None
    seeds: int
    each: dict[str, tuple[float, float | None]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def need_data(card: Card, spec: RunSpec) -> None:
    """Look for the data before any weights are downloaded.

    Raises MissingDataError where the shift or a file that the card names is missing, saying where it comes from.
    """
    reading = Reading(spec.data_root, offline=spec.offline)
    if spec.model:  # a run from a stock opens the shift first by itself
        load_shift(spec.shift, reading=reading)
    for name, origin in card.files.items():
        if not (reading.root / name).is_file():
            raise MissingDataError(f"{card.name} needs {name} in {reading.root}; get it from {origin}")


def why_not_comparable(card: Card, spec: RunSpec) -> str:
    """Say why the run says nothing about the published numbers; "" if it does."""
    if spec.limit is not None:
        return "a part of the images was scored (--limit)"
    wanted = str(card.run.get("model", ""))
    if wanted and (spec.model or "").partition("@")[0] != wanted.partition("@")[0]:
        return f"the weights are not those of {wanted} (--model)"
    return ""


def compare(card: Card, board: Board, obstacle: str = "") -> list[CardFinding]:
    """Return a finding for each published number; with an obstacle, without judging agreement."""
    return [_finding(published, _row_of(board, published), obstacle) for published in card.published]


def _row_of(board: Board, published: PublishedNumbers) -> BoardRow | None:
    for row in board.rows:
        if row.method == published.method and (row.main if published.part is None else row.part == published.part):
            return row
    return None


def _finding(published: PublishedNumbers, row: BoardRow | None, obstacle: str) -> CardFinding:
    accuracy = None if row is None else row.accuracy
    ours = None if accuracy is None else _as(published, accuracy)
    difference = None if ours is None else ours - published.value
    interval = None if row is None else row.interval
    if difference is None:
        verdict: Verdict = "not measured"
    elif obstacle:
        verdict = "not comparable"
    else:
        verdict = "agrees" if abs(difference) <= published.tolerance + _ROUNDING else "differs"
    return CardFinding(
        row=published.row,
        quantity=published.quantity,
        theirs=published.value,
        ours=ours,
        difference=difference,
        half_width=None if interval is None else 50 * (interval.high - interval.low),
        tolerance=published.tolerance,
        verdict=verdict,
        n=None if row is None else row.n,
        seeds=0 if row is None else len(row.seeds),
        each={} if row is None else _each(published, row),
    )


def _as(published: PublishedNumbers, accuracy: float) -> float:
    return 100 * (accuracy if published.quantity == "accuracy" else 1 - accuracy)


def _each(published: PublishedNumbers, row: BoardRow) -> dict[str, tuple[float, float | None]]:
    ours = {name: None if value is None else _as(published, value) for name, value in row.per_corruption.items()}
    if len(ours) != len(published.each):  # a run of some corruptions only
        return {}
    return {name: (theirs, ours[name]) for name, theirs in zip(ours, published.each, strict=True)}


def exit_code(findings: list[CardFinding], failed: int) -> int:
    """Return 0 if nothing contradicts a published number, 1 if trials failed, 4 if a number differs."""
    if failed:
        return 1
    return 4 if any(finding.verdict == "differs" for finding in findings) else 0


def default_folder(card: Card) -> Path:
    """`runs/reproduce-<card>`."""
    return Path("runs") / card.folder
