"""The check of clean accuracy, against torchvision's metadata and closed forms; it detects a wrong class order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torchvision import models

from bench.runs.sanity_checks import accuracy_in_another_order, warnings_of
from leaderboards.plausible import clean_doubts, floor, published
from leaderboards.predictions import Predictions
from leaderboards.record import Record


def record(accuracy: float, **changes: Any) -> Record:
    content = {
        "schema": 3,
        "key": "a" * 32,
        "created": "2026-01-01T00:00:00+00:00",
        "status": "done",
        "method": "source",
        "part": None,
        "access": {"source": "none", "test": "none", "state": "fixed", "backprop": "none"},
        "track": "R",
        "shift": "imagenet-c-gen",
        "corruption": None,
        "severity": 0.0,
        "model": "mine.py:make",
        "protocol": "reset_each_shift",
        "split": "disjoint",
        "seed": 0,
        "batch_size": 64,
        "precision": "fp32",
        "options": {},
        "components": {},
        "limit": None,
        "n": 25000,
        "metrics": {"accuracy": accuracy, "nll": 1.0, "ece": 0.1, "brier": 0.5},
        "diagnostics": {
            "distinct_classes": 1000,
            "marginal_entropy": 6.0,
            "first_tenth": 0.5,
            "last_tenth": 0.5,
            "worst_tenth": 0.5,
        },
        "cost": None,
        "data": {"digest": "d", "seed": 0, "storage": "uint8", "profile": "imagenet224"},
        "weights": {"digest": "w"},
        "env": {},
        "predictions": f"predictions/{'a' * 32}.npz",
        "error": None,
    }
    content["cost"] = {
        "fit_seconds": 0.0,
        "predict_seconds": 1.0,
        "forwards": 1.0,
        "backwards": 0.0,
        "peak_memory_mb": None,
        "device_name": "cpu",
    }
    return Record.model_validate({**content, **changes})


def test_published_accuracies_are_those_in_torchvisions_metadata() -> None:
    checked = 0
    for (_, model), accuracy in published().items():
        if model.startswith("torchvision:"):
            name, _, member = model.removeprefix("torchvision:").partition(".")
            metrics = models.get_model_weights(name)[member].meta["_metrics"]["ImageNet-1K"]
            assert accuracy == pytest.approx(metrics["acc@1"] / 100, abs=1e-9)
            checked += 1
    assert checked


def test_a_model_below_its_published_accuracy_is_doubted() -> None:
    model = "torchvision:resnet50.IMAGENET1K_V1"
    low = 0.7613 - 0.05 - 3 * (0.7613 * 0.2387 / 25000) ** 0.5
    assert floor(record(0.5, model=model)) == pytest.approx(low)
    assert not list(clean_doubts([record(low + 1e-3, model=model)]))
    ((doubted, text),) = clean_doubts([record(0.57, model=model)])
    assert doubted.model == model
    assert "57.0%" in text
    assert "preprocessing" in text


def test_an_unknown_model_must_be_clearly_above_chance() -> None:
    assert [text for _, text in clean_doubts([record(0.002)])]
    assert not list(clean_doubts([record(0.004)]))
    diagnostics = {"distinct_classes": 10, "marginal_entropy": 2.0} | dict.fromkeys(
        ("first_tenth", "last_tenth", "worst_tenth"), 0.1
    )
    assert list(clean_doubts([record(0.25, diagnostics=diagnostics)]))
    assert not list(clean_doubts([record(0.35, diagnostics=diagnostics)]))


def test_few_images_say_nothing() -> None:
    diagnostics = {"distinct_classes": 6, "marginal_entropy": 1.0} | dict.fromkeys(
        ("first_tenth", "last_tenth", "worst_tenth"), 0.0
    )
    assert not list(clean_doubts([record(0.0, n=6, diagnostics=diagnostics)]))


def test_a_method_that_ruins_a_good_model_is_a_result() -> None:
    good, ruined = record(0.7), record(0.001, method="tent", key="b" * 32, predictions=f"predictions/{'b' * 32}.npz")
    assert not list(clean_doubts([good, ruined]))
    shifted = record(0.001, corruption="fog", severity=5.0)
    assert not list(clean_doubts([shifted]))


def predictions(classes: int, n: int, order: np.ndarray, right: float) -> Predictions:
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, n)
    guess = np.where(rng.random(n) < right, label, rng.integers(0, classes, n))
    third = np.full(n, 0.3, dtype=np.float32)
    return Predictions(
        id=np.arange(n), label=label, predicted=order[guess], confidence=third, p_label=third, sum_p2=third
    )


class TestOrder:
    def test_a_permutation_is_found_and_measured_on_other_images(self) -> None:
        made = predictions(10, 1000, np.roll(np.arange(10), 3), 0.8)
        found = accuracy_in_another_order(made)
        assert found == pytest.approx(0.8 + 0.2 / 10, abs=0.04)

    def test_the_right_order_and_noise_are_left_alone(self) -> None:
        assert accuracy_in_another_order(predictions(10, 1000, np.arange(10), 0.8)) is None
        assert accuracy_in_another_order(predictions(10, 1000, np.arange(10), 0.0)) is None

    def test_one_image_a_class_tells_nothing(self) -> None:
        assert accuracy_in_another_order(predictions(500, 600, np.roll(np.arange(500), 1), 1.0)) is None

    def test_it_is_said_with_the_warning(self) -> None:
        made = predictions(10, 1000, np.roll(np.arange(10), 3), 0.8)
        diagnostics = record(0.1).diagnostics
        assert diagnostics is not None
        low = record(0.05, n=1000, diagnostics=diagnostics.model_copy(update={"distinct_classes": 10}).model_dump())
        (text,) = warnings_of([low], lambda _: made)
        assert "in another order it would be 8" in text
        same = replace(made, predicted=made.label)
        assert "another order" not in warnings_of([low], lambda _: same)[0]
