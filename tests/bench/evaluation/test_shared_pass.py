"""Methods that share a pass get the results of separate runs, and every batch is made once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from bench.evaluation import shared_pass as together
from bench.evaluation import stream as stream_module
from bench.evaluation.evaluate import Evaluation, evaluate, evaluate_together
from bench.evaluation.stream_results import ConditionResult
from bench.execution.checkpointing import FileCheckpointer
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.runs.run import Outcome, run
from bench.settings.run_spec import make_spec
from leaderboards.store import Store

Quick = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("no_answers")

METHODS = "source,tent,t3a,memo"
QUICK = {"set": {"source": {"epochs": 1}}}

HEAD = """
import os
from dataclasses import dataclass
from pathlib import Path
from methods.base import Adapter
from methods.table import Access
HERE = Path(__file__).parent

class Mine(Adapter):
    access = Access(test="stream", state="online", backprop="none")

    def predict(self, images):
"""
SCRIBBLES = "        logits = self.model(images)\n        images.zero_()\n        return logits\n"
RAISES = """
        marks = len(list(HERE.glob("mark*")))
        (HERE / f"mark{marks}").touch()
        if marks >= 2:
            raise ValueError("no more")
        return self.model(images)
"""
NEEDS_ROOM = """
        if not (HERE / "mark").exists():
            (HERE / "mark").touch()
            raise torch.OutOfMemoryError("no memory left")
        return self.model(images)
"""
DIES_TWICE = """
        marks = len(list(HERE.glob("mark*")))
        if marks < 2:
            (HERE / f"mark{marks}").touch()
            os._exit(1)
        return self.model(images)
"""


def plugin(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(HEAD + body)
    return f"{folder / 'mine.py'}:Mine"


def numbers(folder: Path) -> dict[str, Any]:
    """The parts of records and predictions that sharing a pass must not change, by key."""
    store = Store(folder)
    found = {}
    for record in store.records():
        values = record.model_dump(mode="json", exclude={"created"})
        for name in ("fit_seconds", "predict_seconds", "peak_memory_mb"):
            del values["cost"][name]
        columns = vars(store.predictions(record)) if record.predictions else {}
        found[record.key] = (values, {k: v.tobytes() for k, v in columns.items() if v is not None})
    return found


def parts(measured: list[ConditionResult] | Exception) -> list[Any]:
    assert not isinstance(measured, Exception)
    return [
        (
            part.condition,
            part.forwards,
            part.backwards,
            part.clean_accuracy_after,
            {name: column.tobytes() for name, column in vars(part.predictions).items() if column is not None},
        )
        for part in measured
    ]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Tensor]]]:
    """Collect all batches of pixels that were made, and check that no two exist at a time."""
    batches: list[weakref.ref[Tensor]] = []
    true = stream_module.make_pixels

    def counted(*arguments: Any) -> Tensor:
        gc.collect()
        assert not any(batch() is not None for batch in batches)
        # A copy, because a shift may hold on to clean pixels that it has in memory anyway.
        pixels = true(*arguments).clone()
        batches.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(stream_module, "make_pixels", counted)
    gc.freeze()  # so that each collection looks at new objects only
    yield batches
    gc.unfreeze()


@pytest.mark.parametrize(
    "protocol",
    [
        "continual",
        pytest.param("reset_each_shift", marks=pytest.mark.slow),
        pytest.param("mixed_domains", marks=pytest.mark.slow),
    ],
)
def test_company_changes_no_record_and_makes_every_batch_once(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, made: list[Any], protocol: str
) -> None:
    names = METHODS.split(",")
    for name in names:
        run_quick(settings, method=name, protocol=protocol, out=tmp_path / "alone")
    alone = len(made)
    made.clear()
    outcome = run_quick(settings, method=METHODS, protocol=protocol)
    assert outcome.exit_code == 0
    assert len(made) * len(names) == alone
    assert numbers(outcome.out) == numbers(tmp_path / "alone")
    assert all(record.cost.peak_memory_mb is None for record in outcome.records() if record.cost)
    assert all(record.cost.peak_memory_mb for record in Store(tmp_path / "alone").records() if record.cost)


def test_each_method_has_pixels_of_its_own(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    alone = run_quick(settings, method="source", out=tmp_path / "alone")
    scribbler = plugin(tmp_path, SCRIBBLES)
    outcome = run_quick(settings, method=f"{scribbler},source")
    assert outcome.exit_code == 0
    together_with_it = numbers(outcome.out)
    assert all(together_with_it[key] == value for key, value in numbers(alone.out).items())


def test_a_failure_drops_only_the_one_that_failed(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    alone = run_quick(settings, method="source,tent", corruption="fog", out=tmp_path / "alone")
    outcome = run_quick(settings, method=f"source,{plugin(tmp_path, RAISES)},tent", corruption="fog")
    assert (outcome.done, outcome.failed) == (4, 2)
    failed = [record for record in outcome.records() if record.status == "failed"]
    assert {(record.method, record.error, record.metrics) for record in failed} == {("mine.py:Mine", "no more", None)}
    found = numbers(outcome.out)
    assert all(found[key] == value for key, value in numbers(alone.out).items())
    assert not list((outcome.out / "state").glob("*.pt"))


def test_what_company_left_no_memory_for_runs_alone(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    outcome = run_quick(settings, method=f"source,{plugin(tmp_path, NEEDS_ROOM)}", corruption="fog")
    assert (outcome.done, outcome.failed) == (4, 0)


@pytest.mark.slow
def test_a_process_that_dies_twice_in_company_costs_no_record(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "_ROUNDS", 1)
    outcome = run_quick(settings, method=f"source,{plugin(tmp_path, DIES_TWICE)}", jobs=2)
    assert len(list(tmp_path.glob("mark*"))) == 2
    assert (outcome.done, outcome.failed) == (6, 0)


class Killed(BaseException):
    """An error that no method raises itself."""


class Dying(FileCheckpointer):
    """Saves after every batch and is killed right after one of them."""

    def __init__(self, path: Path, last: int) -> None:
        super().__init__(path, 0.0, None)
        self.left = last

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.slow
def test_killed_at_different_places_all_go_on_to_the_same_numbers(
    settings: dict[str, Any], tmp_path: Path, made: list[Any]
) -> None:
    spec = make_spec({**settings, "method": "source,tent,cotta", "protocol": "continual"}, QUICK)
    streams = [task.arguments[0] for task, *_ in missing_streams(make_plan(spec))]
    longest = max(len(stream.segments) for stream in streams)
    jobs: list[Evaluation] = [stream for stream in streams if len(stream.segments) == longest]
    assert len(jobs) == 3
    run(spec)  # trains the classifier
    whole = [parts(evaluate(job)) for job in jobs]
    batches = 3 * -(-12 // 5)
    for last in (1, batches - 1):
        keepers = [Dying(tmp_path / f"{number}.pt", last if number == 1 else -1) for number in range(3)]
        with pytest.raises(Killed):
            evaluate_together([(job, keep, None) for job, keep in zip(jobs, keepers, strict=True)])
        (tmp_path / "0.pt").unlink()  # one starts from the beginning, far behind the others
        made.clear()
        kept = [FileCheckpointer(tmp_path / f"{number}.pt", place=None) for number in range(3)]
        outcomes = evaluate_together([(job, keep, None) for job, keep in zip(jobs, kept, strict=True)])
        assert [parts(outcome) for outcome in outcomes] == whole
        assert all(part.peak_memory_mb is None for part in outcomes[0])  # type: ignore[union-attr]
        assert len(made) == batches
        for number in (1, 2):
            (tmp_path / f"{number}.pt").unlink(missing_ok=True)


def test_memory_measured_in_company_is_not_told_by_who_goes_on_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    spec = make_spec({**settings, "method": "source,tent", "corruption": "fog"}, QUICK)
    jobs = [task.arguments[0] for task, *_ in missing_streams(make_plan(spec))]
    clean = [job for job in jobs if job.segments[0].conditions[0].corruption is None]
    run(spec)
    with pytest.raises(Killed):
        evaluate_together([(clean[0], Dying(tmp_path / "0.pt", 1), None), (clean[1], None, None)])
    (part,) = evaluate(clean[0], FileCheckpointer(tmp_path / "0.pt", place=None))
    assert part.peak_memory_mb is None


@pytest.mark.parametrize(("jobs", "sizes"), [(1, [3] * 5), (2, [1] * 15)])
def test_company_leaves_every_process_work(settings: dict[str, Any], jobs: int, sizes: list[int]) -> None:
    spec = make_spec({**settings, "method": "source,tent,lame", "severity": "3,5", "jobs": jobs})
    groups = _groups(spec, jobs)
    assert [len(group) for group in groups] == sizes


def test_only_the_same_stream_is_shared_and_by_at_most_eight(settings: dict[str, Any]) -> None:
    names = "source,tent,lame,t3a,bn,memo,eata,sar,rpl,selfsoup"
    spec = make_spec({**settings, "method": names, "seeds": 2, "corruption": "fog"})
    groups = _groups(spec, 1)
    # For each of two seeds and two conditions: nine adapters of one classifier, one more than may share a pass.
    assert [len(group) for group in groups if len(group) > 1] == [8] * 4
    assert len([group for group in groups if len(group) == 1 and group[0].method == "rpl"]) == 4
    for group in groups:
        first = group[0]
        for evaluation in group[1:]:
            assert evaluation.seed == first.seed
            assert evaluation.weights == first.weights
            assert [s.conditions for s in evaluation.segments] == [s.conditions for s in first.segments]
            assert [s.ids.tolist() for s in evaluation.segments] == [s.ids.tolist() for s in first.segments]


def _groups(spec: Any, jobs: int) -> Sequence[Sequence[Evaluation]]:
    tasks = [task for task, *_ in missing_streams(make_plan(spec))]
    return [[task.arguments[0] for task in group] for group in together.share_passes(tasks, jobs)]
