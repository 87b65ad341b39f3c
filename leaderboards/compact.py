"""Probabilities of a condition in 16 bits each: what is needed to recompute ECE, NLL and Brier score from a bundle.

Every code stands for a range of values, so a metric has a least and a largest value, and the published one must lie
between them. The ranges are narrow: 1.5e-5 for ECE and, at usual values, 1e-4 for NLL and Brier score.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leaderboards.metrics import ECE_BINS, SMALLEST_PROBABILITY
from leaderboards.predictions import Predictions
from leaderboards.record import Metrics

_TOP = 65_535  # the largest code, 15 times 4369: every bin of the ECE has as many codes
_IN_BIN = _TOP // ECE_BINS
_MOST_NLL = -float(np.log(SMALLEST_PROBABILITY))
_SLACK = 1e-6  # float32 rounding
_UNEQUAL = 2e-4  # by which codes of equal probabilities may differ: float32 sums and the widest ranges
BYTES = 6
"""Bytes of an image."""

Codes = NDArray[np.uint16]
_Range = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False, slots=True)
class Compact:
    """Codes by ascending image id, uint16 [n], of `Predictions.confidence`, `p_label` and `sum_p2`.

    Confidence keeps its bin of the ECE and is cut to 1/65535 in it, sum_p2 is cut to 1/65535, p_label holds the square
    root of -ln p, so that small probabilities keep their digits.
    """

    confidence: Codes
    p_label: Codes
    sum_p2: Codes

    def to_bytes(self) -> bytes:
        """Return the three columns one after another, little-endian."""
        return b"".join(column.astype("<u2").tobytes() for column in (self.confidence, self.p_label, self.sum_p2))

    @staticmethod
    def of_bytes(content: bytes, n: int) -> Compact:
        """Read what `to_bytes` returned for n images. Raises ValueError for another length."""
        if len(content) != BYTES * n:
            raise ValueError(f"probabilities have {len(content)} bytes, which is not what {n} images take")
        columns = np.frombuffer(content, "<u2").astype(np.uint16).reshape(3, n)
        return Compact(columns[0], columns[1], columns[2])

    def bounds(self, hits: NDArray[np.bool_]) -> dict[str, tuple[float, float]]:
        """Return the least and the largest value of ece, nll and brier that these codes allow, by name."""
        nll = _nll(self.p_label)
        label = np.exp(-nll[1]), np.exp(-nll[0])
        square = _linear(self.sum_p2)
        brier = [np.clip(1 - 2 * p + s, 0, 2).mean() for p, s in ((label[1], square[0]), (label[0], square[1]))]
        return {
            "ece": self._ece(hits),
            "nll": (float(nll[0].mean()) - _SLACK, float(nll[1].mean()) + _SLACK),
            "brier": (float(brier[0]) - _SLACK, float(brier[1]) + _SLACK),
        }

    def _ece(self, hits: NDArray[np.bool_]) -> tuple[float, float]:
        bins, low, high = _confidence(self.confidence)
        most, least = (np.bincount(bins, weights=hits - edge, minlength=ECE_BINS + 1) for edge in (low, high))
        crosses = (least < 0) & (most > 0)
        smallest = np.where(crosses, 0, np.minimum(np.abs(least), np.abs(most)))
        largest = np.maximum(np.abs(least), np.abs(most))
        return float(smallest.sum() / len(bins)) - _SLACK, min(1.0, float(largest.sum() / len(bins))) + _SLACK

    def contradictions(self, hits: NDArray[np.bool_], *, one_label: bool = True) -> Iterator[str]:
        """Yield how the columns contradict one another, in words; `one_label`: a hit is the label, nothing else."""
        _, low, high = _confidence(self.confidence)
        label = tuple(np.exp(-edge) for edge in reversed(_nll(self.p_label)))
        square = _linear(self.sum_p2)
        if np.any(square[0] > high + _UNEQUAL) or np.any(square[1] < low**2 - _UNEQUAL):
            yield "a sum of squares that its largest probability excludes"
        if not one_label:
            return
        if np.any(label[0] > high + _UNEQUAL):
            yield "a label more probable than the most probable class"
        if np.any((label[1] < low - _UNEQUAL) & hits):
            yield "a right answer that is not the most probable class"


def compact(predictions: Predictions) -> Compact:
    """Return the codes of predictions, by ascending image id as in `bundle.pack`."""
    order = np.argsort(predictions.id, kind="stable")
    nll = -np.log(np.clip(predictions.p_label[order].astype(np.float64), SMALLEST_PROBABILITY, 1))
    confidence = np.minimum(predictions.confidence[order], np.float32(1))
    edges = _edges()
    bins = np.searchsorted(edges, confidence, side="right") - 1
    inside = np.floor((confidence.astype(np.float64) - edges[bins].astype(np.float64)) * _TOP)
    return Compact(
        (bins * _IN_BIN + np.clip(inside, 0, np.where(bins == ECE_BINS, 0, _IN_BIN - 1))).astype(np.uint16),
        np.rint(np.sqrt(nll / _MOST_NLL) * _TOP).astype(np.uint16),
        np.floor(np.clip(predictions.sum_p2[order].astype(np.float64), 0, 1) * _TOP).astype(np.uint16),
    )


def metric_problems(metrics: Metrics, codes: Compact, hits: NDArray[np.bool_]) -> Iterator[str]:
    """Yield, in words, each metric that does not follow from the codes."""
    for name, (low, high) in codes.bounds(hits).items():
        if not low <= getattr(metrics, name) <= high:
            yield f"{name} {getattr(metrics, name)!r}, its probabilities give {low:.5g} to {high:.5g}"


def _edges() -> NDArray[np.float32]:
    """Return the 16 lower edges of the bins of `metrics.calibration_error`, the last one for exactly 1."""
    step = float(np.float32(1 / ECE_BINS))
    numbers = np.arange(ECE_BINS + 1)
    below = numbers < len(numbers) // 2
    return np.where(below, numbers * step, 1 - (ECE_BINS - numbers) * step).astype(np.float32)


def _confidence(codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    bins = codes.astype(np.int64) // _IN_BIN
    low = _edges().astype(np.float64)[bins] + (codes % _IN_BIN) / _TOP
    return bins, low, np.where(bins == ECE_BINS, low, low + 1 / _TOP)


def _linear(codes: Codes) -> _Range:
    return codes / _TOP, np.minimum(1, (codes + 1.0) / _TOP)


def _nll(codes: Codes) -> _Range:
    low, high = (np.clip(codes + shift, 0, _TOP) / _TOP for shift in (-0.5, 0.5))
    return low**2 * _MOST_NLL, high**2 * _MOST_NLL
