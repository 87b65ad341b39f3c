"""The clean-accuracy gate: low clean accuracy most likely means wrong input, so other results say nothing."""

from __future__ import annotations

import math
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources

from leaderboards.record import Record

_SLACK = 0.05


@cache
def published() -> dict[tuple[str, str], float]:
    """Return published clean accuracies by (shift, model), from `reference/clean.toml`, which gives their sources."""
    text = resources.files("leaderboards").joinpath("reference", "clean.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    return {(shift, row["model"]): row["accuracy"] for row in table["model"] for shift in table["shifts"]}


def floor(record: Record) -> float:
    """Return the lowest plausible clean accuracy of a model on the images of a clean record.

    If the accuracy of the model was published: 5 points and three standard errors below it. Else three times chance, at
    most one half, where chance is one over the number of classes predicted at least once.
    """
    known = published().get((record.shift, record.model))
    if known is not None:
        return known - _SLACK - 3 * math.sqrt(known * (1 - known) / record.n)
    classes = record.diagnostics.distinct_classes if record.diagnostics else 1
    # A few images cannot cover all classes.
    return min(0.5, 3 / max(classes, 1)) if classes < record.n / 2 else 0.0


def clean_doubts(records: Iterable[Record]) -> Iterator[tuple[Record, str]]:
    """Return the best clean record of each model and shift with implausible accuracy, and the reason in a sentence.

    The best of all methods counts, because a method may ruin a good model: that is a result and no mistake.
    """
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.clean and record.metrics is not None:
            groups[record.shift, record.model, record.weights.digest].append(record)
    for group in groups.values():
        best = max(group, key=_accuracy)
        lowest = floor(best)
        if _accuracy(best) < lowest:
            yield (
                best,
                f"clean accuracy of {best.model} on {best.shift} is {_accuracy(best):.1%} at best, but at least "
                f"{lowest:.1%} is expected on {best.n} images; check the model's preprocessing and order of classes",
            )


def _accuracy(record: Record) -> float:
    return record.metrics.accuracy if record.metrics is not None else 0.0
