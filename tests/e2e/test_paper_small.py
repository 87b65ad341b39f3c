"""The run files of the paper in small run to the end on bundled data, and show what their tables show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parents[2]
FASHION = Path("/usr/share/datasets/fashion-mnist")

pytestmark = pytest.mark.slow


def boards(name: str, folder: Path) -> dict[str, Any]:
    """Run a file and return its boards by the name of the run."""
    words = ["run", HOME / "runs" / f"paper-{name}-small.toml", "--jobs", "1", "--out", folder / "out", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(HOME), "SOUPBENCH_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    return {each["run"]: each["board"] for each in found} if isinstance(found, list) else {"": found}


def rows(board: dict[str, Any]) -> dict[str, float]:
    """Return the mean accuracy of each row of a board, by method and part."""
    return {
        f"{row['method']} ({row['part']})" if row["part"] else row["method"]: row["accuracy"] for row in board["rows"]
    }


def test_mixtures_of_algorithms(tmp_path: Path) -> None:
    (board,) = boards("algorithms", tmp_path).values()
    found = rows(board)
    grid = [name for name in found if ":shares:" in name]
    assert len(grid) == 16 + 3
    middle = "selfsoup_diverse_clean (soup:shares:4:4:4)"
    assert found[middle] == pytest.approx(found["selfsoup_diverse_clean (soup)"], abs=0.005)


def test_soups_of_clean_images(tmp_path: Path) -> None:
    found = boards("imagenet", tmp_path)
    assert len(found) == 4
    for name, board in found.items():
        for method in {row.partition(" (")[0] for row in rows(board)}:
            assert {f"{method} (soup)", f"{method} (soup:greedy)", f"{method} (soup:best)"} <= set(rows(board)), name


def test_soups_of_shifted_images(tmp_path: Path) -> None:
    found = boards("imagenet-c", tmp_path)
    assert list(found) == ["disjoint", "joint"]
    for board in found.values():
        assert {"selfsoup (soup)", "selfsoup+sar", "selfsoup_diverse_clean+sar", "supervised_soup+sar"} <= set(
            rows(board)
        )


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_a_soup_of_two_shifts(tmp_path: Path) -> None:
    (board,) = boards("union", tmp_path).values()
    assert sum("on fashion-c" in name for name in rows(board)) == 16


def test_transfer(tmp_path: Path) -> None:
    found = boards("vtab", tmp_path)
    assert len(found) == 3
    assert any({"supervised_soup (soup)", "selfsoup_clean (soup)"} <= set(rows(board)) for board in found.values())


def test_seasoning(tmp_path: Path) -> None:
    (board,) = boards("seasoning", tmp_path).values()
    assert len(rows(board)) == 3 + 6
