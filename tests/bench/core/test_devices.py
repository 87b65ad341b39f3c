"""The choice of devices and processes, with a mocked number of GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_workers import die_once, place

from bench.core.devices import cores, pick_jobs, visible_gpus
from bench.core.errors import UsageError
from bench.execution.task_pool import Task, run_tasks
from bench.planning.plan import make_plan
from bench.settings.run_spec import make_spec


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def placed(jobs: int, tasks: int = 6) -> set[str | None]:
    listed = [Task(str(i), place, (i,), frozenset(), str(i)) for i in range(tasks)]
    return {finished.value for finished in run_tasks(listed, jobs, 1)}


@pytest.mark.parametrize(
    ("names", "seen"),
    [(None, ["0", "1", "2", "3"]), ("3,1, GPU-7f,0", ["3", "1", "GPU-7f", "0"]), ("5,4,2,1,0", ["5", "4", "2", "1"])],
)
def test_gpus_keep_the_names_that_the_user_gave(
    four: None, names: str | None, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if names is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert visible_gpus() == seen


@pytest.mark.parametrize(
    ("jobs", "device", "devices", "processes"),
    [(None, "cuda", 1, 1), (4, "cuda", 1, 4), (2, "cuda", 2, 2), (None, "cuda", 4, 1), (1, "cuda:3", 1, 1)],
)
def test_gpus_are_enough_for_jobs_times_devices(
    four: None, jobs: int | None, device: str, devices: int, processes: int
) -> None:
    assert pick_jobs(jobs, device, devices) == (processes, 1)


def test_cores_are_shared_by_the_processes_of_a_training() -> None:
    assert pick_jobs(None, "cpu") == (cores(), 1)
    assert pick_jobs(None, "cpu", 2) == (max(1, cores() // 2), 1)
    assert pick_jobs(3, "cpu", 2) == (3, 1)


@pytest.mark.parametrize(
    ("jobs", "device", "devices", "said"),
    [
        (5, "cuda", 1, r"--jobs 5 with --devices 1 takes 5 GPUs and torch finds 4 here; ask for less"),
        (None, "cuda", 5, r"takes 5 GPUs and torch finds 4"),
        (3, "cuda", 2, r"takes 6 GPUs and torch finds 4"),
        (2, "cuda:1", 1, r"cuda:1 is one GPU; .* use --device cuda"),
        (None, "cuda:1", 2, r"cuda:1 is one GPU"),
    ],
)
def test_more_than_there_is_is_refused(four: None, jobs: int | None, device: str, devices: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pick_jobs(jobs, device, devices)


@pytest.mark.slow
def test_each_worker_has_gpus_of_its_own(four: None) -> None:
    assert placed(3) == {"0", "1", "2"}


def test_workers_share_out_what_the_user_left_visible(four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    assert placed(2) == {"7,5", "3,1"}


def test_without_gpus_nothing_is_said_about_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert placed(2, 2) == {None}


@pytest.mark.slow
def test_a_worker_that_takes_the_place_of_a_dead_one_has_its_gpu(four: None, tmp_path: Path) -> None:
    tasks = [Task(name, die_once, (f"{tmp_path}/{name}",), frozenset(), name) for name in ("a", "b")]
    found = [finished.value for finished in run_tasks(tasks, 2, 1)]
    assert sorted(found) == ["0,1", "2,3"]


def test_the_number_of_devices_changes_no_key(stock: str) -> None:
    settings = {"method": "selfsoup,tent_pool", "shift": "digits-c", "stock": stock, "limit": 32, "severity": "3"}
    one, two = (make_plan(make_spec(settings, {"devices": devices})) for devices in (1, 2))
    assert one.keys == two.keys
    assert {task.key for task in one.trainings} == {task.key for task in two.trainings}
    assert {task.devices for task in one.trainings} == {1}
    spread = {task.label: task.devices for task in two.trainings}
    assert spread["ingredient mae"] == 2
    assert spread["linear probe of the stock"] == 1
    assert all(count == 2 for label, count in spread.items() if label.startswith("fine-tune"))
    assert all(count == 1 for label, count in spread.items() if "PoolTent" in label)
