"""Boards are made without torch: by the few packages that are listed, and in an environment that has no others."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

import leaderboards

ROOT = Path(leaderboards.__file__).parents[1]
LIST = ROOT / "leaderboards" / "requirements.txt"

# As an environment without the package behaves, for the packages that the list does not name.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Absent())
from bench.__main__ import main
codes = []
for words in {words}:
    sys.argv = ["bench", *words]
    try:
        main()
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code or 0)
sys.stderr.write(repr(codes))
"""
_IMPORTED_AS = {"scikit-learn": "sklearn", "tomli-w": "tomli_w", "pillow": "PIL"}


def names(requirements: list[str]) -> dict[str, str]:
    """Requirements by the name of the package."""
    return {line.partition(">=")[0]: line for line in requirements}


def listed() -> dict[str, str]:
    return names([line for line in LIST.read_text().splitlines() if line and not line.startswith("#")])


def commands(submission: Path, run: Path, out: Path) -> list[tuple[list[str], int]]:
    """Commands that only read, and the exit code of each."""
    return [
        (["publish", "check", str(submission)], 0),
        (["publish", "check", str(run)], 0),
        (["publish", "bundle", str(run), "-o", str(out / "again.jsonl")], 0),
        (["publish", "schema"], 0),
        (["verify", str(run)], 0),
        (["leaderboard", "--from", str(run)], 0),
        (["leaderboard", "--from", str(submission), "--format", "html", "-o", str(out / "page.html")], 0),
        (["leaderboard", "--from", str(run), "--format", "latex", "--figures", str(out / "figures")], 0),
        (["compare", "tent", "source", "--from", str(run), "--format", "json"], 0),
        (["list", "methods"], 0),
        (["publish", "check", str(run / "records")], 4),
    ]


def test_the_list_is_part_of_the_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert listed().items() <= names(project["dependencies"]).items()
    assert not {"torch", "torchvision", "timm", "datasets"} & listed().keys()


def test_every_command_that_reads_works_with_what_is_listed(
    submission: Path, digits_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Figures bring pillow with them.
    absent = names(project["dependencies"]).keys() - listed().keys() - {"pillow"}
    assert {"torch", "timm", "scikit-learn"} <= absent
    modules = [_IMPORTED_AS.get(name, name.replace("-", "_")) for name in absent]

    wanted = commands(submission, digits_run.store.folder, tmp_path)
    script = WITHOUT.format(absent=modules, words=[words for words, _ in wanted])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith(repr([code for _, code in wanted])), done.stderr
    check_files(tmp_path)


def check_files(out: Path) -> None:
    assert "<svg" in (out / "page.html").read_text()
    assert {path.suffix for path in (out / "figures").iterdir()} == {".svg", ".png", ".pdf"}


@pytest.mark.slow
def test_in_an_environment_without_torch(
    submission: Path, digits_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if subprocess.run([*pip, "-r", str(LIST)], capture_output=True).returncode:
        pytest.skip("the package index cannot be reached")
    subprocess.run([*pip, "--no-deps", str(ROOT)], check=True, capture_output=True)
    missing = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in missing.stderr

    for words, code in commands(submission, digits_run.store.folder, tmp_path):
        done = subprocess.run([str(home / "bin" / "bench"), *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
    check_files(tmp_path)
