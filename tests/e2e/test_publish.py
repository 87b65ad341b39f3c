"""From images on a disk to a bundle that passes `bench publish check` where there is no torch."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.runs import publishing
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from bench.shifts.corruption_sets import COMMON
from bench.shifts.imagenet import synsets

ROOT = Path(publishing.__file__).parents[2]
MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), *head)
"""
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "sklearn", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
from bench.__main__ import main
sys.argv = ["bench", "publish", "check", *sys.argv[1:]]
main()
"""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs a shift as a clean commit would, whatever is edited here, and bundles the result."""
    clean = {"project": "0.1.0", "git": "0123456789ab", "dirty": False, "package": "0" * 16, "python": "3.11.7"}
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bench.evaluation.stream_results.environment", lambda: clean)
    monkeypatch.setattr("bench.planning.record_identity.identity", lambda name: "1")
    monkeypatch.setattr("bench.planning.record_identity.identity_of_path", lambda path: "1")

    def build(shift: str, **settings: Any) -> Path:
        out = tmp_path / shift
        given = {"shift": shift, "launch": "serial", "device": "cpu", "data_root": tmp_path / "data", "out": out}
        run(make_spec(given | settings))
        bundle = tmp_path / f"{shift}.jsonl"
        publishing.bundle(out, bundle, None, [], submitter="ada")
        return bundle

    return build


def check_without_torch(bundle: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(bundle)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def picture(rng: np.random.Generator, pixels: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3)).astype(np.uint8))


def test_imagenet_c_from_a_small_tree(published: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for corruption in COMMON:
        for label in (3, 281, 440):
            for number in range(2):
                path = tmp_path / "data" / "imagenet-c" / corruption / "5" / synsets()[label] / f"val_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(rng, 224).save(path)
    (tmp_path / "mine.py").write_text(MODEL)
    bundle = published("imagenet-c", method="source,bn", model=f"{tmp_path}/mine.py:make")
    assert "no problems" in check_without_torch(bundle)
    made = publishing.open_bundle(bundle)
    assert {record.model for record in made.records} == {"mine.py:make"}
    assert len(made.records) == 2 * len(COMMON)
    assert made.recomputed


def test_cifar10_c_gen_from_a_small_table(published: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    home = tmp_path / "data" / "cifar10"
    home.mkdir(parents=True)
    for part, count in (("train", 60), ("test", 20)):
        rows = []
        for number in range(count):
            buffer = io.BytesIO()
            picture(rng, 32).save(buffer, "PNG")
            rows.append({"img": {"bytes": buffer.getvalue(), "path": None}, "label": (number + number // 10) % 10})
        pd.DataFrame(rows).to_parquet(home / f"{part}.parquet")
    options = {"source": {"epochs": 1, "batch_size": 10}}
    bundle = published("cifar10-c-gen", method="source", stock="digits", labels=2, set=options)
    assert "no problems" in check_without_torch(bundle)


@pytest.mark.slow
def test_digits_c(published: Callable[..., Path]) -> None:
    bundle = published("digits-c", method="source")
    assert "no problems" in check_without_torch(bundle)
