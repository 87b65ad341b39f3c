"""What adapting costs, as ratios taken in one run; absolute times are for reading, never for passing."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from methods.base import Adapter
from methods.memo import Memo
from methods.plain import Plain
from methods.stock import Architecture, Classifier
from methods.tent import Tent

pytestmark = pytest.mark.slow
IMAGES = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def ready(adapter: Adapter) -> Adapter:
    adapter.prepare()
    return adapter


@pytest.fixture
def model() -> Classifier:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Classifier(Architecture(), 10).eval()


def ratios(one: Adapter, other: Adapter, pairs: int) -> np.ndarray:
    """Seconds of `one` over those of `other` for the same batch, pair by pair, the two taking turns."""
    found = []
    for _ in range(pairs + 1):
        times = []
        for adapter in (one, other):
            start = perf_counter()
            adapter.predict(IMAGES)
            times.append(perf_counter() - start)
        found.append(times[0] / times[1])
    return np.array(found[1:])


def test_tent_costs_a_few_forwards(model: Classifier, benchmark: BenchmarkFixture) -> None:
    tent, plain = ready(Tent(model)), ready(Plain(model))
    factor = float(np.median(ratios(tent, plain, 15)))
    benchmark.extra_info["times a plain forward"] = round(factor, 2)
    benchmark(tent.predict, IMAGES)
    assert factor < 6


def test_memo_adapts_to_a_batch_faster_together_than_one_by_one(model: Classifier, benchmark: BenchmarkFixture) -> None:
    config = Memo.Config(views=8, crop="padded", flip=False)
    together, alone = ready(Memo(model, config)), ready(Memo(model, config))
    alone.together = False  # type: ignore[attr-defined]
    factor = float(np.median(ratios(alone, together, 3)))
    benchmark.extra_info["one by one / together"] = round(factor, 2)
    benchmark.pedantic(together.predict, (IMAGES,), rounds=2)
    assert factor > 1.1
