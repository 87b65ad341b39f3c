"""Small models, batches and the official implementations' outputs, shared by the tests of the methods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_streams import Golden, stored_golden
from torch import Tensor, nn


@pytest.fixture(scope="session")
def golden() -> Golden:
    return stored_golden()


def bn_net(last_map_is_1x1: bool = True) -> nn.Sequential:
    stride = 8 if last_map_is_1x1 else 2
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=stride, padding=1),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def gn_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.LayerNorm(32),
        nn.Linear(32, 10),
    )


def plain_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))


_NETS: dict[str, Callable[[], nn.Sequential]] = {"bn": bn_net, "gn": gn_net, "none": plain_net}


@pytest.fixture(scope="session")
def make_net() -> Callable[[str], nn.Sequential]:
    """Nets for 32x32 images by kind of normalisation ("bn", "gn", "none"): seeded, sharp, BatchNorm lived in."""

    def make(kind: str) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            net = _NETS[kind]()
            net.train()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                for _ in range(4):
                    net(torch.rand(16, 3, 32, 32))
                last = net[-1]
                assert isinstance(last, nn.Linear)
                last.weight.mul_(4)
        return net.eval()

    return make


@pytest.fixture(scope="session")
def batches() -> Tensor:
    """Five batches of four images in [0, 1] on the grid of 8-bit values: [5, 4, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(20, 3, 6, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, size=32, mode="bicubic")
    noisy = fine + 0.05 * torch.randn(fine.shape, generator=generator)
    return noisy.clamp(0, 1).mul(255).round().div(255).view(5, 4, 3, 32, 32)
