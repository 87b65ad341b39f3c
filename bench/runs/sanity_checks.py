"""Warn about implausible clean accuracy at the end of a run, with the likely cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from leaderboards.plausible import clean_doubts
from leaderboards.predictions import Predictions
from leaderboards.record import Record

_IMAGES_OF_A_CLASS = 5
_MUCH_BETTER = 0.2


def warnings_of(records: Iterable[Record], predictions: Callable[[Record], Predictions]) -> list[str]:
    """Return a sentence for each model whose best clean accuracy is implausible (see leaderboards.plausible)."""
    warnings = []
    for record, text in clean_doubts(records):
        other = accuracy_in_another_order(predictions(record))
        if other is not None:
            text += f"; with its outputs in another order it would be {other:.1%}, so the class order is wrong"
        warnings.append(text)
    return warnings


def accuracy_in_another_order(made: Predictions) -> float | None:
    """Return accuracy under the best assignment of outputs to classes, fitted on one half and measured on the other.

    None if there are too few images, or if the gain is below 20 points.
    """
    from scipy.optimize import linear_sum_assignment

    size = int(max(made.label.max(), made.predicted.max())) + 1
    if len(made.label) < 2 * _IMAGES_OF_A_CLASS * len(np.unique(made.label)):
        return None
    order = np.argsort(made.id, kind="stable")
    label, predicted = made.label[order], made.predicted[order]
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (predicted[0::2], label[0::2]), 1)
    outputs, classes = linear_sum_assignment(counts, maximize=True)
    mapped = np.empty(size, dtype=np.int64)
    mapped[outputs] = classes
    best = float((mapped[predicted[1::2]] == label[1::2]).mean())
    return best if best - float((predicted == label).mean()) >= _MUCH_BETTER else None
