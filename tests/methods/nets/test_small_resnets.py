"""Small residual networks: sizes of the paper, torchvision's blocks, and costs of torch's counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from methods.nets.flops import counted
from methods.nets.small_resnets import SmallResNet
from methods.nets.weights import Classifier
from methods.norms import norm_family, norm_layers


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(network: nn.Module) -> nn.Module:
    """The network with other norms than the initial ones, which hide scale, shift and statistics."""
    with torch.no_grad():
        for number, layer in enumerate(norm_layers(network).values()):
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                if tensor.is_floating_point():
                    drawn = torch.rand(tensor.shape, generator=seeded(number))
                    tensor.copy_(drawn + 0.5 if name in ("weight", "running_var") else drawn - 0.5)
    return network


@pytest.mark.parametrize(("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")])
def test_the_networks_have_the_parameters_of_the_paper(depth: int, millions: str) -> None:
    """Table 6 of arXiv:1512.03385."""
    with torch.device("meta"):
        model = Classifier(SmallResNet(depth), 10)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{count:.{len(millions) - 2}f}" == millions


class EverySecond(nn.Module):
    """Option A: every second pixel, and zeros as further channels on both sides."""

    def forward(self, images: Tensor) -> Tensor:
        zeros = images.new_zeros(len(images), images.shape[1] // 2, *images[0, 0, ::2, ::2].shape)
        return torch.cat([zeros, images[:, :, ::2, ::2], zeros], 1)


def of_torchvision(shape: SmallResNet) -> nn.Sequential:
    norm: Any = nn.BatchNorm2d if shape.norm == "bn" else lambda channels: nn.GroupNorm(8, channels)
    width = 16 * shape.factor
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
    for out in (width, 2 * width, 4 * width):
        for number in range((shape.depth - 2) // 6):
            second = number == 0 and out > 16 * shape.factor
            shortcut = EverySecond() if second else None
            layers.append(BasicBlock(width, out, 2 if second else 1, shortcut, norm_layer=norm))
            width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [SmallResNet(20), SmallResNet(14, 2, "gn"), SmallResNet(8, norm="bn", image_size=17)])
def test_the_layers_are_torchvisions_blocks(shape: SmallResNet, training: bool) -> None:
    own = lively(shape.initial(seeded())).train(training)
    theirs = of_torchvision(shape).train(training)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), own.state_dict().values(), strict=True)))
    images = torch.randn(3, 3, shape.image_size, shape.image_size, generator=seeded(1))
    torch.testing.assert_close(own(images), theirs(images))
    assert own(images).shape == (3, shape.dim)


@pytest.mark.parametrize("shape", [SmallResNet(20), SmallResNet(8, 2, "gn", 33)])
def test_costs_are_those_of_torchs_counter(shape: SmallResNet) -> None:
    for side in (shape.image_size, shape.smaller(0.4)):
        with torch.device("meta"):
            network, images = shape.build(), torch.empty(1, 3, side, side)
        with counted() as counter:
            out = network(images)
        assert counter.get_total_flops() == shape.operations(side=side).forward
        with counted() as counter:
            out.sum().backward()
        whole = shape.operations(side=side)
        assert counter.get_total_flops() == whole.training - whole.forward == whole.frozen - whole.forward
    with pytest.raises(ValueError, match="no patches"):
        shape.operations(visible=3)


def test_first_weights_are_he_normal_and_follow_the_generator() -> None:
    shape = SmallResNet(8, 4)
    first, again, other = (shape.initial(seeded(seed)) for seed in (0, 0, 1))
    for layer, same, different in zip(first.modules(), again.modules(), other.modules(), strict=True):
        if isinstance(layer, nn.Conv2d):
            assert torch.equal(layer.weight, same.weight)
            assert not torch.equal(layer.weight, different.weight)
            fan_in = 9 * layer.in_channels
            assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


def test_group_norm_treats_images_alone() -> None:
    network = SmallResNet(8, norm="gn").initial(seeded()).train()
    images = torch.randn(4, 3, 32, 32, generator=seeded(1))
    torch.testing.assert_close(network(images)[:1], network(images[:1]))
    assert norm_family(network) == "gn"
    assert all(layer.num_groups == 8 for layer in norm_layers(network).values())


def test_what_norms_return_is_not_changed_later() -> None:
    """Methods that align activations keep what a norm returned."""
    network = SmallResNet(8).initial(seeded()).eval()
    kept: list[tuple[Tensor, Tensor]] = []
    for layer in norm_layers(network).values():
        layer.register_forward_hook(lambda module, inputs, output: kept.append((output, output.clone())))
    network(torch.randn(2, 3, 32, 32, generator=seeded(1)))
    assert len(kept) == 7
    assert all(torch.equal(output, copy) for output, copy in kept)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 18}, "6 n"),
        ({"depth": 2}, "6 n"),
        ({"factor": 0}, "factor"),
        ({"image_size": 0}, "image_size"),
        ({"norm": "ln"}, "bn or gn"),
        ({"std": (0.0, 1.0, 1.0)}, "positive"),
        ({"mean": (float("nan"), 1.0, 1.0)}, "finite"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SmallResNet(**changes)
