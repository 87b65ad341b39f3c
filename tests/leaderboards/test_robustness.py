"""mCE by hand, its refusals, and the diagnostics of a stream."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from leaderboards.metrics import diagnose
from leaderboards.predictions import Predictions
from leaderboards.record import Record
from leaderboards.reference.alexnet import ALEXNET_5K, ALEXNET_50K
from leaderboards.robustness import mean_corruption_error, relative_mean_corruption_error

Content = dict[str, Any]


def record(content: Content, corruption: str | None, severity: float, error: float, seed: int = 0) -> Record:
    fields = content | {"shift": "imagenet-c", "corruption": corruption, "severity": severity, "seed": seed}
    fields["metrics"] = content["metrics"] | {"accuracy": 1 - error}
    return Record.from_json(json.dumps(fields))


def whole(content: Content, factor: float) -> list[Record]:
    """Errors `factor` times those of AlexNet on average, spread over severities, in an order of their own."""
    spread = {1: 0.8, 2: 0.9, 3: 1.0, 4: 1.1, 5: 1.2}
    return [
        record(content, name, level, min(1.0, factor * error * part))
        for level, part in spread.items()
        for name, error in sorted(ALEXNET_50K.items())
    ]


def test_alexnet_and_half_of_it(content: Content) -> None:
    records = whole(content, 0.5)
    assert mean_corruption_error(records) == pytest.approx(50)
    # The mean of 15 ratios, not the ratio of two means.
    noisy = [r for r in records if r.corruption != "fog"]
    worse = [*noisy, *(record(content, "fog", level, 0.819324) for level in range(1, 6))]
    assert mean_corruption_error(worse) == pytest.approx((14 * 50 + 100) / 15)


def test_relative_by_hand(content: Content) -> None:
    records = whole(content, 0.5)
    assert relative_mean_corruption_error(records) is None
    clean = record(content, None, 0, 0.25)
    expected = 100 * np.mean([(0.5 * e - 0.25) / (e - 0.4345) for e in ALEXNET_50K.values()])
    assert relative_mean_corruption_error([clean, *records]) == pytest.approx(expected)


def test_seeds_are_averaged(content: Content) -> None:
    records = whole(content, 0.5)
    again = [r.model_copy(update={"seed": 1}) for r in whole(content, 0.7)]
    assert mean_corruption_error([*records, *again]) == pytest.approx(60)


def test_anything_missing_is_no_number(content: Content) -> None:
    records = whole(content, 0.5)
    assert mean_corruption_error([r for r in records if r.severity == 5]) is None
    assert mean_corruption_error(records[:-1]) is None
    assert mean_corruption_error([]) is None
    assert mean_corruption_error([r.model_copy(update={"shift": "digits-c"}) for r in records]) is None
    extra = record(content, "speckle_noise", 5, 0.9)
    assert mean_corruption_error([*records, extra]) == pytest.approx(50)


def test_tables_have_the_fifteen_names() -> None:
    assert ALEXNET_50K.keys() == ALEXNET_5K.keys()
    assert len(ALEXNET_50K) == 15
    assert max(abs(ALEXNET_50K[name] - ALEXNET_5K[name]) for name in ALEXNET_50K) < 0.01


def predictions(predicted: list[int], label: list[int]) -> Predictions:
    n = len(predicted)
    hits = np.array(predicted) == np.array(label)
    half = np.full(n, 0.6, dtype=np.float32)
    return Predictions(
        np.arange(n), np.array(label), np.array(predicted), half, np.where(hits, half, 0.1).astype(np.float32), half**2
    )


def test_diagnostics_of_a_collapse() -> None:
    label = [i % 4 for i in range(40)]
    fell = diagnose(predictions(label[:20] + [0] * 20, label), 0.5)
    assert fell.distinct_classes == 4
    shares = np.array([25, 5, 5, 5]) / 40
    assert fell.marginal_entropy == pytest.approx(-(shares * np.log(shares)).sum())
    assert (fell.first_tenth, fell.last_tenth, fell.worst_tenth) == (1.0, 0.25, 0.25)
    assert fell.clean_accuracy_after == 0.5
    one = diagnose(predictions([2], [1]))
    assert (one.distinct_classes, one.marginal_entropy, one.first_tenth) == (1, 0.0, 0.0)
