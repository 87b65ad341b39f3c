"""The models, the input streams and the outputs of the authors' releases, and what it means to agree with them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
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
        return float((play(adapter, self.stream, self.source, after_reset) - self.logits(run)).abs().max())

    def agrees(self, build: Callable[[], Adapter], run: str, *, after_reset: bool = False) -> bool:
        """Whether the logits of the adapter are the official ones up to rounding (see `agree`)."""
        return agree(
            lambda stream: play(build(), stream, self.source, after_reset), self.stream, self.logits(run), ROUNDING
        )


@cache
def stored_golden() -> Golden:
    stored = np.load(GOLDEN / "stream.npz")
    return Golden(torch.from_numpy(stored["target"]), torch.from_numpy(stored["source"]))


def agree(run: Callable[[Tensor], Tensor], stream: Tensor, official: Tensor, tolerance: float) -> bool:
    """Whether a run on a stream gives the official logits up to rounding.

    At learning rate 0.01 a stream amplifies rounding, which differs between processors: float32 and float64 part by
    2e-2 after six batches. An image at a threshold may fall on its other side. So where the tolerance is exceeded, the
    pixels are changed by rounding errors: the logits agree if one such run is within 1e-3 of the official ones (of
    releases of torch they differ by 4.5e-4), or if every batch is within three times what such a change does in the
    median. Tests of mutants use the same comparison, and it must reject each mutant.
    """
    ours = run(stream)
    if (ours - official).abs().max() <= tolerance:
        return True
    if stream.dtype == torch.float64:
        return False  # so fine a rounding does not show, however much a stream amplifies it
    noise = torch.Generator().manual_seed(0)
    half = torch.finfo(torch.float32).eps / 2
    moved = (stream * (1 + half * torch.randn(stream.shape, generator=noise)) for _ in range(9))
    runs = torch.stack([run(each) for each in moved])
    if (runs - official).abs().flatten(1).amax(1).min() <= 10 * ROUNDING:
        return True
    spread = (runs - ours).abs().amax((2, 3)).median(0).values
    return bool(((ours - official).abs().amax((1, 2)) <= (3 * spread).clamp_min(tolerance)).all())


def play(
    adapter: Adapter, stream: Tensor, source: Tensor, after_reset: bool = False, resets: Collection[int] = ()
) -> Tensor:
    """The logits of an adapter along a stream, [batches, n, classes], on one thread and with AVX2 kernels.

    It is reset before the batches whose places are in `resets`.
    """
    if (capability := torch.backends.cpu.get_cpu_capability()) != "AVX2":
        pytest.skip(f"golden outputs were made with AVX2 kernels, this processor runs {capability} ones")
    declared = adapter.access.source != "none"
    batches = Source(lambda number: SourceBatch(source[number]), len(source))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        adapter.prepare(batches if declared else None)
        if after_reset:
            for batch in stream:
                adapter.predict(batch)
            adapter.reset()
        logits = []
        for place, batch in enumerate(stream):
            if place in resets:
                adapter.reset()
            logits.append(adapter.predict(batch))
        return torch.stack(logits)
    finally:
        torch.set_num_threads(threads)
