"""Batch statistics: golden parity, the closed form of one layer, and the awkward models and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers.norm
import timm.layers.norm_act
import torch
from torch import Tensor, nn

from methods.adapters.bn import BatchNormStatistics
from methods.adapters.plain import Plain
from methods.base import Unsupported
from methods.norms import blend_statistics, norm_layers, norm_parameters, use_batch_statistics


def test_matches_the_official_logits(golden: Any) -> None:
    assert golden.difference(BatchNormStatistics(golden.model("test_resnet")), "test_resnet__norm") <= 1e-4


def test_source_statistics_would_fail_the_golden_comparison(golden: Any) -> None:
    assert golden.difference(Plain(golden.model("test_resnet")), "test_resnet__norm") > 1.0


def test_one_layer_is_the_closed_form() -> None:
    layer = nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
        layer.running_mean.fill_(5.0)  # type: ignore[union-attr]
    adapter = BatchNormStatistics(layer)
    adapter.prepare()
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + layer.eps).sqrt() * layer.weight.view(1, 3, 1, 1) + layer.bias.view(1, 3, 1, 1)
    torch.testing.assert_close(adapter.predict(x), expected.detach())


def test_one_value_per_channel_uses_the_source_statistics(
    make_net: Callable[[str], nn.Sequential], batches: Tensor
) -> None:
    net = make_net("bn")
    adapter = BatchNormStatistics(net)
    adapter.prepare()
    image = batches[0, :1]
    assert net[3](net[:3](image)).shape[2:] == (1, 1)
    with torch.no_grad():
        first = net[0](image)
        variance, mean = torch.var_mean(first, (0, 2, 3), correction=0)
        normal = nn.functional.batch_norm(first, mean, variance, net[1].weight, net[1].bias, False)  # type: ignore[arg-type]
        expected = net[4:](net[3](net[2](normal)))
    torch.testing.assert_close(adapter.predict(image), expected)
    adapter.predict(batches[0])
    torch.testing.assert_close(adapter.predict(image), expected)


def test_one_value_per_channel_without_source_statistics_says_what_to_do() -> None:
    adapter = BatchNormStatistics(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3, track_running_stats=False)))
    adapter.prepare()
    adapter.predict(torch.randn(2, 3, 1, 1))
    with pytest.raises(ValueError, match="at least two images"):
        adapter.predict(torch.randn(1, 3, 1, 1))


def test_a_batch_is_judged_alone(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    adapter = BatchNormStatistics(make_net("bn"))
    adapter.prepare()
    first = adapter.predict(batches[0])
    adapter.predict(batches[1] * 0.1)
    assert torch.equal(adapter.predict(batches[0]), first)


def test_source_statistics_stay_bit_for_bit(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    net = make_net("bn")
    adapter = BatchNormStatistics(net)
    adapter.prepare()
    for batch in batches:
        adapter.predict(batch)
    ours = adapter.model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in net.state_dict().items())


def test_a_model_without_batch_norm_is_refused(make_net: Callable[[str], nn.Sequential]) -> None:
    with pytest.raises(Unsupported, match="has none; choose"):
        BatchNormStatistics(make_net("gn")).prepare()


def test_fused_layers_normalise_with_the_batch_and_keep_their_dropout_off() -> None:
    fused = timm.layers.norm_act.BatchNormAct2d(4, drop_layer=nn.Dropout)
    adapter = BatchNormStatistics(fused)
    adapter.prepare()
    x = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2
    torch.testing.assert_close(adapter.predict(x), nn.functional.batch_norm(x, None, None, training=True).relu())


def test_norm_layers_are_found_by_type() -> None:
    layers: list[nn.Module] = [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        nn.LayerNorm(4),
        nn.GroupNorm(1, 4),
        nn.RMSNorm(4),
        timm.layers.norm_act.BatchNormAct2d(4),
        timm.layers.norm.LayerNorm2d(4),
        timm.layers.norm.RmsNorm(4),
        timm.layers.norm_act.GroupNormAct(4, 2),
    ]
    others: list[nn.Module] = [nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.PReLU(4)]
    model = nn.ModuleList([*layers, *others])
    assert list(norm_layers(model).values()) == layers
    expected = {f"{i}.{name}" for i, layer in enumerate(layers) for name, p in layer.named_parameters() if p.numel()}
    assert set(norm_parameters(model)) == expected


def test_shared_parameters_count_once_and_missing_ones_not_at_all() -> None:
    first, twin = nn.LayerNorm(4), nn.LayerNorm(4)
    twin.weight = first.weight
    model = nn.ModuleList([first, twin, first, nn.BatchNorm1d(4, affine=False)])
    assert list(norm_parameters(model)) == ["0.weight", "0.bias", "1.bias"]


def test_parameters_of_an_activation_inside_a_fused_layer_are_not_normalisation() -> None:
    fused = timm.layers.norm_act.BatchNormAct2d(4, act_layer=nn.PReLU)
    assert set(norm_parameters(fused)) == {"weight", "bias"}
    assert len(list(fused.parameters())) == 3


@pytest.mark.parametrize("share", [0.0, 0.3, 16 / 17, 1.0])
def test_blended_statistics_are_the_closed_form(share: float) -> None:
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean, layer.running_var = torch.tensor([1.0, -1.0]), torch.tensor([4.0, 0.25])
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert blend_statistics(layer, share) == 1
    y = layer(x)
    mean = share * torch.tensor([1.0, -1.0]) + (1 - share) * x.detach().mean((0, 2, 3))
    var = share * torch.tensor([4.0, 0.25]) + (1 - share) * x.detach().var((0, 2, 3), unbiased=True)
    scale = (var + layer.eps).rsqrt().view(1, 2, 1, 1)
    torch.testing.assert_close(y, (x - mean.view(1, 2, 1, 1)) * scale)
    # No gradient through the statistics: d sum(y) / dx is the scale alone.
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, scale.expand_as(x))
    assert torch.equal(layer.running_mean, torch.tensor([1.0, -1.0]))
    assert torch.equal(layer.running_var, torch.tensor([4.0, 0.25]))


def test_blending_survives_an_error_in_the_layer_and_a_layer_used_twice() -> None:
    layer = nn.BatchNorm1d(2).eval()
    blend_statistics(layer, 0.5)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    with pytest.raises(RuntimeError):
        layer(torch.randn(4, 3))
    assert torch.equal(layer(x), expected)
    layer(layer(x)).sum().backward()


def test_blending_needs_a_share_and_source_statistics() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        blend_statistics(nn.BatchNorm1d(2), 1.5)
    with pytest.raises(ValueError, match="track_running_stats"):
        blend_statistics(nn.BatchNorm1d(2, track_running_stats=False), 0.5)


def test_the_switch_touches_no_other_model() -> None:
    net, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval()
    use_batch_statistics(net)
    blend_statistics(nn.BatchNorm1d(2), 0.5)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) + 3
    torch.testing.assert_close(other(x), x / (1 + other.eps) ** 0.5)
    assert other.track_running_stats
