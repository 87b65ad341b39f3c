"""NOTE: instance-aware BatchNorm against its formula written out, the memory against a slow one, the update rule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm.layers.norm_act
import torch
from torch import Tensor, nn

from methods.adapters.note import Note, instance_aware
from methods.base import Unsupported

Nets = Callable[[str], nn.Sequential]


def ready(net: nn.Module, seed: int = 3, **options: Any) -> Note:
    adapter = Note(net, Note.Config(**options), torch.Generator().manual_seed(seed))
    adapter.prepare()
    return adapter


def lived_in(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in layer.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.5 + torch.rand(channels, generator=generator))
    return layer


def slow(layer: nn.BatchNorm2d, x: Tensor, k: float, mean: Tensor, variance: Tensor) -> Tensor:
    """Image by image and channel by channel: equations 2 to 5, with variances divided by n - 1."""

    def shrink(value: float, limit: float) -> float:
        return math.copysign(max(abs(value) - limit, 0.0), value)

    out = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = x[n, c].flatten().tolist()
            m, v = float(mean[c]), float(variance[c])
            if (count := len(values)) > 1:
                own = sum(values) / count
                spread = sum((value - own) ** 2 for value in values) / (count - 1)
                v_eps = v + layer.eps
                m, v = (
                    m + shrink(own - m, k * math.sqrt(v_eps / count)),
                    max(v + shrink(spread - v, k * v_eps * math.sqrt(2 / (count - 1))), 0.0),
                )
            weight, bias = float(layer.weight[c]), float(layer.bias[c])
            out[n, c] = (x[n, c] - m) / math.sqrt(v + layer.eps) * weight + bias
    return out


def some_maps(side: int) -> Tensor:
    """Maps of which some are far from the shared statistics."""
    generator = torch.Generator().manual_seed(2)
    scale = torch.tensor([1.0, 1.0, 0.05, 3.0]).view(-1, 1, 1, 1)
    return torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64) * scale + scale - 1


@torch.no_grad()
@pytest.mark.parametrize("side", [1, 2, 6])
@pytest.mark.parametrize("k", [0.0, 1.0, 4.0])
def test_a_layer_follows_the_formula_with_running_statistics(side: int, k: float) -> None:
    layer, x = lived_in(3), some_maps(side)
    before = copy.deepcopy(layer.state_dict())
    with instance_aware(layer, k):
        made = layer(x)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    torch.testing.assert_close(made, slow(layer, x, k, layer.running_mean, layer.running_var))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert not layer._forward_pre_hooks


@torch.no_grad()
@pytest.mark.parametrize("side", [1, 6])
def test_a_layer_follows_the_formula_with_the_statistics_of_the_batch(side: int) -> None:
    layer, x = lived_in(3), some_maps(side)
    old_mean, old_variance = layer.running_mean, layer.running_var
    assert old_mean is not None
    assert old_variance is not None
    with instance_aware(layer, 1.0, 0.3):
        made = layer(x)
    channels = x.transpose(0, 1).flatten(1)
    mean, variance = channels.mean(1), channels.var(1)
    torch.testing.assert_close(made, slow(layer, x, 1.0, mean, variance))
    torch.testing.assert_close(layer.running_mean, 0.7 * old_mean + 0.3 * mean)
    torch.testing.assert_close(layer.running_var, 0.7 * old_variance + 0.3 * variance)


def test_gradients_flow_through_all_statistics() -> None:
    layer, x = lived_in(3), some_maps(3).requires_grad_()

    def run(x: Tensor) -> Tensor:
        layer.running_mean, layer.running_var = layer.running_mean.clone(), layer.running_var.clone()  # type: ignore[union-attr]
        with instance_aware(layer, 0.5, 0.0):
            out: Tensor = layer(x)
        return out

    assert torch.autograd.gradcheck(run, (x,))


def test_one_value_per_channel_keeps_the_running_statistics() -> None:
    layer, x = lived_in(3), some_maps(1)[:1]
    with instance_aware(layer, 1.0, 0.3):
        made = layer(x)
    torch.testing.assert_close(made, lived_in(3)(x))
    assert torch.equal(layer.running_mean, lived_in(3).running_mean)  # type: ignore[arg-type]


def test_fused_layers_and_vectors_are_normalised_too() -> None:
    fused, vectors = timm.layers.norm_act.BatchNormAct2d(3).eval(), nn.BatchNorm1d(3).eval()
    x = some_maps(4).float()
    with instance_aware(fused, 0.0), instance_aware(vectors, 0.0):
        own = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(fused(x), own.relu(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vectors(x[..., 0, 0]), x[..., 0, 0], rtol=1e-4, atol=1e-5)


def scripted(adapter: Note, labels: list[int]) -> list[int]:
    """Offer images that are their own number, under given labels; return the numbers that the memory holds."""
    for number, label in enumerate(labels):
        logits = nn.functional.one_hot(torch.tensor([label]), 3).float()
        adapter.remember(torch.full((1, 3, 2, 2), float(number)), logits)
    return sorted(int(image[0, 0, 0]) for image in adapter.images)


def test_the_memory_is_balanced_and_each_class_a_uniform_sample(make_net: Nets) -> None:
    """Of 40 images of class 0, then 2 of class 1: half of four images each, and each of the 40 equally often."""
    counts = torch.zeros(42)
    for seed in range(600):
        held = scripted(ready(make_net("bn"), seed, capacity=4), [0] * 40 + [1, 1])
        counts[held] += 1
    assert counts[40] == counts[41] == 600
    share = counts[:40] / 600
    # Four of 40 at first, of which two stay: 1/20, within four standard errors.
    assert float((share - 0.05).abs().max()) < 4 * math.sqrt(0.05 * 0.95 / 600)


def test_predictions_do_not_depend_on_how_the_stream_is_cut(make_net: Nets, batches: Tensor) -> None:
    images = batches.flatten(0, 1)
    options: dict[str, Any] = {"lr": 0.02, "capacity": 5, "update_every": 6, "statistics_share": 0.2}
    one, other = ready(make_net("bn"), **options), ready(make_net("bn"), **options)
    cut = torch.cat([one.predict(part) for part in torch.split(images, 4)])
    torch.testing.assert_close(other.predict(images), cut, rtol=1e-4, atol=1e-4)
    assert one.seen == 20
    assert float((cut - ready(make_net("bn"), lr=0.0, statistics_share=0.0).predict(images)).abs().max()) > 0.1


def test_only_batch_norm_is_adapted() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(10))
    net(torch.zeros(2, 3, 8, 8))
    adapter = ready(net.eval())
    assert list(adapter.chosen()) == ["1.weight", "1.bias"]


def test_models_it_cannot_work_with_are_refused(make_net: Nets) -> None:
    with pytest.raises(Unsupported, match="has none; choose"):
        ready(make_net("gn"))
    with pytest.raises(Unsupported, match="has none; choose"):
        ready(nn.Sequential(nn.BatchNorm2d(3, affine=False)))
    with pytest.raises(Unsupported, match="track_running_stats"):
        ready(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity": 0},
        {"update_every": 0},
        {"statistics_share": 1.5},
        {"temperature": 0.0},
        {"standard_errors": -1.0},
        {"standard_errors": math.inf},
    ],
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"note.{next(iter(wrong))} must be"):
        Note.Config(**wrong)
