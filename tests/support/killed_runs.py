"""Runs that are killed without warning and started again, and comparisons of what they made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[2]
SUITE = ["run", "--suite", "digits", "--method", "source,tent,memo,supervised_soup,selfsoup", "--seeds", "2"]
SMALL = ["--corruption", "fog,contrast", "--limit", "8", "--batch-size", "4"]
QUICK = {
    "source": {"epochs": 1},
    "supervised_soup": {"epochs": 1, "scales": [1.0, 2.0]},
    "selfsoup": {"epochs": 1, "steps": 2, "ingredients": ["mae"]},
    "memo": {"views": 2},
}


def words_of(options: dict[str, dict[str, Any]]) -> list[str]:
    settings = [
        f"{method}.{name}={json.dumps(value)}" for method, own in options.items() for name, value in own.items()
    ]
    return [word for setting in settings for word in ("--set", setting)]


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of a command of this checkout with a cache of its own."""
    return {**os.environ, "PYTHONPATH": str(HOME), "SOUPBENCH_CACHE": str(cache)}


def bench(*words: object, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of this checkout to its end."""
    command = [sys.executable, "-m", "bench", *map(str, words)]
    return subprocess.run(command, env=environment(cache), capture_output=True, text=True, check=False)


def kill_when(ready: Callable[[], bool], command: Sequence[str], cache: Path) -> None:
    """Start a run with its workers and kill all of them at once as soon as something is there."""
    run = subprocess.Popen(
        [sys.executable, "-m", "bench", *command],
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not ready():
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


def count(folder: Path, pattern: str) -> int:
    """Return the number of files that are there."""
    return sum(1 for _ in folder.glob(pattern))


def same(one: Path, other: Path) -> int:
    """Compare the records of two folders and their predictions to the bit; return how many there are."""
    found = [
        {record["key"]: record for record in map(json.loads, (out / "records.jsonl").read_text().splitlines())}
        for out in (one, other)
    ]
    assert found[0].keys() == found[1].keys()
    for key, record in found[0].items():
        assert record["status"] == found[1][key]["status"] == "done"
        for name in ("metrics", "diagnostics", "data", "options", "mixture", "track"):
            assert record[name] == found[1][key][name], (record["method"], name)
        assert (one / record["predictions"]).read_bytes() == (other / record["predictions"]).read_bytes()
    return len(found[0])


def matrix(out: Path, cache: Path) -> str:
    """Return the methods of a folder against its runs, as a table."""
    done = bench("leaderboard", "--matrix", "--from", out, "--format", "csv", cache=cache)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_twice_and_finish(tmp_path: Path, words: Sequence[str], launch: Sequence[str] = ()) -> int:
    """Run a suite three times, killed in training and in streams before; compare with a run without kills.

    `launch` holds further flags of the killed run. Returns the number of records.
    """
    killed, whole, cache, other = (tmp_path / name for name in ("killed", "whole", "cache", "cache2"))
    command = [*words, "--out", str(killed), *launch]
    kill_when(lambda: count(cache, "weights/*.safetensors") > 0, command, cache)
    assert count(killed, "records/*.json") == 0
    kill_when(lambda: count(killed, "records/*.json") > 2, command, cache)
    before = count(killed, "records/*.json")
    done = bench(*command, cache=cache)
    assert done.returncode == 0, done.stderr
    assert " 0 failed in " in done.stderr
    straight = bench(*words, "--out", whole, cache=other)
    assert straight.returncode == 0, straight.stderr
    assert matrix(killed, cache) == matrix(whole, other)
    made = same(killed, whole)
    assert 2 < before < made
    return made
