"""Checkpoint files are exact and atomic, and are removed when the training ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import quick_processes
import torch

from bench.execution.checkpointing import FileCheckpointer
from bench.models.weights_io import load_weights
from bench.training.job_cache import cached_facts, job_key, run_job, training_tasks
from methods.base import Job, Unlabelled
from methods.selfsoup.ingredients import Ingredient, inter_train


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpointer = FileCheckpointer(tmp_path / "x.pt", seconds=0)
    assert checkpointer.load() is None
    assert checkpointer.due()
    state = {"step": 3, "parts": [{"a": torch.randn(4)}], "losses": torch.rand(3)}
    checkpointer.save(state)
    again = FileCheckpointer(tmp_path / "x.pt")
    assert not again.due()
    found = again.load()
    assert found is not None
    assert found["step"] == 3
    assert torch.equal(found["parts"][0]["a"], state["parts"][0]["a"])  # type: ignore[index]
    again.forget()
    assert again.load() is None


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "x.pt"
    FileCheckpointer(path).save({"step": 1})
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    assert FileCheckpointer(path).load() is None
    assert not path.exists()


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    FileCheckpointer(tmp_path / "x.pt").save({"step": 1, "x": Evil()})
    assert FileCheckpointer(tmp_path / "x.pt").load() is None
    torch.save({"step": 1, "seconds": 0.0, "x": Evil()}, tmp_path / "x.pt")
    assert FileCheckpointer(tmp_path / "x.pt").load() is None
    assert not (tmp_path / "ran").exists()


_RUN_JOB = """
import sys
from bench.execution.checkpointing import FileCheckpointer
from bench.training import job_cache
job_cache.FileCheckpointer = lambda path, report: FileCheckpointer(path, 0.0, report=report)
sys.path.insert(0, sys.argv[1])
from job import task
job_cache.run_job(*task().arguments)
"""

_JOB = """
import torch
from bench.models.weights_io import load_stock
from bench.training.job_cache import training_tasks
from methods.base import Job, Unlabelled
from methods.selfsoup.ingredients import Ingredient, inter_train

def job():
    pixels = torch.randint(0, 256, (200, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    how = Ingredient(steps=60, batch_size=16)
    return Job(inter_train, how, (load_stock("digits"),), Unlabelled(pixels, "p"), "mae", True)

def task():
    torch.set_num_threads(1)
    return training_tasks([job()], 0, "cpu")[0]
"""


def test_a_killed_process_goes_on_and_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    (tmp_path / "job.py").write_text(_JOB)
    command = ["-c", _RUN_JOB, tmp_path]
    process = quick_processes.Process(command)
    deadline = time.monotonic() + 120
    while not list(own_cache.glob("training/*.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = list(own_cache.glob("training/*.pt"))
    assert len(kept) == 1
    state = FileCheckpointer(kept[0]).load()
    assert state is not None
    assert 0 < state["step"] < 60
    quick_processes.run(command, check=True)
    assert not list(own_cache.glob("training/*.pt"))
    resumed = next(own_cache.glob("weights/*.safetensors"))
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "other"))
    quick_processes.run(command, check=True)
    undisturbed = next((tmp_path / "other").glob("weights/*.safetensors"))
    weights, facts = load_weights(resumed)
    assert weights.digest == load_weights(undisturbed)[0].digest
    assert len(facts["losses"]) == 60
    assert len(facts["stocks"]) == 1


def test_a_training_leaves_losses_and_no_checkpoint(own_cache: Path) -> None:
    from bench.models.weights_io import load_stock

    pixels = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    job = Job(
        inter_train, Ingredient(steps=2, batch_size=4), (load_stock("digits"),), Unlabelled(pixels, "p"), "x", True
    )
    task = training_tasks([job], 0, "cpu")[0]
    run_job(*task.arguments)
    facts = cached_facts(job_key(job, 0))
    assert facts is not None
    assert len(facts["losses"]) == 2
    assert not list(own_cache.glob("training/*"))
