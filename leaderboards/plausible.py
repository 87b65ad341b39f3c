"""Accuracies that are too low or too high for the weights: most likely wrong input, or numbers that nobody measured."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

from leaderboards.comparable import condition_name, line_name, line_of
from leaderboards.known import Known
from leaderboards.record import Record

_SLACK = 0.05
_GAIN = 0.02  # what adaptation may add to the clean accuracy of published weights
_CHANCE = 1e-4  # of an honest result to be refused as too high
_RARE = 1e-6  # the same for each of many conditions


@cache
def _reference() -> dict[str, Any]:
    text = resources.files("leaderboards").joinpath("reference", "clean.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def published() -> dict[tuple[str, str], float]:
    """Return published clean accuracies by (shift, model), from `reference/clean.toml`, which gives their sources."""
    table = _reference()
    return {(shift, row["model"]): row["accuracy"] for row in table["model"] for shift in table["shifts"]}


@cache
def highest() -> dict[tuple[str, str], float]:
    """Return the clean accuracies by (shift, model) above which only chance leads.

    Two points above the published ones, which adaptation may add, and those of `reference/clean.toml` for stocks. A
    stock has no lowest accuracy, because that depends on the number of labels.
    """
    stocks = {(shift, row["model"]): row["highest"] for row in _reference()["stock"] for shift in row["shifts"]}
    return {place: accuracy + _GAIN for place, accuracy in published().items()} | stocks


def floor(record: Record, classes: int | None = None) -> float:
    """Return the lowest plausible clean accuracy of a model on the images of a clean record.

    If the accuracy of the model was published: 5 points and three standard errors below it. Else three times chance, at
    most one half, where chance is one over the number of classes, or of those predicted at least once.
    """
    known = published().get((record.shift, record.model))
    if known is not None:
        return known - _SLACK - 3 * math.sqrt(known * (1 - known) / record.n)
    if classes is None:
        classes = record.diagnostics.distinct_classes if record.diagnostics else 1
    # A few images cannot cover all classes.
    return min(0.5, 3 / max(classes, 1)) if classes < record.n / 2 else 0.0


def clean_doubts(records: Iterable[Record], known: Known | None = None) -> Iterator[tuple[Record, str]]:
    """Return the best clean record of each model and shift with implausible accuracy, and the reason in a sentence.

    The best of all methods counts, because a method may ruin a good model: that is a result and no mistake.
    """
    for best in _best_clean(records).values():
        definition = known.definitions.get(best.shift) if known is not None else None
        lowest = floor(best, definition.classes if definition is not None else None)
        if _accuracy(best) < lowest:
            yield (
                best,
                f"clean accuracy of {best.model} on {best.shift} is {_accuracy(best):.1%} at best, but at least "
                f"{lowest:.1%} is expected on {best.n} images; check the model's preprocessing and order of classes",
            )


def doubts(records: Sequence[Record], known: Known) -> Iterator[tuple[Record, str]]:
    """Return records whose accuracy is too low or too high to be published, and the reason in a sentence.

    Too high is a clean accuracy above what the weights are known to reach, and an accuracy under corruption far above
    the best clean accuracy of the same weights; both allow for chance.
    """
    yield from clean_doubts(records, known)
    best = _best_clean(records)
    for record in records:
        if record.metrics is None or record.n < 1:
            continue
        top = best.get(_weights(record))
        if record.clean:
            most = highest().get((record.shift, record.model))
            if most is not None and _too_high(record, most, _CHANCE):
                yield record, _too_good(record, f"these weights reach {most:.1%} at best")
        elif top is not None and _too_high(record, _accuracy(top) + _SLACK, _RARE):
            yield record, _too_good(record, f"the best clean accuracy beside it is {_accuracy(top):.1%}")


def _too_high(record: Record, most: float, chance: float) -> bool:
    """Whether a model of accuracy `most` would score this high with a smaller probability than `chance`."""
    hits = round(_accuracy(record) * record.n)
    if hits <= most * record.n or most >= 1:
        return False
    from scipy.special import bdtrc

    return bool(bdtrc(hits - 1, record.n, most) < chance)


def _too_good(record: Record, because: str) -> str:
    place = f"{line_name(line_of(record))}, {condition_name(record.corruption, record.severity)}, seed {record.seed}"
    return f"{place} has accuracy {_accuracy(record):.1%}, but {because}; find out why before you publish it"


def _best_clean(records: Iterable[Record]) -> dict[tuple[str, str, str], Record]:
    best: dict[tuple[str, str, str], Record] = {}
    for record in records:
        if record.clean and record.metrics is not None:
            other = best.setdefault(_weights(record), record)
            if _accuracy(record) > _accuracy(other):
                best[_weights(record)] = record
    return best


def _weights(record: Record) -> tuple[str, str, str]:
    return record.shift, record.model, record.weights.digest


def _accuracy(record: Record) -> float:
    return record.metrics.accuracy if record.metrics is not None else 0.0
