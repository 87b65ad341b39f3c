"""What is known of a stream while it runs, and what it says of each condition once it has ended."""

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
    """Predictions of one condition and what they cost. Forwards and backwards count samples.

    `device_name` and `env` say where: not always on the machine that asked.
    `clean_accuracy_after`: accuracy on clean images once the stream that ends with this condition is over.
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
    """What is known of a segment so far: the first `done` rows of each column, and what they cost.

    `peak` is that of the process, which is the adapter's own only as long as it was `alone`.
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
        """The columns, not copied."""
        return {name: column.numpy() for name, column in self.columns.items()}

    def by_condition(self, shift: Shift, segment: Segment, device: str) -> list[ConditionResult]:
        """A finished segment, condition by condition: of what it cost each has the part that its images are."""
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
