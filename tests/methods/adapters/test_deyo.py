"""DeYO: patches shuffled by loops, one step restated in float64, and what happens where no image is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as vision

from methods.adapters.deyo import Deyo, shuffle_patches
from methods.online import below_the_top

Nets = Callable[[str], nn.Sequential]


def slow_shuffle(image: Tensor, order: list[int], patches: int) -> Tensor:
    h, w = image.shape[1] // patches, image.shape[2] // patches
    out = torch.empty_like(image)
    for place, origin in enumerate(order):
        (row, column), (from_row, from_column) = divmod(place, patches), divmod(origin, patches)
        tile = image[:, from_row * h : (from_row + 1) * h, from_column * w : (from_column + 1) * w]
        out[:, row * h : (row + 1) * h, column * w : (column + 1) * w] = tile
    return out


def orders(n: int, patches: int, seed: int) -> list[list[int]]:
    draws = torch.rand(n, patches**2, generator=torch.Generator().manual_seed(seed))
    return [sorted(range(patches**2), key=row.__getitem__) for row in draws.tolist()]


@pytest.mark.parametrize(("height", "width", "patches"), [(32, 32, 4), (12, 20, 4), (8, 8, 1), (9, 9, 3)])
def test_patches_change_places_and_nothing_else(height: int, width: int, patches: int) -> None:
    images = torch.rand(5, 3, height, width, generator=torch.Generator().manual_seed(0))
    shuffled = shuffle_patches(images, patches, torch.Generator().manual_seed(4))
    for image, got, order in zip(images, shuffled, orders(5, patches, 4), strict=True):
        assert torch.equal(got, slow_shuffle(image, order, patches))


def test_sides_that_do_not_divide_are_resized_there_and_back() -> None:
    images = torch.rand(2, 3, 30, 33, generator=torch.Generator().manual_seed(0))
    shuffled = shuffle_patches(images, 4, torch.Generator().manual_seed(4))
    small = vision.resize(images, [28, 32], antialias=True)
    moved = torch.stack([slow_shuffle(image, order, 4) for image, order in zip(small, orders(2, 4, 4), strict=True)])
    torch.testing.assert_close(shuffled, vision.resize(moved, [30, 33], antialias=True))


def test_images_smaller_than_the_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="3 x 8 cannot be cut into 4 x 4"):
        shuffle_patches(torch.rand(1, 3, 3, 8), 4, torch.Generator())


@pytest.mark.parametrize("options", [{}, {"margin": 1.0, "plpd": -1.0}, {"margin": 0.7}, {"margin": 0.9, "plpd": 0.1}])
def test_one_step_restated(make_net: Nets, batches: Tensor, options: dict[str, float]) -> None:
    config = Deyo.Config(lr=0.1, **options)  # type: ignore[arg-type]
    images = batches.flatten(0, 1)[:12].double()
    net = make_net("gn").double()
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(2)
    adapter = Deyo(net, config, torch.Generator().manual_seed(3))
    adapter.prepare()
    adapter.predict(images)

    theta = below_the_top(net)
    p = net(images).softmax(1)
    h = -(p * p.log()).sum(1)
    certain = [i for i in range(12) if float(h[i].detach()) < config.margin * math.log(10)]
    terms = []
    for i, order in zip(certain, orders(len(certain), 4, 3), strict=True):
        with torch.no_grad():
            after = net(slow_shuffle(images[i], order, 4)[None]).softmax(1)[0]
            label = int(p[i].argmax())
            fall = float(p[i, label] - after[label])
        if fall > config.plpd:
            weight = math.exp(config.weight_margin * math.log(10) - float(h[i].detach())) + math.exp(fall)
            terms.append(weight * h[i])
    assert len(terms) > 1
    slopes = torch.autograd.grad(sum(terms) / len(terms), list(theta.values()))
    for ours, (name, before), slope in zip(adapter.parameters, theta.items(), slopes, strict=True):
        torch.testing.assert_close(ours.detach(), (before - 0.1 * slope).detach(), msg=name)


@pytest.mark.parametrize("options", [{"margin": 1e-9}, {"margin": 1.0, "plpd": 1.0}])
@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_where_no_image_is_left_nothing_moves(
    make_net: Nets, batches: Tensor, kind: str, options: dict[str, float]
) -> None:
    adapter = Deyo(make_net(kind), Deyo.Config(lr=0.05, margin=1.0, plpd=-1.0))
    adapter.prepare()
    adapter.predict(batches[0])
    before = adapter.state_dict()
    for name, value in options.items():
        object.__setattr__(adapter.config, name, value)
    adapter.predict(batches[1])
    after = adapter.state_dict()
    assert all(
        torch.equal(after["model"]["weights"][name], value) for name, value in before["model"]["weights"].items()
    )
    for place, state in before["optimizer"]["state"].items():
        assert torch.equal(after["optimizer"]["state"][place]["momentum_buffer"], state["momentum_buffer"])


def test_only_certain_images_are_predicted_again(make_net: Nets, batches: Tensor) -> None:
    adapter = Deyo(make_net("gn"), Deyo.Config(margin=0.6))
    adapter.prepare()
    seen: list[int] = []
    adapter.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images = batches.flatten(0, 1)
    logits = adapter.predict(images)
    p = logits.softmax(1)
    certain = int((-(p * p.log()).sum(1) < 0.6 * math.log(10)).sum())
    assert 0 < certain < 20
    assert seen == [20, certain]


@pytest.mark.parametrize(
    "wrong", [{"margin": 0.0}, {"weight_margin": 1.1}, {"plpd": math.nan}, {"patches": 0}, {"momentum": -0.1}]
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"deyo.{next(iter(wrong))} must be"):
        Deyo.Config(**wrong)
