"""Rank the rows of a board by significant differences, from the outcomes of single images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from leaderboards.comparable import BoardError, Line, line_name, line_of
from leaderboards.predictions import Scored
from leaderboards.record import Record, Track
from leaderboards.uncertainty import (
    ImageScores,
    Interval,
    Outcomes,
    Withheld,
    average_scores,
    holm,
    image_scores,
    mean_accuracy_interval,
    p_value,
    shared_seed_error,
    unpaired_p_value,
)

ReadPredictions = Callable[[Record], Scored]


@dataclass(frozen=True, slots=True)
class Measured:
    """The interval of every complete line, or why it has none, the rank of every main line, and which may be the best.

    `among_best` holds, of each track, its best line and all lines that do not differ from it significantly.
    """

    intervals: Mapping[Line, Interval]
    withheld: Mapping[Line, str]
    ranks: Mapping[Line, int]
    among_best: frozenset[Line]


def read_scores(
    members: Mapping[Line, Sequence[Line]], lines: Mapping[Line, Sequence[Record]], predictions: ReadPredictions
) -> dict[Line, ImageScores]:
    """Return scores per image of each line, averaged over its members; every record is read once.

    `lines` holds the done records of all seeds and conditions; clean ones are left out. Raises BoardError if
    predictions are not those of their record or lines were scored on different images.
    """
    single = {
        m: _scores_of_line([r for r in lines[m] if not r.clean], predictions)
        for m in dict.fromkeys(m for own in members.values() for m in own)
    }
    for line, scores in single.items():
        first, expected = next(iter(single.items()))
        if not np.array_equal(scores.ids, expected.ids):
            raise BoardError(
                f"{line_name(first)} and {line_name(line)} were scored on different images; "
                "make a board of one results folder at a time"
            )
    return {line: average_scores([single[m] for m in own]) for line, own in members.items()}


def scores_of_row(
    keys: Collection[str], records: Iterable[Record], predictions: ReadPredictions, *, clean: bool = False
) -> ImageScores:
    """Return scores per image of one row of a board, given its record keys; a row of several lines is their average.

    Covers its corrupted conditions, or only the clean one if `clean`.
    """
    lines: dict[Line, list[Record]] = defaultdict(list)
    for record in records:
        if record.key in keys and record.clean == clean:
            lines[line_of(record)].append(record)
    return average_scores([_scores_of_line(own, predictions) for own in lines.values()])


def _scores_of_line(records: Iterable[Record], predictions: ReadPredictions) -> ImageScores:
    seeds: dict[int, list[Outcomes]] = defaultdict(list)
    draws: dict[int, int] = {}
    for record in sorted(records, key=lambda r: (r.seed, r.corruption or "", r.severity)):
        seeds[record.seed].append(outcomes_of(record, predictions))
        draws[record.seed] = draw_of(record)
    return image_scores(list(seeds.values()), list(draws.values()))


def draw_of(record: Record) -> int:
    """Return the seed of the ingredients of a record."""
    return record.seed if record.data.ingredients is None else record.data.ingredients


def outcomes_of(record: Record, predictions: ReadPredictions) -> Outcomes:
    """Return the outcomes of a record. Raises BoardError if its metrics do not follow from them."""
    read = predictions(record)
    if record.metrics is None or abs(float(read.hits.mean()) - record.metrics.accuracy) > 1e-9:
        raise BoardError(f"record {record.key} does not follow from its predictions; see `bench verify`")
    return Outcomes(read.id, read.hits)


def measure(
    tracks: Mapping[Track, Sequence[Line]],
    scores: Mapping[Line, ImageScores],
    level: float,
    seeds: Mapping[Line, Sequence[int]],
) -> Measured:
    """Return intervals of all lines, and ranks within tracks, with confidence `level`.

    A rank is 1 + the number of lines of the same track that are significantly better: paired, with the error over seeds
    shared by all lines of the track, and Holm's correction over all its pairs. `seeds` are those of each line; where
    they differ within a track, seeds are not paired (`unpaired_seed_error`).
    """
    ranks: dict[Line, int] = {}
    among_best: set[Line] = set()
    for lines in tracks.values():
        pairs = list(combinations(lines, 2))
        ranks.update(dict.fromkeys(lines, 1))
        own = [scores[line] for line in lines]
        if len({tuple(seeds[line]) for line in lines}) == 1:
            shared = shared_seed_error(own) if pairs else None
            found = holm([p_value(scores[a], scores[b], shared) for a, b in pairs])
        else:
            found = holm([unpaired_p_value(scores[a], scores[b], own) for a, b in pairs])
        among_best.update(lines)
        best = max(lines, key=lambda line: scores[line].accuracy, default=None)
        for (a, b), p in zip(pairs, found, strict=True):
            if p <= 1 - level:
                worse = b if scores[a].accuracy > scores[b].accuracy else a
                ranks[worse] += 1
                if best in (a, b):
                    among_best.discard(worse)
    each = {line: mean_accuracy_interval(score, level=level) for line, score in scores.items()}
    return Measured(
        {line: found for line, found in each.items() if isinstance(found, Interval)},
        {line: found.reason for line, found in each.items() if isinstance(found, Withheld)},
        ranks,
        frozenset(among_best),
    )
