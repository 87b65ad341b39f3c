"""What people see while streams run: true numbers, on a terminal and in plain lines, and nothing for the methods."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench import commands, live
from bench.live import Now, Teller, running
from bench.plan import make_plan
from bench.predict import evaluate
from bench.run import missing_streams, run
from bench.spec import make_spec

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


def test_live_accuracy_is_the_records_and_changes_no_prediction(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Now] = []
    tell = Teller.tell

    def watched(self: Teller, *values: Any) -> None:
        tell(self, *values)
        told.extend(running(out))

    monkeypatch.setattr(Teller, "tell", watched)
    spec = make_spec({**SETTINGS, "jobs": 1, "out": out})
    streams = [task.arguments[0] for task, *_ in missing_streams(make_plan(spec))]
    outcome = run(spec)
    assert outcome.done == 2
    for record in outcome.records():
        where = "clean" if record.corruption is None else "fog@3"
        seen = [now for now in told if now.where == where]
        assert [(now.batches, now.of) for now in seen] == [(1, 3), (2, 3), (3, 3)]
        assert record.metrics is not None
        assert seen[-1].accuracy == pytest.approx(record.metrics.accuracy)
    assert running(out) == []
    for job in streams:
        alone, watched_too = evaluate(job), evaluate(job, None, Teller(out, "again", "again"))
        for a, b in zip(alone, watched_too, strict=True):
            np.testing.assert_array_equal(a.predictions.p_label, b.predictions.p_label)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"label": 1}'])
def test_a_damaged_file_is_not_shown_and_stops_nothing(out: Path, content: str) -> None:
    (out / "state" / "x.now").write_text(content)
    assert running(out) == []


def shown(progress: commands.RunProgress, width: int = 140) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        for part in progress._bar.get_renderables():
            console.print(part)
    return capture.get()


def test_the_terminal_shows_tasks_batches_accuracy_and_time_left(out: Path) -> None:
    progress = commands.RunProgress(out)
    progress.planned(1, 3, 2)
    progress.finished("first", None)
    Teller(out, "x", "tent [b]").tell("fog@3", 2, 5, 0.25)
    lines = shown(progress).splitlines()
    assert "1/4" in lines[0]
    assert "left" in lines[0]
    assert all(part in lines[1] for part in ("tent [b], fog@3", "batch 2/5", "accuracy 25.0%"))


def test_elsewhere_long_streams_are_plain_lines(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr(commands, "_SECONDS_OF_SILENCE", 0.0)
    Teller(out, "x", "tent seed 0").tell("fog@3", 2, 5, 0.25)
    said: list[str] = []
    monkeypatch.setattr(commands, "_say", said.append)
    with commands.RunProgress(out) as progress:
        progress.planned(0, 3, 1)
        for _ in range(500):
            if len(said) > 1:
                break
            time.sleep(0.01)
    assert "[0/3] tent seed 0, fog@3: batch 2 of 5, accuracy 25.0%" in said
