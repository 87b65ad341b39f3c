"""A real SLURM cluster of one node: trials, one failing and one requeued, give the records of a serial run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.killed_runs import QUICK, SMALL, SUITE, kill_twice_and_finish, words_of

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
METHOD = '''
import os, time
from pathlib import Path
import torch
from methods.base import Adapter
from methods.table import Access

FOLDER = Path(os.environ["FLAKY_FOLDER"])


def first(name):
    try:
        os.close(os.open(FOLDER / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Flaky(Adapter):
    """Plain prediction; one stream fails once, and one hangs until it is restarted."""

    access = Access()

    @torch.no_grad()
    def predict(self, images):
        if os.environ.get("SLURM_JOB_ID"):
            if first("failed"):
                raise RuntimeError("this stream fails once")
            if first("hanging"):
                # scancel only accepts this name for an element of an array.
                array = [os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK")]
                (FOLDER / "new").write_text("_".join(array) if all(array) else os.environ["SLURM_JOB_ID"])
                (FOLDER / "new").rename(FOLDER / "job")
                time.sleep(600)
        return self.model(images)
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            pytest.skip(f"{program} is not installed; apt-get install slurm-wlm")
    if os.geteuid():
        pytest.skip("starting a SLURM needs root")
    folder = tmp_path_factory.mktemp("slurm")
    script = ["sh", str(HERE / "slurm_cluster.sh")]
    started = subprocess.run([*script, "start", str(folder)], capture_output=True, text=True, timeout=90)
    if started.returncode:
        pytest.skip(f"no SLURM could be started here: {started.stderr[-300:]}")
    yield {"SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run([*script, "stop", str(folder)], check=False)


def command(tmp_path: Path, out: str, *more: str) -> list[str]:
    method = f"source,tent,{tmp_path / 'flaky.py'}:Flaky"
    grid = ["--method", method, "--shift", "digits-c", "--corruption", "fog", "--severity", "3", "--seeds", "4"]
    return [sys.executable, "-m", "bench", "run", *grid, "--limit", "64", "--out", str(tmp_path / out), *more]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return {record["key"]: record for record in map(json.loads, lines)}


def test_a_grid_with_a_failure_and_a_requeue_equals_a_serial_run(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "flaky.py").write_text(METHOD)
    home = {"PYTHONPATH": str(HERE.parents[1]), "FLAKY_FOLDER": str(tmp_path)}
    environment = {**os.environ, **home, "SOUPBENCH_CACHE": str(tmp_path / "cache"), **cluster}
    slurm = ["--launch", "slurm", "--slurm", "time=30", "--slurm", "cpus=1"]
    run = subprocess.Popen(
        command(tmp_path, "cluster", *slurm), env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 1500
    while not (tmp_path / "job").exists():
        assert run.poll() is None, run.stderr and run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    job = (tmp_path / "job").read_text()
    subprocess.run(["scontrol", "requeue", job], env=environment, check=True)
    # A requeued job waits before it may restart; the administrator's command shortens the wait.
    while run.poll() is None:
        assert time.monotonic() < deadline
        subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], env=environment, capture_output=True)
        time.sleep(2)
    assert run.returncode == 1, run.communicate()
    first = records(tmp_path / "cluster")
    assert len(first) == 24
    (failed,) = (record for record in first.values() if record["status"] == "failed")
    assert "this stream fails once" in failed["error"]

    again = command(tmp_path, "cluster", *slurm, "--only-failed")
    assert subprocess.run(again, env=environment, capture_output=True, timeout=300).returncode == 0
    serial = command(tmp_path, "serial", "--launch", "serial")
    own = {**environment, "SOUPBENCH_CACHE": str(tmp_path / "cache2")}
    assert subprocess.run(serial, env=own, capture_output=True, timeout=600).returncode == 0
    here, there = records(tmp_path / "serial"), records(tmp_path / "cluster")
    assert here.keys() == there.keys()
    for key, record in here.items():
        assert record["metrics"] == there[key]["metrics"]
        assert there[key]["status"] == "done"
        ours, theirs = (tmp_path / folder / record["predictions"] for folder in ("serial", "cluster"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_cancelled_job_is_a_failed_record_and_not_a_hang(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "flaky.py").write_text(METHOD)
    (tmp_path / "failed").touch()
    home = {"PYTHONPATH": str(HERE.parents[1]), "FLAKY_FOLDER": str(tmp_path)}
    environment = {**os.environ, **home, "SOUPBENCH_CACHE": str(tmp_path / "cache"), **cluster}
    ready = command(tmp_path, "ready", "--launch", "serial", "--seeds", "1")
    assert subprocess.run(ready, env=environment, capture_output=True, timeout=300).returncode == 0
    only = command(tmp_path, "out", "--launch", "slurm", "--seeds", "1")
    run = subprocess.Popen(only, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "job").exists():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    subprocess.run(["scancel", (tmp_path / "job").read_text()], env=environment, check=True)
    run.communicate(timeout=300)
    assert run.returncode == 1
    (failed,) = (record for record in records(tmp_path / "out").values() if record["status"] == "failed")
    assert "ended without a result" in failed["error"]


@pytest.mark.skipif("SOUPBENCH_LONG" not in os.environ, reason="takes a quarter of an hour: set SOUPBENCH_LONG=1")
def test_a_suite_killed_twice_equals_one_on_this_machine(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of a killed run go on, and the next one finds what they made."""
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    words = [*SUITE, *SMALL, *words_of(QUICK), "--protocol", "continual,mixed_domains"]
    made = kill_twice_and_finish(tmp_path, words, ["--launch", "slurm", "--slurm", "time=30", "--slurm", "cpus=1"])
    assert made == 2 * 2 * 3 * 6
