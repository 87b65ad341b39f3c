"""Metrics against torchmetrics, closed forms and full probability matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from leaderboards import Predictions, score
from leaderboards.metrics import calibration_error


def predictions_of(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> Predictions:
    rows = np.arange(len(labels))
    return Predictions(
        id=rows,
        label=labels,
        predicted=probabilities.argmax(axis=1),
        confidence=probabilities.max(axis=1).astype(np.float32),
        p_label=probabilities[rows, labels].astype(np.float32),
        sum_p2=np.square(probabilities.astype(np.float64)).sum(axis=1).astype(np.float32),
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 300), classes=st.integers(2, 20), sharpness=st.floats(0.1, 20))
def test_against_torchmetrics_and_the_whole_matrix(seed: int, n: int, classes: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * sharpness
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    labels = rng.integers(0, classes, n)
    metrics = score(predictions_of(probabilities, labels))
    p, y = torch.from_numpy(probabilities), torch.from_numpy(labels)
    assert metrics.accuracy == pytest.approx(multiclass_accuracy(p, y, classes, average="micro").item(), abs=1e-6)
    assert metrics.ece == pytest.approx(multiclass_calibration_error(p, y, classes, n_bins=15).item(), abs=1e-5)
    clamped = p.double().clamp(min=torch.finfo(torch.float32).tiny)
    assert metrics.nll == pytest.approx(torch.nn.functional.nll_loss(clamped.log(), y).item(), abs=1e-6)
    brier = np.square(probabilities.astype(np.float64) - np.eye(classes)[labels]).sum(axis=1).mean()
    assert metrics.brier == pytest.approx(brier, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(2, 30), st.booleans()), min_size=1, max_size=40))
def test_confidences_on_and_between_edges_fall_where_torchmetrics_puts_them(steps: list[tuple[int, bool]]) -> None:
    # Confidence k / 30 lies on an edge of the 15 bins for even k; 40 classes share the rest, so it is the largest.
    confidence = np.array([np.float32(k / 30) for k, _ in steps], dtype=np.float32)
    hits = np.array([hit for _, hit in steps])
    probabilities = np.repeat(((1 - confidence) / 39)[:, None], 40, axis=1)
    probabilities[:, 0] = confidence
    labels = np.where(hits, 0, 1)
    oracle = multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels), 40, n_bins=15)
    assert calibration_error(confidence, hits) == pytest.approx(oracle.item(), abs=1e-6)


def test_calibration_error_by_hand() -> None:
    # Bins [0.2, 0.267) and [0.8, 0.867): |1/2 - 0.25| and |1 - 0.8|, two images of four each.
    confidence = np.array([0.25, 0.25, 0.8, 0.8], dtype=np.float32)
    hits = np.array([True, False, True, True])
    assert calibration_error(confidence, hits) == pytest.approx(0.5 * 0.25 + 0.5 * 0.2, abs=1e-7)


def test_full_confidence_is_a_bin_of_its_own() -> None:
    # In one bin the two would cancel to |1/2 - 0.975| = 0.475; apart they give (0.05 + 1) / 2.
    assert calibration_error(np.array([0.95, 1], np.float32), np.array([True, False])) == pytest.approx(0.525, abs=1e-6)


def test_uniform_predictions_have_closed_forms() -> None:
    metrics = score(predictions_of(np.full((8, 4), 0.25), np.array([0, 0, 1, 2, 3, 1, 2, 3])))
    assert metrics.accuracy == 0.25
    assert metrics.nll == pytest.approx(np.log(4))
    assert metrics.brier == pytest.approx(0.75)
    assert metrics.ece == 0


def test_perfect_and_hopeless_predictions() -> None:
    certain = np.eye(3)[[0, 1, 2]]
    perfect = score(predictions_of(certain, np.array([0, 1, 2])))
    assert (perfect.accuracy, perfect.nll, perfect.ece, perfect.brier) == (1, 0, 0, 0)
    hopeless = score(predictions_of(certain, np.array([1, 2, 0])))
    assert (hopeless.accuracy, hopeless.ece, hopeless.brier) == (0, 1, 2)
    assert hopeless.nll == pytest.approx(126 * np.log(2))  # the smallest normal float32 is 2^-126


def test_rounding_above_one_stays_in_range() -> None:
    above = np.array([1 + 2e-6], dtype=np.float32)
    zero = np.zeros(1, dtype=np.int64)
    metrics = score(Predictions(zero, zero, zero, above, above, np.ones(1, dtype=np.float32)))
    assert (metrics.accuracy, metrics.nll, metrics.brier) == (1, 0, 0)
    assert 0 <= metrics.ece < 1e-5


def test_several_right_answers_count_through_the_correct_column() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1]] * 4)
    plain = predictions_of(probabilities, np.array([1, 1, 1, 0]))
    several = Predictions(
        *(plain.id, plain.label, plain.predicted, plain.confidence, plain.p_label, plain.sum_p2),
        correct=np.array([True, True, False, True]),
    )
    assert score(plain).accuracy == 0.25
    assert score(several).accuracy == 0.75
    assert score(several).ece == pytest.approx(0.15, abs=1e-6)


@pytest.mark.parametrize("column", ["confidence", "p_label", "sum_p2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.01, 1.01])
def test_numbers_that_are_no_probabilities_are_refused(make_predictions: Any, column: str, value: float) -> None:
    columns = columns_of(make_predictions(10))
    columns[column] = np.append(columns[column][:-1], np.float32(value))
    with pytest.raises(ValueError, match=column):
        Predictions(**columns)


def test_no_images_are_refused(make_predictions: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Predictions(**{name: column[:0] for name, column in columns_of(make_predictions(3)).items()})


def columns_of(predictions: Predictions) -> dict[str, Any]:
    names = ("id", "label", "predicted", "confidence", "p_label", "sum_p2")
    return {name: getattr(predictions, name) for name in names}
