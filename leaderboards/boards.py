"""The board: comparable records, one row for each method, setting and part, ranked within tracks.

The board holds numbers; `leaderboards.tables` shows them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from leaderboards.board_data import INGREDIENT as INGREDIENT
from leaderboards.board_data import MEANING as MEANING
from leaderboards.board_data import REFERENCE as REFERENCE
from leaderboards.board_data import TRACKS as TRACKS
from leaderboards.board_data import BoardData, Cell, mean_of
from leaderboards.board_data import BoardRow as BoardRow
from leaderboards.comparable import BoardError as BoardError
from leaderboards.comparable import (
    Line,
    check_row,
    check_severities,
    check_shared,
    condition_name,
    ingredient_notes,
    line_name,
    version_notes,
)
from leaderboards.memory import Memory
from leaderboards.ranking import ReadPredictions, measure, read_scores
from leaderboards.record import Record
from leaderboards.robustness import mean_corruption_error, relative_mean_corruption_error
from leaderboards.settings import split_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# The published order, noise to digital, then the four extra corruptions; other names follow alphabetically.
_PUBLISHED_ORDER = [
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
]

_Condition = tuple[str | None, float]
_Place = tuple[str | None, float, int]
_CLEAN: _Condition = (None, 0.0)


@dataclass(frozen=True, slots=True)
class Board(BoardData):
    """A board with what notebooks ask of it."""

    def to_pandas(self) -> DataFrame:
        """Return one line for each row with all numbers in full precision, as in the CSV, and one for each corruption.

        Fractions lie in [0, 1]; a missing number is NaN.
        """
        from leaderboards.tables import to_pandas

        return to_pandas(self)

    def plot(self, name: str = "corruption-heatmap") -> Figure:
        """Return a figure: methods-by-track, severity-curves, corruption-heatmap, cost-accuracy or soup-anatomy.

        Raises ValueError if there is no figure of this name, or if the board lacks the numbers that it shows.
        """
        from leaderboards.figures import plot

        return plot(self, name)

    def _repr_html_(self) -> str:
        """Show the board in a notebook."""
        from leaderboards.tables import to_html

        return to_html(self)


def make_board(
    records: Sequence[Record],
    predictions: ReadPredictions | None = None,
    *,
    level: float = 0.95,
    memory: Memory | None = None,
    full_names: bool = False,
) -> Board:
    """Make the board of comparable records; `predictions` reads those of a record, for intervals and ranks.

    A `memory` holds earlier measurements; for those, nothing is measured and no predictions are read again. With
    `full_names` every row says what differs from the plain setting of its method, else only where a method has several
    settings here (`leaderboards.settings`).

    Every method with parts `ingredient:*` gets a row "mean", the mean over its ingredients, unless it has one. A row is
    complete on its own seeds. Ranks come from paired differences on the same images, with Holm's correction over all
    pairs of a track. Raises BoardError if the records must not be compared or the predictions are not those of the
    records.
    """
    check_shared(records)
    records = sorted(records, key=lambda record: record.key)
    conditions = sorted({(r.corruption, r.severity) for r in records if not r.clean}, key=_published)
    lines, settings = _lines(records, conditions, full_names=full_names)
    members = {line: [line] for line in lines} | _means(lines)
    rows = {
        line: _row(settings[line[0]], line[1], {m: lines[m] for m in own}, conditions) for line, own in members.items()
    }
    _measure_forgetting(rows, members, lines)
    if predictions is not None:
        _measure_uncertainty(rows, members, lines, predictions, level, memory)
    first = records[0]
    return Board(
        shift=first.shift,
        model=first.model,
        protocol=first.protocol,
        split=first.split,
        limit=first.limit,
        labels_per_class=first.data.labels_per_class,
        corruptions=tuple(dict.fromkeys(corruption for corruption, _ in conditions if corruption)),
        severities=tuple(sorted({severity for _, severity in conditions})),
        seeds=tuple(sorted({record.seed for record in records})),
        n=next((row.n for row in rows.values() if row.n is not None), None),
        level=level,
        rows=tuple(sorted(rows.values(), key=_order)),
        versions=(*version_notes(lines), *ingredient_notes(lines)),
        suite=_suite(records),
    )


def make_boards(
    records: Iterable[Record],
    predictions: ReadPredictions | None = None,
    *,
    level: float = 0.95,
) -> dict[str, Board]:
    """Make one board for each model, by its name, since numbers of different models are never ranked together."""
    models: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        models[record.model].append(record)
    return {model: make_board(models[model], predictions, level=level) for model in sorted(models)}


def _suite(records: Iterable[Record]) -> str | None:
    found = {record.suite for record in records}
    named = " and ".join(sorted(name for name in found if name is not None))
    return (f"partly {named}" if len(found) > 1 else named) or None


def _lines(
    records: Sequence[Record], conditions: Sequence[_Condition], *, full_names: bool
) -> tuple[dict[Line, list[Record]], dict[str, tuple[str, str | None]]]:
    """Return the records of each line, and method and setting by the names that the lines have."""
    lines: dict[Line, list[Record]] = defaultdict(list)
    settings: dict[str, tuple[str, str | None]] = {}
    for row in split_settings(records, conditions, full_names=full_names):
        if row.name in settings:
            raise BoardError(f"two settings of {row.name} cannot be told apart; make a board of one folder at a time")
        settings[row.name] = (row.method, row.label)
        for record in row.records:
            lines[row.name, record.part].append(record)
    check_severities(lines)
    for line, group in lines.items():
        check_row(line_name(line), group)
    return lines, settings


def _measure_forgetting(
    rows: dict[Line, BoardRow], members: Mapping[Line, Sequence[Line]], lines: Mapping[Line, Sequence[Record]]
) -> None:
    """Set, in place, each row's loss of clean accuracy against the reference with the same training, else the plain."""
    clean = {line: _clean_by_seed(lines[line]) for line in lines}
    references = [line for line, row in rows.items() if (row.method, row.part) == (REFERENCE, None) and clean[line]]
    trained = {json.dumps(lines[line][0].options.get(REFERENCE), sort_keys=True): line for line in references}
    plain = next((line for line in references if rows[line].setting is None), references[0] if references else None)
    for line, own in members.items():
        text = json.dumps(lines[own[0]][0].options.get(REFERENCE), sort_keys=True)
        reference = line if line in references else trained.get(text, plain)
        if reference is None or rows[line].clean_accuracy is None:
            continue
        shared = sorted(set(rows[line].seeds).intersection(clean[reference], *(clean[member] for member in own)))
        losses = [clean[reference][seed] - float(np.mean([clean[m][seed] for m in own])) for seed in shared]
        rows[line] = replace(rows[line], forgetting=mean_of(losses))


def _clean_by_seed(records: Iterable[Record]) -> dict[int, float]:
    return {record.seed: record.metrics.accuracy for record in records if record.clean and record.metrics is not None}


def _measure_uncertainty(
    rows: dict[Line, BoardRow],
    members: Mapping[Line, Sequence[Line]],
    lines: Mapping[Line, Sequence[Record]],
    predictions: ReadPredictions,
    level: float,
    memory: Memory | None,
) -> None:
    """Set, in place, the interval of every complete row and the rank of every complete main row."""
    complete = {line: own for line, own in members.items() if rows[line].accuracy is not None}
    tracks = {track: [line for line in complete if rows[line].main and rows[line].track == track] for track in TRACKS}
    key = memory.key_of(complete, lines, tracks, level) if memory else ""
    measured = memory.recall(key) if memory else None
    if measured is None or measured.intervals.keys() | measured.withheld.keys() != complete.keys():
        seeds = {line: rows[line].seeds for line in complete}
        measured = measure(tracks, read_scores(complete, lines, predictions), level, seeds)
        if memory:
            memory.keep(key, measured)
    for line in complete:
        rank = measured.ranks.get(line)
        rows[line] = replace(
            rows[line],
            interval=measured.intervals.get(line),
            withheld=measured.withheld.get(line),
            rank=rank,
            among_best=None if rank is None else line in measured.among_best,
        )


def _means(lines: Collection[Line]) -> dict[Line, list[Line]]:
    means: dict[Line, list[Line]] = defaultdict(list)
    for method, part in lines:
        if part is not None and part.startswith(INGREDIENT):
            means[method, "mean"].append((method, part))
    return {line: ingredients for line, ingredients in means.items() if line not in lines}


def _row(
    setting: tuple[str, str | None],
    part: str | None,
    members: Mapping[Line, list[Record]],
    conditions: Sequence[_Condition],
) -> BoardRow:
    """Make a row without interval and rank; its members are its own line or the ingredients that it averages."""
    records = [record for group in members.values() for record in group]
    done = [record for record in records if record.status == "done"]
    corrupted = [record for record in done if not record.clean]
    seeds = sorted({record.seed for record in records})
    incomplete = _incomplete(members, conditions, seeds)
    accuracy = _by_condition(done, "accuracy", len(members) * len(seeds))
    ece = _by_condition(done, "ece", len(members) * len(seeds))
    names = dict.fromkeys(corruption for corruption, _ in conditions if corruption)
    keys: dict[_Condition, list[str]] = defaultdict(list)
    for record in sorted(done, key=lambda r: (r.seed, r.part or "", r.key)):
        keys[record.corruption, record.severity].append(record.key)
    images = sum(record.n for record in corrupted)
    costs = [record.cost for record in corrupted if record.cost]
    return BoardRow(
        method=setting[0],
        setting=setting[1],
        part=part,
        track=records[0].track,
        access=records[0].access,
        rank=None,
        accuracy=None if incomplete else mean_of([accuracy.get(condition) for condition in conditions]),
        interval=None,
        clean_accuracy=accuracy.get(_CLEAN),
        forgetting=None,
        ece=None if incomplete else mean_of([ece.get(condition) for condition in conditions]),
        mce=None if incomplete else _fraction(mean_corruption_error(records)),
        relative_mce=None if incomplete else _fraction(relative_mean_corruption_error(records)),
        per_corruption={name: mean_of([accuracy.get(c) for c in conditions if c[0] == name]) for name in names},
        cells=tuple(
            Cell(*condition, accuracy.get(condition), ece.get(condition), tuple(keys.get(condition, ())))
            for condition in [*([_CLEAN] if _CLEAN in keys else []), *conditions]
        ),
        fit_seconds=mean_of([cost.fit_seconds for cost in costs]),
        forwards=sum(cost.forwards for cost in costs) / images if images else None,
        backwards=sum(cost.backwards for cost in costs) / images if images else None,
        peak_memory_mb=_largest([cost.peak_memory_mb for cost in costs]),
        seeds=tuple(sorted({record.seed for record in done})),
        n=corrupted[0].n if corrupted else None,
        batch_size=records[0].batch_size,
        incomplete=incomplete,
        keys=tuple(sorted(record.key for record in records)),
    )


def _by_condition(done: Iterable[Record], metric: str, expected: int) -> dict[_Condition, float]:
    """Return means over seeds and members for the conditions that have all of them."""
    values: dict[_Condition, list[float]] = defaultdict(list)
    for record in done:
        values[record.corruption, record.severity].append(getattr(record.metrics, metric))
    return {condition: float(np.mean(found)) for condition, found in values.items() if len(found) == expected}


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _largest(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return max(present) if present and len(present) == len(values) else None


def _incomplete(
    members: Mapping[Line, list[Record]], conditions: Sequence[_Condition], seeds: Sequence[int]
) -> str | None:
    if not conditions:
        return "no corrupted condition was run"
    reasons = []
    for line, group in members.items():
        name = f"{line[1]}: " if len(members) > 1 else ""
        cells: dict[_Place, Record] = {(record.corruption, record.severity, record.seed): record for record in group}
        for cell, record in cells.items():
            if record.status == "failed":
                reasons.append(f"{name}{condition_name(*cell[:2])}, seed {cell[2]}, failed: {record.error}")
        for (corruption, severity), seed in product(conditions, seeds):
            if (corruption, severity, seed) not in cells:
                reasons.append(f"{name}{condition_name(corruption, severity)}, seed {seed}, is missing")
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return reasons[0] + more if reasons else None


def _published(condition: _Condition) -> tuple[int, str, float]:
    corruption, severity = condition
    place = _PUBLISHED_ORDER.index(corruption) if corruption in _PUBLISHED_ORDER else len(_PUBLISHED_ORDER)
    return place, corruption or "", severity


def _order(row: BoardRow) -> tuple[int, bool, float, str, str]:
    return TRACKS.index(row.track), row.accuracy is None, -(row.accuracy or 0.0), row.method, row.name
