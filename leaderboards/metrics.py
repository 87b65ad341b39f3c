"""Accuracy, negative log-likelihood, calibration error and Brier score from stored predictions.

Scoring and verifying call the same function on the same stored columns, so published numbers can be recomputed exactly
from the published predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leaderboards.record import Diagnostics, Metrics

if TYPE_CHECKING:
    from leaderboards.store import Predictions

ECE_BINS = 15
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


def score(predictions: Predictions) -> Metrics:
    """The metrics of one condition, from nothing but its stored columns, in float64.

    With p the predicted distribution, y the label and means over images:
    accuracy = [argmax p = y]; NLL = -ln p_y in nats; Brier = sum_k (p_k - [k = y])^2 = 1 - 2 p_y + sum_k p_k^2
    (Brier 1950); ECE as in `calibration_error`. p_y is raised to the smallest normal float32 (1.2e-38), so one image
    adds at most 87.3 to the NLL. Rounding of float32 is cut off where it would leave the range of a metric.
    `Predictions` refuses empty, non-finite and out-of-range columns (ValueError), so they cannot arrive here.
    """
    hits = predictions.hits
    p_label = np.minimum(predictions.p_label.astype(np.float64), 1)
    brier = np.clip(1 - 2 * p_label + predictions.sum_p2.astype(np.float64), 0, 2)
    nll = np.maximum(-np.log(np.maximum(p_label, SMALLEST_PROBABILITY)), 0)
    return Metrics(
        accuracy=float(hits.mean()),
        nll=float(nll.mean()),
        ece=calibration_error(predictions.confidence, hits),
        brier=float(brier.mean()),
    )


def diagnose(predictions: Predictions, clean_accuracy_after: float | None = None) -> Diagnostics:
    """Return how the stream of one condition went, from its stored columns in stream order; see `Diagnostics`.

    With fewer than ten images, each image is a part of its own.
    """
    shares = np.unique(predictions.predicted, return_counts=True)[1] / len(predictions)
    tenths = [float(part.mean()) for part in np.array_split(predictions.hits, min(10, len(predictions)))]
    return Diagnostics(
        distinct_classes=len(shares),
        marginal_entropy=max(0.0, float(-(shares * np.log(shares)).sum())),
        first_tenth=tenths[0],
        last_tenth=tenths[-1],
        worst_tenth=min(tenths),
        clean_accuracy_after=clean_accuracy_after,
    )


def calibration_error(confidence: NDArray[np.float32], hits: NDArray[np.bool_]) -> float:
    """Expected calibration error of the top-1 prediction, in [0, 1] (Guo et al. 2017, arXiv:1706.04599, equation 3).

    15 bins of equal width, each closed on the left: [k/15, (k+1)/15). A confidence of exactly 1 is a bin of its own.
    This is the convention of torchmetrics 1.x down to the rounding of its edges, so that confidences which are
    multiples of 1/15 (0.2, 0.6, ...) fall into the same bins.
    """
    # Float32 edges counted from the nearer end, each rounded once, as torch.linspace makes them.
    step = float(np.float32(1 / ECE_BINS))
    numbers = np.arange(ECE_BINS + 1)
    lower, upper = numbers * step, 1 - (ECE_BINS - numbers) * step
    edges = np.where(numbers < len(numbers) // 2, lower, upper).astype(np.float32)
    bins = np.searchsorted(edges, np.minimum(confidence, np.float32(1)), side="right") - 1
    gaps = np.bincount(bins, weights=hits - confidence.astype(np.float64), minlength=ECE_BINS + 1)
    return min(float(np.abs(gaps).sum() / len(confidence)), 1.0)
