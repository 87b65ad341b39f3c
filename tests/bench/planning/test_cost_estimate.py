"""The cost estimate of a run against its measured cost."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.models.weights_io import facts_of, load_stock
from bench.planning import cost_estimate, stream_probe
from bench.planning.cost_estimate import estimate
from bench.planning.plan import make_plan
from bench.planning.time_left import WorkItem, makespan
from bench.runs.run import run
from bench.settings.run_spec import RunSpec
from bench.training import job_cache
from bench.training.pretrain_stock import StockSpec, make_stock
from methods.nets import flops


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
        "options": {"source": {"epochs": 1}},
    }
    return RunSpec.model_validate(given | settings)


def test_an_estimate_counts_the_operations_of_the_run(tmp_path: Path) -> None:
    spec = small(tmp_path, options={"source": {"epochs": 3}})
    before = estimate(make_plan(spec))
    assert not (tmp_path / "out").exists()
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        outcome = run(spec)
    streams = {cost.label: cost for cost in before.costs if cost.kind == "stream"}
    for name, cost in streams.items():
        records = [record for record in outcome.records() if record.method == name]
        assert cost.forwards == sum(record.cost.forwards for record in records)
        assert cost.backwards == sum(record.cost.backwards for record in records)
    assert before.samples == tuple(
        sum(getattr(record.cost, name) for record in outcome.records()) for name in ("forwards", "backwards")
    )
    assert before.memory_mb is not None
    assert 50 < before.memory_mb < 20_000  # a process that has imported torch
    assert before.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert estimate(make_plan(spec)).costs == ()


def test_methods_that_select_images_are_estimated_on_all_images(tmp_path: Path) -> None:
    """SAR steps on confident images; an untrained classifier is assumed to be confident."""
    costs = estimate(make_plan(small(tmp_path, method="sar"))).costs
    (stream,) = (cost for cost in costs if cost.kind == "stream")
    assert stream.forwards == stream.backwards == 2 * 3 * 96


def test_finished_work_is_not_in_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small(tmp_path, method="source"))
    costs = estimate(make_plan(small(tmp_path))).costs
    assert [(cost.kind, cost.label, cost.count) for cost in costs] == [("stream", "tent", 3)]


def test_an_estimate_measures_the_real_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.adapters.tent import Tent

    plain = estimate(make_plan(small(tmp_path)))
    predict = Tent.predict

    def slow(self: Tent, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.3)
        return predict(self, images)

    monkeypatch.setattr(Tent, "predict", slow)
    delayed = estimate(make_plan(small(tmp_path)))
    cost = {made: next(c.seconds for c in made.costs if c.label == "tent") for made in (plain, delayed)}
    batches = 3 * -(-96 // 64)
    assert cost[delayed] - cost[plain] > batches * 0.3 / 2


def test_processes_share_the_work_but_not_one_item() -> None:
    work_items = [WorkItem((name,), "", 0.0, frozenset()) for name in "abcde"]
    seconds = {"a": 60.0, "b": 5.0, "c": 5.0, "d": 5.0, "e": 5.0}
    assert [makespan(work_items, seconds, jobs) for jobs in (1, 2, 16)] == [80, 60, 60]
    waiting = [replace(item, after=frozenset("a")) if item.key == "e" else item for item in work_items]
    assert [makespan(waiting, seconds, jobs) for jobs in (1, 2, 16)] == [80, 65, 65]


@pytest.mark.usefixtures("no_answers")
def test_images_that_methods_share_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_probe.PixelTimer, "seconds", lambda self, segment, size: 0.5 * len(segment.ids))
    monkeypatch.setattr(stream_probe, "_probe_stream", lambda *_: stream_probe.StreamRate(1.0, 0.25, 8.0, 1.0, 0.0))
    names = ("source", "tent", "t3a", "lame")
    run(small(tmp_path, method="source", corruption="fog", out=tmp_path / "before"))  # trains the classifier
    alone = [estimate(make_plan(small(tmp_path, corruption="fog", method=name))) for name in names]
    shared = estimate(make_plan(small(tmp_path, corruption="fog", method=",".join(names))))
    assert [each.passes for each in (*alone, shared)] == [2] * 5
    assert {each.cached for each in (*alone, shared)} == {2}  # the probe and the fine-tuned stock
    pixels, answers = 2 * 96 * 0.5, 2 * (8 + 96 * 0.25)
    assert [each.seconds for each in alone] == [pixels + answers] * 4
    assert shared.seconds == pixels + 4 * answers
    assert [cost.seconds for cost in shared.costs] == [pixels / 4 + answers] * 4
    split = estimate(make_plan(small(tmp_path, corruption="fog", method=",".join(names), jobs=2)))
    assert split.passes == 8  # so few streams are spread over the processes


def test_the_time_of_pixels_depends_on_the_corruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(stream_probe, "make_pixels", lambda shift, segment, rows, device: made.append(len(rows)))
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    plan = make_plan(small(tmp_path, severity="1,3"))
    said: list[str] = []
    pixels = stream_probe.PixelTimer(plan, said.append)
    for segment in plan.entries[0].segments:
        assert pixels.seconds(segment, 64) == 96 / 8  # one second for eight images: a larger probe would take too long
    assert len(said) == 1
    assert made == [1, 8] * 3  # clean, fog, contrast: severities take the same time


def test_trainings_take_as_long_as_their_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without earlier trainings: twice the epochs take twice as long, a probe one pass over its images, a soup none."""
    monkeypatch.setattr(cost_estimate, "_seconds_per_operation", lambda shape, device: 1e-9)
    options = {"epochs": 1, "scales": [1.0, 2.0]}
    found = []
    for epochs in (1, 2):
        spec = small(tmp_path, method="supervised_soup", options={"supervised_soup": options | {"epochs": epochs}})
        found.append({cost.label: cost for cost in estimate(make_plan(spec)).costs if cost.kind == "training"})
    once, twice = found
    tuned = [label for label in once if label.startswith("fine-tune")]
    assert len(tuned) == 2
    assert all(once[label].seconds == 1e-9 * (once[label].flops or 0) > 0 for label in tuned)
    assert all(twice[label].seconds == pytest.approx(2 * once[label].seconds, rel=0.01) for label in tuned)
    assert once["uniform soup"].seconds == 0
    images = 10 * 10  # labels of each class
    forward = flops.forward(load_stock("digits").architecture)
    assert once["linear probe of the stock"].seconds == pytest.approx(1e-9 * images * forward, rel=0.5)


def _within_half(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    # Processor time, because other load on the machine is not part of the estimate.
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    # Before anything was trained, trainings are taken to be as quick as predictions, operation by operation.
    known_as = ("operations", spec, 4.0), ("what was done before", spec.model_copy(update={"seed": 1}), 1.5)
    for known, each, most in known_as:
        made = estimate(make_plan(each))
        start = time.perf_counter()
        assert run(each).exit_code == 0
        ratio = (time.perf_counter() - start) / made.seconds
        expected = f"{made.seconds:.1f} s expected from {known}"
        sys.stderr.write(f"\n{spec.shift}: {expected}, {ratio:.2f} times as many taken\n")
        assert 1 / most <= ratio <= most


@pytest.mark.slow
def test_the_time_of_a_digits_run_is_as_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"selfsoup": {"steps": 60, "epochs": 10}, "source": {"epochs": 10}}
    _within_half(small(tmp_path, method="source,tent,memo,selfsoup", limit=250, options=options), monkeypatch)


@pytest.mark.slow
def test_the_time_of_a_cifar_run_is_as_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = os.environ.get("SOUPBENCH_TEST_DATA")
    if not place or not (Path(place) / "cifar10" / "test.parquet").is_file():
        pytest.skip("SOUPBENCH_TEST_DATA names no folder with cifar10/test.parquet")
    made = StockSpec("cifar10", arch="vit_micro_patch4_32", steps=5, limit=300, data_root=Path(place))
    make_stock(made, tmp_path / "stock.safetensors", lambda done, loss: None)
    _within_half(
        small(
            tmp_path,
            method="source,tent,eata",
            shift="cifar10-c-gen",
            corruption="gaussian_noise,glass_blur,jpeg_compression",
            data_root=Path(place),
            stock=str(tmp_path / "stock.safetensors"),
            labels=20,
            limit=300,
            options={"source": {"epochs": 5}},
        ),
        monkeypatch,
    )


def _seconds(spec: RunSpec, kind: str) -> dict[str, float | None]:
    return {cost.label: cost.seconds for cost in estimate(make_plan(spec)).costs if cost.kind == kind}


def test_earlier_trainings_determine_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"source": {"epochs": 3}}
    run(small(tmp_path, method="source", options=steps))
    weights = [facts_of(path) for path in (tmp_path / "cache" / "weights").glob("*")]
    took = {facts["label"]: facts["seconds"] for facts in weights}
    assert len(took) == 2

    monkeypatch.setattr(cost_estimate, "_seconds_per_operation", lambda shape, device: 1e6)

    def seconds(options: dict[str, object]) -> dict[str, float | None]:
        return _seconds(small(tmp_path, method="source", seed=1, options={"source": options}), "training")

    found = seconds({"epochs": 6})
    tuned = next(label for label in took if label.startswith("fine-tune"))
    assert found.keys() == took.keys()
    for label, each in found.items():
        assert each == pytest.approx(took[label] * (2 if label == tuned else 1), rel=1e-6)
    # A different kind of training, or one measured on another machine, tells nothing.
    for change in ({"batch_size": 20}, {"bf16": True}):
        assert (seconds({"epochs": 6, **change})[tuned] or 0) > 1e6
    monkeypatch.setattr(job_cache, "device_name", lambda device: "another")
    assert all((each or 0) > 1e6 for each in seconds({"epochs": 3}).values())


def test_damaged_weights_are_not_used(tmp_path: Path) -> None:
    run(small(tmp_path, method="source"))
    for number, path in enumerate(sorted((tmp_path / "cache" / "weights").glob("*"))):
        path.write_bytes(path.read_bytes()[:100] if number else b"")
    assert all(_seconds(small(tmp_path, method="source", seed=1), "training").values())


def test_earlier_streams_determine_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_probe.PixelTimer, "seconds", lambda self, segment, size: 0.0)
    monkeypatch.setattr(stream_probe, "_probe_stream", lambda *_: stream_probe.StreamRate(1.0, 0.25, 8.0, 1.0, 0.0))
    run(small(tmp_path, method="tent", corruption="fog", limit=10))
    for path in (tmp_path / "out" / "records").glob("*.json"):
        record = json.loads(path.read_text())
        record["cost"]["predict_seconds"] = 30.0
        path.write_text(json.dumps(record))

    def seconds(**settings: object) -> float | None:
        (found,) = _seconds(small(tmp_path, corruption="contrast", limit=10, **settings), "stream").values()
        return found

    # Only contrast is missing; clean and fog took three seconds per image.
    assert seconds(method="tent") == 8 + 10 * 3.0
    assert seconds(method="tent", batch_size=5) == 2 * (8 + 10 * 0.25)
    assert seconds(method="tent", options={"tent": {"lr": 0.5}}) == 2 * (8 + 10 * 0.25)
    assert seconds(method="lame") == 2 * (8 + 10 * 0.25)
    monkeypatch.setattr(stream_probe, "device_name", lambda device: "another")
    assert seconds(method="tent") == 8 + 10 * 0.25


def test_predictions_of_many_models_are_estimated_from_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run of the published recipe would otherwise evaluate dozens of large networks."""
    monkeypatch.setattr(cost_estimate, "_seconds_per_operation", lambda shape, device: 1e-9)
    options = {"epochs": 1, "scales": [1.0, 2.0], "mixes": ["uniform", "greedy", "best"], "holdout": 0.2}
    plan = make_plan(small(tmp_path, method="supervised_soup", options={"supervised_soup": options}))
    found = {cost.label: cost for cost in estimate(plan).costs if cost.kind == "training"}
    for label in ("greedy soup", "best soup", "linear connectivity"):
        assert found[label].seconds == pytest.approx(1e-9 * found[label].flops)
    assert found["greedy soup"].flops == pytest.approx(1.5 * found["best soup"].flops)


class Counting:
    """Replaces `Tent.predict`: pretends that an image takes `seconds` on the clock that the probe reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        from methods.adapters.tent import Tent

        self.sizes: list[int] = []
        self.now = 0.0
        plain = Tent.predict

        def predict(tent: Tent, images: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(images))
            self.now += seconds * len(images)
            return plain(tent, images)

        monkeypatch.setattr(Tent, "predict", predict)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(stream_probe.PixelTimer, "seconds", lambda self, segment, size: 0.0)


def test_a_dear_method_is_measured_on_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second has passed after the first batches: on a CPU no batch of many operations follows."""
    spec = small(tmp_path, method="tent", corruption="fog", options={"tent": {"steps": 1}})
    known: dict[float, cost_estimate.CostLine] = {}
    (plain,) = (cost for cost in estimate(make_plan(spec)).costs if cost.kind == "stream")
    of_image = (plain.flops or 0) / plain.forwards
    for few, sizes in ((0.0, [2, 2]), (9 * of_image, [2, 2, 8]), (33 * of_image, [2, 2, 8, 32])):
        with monkeypatch.context() as patch:
            patch.setattr(stream_probe, "_FEW_ON_CPU", few)
            counting = Counting(patch, seconds=2.0)
            said: list[str] = []
            made = estimate(make_plan(spec), said.append)
        known[few] = next(cost for cost in made.costs if cost.kind == "stream")
        assert counting.sizes == sizes, few
        assert known[few].seconds == pytest.approx(2 * 96 * 2.0)  # clean and fog
        assert said == ["measuring tent on a few images"]
    assert {cost.flops for cost in known.values()} == {plain.flops}


def test_a_cheap_method_is_measured_for_a_second_at_the_size_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small(tmp_path, method="tent", corruption="fog", limit=600, options={"tent": {"steps": 1}})
    for seconds, batches in ((1e-6, None), (0.8 / 64, 2)):
        with monkeypatch.context() as patch:
            counting = Counting(patch, seconds)
            (cost,) = (cost for cost in estimate(make_plan(spec)).costs if cost.kind == "stream")
        assert counting.sizes == [2, 2, 8, 32] + [64] * (batches or cost.forwards // 2 // 64)
        assert cost.seconds == pytest.approx(cost.forwards * seconds)


def test_batches_of_one_image_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch, seconds=0.3)
    estimate(make_plan(small(tmp_path, method="tent", corruption="fog", batch_size=1)))
    assert counting.sizes == [1] * 4


def test_images_before_the_stream_are_in_its_start_and_not_in_the_rate(tmp_path: Path) -> None:
    """EATA passes source images forward and backward once before the stream, and then differs from ETA by no pass."""
    flops_of = {}
    for name in ("eta", "eata"):
        spec = small(tmp_path, method=name, corruption="fog", options={"source": {"epochs": 1}})
        (cost,) = (cost for cost in estimate(make_plan(spec)).costs if cost.kind == "stream")
        flops_of[name] = cost.flops
    assert flops_of["eata"] == flops_of["eta"]
