"""The demonstration for a new user (built wheel, empty cache, another folder), and the README."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Demo:
    board: dict[str, Any]
    text: str
    progress: str
    folder: Path
    python: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the built wheel and the dependencies, but not this checkout."""
    work = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work), str(HOME)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    venv.create(work / "env", with_pip=False)
    python = work / "env" / "bin" / "python"
    asked = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
    )
    site = Path(asked.stdout.strip())
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        assert not [name for name in wheel.namelist() if name.startswith("tests")]
        wheel.extractall(site)
    # A .pth file adds the installed dependencies without the editable link to this checkout.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


SMALL = [
    "--limit",
    "20",
    "--corruption",
    "fog,contrast",
    "--set",
    "source.epochs=1",
    "--set",
    "memo.views=2",
    "--set",
    "supervised_soup.epochs=1",
]
SMALL += ["--set", "selfsoup.steps=2", "--set", "selfsoup.batch=16", "--set", "selfsoup.epochs=1"]


@pytest.fixture(scope="module")
def demo(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """`bench run --demo` on few images and corruptions, and with short trainings."""
    return run_demo(installed, tmp_path_factory.mktemp("elsewhere"), SMALL)


def plain() -> dict[str, str]:
    """Return the environment without paths of Python and settings of the benchmark."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SOUPBENCH"))}


def run_demo(installed: Path, folder: Path, small: Sequence[str]) -> Demo:
    """Run the demonstration from an empty cache, in an empty folder."""
    environment = {**plain(), "SOUPBENCH_CACHE": str(folder / "cache")}
    command = [installed, "-m", "bench", "run", "--demo", "--out", "out", *small]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    read = [installed, "-m", "bench", "leaderboard", "--from", "out", "--format", "json"]
    board = subprocess.run(read, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return Demo(json.loads(board.stdout), done.stdout, done.stderr, folder, installed, environment)


def test_the_wheel_stands_alone(installed: Path, tmp_path: Path) -> None:
    code = "import bench, corruptions, methods, leaderboards; print(bench.__file__)"
    done = subprocess.run(
        [installed, "-c", code], cwd=tmp_path, env=plain(), capture_output=True, text=True, check=True
    )
    assert str(HOME) not in done.stdout


def test_the_first_run_really_trains(demo: Demo) -> None:
    trainings = int(re.findall(r"(\d+) trainings", demo.progress)[0])
    assert trainings >= 10
    weights = list((demo.folder / "cache" / "weights").glob("*.safetensors"))
    assert len(weights) == trainings
    fits = {row["method"]: row["fit_seconds"] for row in demo.board["rows"]}
    assert all(seconds > 0 for seconds in fits.values())


def test_the_board_has_every_row_complete(demo: Demo) -> None:
    rows = {(row["method"], row["part"]): row for row in demo.board["rows"]}
    for method in ("source", "tent", "memo", "supervised_soup"):
        assert (method, None) in rows
    parts = {part for method, part in rows if method == "selfsoup"}
    assert {"soup", "mean"} < parts
    assert sum(part.startswith("ingredient:") for part in parts if part) >= 2
    assert not any(row["incomplete"] for row in rows.values())
    assert demo.board["corruptions"] == ["fog", "contrast"]


def test_the_text_says_what_was_compared_and_what_it_does_not_show(demo: Demo) -> None:
    text = " ".join(demo.text.split())
    assert "Compared: " in text
    assert "without labels" in text
    assert "says nothing about ImageNet" in text


def test_a_second_run_trains_and_measures_nothing(demo: Demo) -> None:
    command = [demo.python, "-m", "bench", "run", "--demo", "--out", "out", *SMALL]
    done = subprocess.run(
        command, cwd=demo.folder, env=demo.environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert "0 measured" in done.stderr
    assert "0 failed" in done.stderr
    assert done.stdout == demo.text


def test_the_demo_can_be_verified(demo: Demo) -> None:
    command = [demo.python, "-m", "bench", "verify", "out", "--json"]
    done = subprocess.run(command, cwd=demo.folder, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["problems"] == []


@pytest.mark.slow
def test_the_readme_shows_this_board(installed: Path, tmp_path: Path) -> None:
    """Rows, tracks and n as printed; accuracies within their intervals, the README's and this machine's."""
    demo = run_demo(installed, tmp_path, ())
    assert len(demo.board["corruptions"]) == 12
    for row in demo.board["rows"]:
        assert row["fit_seconds"] > 0
        assert row["interval"]["low"] < row["accuracy"] < row["interval"]["high"]
    readme = (HOME / "README.md").read_text()
    shown = readme[readme.index("<!-- demo:start -->") : readme.index("<!-- demo:end -->")]
    assert f"{demo.board['n']} images each" in shown
    shown = re.sub(r"^( +[–\d]+ +)(\S+)( +[RABCD] .*)\n +(\(\S+\))$", r"\1\2 \4  \3", shown, flags=re.M)  # folded
    pattern = r"^ +[–\d]+ +(\S.*?) {2,}([RABCD]) +([\d.]+) \[([\d.]+), ([\d.]+)\]"
    stated = {name: (track, float(low), float(high)) for name, track, _, low, high in re.findall(pattern, shown, re.M)}
    rows = {row["method"] + (f" ({row['part']})" if row["part"] else ""): row for row in demo.board["rows"]}
    assert set(stated) == set(rows)
    for name, (track, low, high) in stated.items():
        assert rows[name]["track"] == track
        here = rows[name]["interval"]
        assert 100 * here["low"] <= high, name
        assert low <= 100 * here["high"], name
