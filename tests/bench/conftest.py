"""A cache of its own for every test, and a stock small enough to train in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.evaluation.prediction_cache import PredictionCache
from bench.models.weights_io import save_weights
from bench.runs.run import Outcome, run
from bench.settings.run_spec import make_spec
from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.objectives import mae
from methods.training.loop import reset

FAST: dict[str, dict[str, Any]] = {
    "source": {"epochs": 2, "batch_size": 50},
    "supervised_soup": {"epochs": 2, "scales": [1.0, 2.0]},
    "selfsoup": {"epochs": 2, "steps": 3, "batch": 16, "ingredients": ["mae", "mocov3"]},
    "tent": {"steps": 1},
    "memo": {"views": 4},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_workers_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process start workers for work alone; before it is known, each would load torch for nothing."""
    monkeypatch.setattr("bench.cli.run.start_workers", lambda spec: None)


@pytest.fixture
def no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stream is run, as if no answers of classifiers that change nothing were in the cache."""
    monkeypatch.setattr(PredictionCache, "recall", lambda self, segment: None)


@pytest.fixture
def stock(tmp_path: Path) -> str:
    """A random stock for 32 px with 16 channels and one block, as a file."""
    architecture = Architecture(dim=16, depth=1, heads=2, decoder_dim=16, decoder_heads=2)
    generator = torch.Generator().manual_seed(0)
    encoder = build_encoder(architecture)
    reset(encoder, generator)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    decoder = mae.Config().build(Weights(architecture, tensors), generator).decoder
    tensors |= {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    path = tmp_path / "tiny.safetensors"
    save_weights(path, Weights(architecture, tensors), {})
    return str(path)


@pytest.fixture
def settings(stock: str, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that takes a second or two."""
    return {
        "method": "source",
        "shift": "digits-c",
        "stock": stock,
        "corruption": "fog,contrast",
        "severity": 3,
        "limit": 12,
        "batch_size": 5,
        "jobs": 1,
        "out": tmp_path / "out",
    }


def quick(settings: dict[str, Any], **changes: Any) -> Outcome:
    """Run with fast options for the methods that are asked for."""
    from bench.settings.methods import parse_method

    merged = {**settings, **changes}
    names = merged["method"].split(",")
    used = {row.options_of or row.name for m in map(parse_method, names) for row in (m.recipe, m.adapter) if row}
    used |= {"source", "supervised_soup", "selfsoup"} if merged.get("with_baselines") else set()
    return run(make_spec(merged, {"set": {name: FAST[name] for name in used if name in FAST}}))


@pytest.fixture
def run_quick() -> Any:
    return quick
