"""SoTTA: who enters and leaves its memory, the climb, and updates without a confident image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.common.sharpness import climb, put_back
from methods.adapters.sotta import Sotta
from methods.base import Unsupported

Nets = Callable[[str], nn.Sequential]


def ready(net: nn.Module, seed: int = 3, **options: Any) -> Sotta:
    adapter = Sotta(net, Sotta.Config(**options), torch.Generator().manual_seed(seed))
    adapter.prepare()
    return adapter


def offer(adapter: Sotta, offers: list[tuple[int, float]]) -> list[int]:
    """Offer images that are their own number, with a class and its probability; return the numbers that are held."""
    for number, (label, probability) in enumerate(offers):
        p = torch.full((1, 3), (1 - probability) / 2)
        p[0, label] = probability
        adapter.remember(torch.full((1, 3, 2, 2), float(number)), p.log())
    held = adapter.labels >= 0
    return sorted(int(image[0, 0, 0]) for image in adapter.images[held])


def test_only_confident_images_enter(make_net: Nets) -> None:
    adapter = ready(make_net("bn"), capacity=4, confidence=0.8)
    assert offer(adapter, [(0, 0.7), (1, 0.81), (2, 0.79), (0, 0.9)]) == [1, 3]
    assert adapter.offered[:3].tolist() == [2, 1, 1]
    assert adapter.may_enter(0.8)  # the release refuses what is below


def test_the_last_image_always_enters_and_classes_even_out(make_net: Nets) -> None:
    newest, balanced = set(), set()
    for seed in range(40):
        held = offer(ready(make_net("bn"), seed, capacity=4, confidence=0.5), [(0, 0.9)] * 9)
        newest.add(8 in held)
        balanced.add(
            tuple(offer(ready(make_net("bn"), seed, capacity=4, confidence=0.5), [(0, 0.9)] * 6 + [(1, 0.9)] * 2)[2:])
        )
    assert newest == {True}
    assert balanced == {(6, 7)}


def test_without_a_confident_image_nothing_changes(make_net: Nets, batches: Tensor) -> None:
    net = make_net("bn")
    adapter = ready(net, confidence=1.0, update_every=4, lr=0.1)
    with torch.no_grad():
        for batch in batches:
            assert torch.equal(adapter.predict(batch), net(batch))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in adapter.model.state_dict().items())


def test_an_update_is_the_step_written_out(make_net: Nets, batches: Tensor) -> None:
    """SGD by hand: BatchNorm in training mode twice, the gradient above, from the parameters below."""
    net, twin = make_net("bn"), make_net("bn")
    options: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.3, "rho": 0.2, "temperature": 2.0}
    adapter = ready(net, capacity=4, update_every=4, confidence=0.0, statistics_share=0.3, **options)
    first = adapter.predict(batches[0])
    with torch.no_grad():
        assert torch.equal(first, twin(batches[0]))
    norm = twin[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for layer in twin:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.3
    values = [norm.weight, norm.bias]
    order = twin(batches[0]).argmax(1).argsort(stable=True)

    def slopes() -> tuple[Tensor, ...]:
        p = (twin.train()(batches[0][order]) / 2).softmax(1)
        return torch.autograd.grad(-(p * (p + 1e-6).log()).sum(1).mean(), values)

    start, uphill = [value.detach().clone() for value in values], slopes()
    steepness = math.sqrt(sum(float((slope**2).sum()) for slope in uphill))
    with torch.no_grad():
        for value, slope in zip(values, uphill, strict=True):
            value.add_(0.2 * slope / steepness)
    above = slopes()
    with torch.no_grad():
        for value, old, slope in zip(values, start, above, strict=True):
            value.copy_(old - 0.3 * slope)
        torch.testing.assert_close(adapter.predict(batches[1]), twin.eval()(batches[1]), rtol=1e-4, atol=1e-4)
    assert float((above[0] - uphill[0]).abs().max()) > 1e-3


def test_a_climb_goes_the_distance_and_back() -> None:
    one, other, still = (nn.Parameter(torch.ones(n)) for n in (2, 3, 1))
    one.grad, other.grad = torch.full((2,), 3.0), torch.full((3,), -1.0)
    before = climb([one, other, still], 0.5)
    moved = torch.cat([one - 1, other - 1, still - 1]).detach()
    torch.testing.assert_close(moved.norm(), torch.tensor(0.5))
    assert (moved[:2] > 0).all()
    assert (moved[2:5] < 0).all()
    assert moved[5] == 0
    assert one.grad is None
    put_back([one, other, still], before)
    assert all(torch.equal(value, torch.ones_like(value)) for value in (one, other, still))


def test_any_normalisation_below_the_top_is_adapted(make_net: Nets, batches: Tensor) -> None:
    adapter = ready(make_net("gn"), confidence=0.0, update_every=4, capacity=4, lr=0.05)
    net = make_net("gn")
    for batch in batches:
        adapter.predict(batch)
    assert not torch.equal(adapter.model.get_parameter("1.weight"), net.get_parameter("1.weight"))
    assert torch.equal(adapter.model.get_parameter("6.weight"), net.get_parameter("6.weight"))


def test_models_it_cannot_work_with_are_refused(make_net: Nets) -> None:
    with pytest.raises(Unsupported, match="has none; choose"):
        ready(make_net("none"))
    with pytest.raises(Unsupported, match="track_running_stats"):
        ready(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


@pytest.mark.parametrize("wrong", [{"confidence": 1.5}, {"rho": -1.0}, {"rho": math.nan}, {"capacity": 0}])
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"sotta.{next(iter(wrong))} must be"):
        Sotta.Config(**wrong)
