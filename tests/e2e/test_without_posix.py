"""The commands of a first session where this project finds what Windows has, and no more (`support/without_posix`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import windows
from PIL import Image

HOME = Path(__file__).resolve().parents[2]

EVERYTHING = """
import importlib, pathlib, sys
home = pathlib.Path(sys.argv[1])
for package in ("bench", "corruptions", "methods", "leaderboards"):
    for path in sorted((home / package).rglob("*.py")):
        name = ".".join(path.relative_to(home).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("bench.__main__", "bench.execution.slurm"):
            importlib.import_module(name)
assert sys.platform == "win32"
"""


class Session:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "refused.txt"
        own = {"SOUPBENCH_CACHE": str(folder / "cache"), "SOUPBENCH_WITHOUT_POSIX_LOG": str(self.log)}
        self.environment = {**windows.environment(HOME), **own, "OMP_NUM_THREADS": "1"}

    def python(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self.environment, capture_output=True, encoding="utf-8"
        )
        refused = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        assert (done.returncode, refused) == (0, ""), f"{words}\n{refused}{done.stdout}{done.stderr[-4000:]}"
        return done.stdout

    def bench(self, *words: str) -> str:
        return self.python("-m", "bench", *words)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


def test_every_module_is_imported_and_names_are_listed(session: Session) -> None:
    session.python("-c", EVERYTHING, str(HOME))
    assert "tent" in session.bench("list", "methods")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.pread", "AttributeError"),
        ("import fcntl", "ModuleNotFoundError"),
        ("from multiprocessing.context import ForkServerContext", "ImportError"),
        ("open('a:b', 'w')", "Windows refuses this name"),
        ("open('aux.txt', 'w')", "Windows refuses this name"),
        ("import os; file = open('x', 'w'); os.remove('x')", "it is open"),
        ("import os; file = open('x', 'w'); open('y', 'w').close(); os.replace('y', 'x')", "it is open"),
        (
            "import os, numpy; numpy.zeros(9).tofile('x'); rows = numpy.memmap('x'); os.remove('x')",
            "it is open",
        ),
    ],
)
def test_what_windows_refuses_is_refused(session: Session, code: str, error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=session.folder, env=session.environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 1
    assert error in done.stderr


@pytest.mark.slow
def test_a_first_session(session: Session) -> None:
    """Two processes train and stream, the results are read in every way, and the cache is cleaned."""
    wanted = ("--shift", "digits-c", "--limit", "60", "--corruption", "fog,gaussian_noise")
    session.bench("run", "--method", "tent,selfsoup", *wanted, "--set", "selfsoup.steps=2", "--jobs", "2")
    (out,) = (session.folder / "runs").iterdir()
    session.bench("run", "--method", "tent,selfsoup", *wanted, "--set", "selfsoup.steps=2", "--jobs", "2")
    session.bench("results", str(out))
    session.bench("verify", str(out))
    session.bench("leaderboard", "--from", str(out), "--format", "html", "-o", "board.html")
    session.bench("publish", "bundle", str(out), "-o", "bundle.jsonl")
    session.bench("run", "--record", next((out / "records").iterdir()).stem, "--from", str(out))


@pytest.mark.slow
def test_pictures_of_a_user(session: Session) -> None:
    """Files are decoded into the cache, exported in both layouts, continued, and the cache is cleaned."""
    rng = np.random.default_rng(0)
    for place in ("train/cat", "train/Dog", "test/cat", "test/Dog"):
        folder = session.folder / "pics" / place
        folder.mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    session.bench("run", "--method", "tent", "--stock", "digits", "--shift", "folder:pics", "--corruption", "fog")
    assert os.listdir(session.folder / "runs") == ["folder_pics-tent"]  # noqa: PTH208
    session.bench("data", "verify", "folder:pics")
    for layout in ("imagenet-c", "cifar-c"):
        for _ in range(2):
            words = ("--corruption", "fog", "--layout", layout, "--out", layout)
            session.bench("data", "export", "folder:pics", *words)
    session.bench("data", "clean")
