"""Progress of streams and trainings: correct numbers on a terminal and in lines, invisible to methods."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bench.evaluation.evaluate import evaluate
from bench.execution import checkpointing as checkpointer
from bench.execution import progress_files as live
from bench.execution.progress_files import (
    Left,
    Now,
    ProgressWriter,
    left,
    running,
    stream_file,
    tell_left,
    training_file,
)
from bench.execution.task_pool import Task
from bench.models.weights_io import load_stock, load_weights
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.planning.time_left import WorkItem
from bench.runs import open_results as reading
from bench.runs import progress
from bench.runs.manifest import write_manifest
from bench.runs.progress import RunProgress
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from bench.training.job_cache import run_job, training_tasks
from methods.base import Job, Unlabelled, Work
from methods.selfsoup.ingredients import Ingredient, inter_train

SETTINGS: dict[str, Any] = {
    "method": "tent",
    "shift": "digits-c",
    "corruption": "fog",
    "severity": 3,
    "limit": 40,
    "batch_size": 16,
    "labels": 2,
    "set": {"source": {"epochs": 1}},
}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(live, "_SECONDS", 0.0)
    (tmp_path / "out" / "state").mkdir(parents=True)
    return tmp_path / "out"


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Now]:
    """Return all progress that streams and trainings write, as read from the files."""
    seen: list[Now] = []
    tell = ProgressWriter._report

    def watched(self: ProgressWriter, *values: Any) -> None:
        tell(self, *values)
        folder = self._path.parent.parent
        seen.extend(running(folder, [self._path.stem] if self._path == training_file(self._path.stem) else []).values())

    monkeypatch.setattr(ProgressWriter, "_report", watched)
    return seen


def test_live_accuracy_is_the_records_and_changes_no_prediction(out: Path, reports: list[Now]) -> None:
    spec = make_spec({**SETTINGS, "jobs": 1, "out": out})
    streams = [task.arguments[0] for task, *_ in missing_streams(make_plan(spec))]
    outcome = run(spec)
    assert outcome.done == 2
    for record in outcome.records():
        where = "clean" if record.corruption is None else "fog@3"
        seen = [now for now in reports if now.where == where]
        assert [(now.done, now.of, now.share) for now in seen] == [(1, 3, 0.4), (2, 3, 0.8), (3, 3, 1.0)]
        assert [now.gained for now in seen] == [now.share for now in seen]
        assert record.metrics is not None
        assert seen[-1].accuracy == pytest.approx(record.metrics.accuracy)
    assert not running(out)
    for job in streams:
        alone, watched_too = evaluate(job), evaluate(job, None, ProgressWriter(stream_file(out, "again"), "again"))
        for a, b in zip(alone, watched_too, strict=True):
            np.testing.assert_array_equal(a.predictions.p_label, b.predictions.p_label)


def ingredient(steps: int) -> Task:
    pixels = torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    how = Ingredient(steps=steps, batch_size=8)
    work = Work(1e9, steps)
    job = Job(inter_train, how, (load_stock("digits"),), Unlabelled(pixels, "p"), "ingredient mae", True, work)
    return training_tasks([job], 0, "cpu")[0]


def test_a_training_tells_its_steps_and_the_loss_of_the_last_ten(
    out: Path, reports: list[Now], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "_SECONDS_BETWEEN_REPORTS", 0.0)
    monkeypatch.setattr(checkpointer, "_REPORT_PAUSE", 0.0)
    task = ingredient(13)
    run_job(*task.arguments)
    weights, facts = load_weights(out.parent / "cache" / "weights" / f"{task.key}.safetensors")
    losses = facts["losses"]
    assert [(now.done, now.of) for now in reports] == [(step, 13) for step in range(13)]
    for now in reports[1:]:
        assert now.loss == pytest.approx(np.mean(losses[max(0, now.done - 10) : now.done]), abs=1e-5)
        assert (now.unit, now.name, now.share) == ("step", "ingredient mae", now.done / 13)
    assert not running(out, [task.key])
    monkeypatch.setenv("SOUPBENCH_CACHE", str(out.parent / "unwatched"))
    run_job(*task.arguments[:6])
    assert load_weights(out.parent / "unwatched" / "weights" / f"{task.key}.safetensors")[0].digest == weights.digest


def test_a_training_that_goes_on_tells_what_this_process_gained(tmp_path: Path) -> None:
    path = tmp_path / "x.now"
    writer = ProgressWriter(path, "x")
    writer.step(100, 40, 0.5)
    writer.step(100, 60, 0.4)
    (now,) = live._read([path], 60.0).values()
    assert now["share"] == 0.6
    assert now["gained"] == pytest.approx(0.2)


def test_looking_for_people_writes_no_checkpoint_and_takes_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    looks: list[float] = []
    kept = checkpointer.FileCheckpointer(tmp_path / "x.pt", report=lambda done, loss: looks.append(clock[0]))
    kept.load()
    looks.clear()
    for step in range(1, 5000):
        clock[0] += 0.01
        if kept.due():
            clock[0] += 0.05  # what it takes to make the state
            kept.save({"step": step, "losses": torch.ones(step)})
            assert (tmp_path / "x.pt").exists() == (clock[0] >= 1060.0)
    between = np.diff(looks)
    assert between.min() >= 5.0
    assert between.max() < 5.2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"label": 1}'])
def test_a_damaged_file_is_not_shown_and_stops_nothing(out: Path, content: str) -> None:
    (out / "state" / "x.now").write_text(content)
    assert not running(out)


TASK = Task("t", print, (), frozenset(), "ingredient mae")
PIECES = [WorkItem(("t",), "a", 1e9, frozenset(), training=True), WorkItem(("x", "y", "z"), "b", 3e9, frozenset({"t"}))]


def drawn(shown: RunProgress, width: int = 140) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        for part in shown._bar.get_renderables():
            console.print(part)
    return capture.get()


def test_the_terminal_shows_tasks_trainings_batches_accuracy_and_time_left(out: Path) -> None:
    shown = RunProgress(out)
    shown.planned(PIECES, 1)
    shown.started(TASK)
    shown.finished(TASK, None)
    ProgressWriter(stream_file(out, "x"), "tent [b]").batch("fog@3", 2, 5, 0.25, 0.4)
    training = ProgressWriter(training_file("t"), "ingredient mae")
    training.step(300, 0, None)
    training.step(300, 30, 0.125)
    assert shown._task is not None
    shown._bar.update(shown._task, left="about 4 min left")
    lines = drawn(shown).splitlines()
    assert "1/4" in lines[0]
    assert "about 4 min left" in lines[0]
    assert all(part in lines[1] for part in ("ingredient mae", "step 30/300", "loss 0.1250"))
    assert all(part in lines[2] for part in ("tent [b], fog@3", "batch 2/5", "accuracy 25.0%"))


def test_elsewhere_long_streams_and_trainings_are_plain_lines(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_UPDATES", 0.01)
    monkeypatch.setattr(progress, "_SECONDS_OF_SILENCE", 0.0)
    writer = ProgressWriter(stream_file(out, "x"), "tent seed 0")
    writer.begin(0.0)
    writer._began -= 60.0  # type: ignore[operator]
    writer.batch("fog@3", 2, 5, 0.25, 0.5)
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    with RunProgress(out) as shown:
        shown.planned(PIECES, 1)
        shown.started(TASK)
        shown.finished(TASK, None)
        deadline = time.monotonic() + 10
        while not any("batch 2" in line for line in said) and time.monotonic() < deadline:
            time.sleep(0.01)
        found = left(out)
        assert found is not None
        assert (found.done, found.of) == (1, 4)
        assert found.seconds == pytest.approx(60, rel=0.01)
    assert "[1/4] tent seed 0, fog@3: batch 2 of 5, accuracy 25.0% (about 60 s left)" in said
    assert left(out) is None


def test_a_watched_folder_shows_trainings_streams_and_the_time_left(
    out: Path,
) -> None:
    spec = make_spec({**SETTINGS, "jobs": 1, "out": out})
    plan = make_plan(spec)
    keys = [task.key for task in plan.trainings]
    write_manifest(out, [], keys)
    ProgressWriter(training_file(keys[0]), "ingredient mae").step(300, 30, 0.125)
    ProgressWriter(training_file("of another run"), "not ours").step(300, 30, 0.125)
    ProgressWriter(stream_file(out, "x"), "tent").batch("fog@3", 2, 5, 0.25, 0.4)
    tell_left(out, Left(3, 10, 150.0))
    counts = dict.fromkeys(("done", "running", "failed", "missing"), 1)
    unknown = dict.fromkeys(("barrier", "barrier_images", "shares"))
    line: dict[str, Any] = {**counts, **unknown, "error": ""}
    text = reading._in_lines(out, [line])
    assert text.splitlines() == [
        "1 done, 1 running, 1 failed, 1 missing",
        "3 of 10 trainings and streams, about 2.5 min left",
        "  ingredient mae: step 30 of 300, loss 0.1250",
        "  tent, fog@3: batch 2 of 5, accuracy 25.0%",
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(reading._with_now(out, [line]))
    drawing = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("3 of 10", "2.5 min left", "step 30/300", "loss 0.1250", "batch 2/5", "accuracy 25.0%"):
        assert part in drawing
    assert "not ours" not in drawing


def test_a_run_that_was_killed_is_not_said_to_be_under_way(out: Path) -> None:
    tell_left(out, Left(3, 10, 150.0))
    (path,) = (out / "state").glob("*.left")
    os.utime(path, (time.time() - 120, time.time() - 120))
    assert left(out) is None
