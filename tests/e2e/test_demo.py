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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import quick_processes

HOME = Path(__file__).resolve().parents[2]


Done = subprocess.CompletedProcess[str]
Bench = Callable[..., Done]


@dataclass(frozen=True)
class Demo:
    board: dict[str, Any]
    text: str
    progress: str
    folder: Path
    bench: Bench


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the built wheel is installed to."""
    work = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work), str(HOME)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    with zipfile.ZipFile(next(work.glob("*.whl"))) as packed:
        assert not [name for name in packed.namelist() if name.startswith("tests")]
        packed.extractall(work / "site")
    return work / "site"


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A Python that has the built wheel and the dependencies, but not this checkout."""
    home = wheel.parent / "env"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    # A .pth file adds the installed dependencies without the editable link to this checkout.
    (site / "wheel.pth").write_text(f"{wheel}\n{sysconfig.get_paths()['purelib']}\n")
    return home / "bin" / "python"


SMALL = ["--limit", "20", "--corruption", "fog,contrast", "--jobs", "1"]
for option in (
    *("source.epochs=1", "supervised_soup.epochs=1", "memo.views=2"),
    *("selfsoup.steps=2", "selfsoup.batch=16", "selfsoup.epochs=1"),
):
    SMALL += ["--set", option]


@pytest.fixture(scope="module")
def demo(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """`bench run --demo` on few images and corruptions, and with short trainings."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {**plain(), "PYTHONPATH": str(wheel), "SOUPBENCH_CACHE": str(folder / "cache")}

    def bench(*words: str) -> Done:
        return quick_processes.run(["-m", "bench", *words], cwd=folder, env=environment)

    where = ["-c", "import bench; print(bench.__file__)"]
    assert str(wheel) in quick_processes.run(where, cwd=folder, env=environment, check=True).stdout
    return run_demo(bench, folder, SMALL)


def plain() -> dict[str, str]:
    """Return the environment without paths of Python and settings of the benchmark."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SOUPBENCH"))}


def run_demo(bench: Bench, folder: Path, small: Sequence[str]) -> Demo:
    """Run the demonstration from an empty cache, in an empty folder."""
    done = bench("run", "--demo", "--out", "out", *small)
    assert done.returncode == 0, done.stderr
    board = bench("leaderboard", "--from", "out", "--format", "json")
    assert board.returncode == 0, board.stderr
    return Demo(json.loads(board.stdout), done.stdout, done.stderr, folder, bench)


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
    done = demo.bench("run", "--demo", "--out", "out", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "0 measured" in done.stderr
    assert "0 failed" in done.stderr
    assert done.stdout == demo.text


def test_the_demo_can_be_verified(demo: Demo) -> None:
    done = demo.bench("verify", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []


@pytest.mark.slow
def test_the_readme_shows_this_board(installed: Path, tmp_path: Path) -> None:
    """Rows, tracks and n as printed; accuracies within their intervals, the README's and this machine's."""
    environment = {**plain(), "SOUPBENCH_CACHE": str(tmp_path / "cache")}

    def bench(*words: str) -> Done:
        command = [installed, "-m", "bench", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)

    demo = run_demo(bench, tmp_path, ())
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
