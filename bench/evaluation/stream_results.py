"""The results of a stream while it runs, and the results of each condition once it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.core.conditions import Condition
from bench.core.environment import device_name, environment
from bench.evaluation.protocols import Segment
from bench.shifts.shift import Shift
from leaderboards.predictions import Predictions


@dataclass(frozen=True)
class ConditionResult:
    """Predictions of one condition and their cost. Forwards and backwards count samples.

    `device_name` and `env` describe where it was measured, which may be another machine than the one that started the
    run. `clean_accuracy_after`: accuracy on clean images after the stream that ends with this condition.
    """

    condition: Condition
    predictions: Predictions
    predict_seconds: float
    forwards: int
    backwards: int
    peak_memory_mb: float | None
    device_name: str
    env: Mapping[str, Any]
    clean_accuracy_after: float | None = None


@dataclass
class StreamResults:
    """The results of a segment so far: the first `done` rows of each column, and their cost.

    `peak` is the peak memory of the process, which is the adapter's only if it ran `alone`.
    """

    columns: dict[str, Tensor]
    done: int = 0
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    peak: float | None = None
    alone: bool = True

    @staticmethod
    def empty(rows: int) -> StreamResults:
        columns = {name: torch.empty(rows) for name in ("confidence", "p_label", "sum_p2")}
        return StreamResults({"predicted": torch.empty(rows, dtype=torch.int64), **columns})

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the columns as arrays that share their memory."""
        return {name: column.numpy() for name, column in self.columns.items()}

    def by_condition(self, shift: Shift, segment: Segment, device: str) -> list[ConditionResult]:
        """Split a finished segment into conditions; each gets a share of the cost in proportion to its images."""
        labels = shift.labels(segment.ids)
        answers = shift.answers(segment.ids)
        columns = self.arrays()
        results = []
        for number, condition in enumerate(segment.conditions):
            rows = np.flatnonzero(segment.which == number)
            share = len(rows) / len(segment.ids)
            results.append(
                ConditionResult(
                    condition,
                    Predictions(
                        id=segment.ids[rows],
                        label=labels[rows],
                        correct=answers[rows, columns["predicted"][rows]] if answers is not None else None,
                        **{name: column[rows] for name, column in columns.items()},
                    ),
                    self.seconds * share,
                    round(self.forwards * share),
                    round(self.backwards * share),
                    self.peak if self.alone else None,
                    device_name(device),
                    environment(),
                )
            )
        return results
