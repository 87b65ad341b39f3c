"""What the entropy family costs as a multiple of a plain forward pass, both taken in one run."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from methods.base import Adapter, Source, SourceBatch
from methods.come import ComeTent
from methods.deyo import Deyo
from methods.eata import Eata
from methods.eta import Eta
from methods.plain import Plain
from methods.rpl import Rpl
from methods.sar import Sar
from methods.tent import Tent

pytestmark = pytest.mark.slow

IMAGES = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
PAIRS = 15
WIDE_OPEN: dict[type[Adapter], dict[str, Any]] = {
    Tent: {},
    Rpl: {},
    ComeTent: {},
    Eta: {"margin": 1.0, "epsilon": 2.0},
    Eata: {"margin": 1.0, "epsilon": 2.0, "beta": 1.0, "fisher_images": 16},
    Deyo: {"margin": 1.0, "plpd": -1.0},
    Sar: {"margin": 1.0, "reset_below": 0.0},
}
"""Options by which every image is learnt from, which is the most that a method can cost."""
LIMITS: list[tuple[str, type[Adapter], float]] = [
    ("resnet18", Tent, 2.2),
    ("resnet18", Rpl, 2.5),
    ("resnet18", ComeTent, 2.5),
    ("resnet18", Eta, 2.5),
    ("resnet18", Eata, 2.5),
    ("resnet18", Deyo, 3.5),
    ("resnet18", Sar, 4.6),
    # 1.1 times what the releases took on the same model.
    ("vit_tiny_patch16_224", Tent, 2.6),
    ("vit_tiny_patch16_224", Sar, 5.3),
]


@pytest.mark.parametrize(("architecture", "adapter", "limit"), LIMITS)
def test_costs_a_few_forwards(
    benchmark: BenchmarkFixture, architecture: str, adapter: type[Adapter], limit: float
) -> None:
    torch.set_num_threads(1)
    size: dict[str, Any] = {"img_size": 64} if architecture.startswith("vit") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(architecture, num_classes=1000, **size).eval()
    options = WIDE_OPEN[adapter]
    method, plain = adapter(model, adapter.Config(**options)), Plain(model)
    method.prepare(Source(lambda _: SourceBatch(IMAGES), 1) if adapter.access.source != "none" else None)
    plain.prepare()
    ratios = []
    for _ in range(PAIRS):
        times = []
        for one in (method, plain):
            start = perf_counter()
            one.predict(IMAGES)
            times.append(perf_counter() - start)
        ratios.append(times[0] / times[1])
    factor = float(np.median(ratios[1:]))
    benchmark.extra_info["times a plain forward"] = round(factor, 2)
    benchmark.pedantic(method.predict, (IMAGES,), rounds=2)
    assert factor <= limit
