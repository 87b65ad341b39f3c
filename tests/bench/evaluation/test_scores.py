"""The valid outputs of `predict` and their scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.evaluation import evaluate, stream
from bench.runs.run import Outcome

Quick = Callable[..., Outcome]

ANSWERS = """
import torch
from methods.base import Adapter
from methods.table import Access

class Answers(Adapter):
    '''Says the same of every image.'''
    access = Access()

    def predict(self, images):
        p = torch.tensor([0.55] + [0.05] * 9).expand(len(images), -1)
        return {answer}
"""


@pytest.fixture
def answered(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> Callable[[str], Outcome]:
    def run(answer: str) -> Outcome:
        plugin = tmp_path / "answers.py"
        plugin.write_text(ANSWERS.format(answer=answer))
        return run_quick(settings, method=f"{plugin}:Answers", corruption="fog")

    return run


@pytest.mark.parametrize("answer", ["p.log()", "p.log() + 7", "p.log().double() - 1e3", "p.log().requires_grad_()"])
def test_log_probabilities_count_up_to_a_constant(answered: Callable[[str], Outcome], answer: str) -> None:
    outcome = answered(answer)
    for record in outcome.records():
        assert record.metrics is not None
        right = record.metrics.accuracy  # the share of zeros, of which it is sure by 0.55
        assert record.metrics.ece == pytest.approx(abs(right - 0.55), abs=1e-6)
        assert record.metrics.nll == pytest.approx(-right * math.log(0.55) - (1 - right) * math.log(0.05), abs=1e-6)


def test_a_class_that_is_ruled_out_has_probability_zero(answered: Callable[[str], Outcome]) -> None:
    outcome = answered("torch.where(torch.arange(10) < 2, p.log(), -torch.inf)")
    for record in outcome.records():
        assert record.metrics is not None
        assert record.metrics.ece == pytest.approx(abs(record.metrics.accuracy - 0.55 / 0.6), abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("p.log() * float('nan')", "not finite"),
        ("p.log() + torch.inf", "not finite"),
        ("p.log() - torch.inf", "not finite"),
        ("p[:1].log()", "return a tensor"),
        ("p.log()[:, :9]", "return a tensor"),
        ("p.log().tolist()", "return a tensor"),
    ],
)
def test_what_is_no_answer_is_a_failed_record(answered: Callable[[str], Outcome], answer: str, words: str) -> None:
    outcome = answered(answer)
    assert (outcome.done, outcome.failed) == (0, 2)
    assert all(words in error for error in outcome.errors)


def test_the_time_of_a_method_ends_when_its_scores_are_on_the_device(
    answered: Callable[[str], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work that is queued on a device counts; making the images, the copy and the softmax do not."""
    now = 0.0

    def passing(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*args)

        return slow

    monkeypatch.setattr(evaluate, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(evaluate, "synchronise", passing(1, lambda device: None))
    monkeypatch.setattr(evaluate, "_probabilities", passing(1000, evaluate._probabilities))
    monkeypatch.setattr(stream, "make_pixels", passing(1000, stream.make_pixels))
    seconds = [record.cost.predict_seconds for record in answered("p.log()").records() if record.cost is not None]
    # Three batches of 5, 5 and 2 images, each with one second on the device.
    assert seconds == [pytest.approx(3)] * 2
