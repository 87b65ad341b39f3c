"""The stream loop on a pretended GPU: one copy of the scores for each batch, and no wait beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from host_waits import HostWaits

import bench.evaluation.evaluate as evaluation
from bench.core.conditions import Condition
from bench.evaluation.protocols import parse_protocol, plan_stream
from bench.evaluation.stream_results import StreamResults
from bench.models.weights_io import load_stock
from bench.shifts import load_shift
from methods.adapters.plain import Plain
from methods.nets.weights import Classifier


def waits_of(corruption: str | None, images: int, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], int]:
    for name in ("synchronise", "forget_peak"):
        monkeypatch.setattr(evaluation, name, lambda device: None)
    monkeypatch.setattr(evaluation, "peak_memory_mb", lambda device: None)
    shift = load_shift("digits-c")
    ids = shift.ids("test")[:images]
    condition = Condition(corruption, 5.0 if corruption else 0)
    (segment,) = plan_stream(parse_protocol("reset_each_shift"), [condition], ids, shift.labels(ids), 0)
    job: Any = SimpleNamespace(device="cuda", batch_size=8, precision="fp32", method="source")
    waits = HostWaits()
    with waits:
        model = Classifier(load_stock("digits").architecture, shift.classes).to("cuda")
        adapter = Plain(model, Plain.Config(), waits.generator())
        adapter.prepare()
        results = StreamResults.empty(images)
        passes = evaluation.Passes()
        for _ in evaluation._run_segment(adapter, shift, segment, job, passes, results, None):
            pass
    assert results.done == images
    return dict(waits.sites)


# Before `predict`, and outside its time: the pixels go to the device, and with a corruption the keys of its draws.
PIXELS = {
    None: {("upload", "bench/shifts/digits.py:Digits.images"): 1},
    "fog": {
        ("upload", "bench/shifts/digits.py:Digits.images"): 1,
        ("upload", "corruptions/pipeline.py:_of_severity"): 1,
    },
}


@pytest.mark.parametrize("corruption", PIXELS)
def test_a_batch_waits_for_its_pixels_and_its_scores_alone(
    corruption: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (waits_of(corruption, count, monkeypatch) for count in (16, 32))
    more = {site: count - one.get(site, 0) for site, count in two.items() if count != one.get(site, 0)}
    expected = PIXELS[corruption] | {("read", "bench/evaluation/evaluate.py:_probabilities"): 1}
    assert more == {site: 2 * count for site, count in expected.items()}
