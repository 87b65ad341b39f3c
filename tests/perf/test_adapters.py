"""What adapting costs, as ratios taken in one run; absolute times are for reading, never for passing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.stats import binom
from torch import nn

from bench.predict import Evaluation, evaluate
from bench.protocols import parse_protocol, plan_stream
from bench.registry import load_object
from bench.shifts import load_shift
from bench.shifts.reading import Reading
from bench.trial import CLEAN
from methods import METHODS
from methods.base import Adapter, Source, SourceBatch
from methods.memo import Memo
from methods.plain import Plain
from methods.stock import Architecture, Classifier

pytestmark = pytest.mark.slow

IMAGES = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16)
OPEN = {"margin": 1.0, "epsilon": 2.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "eta": OPEN,
    "rdumb": OPEN,
    "eata": {**OPEN, "beta": 1.0, "fisher_images": 16},
    "come_eata": {**OPEN, "beta": 1.0, "fisher_images": 16},
    "deyo": {"margin": 1.0, "plpd": -1.0},
    "sar": {"margin": 1.0, "reset_below": 0.0},
    "come_sar": {"margin": 1.0, "reset_below": 0.0},
    "cotta": {"threshold": 1e-9},
    "rotta": {"capacity": 16, "update_every": 16},
    "rmt": {"warm_up_images": 0},
    "adacontrast": {"queue": 4096, "bank_start": 16},
    "foa": {"population": 27},
}
"""Options by which a batch costs the most it can: every image is learnt from, every batch leads to an update."""

# Seconds a batch over those of a plain forward pass: what each method may cost at most on a ResNet-18 with BatchNorm,
# of 64-pixel images in batches of 16, and on a small transformer 1.1 times what the authors' releases took there.
LIMITS: list[tuple[str, str, float]] = [
    *(
        ("resnet18", name, limit)
        for name, limit in {
            "bn": 1.4,
            "bn_alpha": 2.0,
            "bn_ema": 2.6,
            "lame": 1.3,
            "t3a": 1.3,
            "shot_im": 6.0,
            "tent": 2.2,
            "eta": 2.5,
            "eata": 2.5,
            "rdumb": 2.5,
            "rpl": 2.5,
            "come_tent": 2.5,
            "come_eata": 2.6,
            "sar": 4.6,
            "come_sar": 4.8,
            "deyo": 3.5,
            "cotta": 9.0,
            "rotta": 7.0,
            "roid": 3.6,
            "cmf": 4.7,
            "santa": 7.0,
            "adacontrast": 12.0,
            "rmt": 16.0,
        }.items()
    ),
    ("vit_tiny_patch16_224", "tent", 2.6),
    ("vit_tiny_patch16_224", "sar", 5.3),
    ("vit_tiny_patch16_224", "foa", 34.0),
]


def ready(adapter: Adapter) -> Adapter:
    adapter.prepare(_source(adapter.access.source))
    return adapter


def _source(declared: str) -> Source | None:
    if declared == "none":
        return None
    labels = LABELS if declared == "labelled" else None
    return Source(lambda number: SourceBatch(IMAGES, labels), 1)


def seconds(action: Callable[[], Any]) -> float:
    """Processor time, since everything here computes on one thread and the machine may have other work."""
    start = process_time()
    action()
    return process_time() - start


def ratios(one: Callable[[], Any], other: Callable[[], Any], pairs: int) -> np.ndarray:
    """Seconds of `one` over those of `other`, pair by pair, the two taking turns; the first pair warms up."""
    found = [seconds(one) / seconds(other) for _ in range(pairs + 1)]
    return np.array(found[1:])


def test_every_method_is_in_the_table() -> None:
    adapters = {name for name, row in METHODS.items() if row.kind == "adapter"}
    # MEMO's cost is in views an image, below.
    assert {name for _, name, _ in LIMITS} | {"memo"} == adapters


@pytest.mark.parametrize(("architecture", "name", "limit"), LIMITS)
def test_a_batch_costs_a_few_forwards(benchmark: BenchmarkFixture, architecture: str, name: str, limit: float) -> None:
    torch.set_num_threads(1)
    size: dict[str, Any] = {"img_size": 64} if architecture.startswith("vit") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(architecture, num_classes=1000, **size).eval()
    cls: type[Adapter] = load_object(METHODS[name].path)
    method, plain = ready(cls(model, cls.Config(**OPTIONS.get(name, {})))), ready(Plain(model))
    pairs = 15 if limit < 10 else 7
    factor = float(np.median(ratios(lambda: method.predict(IMAGES), lambda: plain.predict(IMAGES), pairs)))
    benchmark.extra_info["times a plain forward"] = round(factor, 2)
    benchmark.pedantic(method.predict, (IMAGES,), rounds=2)
    assert factor <= limit


def test_memo_adapts_to_a_batch_faster_together_than_one_by_one(benchmark: BenchmarkFixture) -> None:
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier(Architecture(), 10).eval()
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    config = Memo.Config(views=8, crop="padded", flip=False)
    together, alone = Memo(model, config), Memo(model, config)
    for adapter in (together, alone):
        adapter.prepare()
    alone.together = False
    factor = float(np.median(ratios(lambda: alone.predict(images), lambda: together.predict(images), 3)))
    benchmark.extra_info["one by one / together"] = round(factor, 2)
    benchmark.pedantic(together.predict, (images,), rounds=2)
    assert factor > 1.1


FACTORY = """
import timm, torch

def build():
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=10)
    return torch.nn.Sequential(torch.nn.Upsample(size=64), net).eval()
"""


def test_a_run_takes_hardly_longer_than_a_bare_loop(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """A ResNet-18 at 64 pixels that only predicts, which is where everything around it weighs the most."""
    torch.set_num_threads(1)
    (tmp_path / "net.py").write_text(FACTORY)
    model = f"{tmp_path / 'net.py'}:build"
    shift = load_shift("digits-c")
    ids = shift.ids("test")[:192]
    segments = tuple(plan_stream(parse_protocol("reset_each_shift"), (CLEAN,), ids, shift.labels(ids), 0))
    job = Evaluation(
        method="plain",
        shift="digits-c",
        reading=Reading(),
        weights=None,
        model=model,
        adapter="methods.plain:Plain",
        config=None,
        seed=0,
        segments=segments,
        clean=None,
        batch_size=64,
        precision="fp32",
        device="cpu",
    )
    batches = torch.split(shift.images(segments[0].ids, CLEAN), 64)
    net = load_object(model)()

    def bare() -> None:
        adapter = Plain(net)
        adapter.prepare()
        for batch in batches:
            adapter.predict(batch.float() / 255)

    found = np.sort(ratios(lambda: evaluate(job), bare, 31))
    # The 97.5 % bound of a median from the order of values alone, whatever their distribution.
    upper = float(found[int(binom.ppf(0.975, len(found), 0.5))])
    benchmark.extra_info["median of a run / bare loop"] = round(float(np.median(found)), 3)
    benchmark.extra_info["upper bound"] = round(upper, 3)
    benchmark.pedantic(evaluate, (job,), rounds=1)
    assert upper <= 1.05
