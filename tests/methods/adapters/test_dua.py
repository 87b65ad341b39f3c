"""DUA: its views against torchvision's operations one by one, its momentum against the closed form, its statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as vision

from methods.adapters.dua import Dua
from methods.base import Unsupported

Nets = Callable[[str], nn.Sequential]


def ready(net: nn.Module, seed: int = 3, **options: Any) -> Dua:
    adapter = Dua(net, Dua.Config(**options), torch.Generator().manual_seed(seed))
    adapter.prepare()
    return adapter


def one_by_one(image: Tensor, seed: int, views: int, padding: int, flip: bool, rotate: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    top, left = torch.randint(2 * padding + 1, (2, views), generator=generator).tolist()
    mirrored = (torch.rand(views, generator=generator) < 0.5).tolist()
    turns = torch.randint(4, (views,), generator=generator).tolist()
    made = []
    for view in range(views):
        x = vision.crop(vision.pad(image, padding), top[view], left[view], *image.shape[1:])
        x = vision.hflip(x) if flip and mirrored[view] else x
        made.append(vision.rotate(x, 90 * turns[view]) if rotate else x)
    return torch.stack(made)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
def test_views_are_those_of_torchvision(
    make_net: Nets, batches: Tensor, flip: bool, rotate: bool, padding: int
) -> None:
    made = ready(make_net("bn"), views=24, padding=padding, flip=flip, rotate=rotate).augmented(batches[0, 0])
    assert torch.equal(made, one_by_one(batches[0, 0], 3, 24, padding, flip, rotate))


def test_images_that_are_not_square_are_not_turned(make_net: Nets) -> None:
    images = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"32 x 24 pixels do not allow; use dua\.rotate=false"):
        ready(make_net("bn")).predict(images)
    adapter = ready(make_net("bn"), views=5, rotate=False)
    assert torch.equal(adapter.augmented(images[0]), one_by_one(images[0], 3, 5, 4, True, False))
    assert torch.isfinite(ready(make_net("bn"), views=5, rotate=False).predict(images)).all()


def layers(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_statistics_follow_the_views_by_a_decaying_momentum(make_net: Nets, batches: Tensor) -> None:
    net = make_net("bn")
    adapter = ready(net, images=6, views=8, momentum=0.4, decay=0.8, minimum=0.1)
    generator = torch.Generator().manual_seed(3)
    first = layers(net)[0]
    assert first.running_mean is not None
    assert first.running_var is not None
    mean, variance = first.running_mean.clone(), first.running_var.clone()
    for number, image in enumerate(batches.flatten(0, 1)[:8]):
        adapter.predict(image[None])
        if number < 6:
            seed = generator.get_state()
            views = one_by_one_from(image, generator, seed)
            maps = net[0](views).transpose(0, 1).flatten(1)
            share = 0.4 * 0.8 ** (number + 1) + 0.1
            mean, variance = mean + share * (maps.mean(1) - mean), variance + share * (maps.var(1) - variance)
        ours = layers(adapter.model)[0]
        torch.testing.assert_close(ours.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.running_var, variance, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def one_by_one_from(image: Tensor, generator: torch.Generator, state: Tensor) -> Tensor:
    twin = ready(nn.Sequential(nn.BatchNorm2d(3)), views=8)
    twin.draws.set_state(state)
    views = twin.augmented(image)
    generator.set_state(twin.draws.get_state())
    return views


def test_statistics_do_not_depend_on_how_the_stream_is_cut(make_net: Nets, batches: Tensor) -> None:
    images = batches.flatten(0, 1)
    one, other = (ready(make_net("bn"), images=10, views=4) for _ in range(2))
    for part in torch.split(images, 3):
        one.predict(part)
    other.predict(images)
    assert one.seen == other.seen == 10
    for a, b in zip(layers(one.model), layers(other.model), strict=True):
        assert torch.equal(a.running_mean, b.running_mean)  # type: ignore[arg-type]


def test_all_images_count_with_a_limit_of_zero(make_net: Nets, batches: Tensor) -> None:
    adapter = ready(make_net("bn"), images=0, views=2)
    for batch in batches:
        adapter.predict(batch)
    assert adapter.seen == 20


def test_a_layer_with_one_value_per_channel_keeps_its_averages(make_net: Nets, batches: Tensor) -> None:
    net = make_net("bn")
    adapter = ready(net, views=1)
    adapter.predict(batches[0])
    first, last = layers(adapter.model)
    assert not torch.equal(first.running_mean, layers(net)[0].running_mean)  # type: ignore[arg-type]
    assert torch.equal(last.running_mean, layers(net)[1].running_mean)  # type: ignore[arg-type]


def test_models_it_cannot_work_with_are_refused(make_net: Nets) -> None:
    with pytest.raises(Unsupported, match="has none; choose"):
        ready(make_net("gn"))
    with pytest.raises(Unsupported, match="track_running_stats"):
        ready(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": -1},
        {"momentum": 1.5},
        {"decay": -0.1},
        {"minimum": 0.95},
        {"minimum": -0.1},
        {"views": 0},
        {"padding": -1},
    ],
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"dua.{next(iter(wrong))} must be"):
        Dua.Config(**wrong)
