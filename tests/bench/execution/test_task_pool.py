"""Tasks with dependencies: order, failure, death of a worker; and training with its cache."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
import quick_processes
import torch

from bench.core.cache_dir import weights_path
from bench.core.components import identity_of
from bench.execution.task_pool import Task, run_tasks
from bench.models.weights_io import load_stock, load_weights
from bench.training import job_cache
from bench.training.job_cache import all_jobs, cached_facts, fit_seconds, job_key, training_tasks
from methods.base import Job, Unlabelled
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.objectives import mae, mocov3
from methods.soups.soup import uniform_soup


def square(number: int) -> int:
    return number * number


def fail(message: str) -> None:
    raise ValueError(message)


def die(_: int) -> None:
    os._exit(3)


def task(key: str, function: object = square, *arguments: object, after: tuple[str, ...] = ()) -> Task:
    return Task(key, function, arguments or (2,), frozenset(after), key)  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_with_their_tasks_and_failure_travels_down_only(jobs: int) -> None:
    tasks = [
        task("last", square, 3, after=("middle",)),
        task("middle", fail, "burnt", after=("first",)),
        task("first", square, 4),
        task("alone", square, 5, after=("already done",)),
    ]
    finished = {f.task.key: f for f in run_tasks(tasks, jobs, 1)}
    assert {key: f.value for key, f in finished.items() if f.error is None} == {"first": 16, "alone": 25}
    assert {key: str(f.error) for key, f in finished.items() if f.error} == {"middle": "burnt", "last": "burnt"}


def test_a_task_whose_worker_dies_twice_fails_and_no_other() -> None:
    finished = {
        f.task.key: f for f in run_tasks([task("dead", die), *(task(str(i), square, i) for i in range(6))], 2, 1)
    }
    assert "died twice" in str(finished["dead"].error)
    assert [finished[str(i)].value for i in range(6)] == [i * i for i in range(6)]


def die_once(flag: str) -> str:
    if not Path(flag).exists():
        Path(flag).touch()
        os._exit(3)
    return "alive"


def test_a_task_whose_worker_dies_once_runs_again(tmp_path: Path) -> None:
    (finished,) = run_tasks([task("once", die_once, str(tmp_path / "flag"))], 2, 1)
    assert finished.value == "alive"


def leave_word(at: str, _: int) -> None:
    """Clean up at exit of a worker, as libraries do whose locks outlive a task."""
    Finalize(None, Path(at).touch, exitpriority=1)


def test_idle_workers_clean_up_when_all_is_done(tmp_path: Path) -> None:
    words = [tmp_path / "a", tmp_path / "b"]
    list(run_tasks([task(word.name, partial(leave_word, str(word))) for word in words], 2, 1))
    assert all(word.exists() for word in words)


def test_an_error_leaves_the_generator_without_orphans() -> None:
    stream = run_tasks([task(str(i), square, i) for i in range(20)], 2, 1)
    next(stream)
    stream.close()


@pytest.fixture
def pool() -> Unlabelled:
    generator = torch.Generator().manual_seed(0)
    return Unlabelled(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=generator), "digest")


def test_equal_jobs_have_one_key_and_every_difference_another(stock: str, pool: Unlabelled) -> None:
    weights = load_stock(stock)
    config = Ingredient(mae.Config(), steps=2, batch_size=8)

    def key(seed: int = 0, **changes: object) -> str:
        values = {"function": inter_train, "config": config, "inputs": (weights,), "data": pool, "label": "x"} | changes
        return job_key(Job(**values), seed)  # type: ignore[arg-type]

    assert key() == key(label="another name") == key(inputs=(load_stock(stock),))
    other = [
        key(seed=1),
        key(config=Ingredient(mae.Config(), steps=3, batch_size=8)),
        key(config=Ingredient(mocov3.Config(), steps=2, batch_size=8)),
        key(data=Unlabelled(pool.images, "other")),
        key(function=uniform_soup),
        key(inputs=(weights, weights)),
    ]
    assert len({key(), *other}) == 7


def test_random_numbers_do_not_move_with_the_code(
    stock: str, pool: Unlabelled, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Ingredient(mae.Config(), steps=2, batch_size=8)
    job = Job(inter_train, config, (load_stock(stock),), pool, "x")
    list(run_tasks(training_tasks([job], 0, "cpu"), 1, 1))
    before = load_weights(weights_path(job_key(job, 0)))[0].digest
    monkeypatch.setattr(job_cache, "identity_of", lambda thing: (*identity_of(thing), "edited"))
    assert len(training_tasks([job], 0, "cpu")) == 1  # edited code is run again …
    list(run_tasks(training_tasks([job], 0, "cpu"), 1, 1))
    assert load_weights(weights_path(job_key(job, 0)))[0].digest == before  # … on the same draws
    assert len(list((own_cache / "weights").iterdir())) == 2


def test_training_caches_by_content_and_counts_shared_seconds(stock: str, pool: Unlabelled) -> None:
    weights = load_stock(stock)
    config = Ingredient(mae.Config(), steps=2, batch_size=8)
    first = Job(inter_train, config, (weights,), pool, "first")
    twin = Job(inter_train, config, (weights,), pool, "twin")
    soup = Job(uniform_soup, None, (first, twin), None, "soup")
    tasks = training_tasks([soup], 0, "cpu")
    assert len(all_jobs([soup])) == 3
    assert [t.label for t in tasks] == ["first", "soup"]
    assert all(f.error is None for f in run_tasks(tasks, 1, 1))
    assert training_tasks([soup], 0, "cpu") == []
    mixed = load_weights(weights_path(job_key(soup, 0)))[0]
    alone = load_weights(weights_path(job_key(first, 0)))[0]
    assert mixed.digest == alone.digest  # a soup of two equal ingredients is that ingredient, bit for bit
    facts = [cached_facts(job_key(job, 0)) for job in (first, soup)]
    assert fit_seconds(soup, 0) == pytest.approx(sum(f["seconds"] for f in facts if f))


def test_a_half_written_file_is_made_again(stock: str, pool: Unlabelled) -> None:
    job = Job(inter_train, Ingredient(mae.Config(), steps=1, batch_size=8), (load_stock(stock),), pool, "x")
    list(run_tasks(training_tasks([job], 0, "cpu"), 1, 1))
    path = weights_path(job_key(job, 0))
    digest, content = load_weights(path)[0].digest, path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert len(training_tasks([job], 0, "cpu")) == 1
    list(run_tasks(training_tasks([job], 0, "cpu"), 1, 1))
    assert load_weights(path)[0].digest == digest


def test_weights_that_are_not_finite_never_enter_the_cache(
    stock: str, pool: Unlabelled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = load_stock(stock)
    job = Job(spoil, None, (weights,), None, "spoilt")
    (finished,) = run_tasks(training_tasks([job], 0, "cpu"), 1, 1)
    assert isinstance(finished.error, FloatingPointError)
    assert not weights_path(job_key(job, 0)).exists()


def spoil(inputs: object, data: object, config: object, generator: object) -> object:
    weights = inputs[0]  # type: ignore[index]
    return type(weights)(weights.architecture, {k: t * float("nan") for k, t in weights.tensors.items()})


_PARENT = """
import time, os
from pathlib import Path
from bench.execution.task_pool import Task, run_tasks
from orphan import linger

if __name__ == "__main__":
    list(run_tasks([Task(str(i), linger, (), frozenset(), "") for i in range(2)], 2, 1))
"""

_ORPHAN = """
import os, time
from pathlib import Path

def linger():
    Path(__file__).with_name(f"{os.getpid()}.pid").touch()
    time.sleep(120)
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(_PARENT)
    (tmp_path / "orphan.py").write_text(_ORPHAN)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    parent = quick_processes.Process([tmp_path / "parent.py"], env=os.environ | {"PYTHONPATH": path})
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
