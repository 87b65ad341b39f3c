"""Small models, batches and the official implementations' outputs, shared by the tests of the methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from methods.base import Adapter, Source, SourceBatch

GOLDEN = Path(__file__).parents[1] / "golden"
ROUNDING = 1e-4


@dataclass(frozen=True)
class Golden:
    """The official implementations' models, input stream and logits."""

    stream: Tensor
    source: Tensor

    def model(self, architecture: str) -> nn.Module:
        # The stored position embedding is that of the default size (10 x 10 patches), resampled on the fly for 32 px.
        size: dict[str, Any] = {"dynamic_img_size": True} if architecture == "test_vit" else {}
        model: nn.Module = timm.create_model(architecture, num_classes=10, **size)
        model.load_state_dict(load_file(GOLDEN / f"{architecture}.safetensors"))
        return model

    def logits(self, run: str) -> Tensor:
        return torch.from_numpy(np.load(GOLDEN / f"{run}.npz")["logits"])

    def difference(self, adapter: Adapter, run: str, *, after_reset: bool = False) -> float:
        """The largest absolute difference between the adapter's logits along the stream and the official ones.

        With `after_reset` the stream is played, the adapter reset, and the second time counts. On one thread and with
        AVX2 kernels, as the official logits were made.
        """
        return float((self._play(adapter, self.stream, after_reset) - self.logits(run)).abs().max())

    def agrees(self, build: Callable[[], Adapter], run: str, *, after_reset: bool = False) -> bool:
        """Whether the logits of the adapter are the official ones up to rounding.

        At learning rate 0.01 a stream amplifies rounding, which differs between processors: float32 and float64 part
        by 2e-2 after six batches. An image at a threshold may fall on its other side. So where 1e-4 is exceeded, the
        pixels are changed by rounding errors: the logits agree if one such run is within 1e-3 of the official ones (of
        releases of torch they differ by 4.5e-4), or if every batch is within three times what such a change does in the
        median. The mutants in these tests are told apart by the same comparison.
        """
        ours = self._play(build(), self.stream, after_reset)
        official = self.logits(run)
        if (ours - official).abs().max() <= ROUNDING:
            return True
        noise = torch.Generator().manual_seed(0)
        half = torch.finfo(torch.float32).eps / 2
        moved = (self.stream * (1 + half * torch.randn(self.stream.shape, generator=noise)) for _ in range(9))
        runs = torch.stack([self._play(build(), stream, after_reset) for stream in moved])
        if (runs - official).abs().flatten(1).amax(1).min() <= 10 * ROUNDING:
            return True
        spread = (runs - ours).abs().amax((2, 3)).median(0).values
        return bool(((ours - official).abs().amax((1, 2)) <= (3 * spread).clamp_min(ROUNDING)).all())

    def _play(self, adapter: Adapter, stream: Tensor, after_reset: bool) -> Tensor:
        if (capability := torch.backends.cpu.get_cpu_capability()) != "AVX2":
            pytest.skip(f"golden outputs were made with AVX2 kernels, this processor runs {capability} ones")
        declared = adapter.access.source != "none"
        batches = Source(lambda number: SourceBatch(self.source[number]), len(self.source))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            adapter.prepare(batches if declared else None)
            if after_reset:
                for batch in stream:
                    adapter.predict(batch)
                adapter.reset()
            return torch.stack([adapter.predict(batch) for batch in stream])
        finally:
            torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden() -> Golden:
    stored = np.load(GOLDEN / "stream.npz")
    return Golden(torch.from_numpy(stored["target"]), torch.from_numpy(stored["source"]))


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
