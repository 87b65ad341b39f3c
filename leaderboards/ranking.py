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
from leaderboards.uncertainty import ImageScores, Interval, Outcomes, Resamples, average_scores, holm, image_scores

ReadPredictions = Callable[[Record], Scored]


@dataclass(frozen=True, slots=True)
class Resampling:
    """Confidence level, number of resamples, and the seed that makes them the same every time."""

    level: float
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The interval of every complete line, the rank of every main line, and which main lines may be the best.

    `among_best` holds, of each track, its best line and all lines that do not differ from it significantly.
    """

    intervals: Mapping[Line, Interval]
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
    for record in sorted(records, key=lambda r: (r.seed, r.corruption or "", r.severity)):
        seeds[record.seed].append(_outcomes(record, predictions))
    return image_scores(list(seeds.values()))


def _outcomes(record: Record, predictions: ReadPredictions) -> Outcomes:
    read = predictions(record)
    if record.metrics is None or abs(float(read.hits.mean()) - record.metrics.accuracy) > 1e-9:
        raise BoardError(f"record {record.key} does not follow from its predictions; see `bench verify`")
    return Outcomes(read.id, read.hits)


def measure(
    tracks: Mapping[Track, Sequence[Line]], scores: Mapping[Line, ImageScores], resampling: Resampling
) -> Measured:
    """Return intervals of all lines, and ranks within tracks, from the same resampled images.

    A rank is 1 + the number of lines of the same track that are significantly better: paired, with the error over seeds
    shared by all lines of the track, and Holm's correction over all its pairs. Raises BoardError if lines have
    different numbers of seeds.
    """
    if not scores:
        return Measured({}, {}, frozenset())
    place = {line: i for i, line in enumerate(scores)}
    try:
        drawn = Resamples(list(scores.values()), resamples=resampling.resamples, seed=resampling.seed)
    except ValueError as error:
        raise BoardError(str(error)) from None
    ranks: dict[Line, int] = {}
    among_best: set[Line] = set()
    for lines in tracks.values():
        pairs = list(combinations(lines, 2))
        ranks.update(dict.fromkeys(lines, 1))
        among_best.update(lines)
        best = max(lines, key=lambda line: scores[line].accuracy, default=None)
        shared = drawn.seed_error([place[line] for line in lines]) if pairs else None
        found = holm([drawn.p_value(place[a], place[b], shared) for a, b in pairs])
        for (a, b), p in zip(pairs, found, strict=True):
            if p <= 1 - resampling.level:
                worse = b if scores[a].accuracy > scores[b].accuracy else a
                ranks[worse] += 1
                if best in (a, b):
                    among_best.discard(worse)
    intervals = {line: drawn.interval(i, level=resampling.level) for line, i in place.items()}
    return Measured(intervals, ranks, frozenset(among_best))
