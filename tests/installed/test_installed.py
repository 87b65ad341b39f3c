"""An installed package, on any system: it needs no checkout, no data and no test library but pytest.

The workflow of a release runs this folder alone, against the wheel, on Linux, macOS and Windows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

CHECKOUT = (Path(__file__).resolve().parents[2] / "bench").is_dir()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a blank in its name, far from any checkout."""
    return tmp_path_factory.mktemp("a folder")


def bench(folder: Path, *words: str, code: int = 0) -> str:
    environment = {**os.environ, "SOUPBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.skipif(CHECKOUT, reason="a checkout lies around this test")
def test_the_package_is_the_installed_one() -> None:
    import bench as package

    where = Path(package.__file__).resolve()
    assert where == Path(str(metadata.distribution("soupbench").locate_file("bench/__init__.py"))).resolve()
    assert metadata.version("soupbench") == package.__version__
    for name in ("bench", "corruptions", "methods", "leaderboards"):
        assert (resources.files(name) / "py.typed").is_file()


def test_names_are_listed_and_shown(folder: Path) -> None:
    for what, name in (("methods", "tent"), ("shifts", "imagenet-c"), ("corruptions", "fog"), ("models", "digits")):
        assert name in bench(folder, "list", what)
    assert "fully test-time" in bench(folder, "show", "method", "tent").lower()
    assert json.loads(bench(folder, "doctor", "--json"))["package"]


@pytest.mark.slow
def test_a_run_a_board_and_a_repetition(folder: Path) -> None:
    """Two processes train and stream; what they wrote is read, verified, drawn, bundled and repeated."""
    words = ("--method", "source,tent", "--shift", "digits-c", "--corruption", "fog", "--limit", "60")
    board = json.loads(bench(folder, "run", *words, "--jobs", "2", "--out", "out", "--json"))
    assert {row["method"] for row in board["rows"]} == {"source", "tent"}
    assert json.loads(bench(folder, "run", *words, "--jobs", "2", "--out", "out", "--json")) == board
    bench(folder, "results", "out")
    bench(folder, "verify", "out")
    bench(folder, "leaderboard", "--from", "out", "--format", "html", "-o", "board.html", "--figures", "figures")
    assert (folder / "board.html").read_text(encoding="utf-8").count("<svg") > 0
    bench(folder, "publish", "bundle", "out", "-o", "bundle.jsonl")
    assert b"\r" not in (folder / "bundle.jsonl").read_bytes()
    key = next((folder / "out" / "records").iterdir()).stem
    assert json.loads(bench(folder, "run", "--record", key, "--from", "out", "--json"))["same"]


@pytest.mark.slow
def test_pictures_are_decoded_exported_and_cleaned(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for place in ("train/cat", "train/Dog", "test/cat", "test/Dog"):
        (folder / "pictures" / place).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / place / f"{number}.png")
    shift = f"folder:{folder / 'pictures'}"
    bench(folder, "run", "--method", "tent", "--stock", "digits", "--shift", shift, "--corruption", "fog", "--out", "own")
    bench(folder, "data", "verify", shift)
    for layout in ("imagenet-c", "cifar-c"):
        for _ in range(2):
            bench(folder, "data", "export", shift, "--corruption", "fog", "--layout", layout, "--out", layout)
    bench(folder, "data", "clean")


@pytest.mark.slow
def test_a_method_of_a_user(folder: Path) -> None:
    bench(folder, "new", "method", "my_method")
    report = bench(folder, "check", "method", "my_method.py:MyMethod")
    assert "0 broken" in report or "keeps" in report
