"""`bench run --method selfsoup --shift imagenet-c`: on a small copy of the published layout, and without any data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.models.weights_io import MAE_BASE
from bench.shifts.imagenet import synsets
from methods.nets.weights import Architecture, build_encoder, sine_cosine_positions
from methods.selfsoup.objectives.mae import Decoder
from methods.training.loop import reset

Bench = Callable[..., subprocess.CompletedProcess[str]]
PIXELS = 64
CLASSES = [synsets()[place] for place in (3, 281, 440, 817)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    environment = {**os.environ, "SOUPBENCH_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bench", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    return call


def picture(rng: np.random.Generator, label: int, size: tuple[int, int]) -> Image.Image:
    shade = np.array([[60, 120, 180], [180, 60, 120], [120, 180, 60], [200, 200, 40]])[label]
    return Image.fromarray((shade + rng.integers(-30, 30, (*size, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Clean train and val trees, and a published tree of two corruptions at severity 5."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    trees = {"imagenet/train": 12, "imagenet/val": 8, "imagenet-c/fog/5": 8, "imagenet-c/contrast/5": 8}
    for tree, count in trees.items():
        size = (PIXELS, PIXELS) if "-c" in tree else (90, 120)
        for label, name in enumerate(CLASSES):
            for number in range(count):
                path = folder / tree / name / f"ILSVRC2012_val_{number:08d}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(rng, label, size).save(path, quality=85)
    return folder


def write_mae(path: Path) -> None:
    """A random masked autoencoder under the names of the release."""
    shape = Architecture(PIXELS, 16, dim=64, depth=2, heads=1, decoder_dim=32, decoder_depth=1, decoder_heads=1)
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = build_encoder(shape), Decoder(shape)
    reset(encoder, generator)
    reset(decoder, generator)
    tensors = dict(encoder.state_dict())
    for name, tensor in decoder.state_dict().items():
        tensors[name if name == "mask_token" else f"decoder_{name}"] = tensor
    tensors["decoder_pos_embed"] = sine_cosine_positions(32, PIXELS // 16)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": tensors}, path)


SMALL = [
    *("--corruption", "fog,contrast", "--jobs", "1"),
    *("--set", "selfsoup.steps=2", "--set", "selfsoup.batch=8", "--set", "selfsoup.epochs=1"),
    *("--set", "selfsoup.ingredients=['mae','mae:rate=2e-3:norm_pix=1']"),
]


@pytest.mark.slow
def test_it_runs_from_the_published_files_to_a_board(bench: Bench, root: Path) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    command = ["run", "--method", "selfsoup", "--shift", "imagenet-c", "--data-root", str(root), "--out", "out", *SMALL]
    done = bench(*command, "--json")
    assert done.returncode == 0, done.stderr
    board = json.loads(done.stdout)
    assert {row["part"] for row in board["rows"]} == {
        "soup",
        "mean",
        "ingredient:mae",
        "ingredient:mae:rate=2e-3:norm_pix=1",
    }
    assert set(board["corruptions"]) == {"fog", "contrast"}
    assert board["n"] == len(CLASSES) * 4
    records = [json.loads(path.read_text()) for path in (root.parent / "out" / "records").glob("*.json")]
    assert {(record["model"], record["weights"]["ready"]) for record in records} == {(f"{MAE_BASE}.pth", False)}
    assert bench("verify", "out").returncode == 0
    again = bench(*command)
    assert "0 measured" in again.stderr
    assert again.returncode == 0


@pytest.mark.slow
def test_an_encoder_alone_starts_a_fresh_decoder_and_says_so(bench: Bench, root: Path) -> None:
    write_mae(root / "whole.pth")
    tensors = torch.load(root / "whole.pth", weights_only=True)["model"]
    kept = {name: t for name, t in tensors.items() if not name.startswith(("decoder_", "mask_token"))}
    torch.save({"model": kept}, root / "encoder.pth")
    shared = ["--shift", "imagenet-c", "--data-root", str(root), "--out", "out", "--stock", str(root / "encoder.pth")]
    done = bench("run", "--method", "selfsoup", *shared, *SMALL, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "has no decoder" in done.stderr
    done = bench("run", "--method", "source", *shared, "--corruption", "fog", "--dry-run")
    assert "has no decoder" not in done.stderr


def test_without_the_data_one_command_is_named(bench: Bench, tmp_path: Path) -> None:
    done = bench("run", "--method", "selfsoup", "--shift", "imagenet-c")
    assert done.returncode == 3
    assert "bench data fetch imagenet-c" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.json"))


def test_without_the_stock_one_command_is_named(bench: Bench, root: Path) -> None:
    done = bench("run", "--method", "selfsoup", "--shift", "imagenet-c", "--data-root", str(root))
    assert done.returncode == 3
    assert f"curl --create-dirs -C - -Lo {root / 'stocks' / MAE_BASE}.pth https://" in done.stderr


def test_a_stock_for_other_pixels_is_refused(bench: Bench, root: Path) -> None:
    """Published files are never resized, so a stock for 32 px cannot use them."""
    done = bench(
        "run",
        "--method",
        "selfsoup",
        "--shift",
        "imagenet-c",
        "--data-root",
        str(root),
        "--stock",
        "digits",
        "--corruption",
        "fog",
    )
    assert done.returncode == 2
    assert "never resized" in done.stderr
    assert "Traceback" not in done.stderr
