"""What every adapter must do, whatever it computes: replay, resume, leave others alone, and survive awkward batches."""

from __future__ import annotations

import copy
import gc
import importlib
import io
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods import METHODS, PLAIN
from methods.base import Adapter
from methods.bn import BatchNormStatistics
from methods.memo import Memo
from methods.plain import Plain
from methods.table import Row
from methods.tent import Tent

Nets = Callable[[str], nn.Sequential]


@dataclass(frozen=True)
class Case:
    """An adapter with options that make it move visibly, on one kind of net."""

    adapter: type[Adapter]
    net: str
    config: Any = None

    def build(self, model: nn.Module, seed: int = 0) -> Adapter:
        adapter = self.adapter(model, self.config, torch.Generator().manual_seed(seed))
        adapter.prepare()
        return adapter


CASES = [
    Case(Plain, "none"),
    Case(BatchNormStatistics, "bn"),
    Case(Tent, "bn", Tent.Config(lr=0.02)),
    Case(Tent, "gn", Tent.Config(lr=0.02)),
    Case(Tent, "gn", Tent.Config(lr=0.02, optimizer="adam", steps=2)),
    Case(Memo, "bn", Memo.Config(lr=0.05, views=4, crop="padded")),
    Case(Memo, "gn", Memo.Config(lr=0.05, views=4, crop="padded")),
    Case(Memo, "none", Memo.Config(lr=0.01, views=4, optimizer="adamw")),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.adapter.__name__}-{case.net}")
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


def play(adapter: Adapter, batches: Iterable[Tensor]) -> Tensor:
    return torch.stack([adapter.predict(batch) for batch in batches])


def test_gives_one_finite_row_of_logits_for_each_image(case: Case, make_net: Nets, batches: Tensor) -> None:
    before = batches.clone()
    logits = play(case.build(make_net(case.net)), batches)
    assert logits.shape == (5, 4, 10)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert torch.isfinite(logits).all()
    assert torch.equal(batches, before)


def test_does_something(case: Case, make_net: Nets, batches: Tensor) -> None:
    net = make_net(case.net)
    with torch.no_grad():
        plain = torch.stack([net(batch) for batch in batches])
    difference = float((play(case.build(net), batches) - plain).abs().max())
    assert (difference == 0.0) if case.adapter is Plain else (difference > 1e-2)


def test_reset_replays_bit_for_bit(case: Case, make_net: Nets, batches: Tensor) -> None:
    adapter = case.build(make_net(case.net))
    first = play(adapter, batches)
    for _ in range(2):
        adapter.reset()
        assert torch.equal(play(adapter, batches), first)


def test_reset_after_an_error_in_the_model_replays(case: Case, make_net: Nets, batches: Tensor) -> None:
    class Tripping(nn.Sequential):
        trip = False

        def forward(self, input: Tensor) -> Tensor:
            logits: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
            if self.trip:
                raise ArithmeticError
            return logits

    adapter = case.build(Tripping(*make_net(case.net)))
    first = play(adapter, batches)
    assert isinstance(adapter.model, Tripping)
    adapter.model.trip = True
    with pytest.raises(ArithmeticError):
        adapter.predict(batches[0])
    adapter.model.trip = False
    adapter.reset()
    assert torch.equal(play(adapter, batches), first)


def test_another_process_would_resume_bit_for_bit(case: Case, make_net: Nets, batches: Tensor) -> None:
    adapter = case.build(make_net(case.net))
    play(adapter, batches[:2])
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    expected = play(adapter, batches[2:])
    file.seek(0)
    other = case.build(make_net(case.net), seed=99)
    play(other, batches[3:])
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(play(other, batches[2:]), expected)


def test_the_callers_model_is_untouched(case: Case, make_net: Nets, batches: Tensor) -> None:
    net = make_net(case.net).train()
    for i, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = copy.deepcopy(net.state_dict())
    flags = [parameter.requires_grad for parameter in net.parameters()]
    adapter = case.build(net)
    play(adapter, batches)
    adapter.reset()
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(getattr(module, "track_running_stats", True) for module in net.modules())


def test_the_callers_train_or_eval_does_not_matter(case: Case, make_net: Nets, batches: Tensor) -> None:
    net = make_net(case.net).train()
    adapter = case.build(net)
    rows = []
    for i, batch in enumerate(batches):
        net.train(i % 2 == 0)
        rows.append(adapter.predict(batch))
    assert torch.equal(torch.stack(rows), play(case.build(make_net(case.net)), batches))


def test_two_runs_agree_and_only_the_generator_decides(case: Case, make_net: Nets, batches: Tensor) -> None:
    first = play(case.build(make_net(case.net), seed=1), batches)
    torch.manual_seed(123)
    assert torch.equal(play(case.build(make_net(case.net), seed=1), batches), first)
    other = play(case.build(make_net(case.net), seed=2), batches)
    assert torch.equal(other, first) == (case.adapter is not Memo)


def test_uses_no_global_random_numbers(case: Case, make_net: Nets, batches: Tensor) -> None:
    adapter = case.build(make_net(case.net))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index,union-attr]  # noqa: NPY002
    play(adapter, batches)
    adapter.reset()
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index,union-attr]  # noqa: NPY002
    assert torch.equal(after[0], before[0])
    assert after[1:] == before[1:]


def test_an_outer_no_grad_changes_nothing(case: Case, make_net: Nets, batches: Tensor) -> None:
    expected = play(case.build(make_net(case.net)), batches)
    with torch.no_grad():
        adapter = case.build(make_net(case.net))
        assert torch.equal(play(adapter, batches), expected)
        assert not torch.is_grad_enabled()


def test_inference_mode_works_or_is_refused_in_words(case: Case, make_net: Nets, batches: Tensor) -> None:
    adapter = case.build(make_net(case.net))
    with torch.inference_mode():
        if case.adapter.access.backprop == "none":
            assert torch.isfinite(adapter.predict(batches[0])).all()
        else:
            with pytest.raises(RuntimeError, match=r"inference_mode\(\) forbids"):
                adapter.predict(batches[0])


def test_batches_of_one_are_answered(case: Case, make_net: Nets, batches: Tensor) -> None:
    adapter = case.build(make_net(case.net))
    for batch in (batches[0], batches[1, :1], batches[2, :1], batches[3, :3]):
        logits = adapter.predict(batch)
        assert logits.shape == (len(batch), 10)
        assert torch.isfinite(logits).all()


def test_huge_logits_stay_finite(case: Case, make_net: Nets, batches: Tensor) -> None:
    net = make_net(case.net)
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.zero_()
        last.weight.mul_(1e4 / net(batches[0]).abs().max())
        assert float(net(batches[0]).abs().max()) > 9e3
    adapter = case.build(net)
    assert torch.isfinite(play(adapter, batches)).all()
    assert all(torch.isfinite(value).all() for value in adapter.model.state_dict().values())


def test_identical_and_constant_images_stay_finite(case: Case, make_net: Nets, batches: Tensor) -> None:
    adapter = case.build(make_net(case.net))
    same = batches[0, :1].expand(6, -1, -1, -1)
    for batch in (same, torch.zeros_like(same), torch.ones_like(same), batches[1]):
        assert torch.isfinite(adapter.predict(batch)).all()


def test_half_precision_by_autocast_stays_near(case: Case, make_net: Nets, batches: Tensor) -> None:
    exact = case.build(make_net(case.net)).predict(batches[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = case.build(make_net(case.net)).predict(batches[0])
    assert torch.isfinite(rough).all()
    assert float((rough.float() - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_a_long_stream_does_not_grow(case: Case, make_net: Nets, batches: Tensor) -> None:
    adapter = case.build(make_net(case.net))

    def held() -> tuple[int, int]:
        file = io.BytesIO()
        torch.save(adapter.state_dict(), file)
        gc.collect()
        return len(file.getvalue()), sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    play(adapter, batches[:2, :2])
    size, tensors = held()
    for _ in range(4):
        play(adapter, batches[:, :2])
    later_size, later_tensors = held()
    # A counter may take a digit more.
    assert later_size <= size + 64
    assert later_tensors <= tensors + 2


ROWS = [PLAIN, *(METHODS[name] for name in ("bn", "tent", "memo"))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_row_in_the_table_is_true(row: Row) -> None:
    module, _, name = row.path.partition(":")
    adapter = getattr(importlib.import_module(module), name)
    assert issubclass(adapter, Adapter)
    assert adapter.access == row.access
    documented = adapter.Config.__doc__
    assert all(f"{field.name}:" in documented for field in fields(adapter.Config))
