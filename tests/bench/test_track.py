"""Numbers in experiment trackers, read back with the trackers' own readers, against the records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.errors import UsageError
from bench.run import Outcome

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
    outcome = run_quick(settings, track="tensorboard")
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
    outcome = run_quick(settings, track="mlflow")
    client = mlflow.MlflowClient(place)
    (experiment,) = (found for found in client.search_experiments() if found.name == "digits-c")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["shift"] == "digits-c"
    wanted = expected(outcome)
    assert {name: run.data.metrics[name] for name in wanted} == pytest.approx(wanted)


def test_a_tracker_that_is_not_installed_is_one_sentence(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import tracking

    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(UsageError, match=r"pip install 'soupbench\[track\]'"):
        run_quick(settings, track="wandb")


def test_a_tracker_that_fails_costs_no_record(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    def refuse(*_: object) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(TensorBoardTracker, "log", refuse)
    assert run_quick(settings, track="tensorboard").done == 3
