"""What a run says of its own clean accuracy: implausible numbers are told at once, with the likely reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from leaderboards.plausible import clean_doubts
from leaderboards.predictions import Predictions
from leaderboards.record import Record

_IMAGES_OF_A_CLASS = 5
_MUCH_BETTER = 0.2


def warnings_of(records: Iterable[Record], predictions: Callable[[Record], Predictions]) -> list[str]:
    """A sentence for each model whose best clean accuracy is implausible (see leaderboards.plausible)."""
    said = []
    for record, text in clean_doubts(records):
        other = accuracy_in_another_order(predictions(record))
        if other is not None:
            text += f"; with its outputs in another order it would be {other:.1%}, so the classes are in the wrong one"
        said.append(text)
    return said


def accuracy_in_another_order(made: Predictions) -> float | None:
    """Accuracy under the best assignment of outputs to classes, found on every other image and measured on the rest.

    None where there are too few images to tell, or where it is not at least 20 points better than as it is.
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
