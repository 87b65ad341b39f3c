"""The bill of a run against what the run then took."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.costs import Bill, Cost, bill
from bench.plan import make_plan
from bench.run import run
from bench.spec import RunSpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))


def small(tmp_path: Path, **settings: object) -> RunSpec:
    given = {
        "method": "source,tent",
        "shift": "digits-c",
        "corruption": "fog,contrast",
        "severity": "3",
        "limit": 96,
        "jobs": 1,
        "out": tmp_path / "out",
        "device": "cpu",
    }
    return RunSpec.model_validate(given | settings)


def test_a_bill_counts_what_the_run_then_does(tmp_path: Path) -> None:
    spec = small(tmp_path, options={"source": {"epochs": 3}})
    before = bill(make_plan(spec))
    assert not (tmp_path / "out").exists()
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        outcome = run(spec)
    streams = {cost.label: cost for cost in before.costs if cost.kind == "stream"}
    for name, cost in streams.items():
        records = [record for record in outcome.records() if record.method == name]
        assert cost.forwards == sum(record.cost.forwards for record in records)
        assert cost.backwards == sum(record.cost.backwards for record in records)
    assert before.passes == tuple(
        sum(getattr(record.cost, name) for record in outcome.records()) for name in ("forwards", "backwards")
    )
    assert before.memory_mb is not None
    assert 50 < before.memory_mb < 20_000  # a process that has loaded torch, on no machine much more
    assert before.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert bill(make_plan(spec)).costs == ()


def test_methods_that_choose_images_are_billed_for_all(tmp_path: Path) -> None:
    """SAR steps on images that a classifier is sure of; one that is not trained yet is taken to be sure."""
    costs = bill(make_plan(small(tmp_path, method="sar"))).costs
    (stream,) = (cost for cost in costs if cost.kind == "stream")
    assert stream.forwards == stream.backwards == 2 * 3 * 96


def test_what_is_done_is_not_billed_again(tmp_path: Path) -> None:
    run(small(tmp_path, method="source"))
    costs = bill(make_plan(small(tmp_path))).costs
    assert [(cost.kind, cost.label, cost.count) for cost in costs] == [("stream", "tent", 3)]


def test_a_bill_reads_the_clock_of_the_work_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.tent import Tent

    plain = bill(make_plan(small(tmp_path)))
    predict = Tent.predict

    def slow(self: Tent, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.3)
        return predict(self, images)

    monkeypatch.setattr(Tent, "predict", slow)
    delayed = bill(make_plan(small(tmp_path)))
    cost = {made: next(c.seconds for c in made.costs if c.label == "tent") for made in (plain, delayed)}
    batches = 3 * -(-96 // 64)
    assert cost[delayed] - cost[plain] > batches * 0.3 / 2


def test_several_processes_share_the_work_but_not_one_piece_of_it() -> None:
    costs = (Cost("training", "a", 0, 1, 1e9, 60.0, 0, 0, 1), Cost("stream", "b", 0, 4, None, 20.0, 0, 0, 1))
    assert Bill(costs, 1).seconds == 80
    assert Bill(costs, 2).seconds == 60
    assert Bill(costs, 16).seconds == 60
    assert Bill((), 2).seconds == 0


@pytest.mark.slow
def test_the_time_is_right_within_half(tmp_path: Path) -> None:
    spec = small(tmp_path, method="source,tent,memo", limit=250)
    expected = bill(make_plan(spec)).seconds
    start = time.perf_counter()
    run(spec)
    assert (time.perf_counter() - start) / expected == pytest.approx(1, abs=0.5)
