"""BN-alpha and BN-EMA against closed forms and against a restatement that writes each layer out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers.norm_act
import torch
from torch import Tensor, nn

from methods.adapters.bn_alpha import BatchNormAlpha
from methods.adapters.bn_ema import BatchNormAverage
from methods.base import Adapter, Unsupported

Nets = Callable[[str], nn.Sequential]
Average = dict[int, tuple[Tensor, Tensor]]


def normalised(x: Tensor, mean: Tensor, variance: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    column = (slice(None), None, None)
    return (x - mean[column]) / (variance[column] + layer.eps).sqrt() * layer.weight[column] + layer.bias[column]


def layer_by_layer(
    net: nn.Sequential, x: Tensor, choose: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """The net with the mean and variance that `choose` makes of the place of a layer and the batch's own."""
    for place, layer in enumerate(net):
        if isinstance(layer, nn.BatchNorm2d):
            values = x.transpose(0, 1).flatten(1)
            mean, variance = values.mean(1), ((values - values.mean(1, keepdim=True)) ** 2).sum(1)
            x = normalised(x, *choose(place, mean, variance / values.shape[1]), layer)
        else:
            x = layer(x)
    return x


def statistics(net: nn.Sequential) -> Average:
    found: Average = {}
    for place, layer in enumerate(net):
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            found[place] = layer.running_mean.clone(), layer.running_var.clone()
    return found


# Values per channel in the two layers of the net for one image: 8 x 8 and then a single one.
VALUES = {1: 64, 4: 1}


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7, 1.0])
def test_alpha_is_the_closed_form(make_net: Nets, batches: Tensor, alpha: float) -> None:
    net = make_net("bn")
    source = statistics(net)
    adapter = BatchNormAlpha(net, BatchNormAlpha.Config(alpha))
    adapter.prepare()
    for batch in batches:

        def choose(place: int, mean: Tensor, variance: Tensor, n: int = len(batch)) -> tuple[Tensor, Tensor]:
            unbiased = variance * (n * VALUES[place]) / (n * VALUES[place] - 1)
            old_mean, old_variance = source[place]
            return (1 - alpha) * old_mean + alpha * mean, (1 - alpha) * old_variance + alpha * unbiased

        torch.testing.assert_close(adapter.predict(batch), layer_by_layer(net, batch, choose), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("momentum", [0.1, 0.6])
def test_average_is_the_restatement(make_net: Nets, batches: Tensor, momentum: float) -> None:
    net = make_net("bn")
    average = statistics(net)
    adapter = BatchNormAverage(net, BatchNormAverage.Config(momentum))
    adapter.prepare()
    for batch in [*batches, batches[0, :1], batches[1]]:

        def update(place: int, mean: Tensor, variance: Tensor, n: int = len(batch)) -> tuple[Tensor, Tensor]:
            values = n * VALUES[place]
            if values == 1:
                return average[place]
            old_mean, old_variance = average[place]
            unbiased = variance * values / (values - 1)
            average[place] = (
                (1 - momentum) * old_mean + momentum * mean,
                (1 - momentum) * old_variance + momentum * unbiased,
            )
            return mean, variance

        layer_by_layer(net, batch, update)
        expected = layer_by_layer(net, batch, lambda place, mean, variance: average[place])
        torch.testing.assert_close(adapter.predict(batch), expected, rtol=1e-4, atol=1e-4)


def test_reset_returns_to_the_source_statistics_bit_for_bit(make_net: Nets, batches: Tensor) -> None:
    net = make_net("bn")
    adapter = BatchNormAverage(net)
    adapter.prepare()
    for batch in batches:
        adapter.predict(batch)
    moved = adapter.model.state_dict()
    assert not any(torch.equal(moved[name], value) for name, value in net.state_dict().items() if "running" in name)
    adapter.reset()
    ours = adapter.model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in net.state_dict().items())


def test_an_error_in_the_first_pass_leaves_the_layers_in_eval_mode(make_net: Nets, batches: Tensor) -> None:
    adapter = BatchNormAverage(make_net("bn"))
    adapter.prepare()
    with pytest.raises(RuntimeError):
        adapter.predict(batches[0][:, :2])
    assert not any(module.training for module in adapter.model.modules())
    assert not any(module._forward_pre_hooks for module in adapter.model.modules())


def test_the_dropout_of_a_fused_layer_stays_off() -> None:
    fused = timm.layers.norm_act.BatchNormAct2d(4, drop_layer=nn.Dropout)
    adapter = BatchNormAverage(fused, BatchNormAverage.Config(1.0))
    adapter.prepare()
    x = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2
    mean, variance = x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(adapter.predict(x), nn.functional.batch_norm(x, mean, variance).relu())


@pytest.mark.parametrize("method", [BatchNormAlpha, BatchNormAverage])
def test_models_without_statistics_are_refused(method: type[Adapter], make_net: Nets) -> None:
    with pytest.raises(Unsupported, match="has none; choose"):
        method(make_net("gn")).prepare()
    with pytest.raises(Unsupported, match="track_running_stats"):
        method(nn.BatchNorm2d(3, track_running_stats=False)).prepare()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (BatchNormAlpha.Config, {"alpha": 1.5}),
        (BatchNormAverage.Config, {"momentum": 0.0}),
        (BatchNormAverage.Config, {"momentum": float("nan")}),
    ],
)
def test_options_out_of_range_are_refused(config: Any, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be in"):
        config(**options)
