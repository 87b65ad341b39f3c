"""Methods cannot cheat in the tested ways; passes and memory are measured, not self-reported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.conditions import CLEAN, Condition
from bench.evaluation.evaluate import evaluate
from bench.evaluation.pass_counter import Passes, forget_peak, peak_memory_mb
from bench.evaluation.protocols import parse_protocol, plan_stream
from bench.evaluation.stream import BatchStream, StreamError
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.runs.run import Outcome
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift
from methods.base import Adapter
from tests.bench.conftest import FAST

Quick = Callable[..., Outcome]
DIGITS = load_shift("digits-c")
IDS = DIGITS.ids("test")[:7]
FOG = Condition("fog", 3)

HEAD = """
import torch
from methods.base import Adapter
from methods.table import Access

class Cheat(Adapter):
    '''Tries what it must not do.'''
    access = Access(test="stream", state="online"{more})
    def configure(self, source):
        {configure}
    def predict(self, images):
        {predict}
        return self.model(images)
"""


def stream(size: int = 3) -> BatchStream:
    segment = plan_stream(parse_protocol("reset_each_shift"), (FOG,), IDS, DIGITS.labels(IDS), 0)[0]
    return BatchStream(DIGITS, segment, size, "cpu")


def test_a_batch_comes_only_after_the_last_was_answered() -> None:
    flow = stream()
    first = flow.ask()
    assert first.shape == (3, 3, 32, 32)
    with pytest.raises(StreamError, match="not answered yet"):
        flow.ask()
    assert flow.answered().tolist() == [0, 1, 2]
    with pytest.raises(StreamError, match="answered twice"):
        flow.answered()
    second = flow.ask()
    assert not torch.equal(first, second)
    assert not flow.ended


def test_no_batch_comes_twice_and_the_end_is_the_end() -> None:
    flow = stream()
    rows = []
    while not flow.ended:
        flow.ask()
        rows += flow.answered().tolist()
    assert rows == list(range(7))
    with pytest.raises(StreamError, match="no batch comes twice"):
        flow.ask()


def test_later_pixels_do_not_exist_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = type(DIGITS).images

    def images(self: Any, ids: np.ndarray, condition: Condition, device: str) -> Tensor:
        made.extend(ids.tolist())
        return real(self, ids, condition, device)  # type: ignore[arg-type]

    monkeypatch.setattr(type(DIGITS), "images", images)
    flow = stream()
    assert made == []
    flow.ask()
    assert len(made) == 3


def test_what_a_stream_holds_does_not_grow() -> None:
    flow = stream(1)
    held = vars(flow).keys()
    for _ in IDS:
        flow.ask()
        assert not any(isinstance(value, Tensor) for value in vars(flow).values())
        flow.answered()
    assert vars(flow).keys() == held


@pytest.mark.parametrize(
    ("configure", "predict", "sentence"),
    [
        ("pass", "self.prepare()", "prepare() was called before"),
        ("pass", "super().prepare(None)", "prepare() was called before"),
        ("assert source is None", "images.labels", "has no attribute 'labels'"),
        ("pass", "next(images)", "not an iterator"),
        ("source[0]", "pass", "not subscriptable"),
    ],
)
def test_cheats_fail(
    configure: str, predict: str, sentence: str, settings: dict[str, Any], tmp_path: Path, run_quick: Quick
) -> None:
    plugin = tmp_path / "cheat.py"
    plugin.write_text(HEAD.format(configure=configure, predict=predict, more=""))
    outcome = run_quick(settings, method=f"source,{plugin}:Cheat")
    assert (outcome.done, outcome.failed) == (3, 3)
    assert all(sentence in error for error in outcome.errors)


def test_labels_of_the_source_come_only_to_who_declared_them(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick
) -> None:
    plugin = tmp_path / "cheat.py"
    for access, labelled in (("unlabelled", False), ("statistics", False), ("labelled", True)):
        check = f"assert all((batch.labels is not None) is {labelled} for batch in source)"
        plugin.write_text(HEAD.format(configure=check, predict="pass", more=f', source="{access}"'))
        assert run_quick(settings, method=f"{plugin}:Cheat", out=tmp_path / access).exit_code == 0


def test_source_batches_are_clean_train_images(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    plugin = tmp_path / "keep.py"
    check = f"torch.save([batch.images for batch in source], {str(tmp_path / 'seen.pt')!r})"
    plugin.write_text(HEAD.format(configure=check, predict="pass", more=', source="unlabelled"'))
    assert run_quick(settings, method=f"{plugin}:Cheat", corruption="fog").exit_code == 0
    seen = torch.cat(torch.load(tmp_path / "seen.pt", weights_only=True)).mul(255).round().to(torch.uint8)
    train = DIGITS.images(DIGITS.ids("train"), CLEAN)
    assert len(seen) == len(train)
    assert {image.numpy().tobytes() for image in seen} == {image.numpy().tobytes() for image in train}


class Twins(Adapter):
    """A student, a teacher in a dict, and features taken by hand."""

    def configure(self, source: Any) -> None:
        self.teachers = {"first": [copy.deepcopy(self.model)]}

    def predict(self, images: Tensor) -> Tensor:
        self.teachers["first"][0](images)
        features = self.model[0](images)
        assert isinstance(features, Tensor)
        parameters = dict(self.model.named_parameters())
        torch.func.functional_call(self.model, parameters, (images,))
        weight = self.model[0].weight
        assert isinstance(weight, nn.Parameter)
        weight.requires_grad_(True)
        with torch.enable_grad():
            logits: Tensor = self.model(images)
            logits.sum().backward()  # type: ignore[no-untyped-call]
        return logits.detach()


def test_passes_of_teachers_parts_and_functional_calls_count() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    twins = Twins(net)
    twins.prepare()
    passes = Passes()
    passes.watch(vars(twins))
    twins.predict(torch.rand(5, 3, 8, 8))
    assert (passes.forwards, passes.backwards) == (4 * 5, 5)
    twins.reset()
    copied = copy.deepcopy(twins.model)
    copied(torch.rand(2, 3, 8, 8))
    assert passes.forwards == 4 * 5 + 2
    with pytest.raises(RuntimeError):
        twins.model(torch.rand(5, 3, 9, 9))
    before = passes.forwards
    twins.model(torch.rand(3, 3, 8, 8))
    assert passes.forwards == before + 3  # an error inside leaves the nesting count correct


def test_a_loss_of_inner_activations_goes_backward_once() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 2)
    )
    passes, inner = Passes(), list[Tensor]()
    passes.watch(net)
    net[1].register_forward_hook(lambda layer, inputs, output: inner.append(output.clone()))
    logits = net(torch.rand(5, 3, 8, 8))
    assert (passes.forwards, passes.backwards) == (5, 0)
    (inner[0].sum() + logits.sum()).backward()
    assert passes.backwards == 5
    net(torch.rand(3, 3, 8, 8))
    inner[1].sum().backward()
    assert (passes.forwards, passes.backwards) == (8, 8)
    net[:2].requires_grad_(False)
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    assert (passes.forwards, passes.backwards) == (10, 10)


def test_a_module_that_returns_a_parameter_counts_one_pass_at_a_time() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.rand(3, 8, 8))

        def forward(self) -> Tensor:
            return self.values

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.head = Positions(), nn.Linear(8, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head((images + self.positions()).mean((1, 2)))
            return logits

    net, passes = Net(), Passes()
    passes.watch(net)
    for number in (1, 2, 3):
        net(torch.rand(2, 3, 8, 8)).sum().backward()
        assert passes.backwards == 2 * number


def test_a_peak_of_memory_is_seen_and_forgotten() -> None:
    before = peak_memory_mb("cpu")
    assert before is not None
    block = torch.ones(64, 2**20, dtype=torch.float32)
    high = peak_memory_mb("cpu")
    del block
    assert high is not None
    assert high > 64 * 4 * 0.9
    forget_peak("cpu")
    after = peak_memory_mb("cpu")
    assert after is not None
    assert after <= high


def test_forgetting_is_measured_after_streams_of_several_conditions(settings: dict[str, Any], run_quick: Quick) -> None:
    options = {"method": "source,tent", "limit": 30}
    continual = run_quick(settings, **options, protocol="continual").records()
    alone = run_quick(settings, **options).records()
    assert all(r.diagnostics is not None and r.diagnostics.clean_accuracy_after is None for r in alone)
    after = {(r.method, r.corruption): r.diagnostics.clean_accuracy_after for r in continual if r.diagnostics}
    clean = {r.method: r.metrics.accuracy for r in continual if r.clean and r.metrics}
    # The plain adapter forgets nothing; only the last condition of a chain has the number.
    assert after["source", "contrast"] == clean["source"]
    assert after["tent", "contrast"] is not None
    assert [after[m, c] for m in ("source", "tent") for c in ("fog", None)] == [None] * 4
    mixed = run_quick(settings, **options, protocol="mixed_domains").records()
    assert all((r.diagnostics.clean_accuracy_after is None) == r.clean for r in mixed if r.diagnostics)


def test_measuring_what_was_forgotten_changes_no_prediction(settings: dict[str, Any], run_quick: Quick) -> None:
    options = {"method": "tent", "protocol": "continual"}
    run_quick(settings, **options)
    spec = make_spec({**settings, **options, "rerun": True}, {"set": {"source": FAST["source"], "tent": FAST["tent"]}})
    streams = [task.arguments[0] for task, *_ in missing_streams(make_plan(spec))]
    (job,) = (stream for stream in streams if stream.clean is not None)
    measured, alone = evaluate(job), evaluate(replace(job, clean=None))
    assert measured[-1].clean_accuracy_after is not None
    for one, other in zip(measured, alone, strict=True):
        assert other.clean_accuracy_after is None
        assert (one.forwards, one.backwards) == (other.forwards, other.backwards)
        assert one.predictions.p_label.tolist() == other.predictions.p_label.tolist()
