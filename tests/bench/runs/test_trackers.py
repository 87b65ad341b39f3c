"""Metrics in experiment trackers, read with the trackers' own readers, against the records."""

from __future__ import annotations

import importlib.util
import json
import re
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from bench.core.errors import MissingDataError, UsageError
from bench.runs import trackers as track
from bench.runs.run import Outcome

Quick = Callable[..., Outcome]


def expected(outcome: Outcome) -> dict[str, float]:
    places = {None: "clean", "fog": "fog 3", "contrast": "contrast 3"}
    return {
        f"source/seed 0/{places[record.corruption]}/accuracy": record.metrics.accuracy
        for record in outcome.records()
        if record.metrics is not None
    }


def test_tensorboard_holds_what_the_records_hold(settings: dict[str, Any], run_quick: Quick) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    outcome = run_quick(settings, tracker="tensorboard")
    reader = events.EventAccumulator(str(outcome.out / "track" / outcome.out.name))
    reader.Reload()
    found = {tag.replace("_", " "): reader.Scalars(tag)[0].value for tag in reader.Tags()["scalars"]}
    wanted = expected(outcome)
    assert len(wanted) == 3
    assert {tag: found[tag] for tag in wanted} == pytest.approx(wanted)


def test_mlflow_holds_what_the_records_hold(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    place = f"sqlite:///{settings['out']}/track/mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    outcome = run_quick(settings, tracker="mlflow")
    client = mlflow.MlflowClient(place)
    (experiment,) = (found for found in client.search_experiments() if found.name == "digits-c")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["shift"] == "digits-c"
    wanted = expected(outcome)
    assert {name: run.data.metrics[name] for name in wanted} == pytest.approx(wanted)


def test_wandb_offline_holds_what_the_records_hold_and_stdout_nothing(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = run_quick(settings, tracker="wandb")
    (file,) = (outcome.out / "track" / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name, value in expected(outcome).items():
        # In the file, one or two bytes of framing separate a name and its value.
        found = re.search(re.escape(name.encode()) + rb".{1,4}?(\d[\d.e-]*)", content, re.DOTALL)
        assert found is not None
        assert float(found[1]) == pytest.approx(value)
    assert b"digits-c" in content
    assert capsys.readouterr().out == ""


def test_trackio_holds_what_the_records_hold_and_stdout_nothing(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not importorskip: trackio chooses its folder on import, which the run must do.
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    outcome = run_quick(settings, tracker="trackio")
    with closing(sqlite3.connect(outcome.out / "track" / "digits-c.db")) as database:
        rows = database.execute("select metrics from metrics").fetchall()
        ((config,),) = database.execute("select config from configs").fetchall()
    found = {name: value for (text,) in rows for name, value in json.loads(text).items()}
    wanted = expected(outcome)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert json.loads(config)["shift"] == "digits-c"
    assert capsys.readouterr().out == ""


def test_a_tracker_that_hangs_costs_no_record_and_little_time(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    never = threading.Event()
    monkeypatch.setattr(track, "_SECONDS_TO_FINISH", 0.1)
    monkeypatch.setattr(TensorBoardTracker, "log", lambda *_: never.wait())
    try:
        assert run_quick(settings, tracker="tensorboard").done == 3
        assert "does not answer" in caplog.text
    finally:
        never.set()


def test_a_tracker_that_never_starts_is_one_sentence(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    never = threading.Event()
    monkeypatch.setattr(track, "_SECONDS_TO_START", 0.1)
    monkeypatch.setattr(TensorBoardTracker, "__init__", lambda *_, **__: never.wait() and None)
    try:
        with pytest.raises(UsageError, match="leave --tracker out"):
            run_quick(settings, tracker="tensorboard")
    finally:
        never.set()


def test_a_tracker_that_is_not_installed_is_one_sentence(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import tracking

    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(MissingDataError, match=r"pip install 'soupbench\[track\]'"):
        run_quick(settings, tracker="wandb")


def test_a_tracker_that_fails_costs_no_record(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    def refuse(*_: object) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(TensorBoardTracker, "log", refuse)
    assert run_quick(settings, tracker="tensorboard").done == 3
