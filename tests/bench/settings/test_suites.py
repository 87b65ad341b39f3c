"""Suites: every run names shifts, corruptions and protocols that exist, and the smallest one runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import UsageError
from bench.evaluation.protocols import parse_protocol
from bench.settings.grid import cells_of
from bench.settings.run_spec import make_spec
from bench.settings.suites import find_suite, suites
from bench.shifts import find_row
from bench.shifts.catalog import TASKS
from leaderboards.record import SUITE
from leaderboards.store import Store

RUNS = {"imagenet": 9, "cifar": 10, "vtab": 21, "vtab-c": 21, "digits": 4, "own": 2}


def cells(name: str) -> Any:
    shift = {"shift": "folder:pictures"} if name == "own" else {}
    return cells_of(find_suite(name).settings, {"method": "source", **shift})


def test_these_suites_are_there() -> None:
    assert {name: len(cells(name)) for name in suites()} == RUNS
    with pytest.raises(UsageError, match="unknown suite 'digit'; did you mean 'digits'"):
        find_suite("digit")


@pytest.mark.parametrize("name", RUNS)
def test_every_run_names_what_exists(name: str) -> None:
    for cell in cells(name):
        assert find_row(cell.spec.shift)
        assert parse_protocol(cell.spec.protocol)
    assert find_suite(name).version >= 1


def test_the_tasks_are_all_of_vtab() -> None:
    assert [cell.spec.shift for cell in cells("vtab")] == [f"mini-vtab:{task}" for task in TASKS]
    assert [cell.spec.shift for cell in cells("vtab-c")] == [f"mini-vtab-c:{task}" for task in TASKS]


def bench(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_they_are_listed() -> None:
    rows = json.loads(bench("list", "suites", "--json").stdout)
    assert {row["name"]: row["runs"] for row in rows} == RUNS
    assert all(row["summary"] and row["version"] for row in rows)


def test_a_suite_runs_and_flags_replace_its_settings(
    stock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--suite", "digits", "--method", "source", "--stock", stock, "--limit", 8, "--jobs", 1, "--batch-size", 4]
    words += ["--corruption", "fog,contrast", "--set", "source.epochs=1", "--set", "source.batch_size=50"]
    done = bench("run", *words, "--protocol", "continual,reset_each_shift", "--json")
    assert done.exit_code == 0, done.output
    boards = json.loads(done.stdout)
    assert [each["run"] for each in boards] == ["continual", "reset_each_shift"]
    assert [each["board"]["severities"] for each in boards] == [[3.0]] * 2
    out = tmp_path / "runs" / "suite-digits-v1"
    named = "digits v1, changed: corruption, protocol, limit"
    assert [each["board"]["suite"] for each in boards] == [named] * 2
    records = Store(out).records()
    assert {record.suite for record in records} == {named}
    for form in ("terminal", "md", "html", "latex"):
        told = bench("leaderboard", "--from", out, "--where", "protocol=continual", "--format", form)
        assert f"suite {named}" in " ".join(told.stdout.split()), form
    # The run file tells the suite on, and the identity of a number does not.
    again = bench("run", out / "run.toml", "--out", tmp_path / "again", "--json")
    assert [each["board"]["suite"] for each in json.loads(again.stdout)] == [named] * 2
    plain = tmp_path / "plain.toml"
    plain.write_text("".join(line for line in (out / "run.toml").open() if not line.startswith("of_suite")))
    alone = bench("run", plain, "--out", tmp_path / "alone", "--json")
    assert [each["board"]["suite"] for each in json.loads(alone.stdout)] == [None] * 2
    found = {record.key: record.metrics for record in Store(tmp_path / "alone").records()}
    assert found == {record.key: record.metrics for record in records}


def test_a_suite_says_what_a_run_changed_of_it() -> None:
    digits = find_suite("digits")
    assert digits.told({"severity": "3", "batch_size": "4", "seeds": 3, "method": "tent"}) == "digits v1"
    assert digits.told({"protocol": "reset_each_shift,continual,mixed_domains,correlated"}) == "digits v1"
    assert digits.told({"severity": "5", "limit": 4}) == "digits v1, changed: severity, limit"
    assert find_suite("own").told({"shift": "folder:pictures"}) == "own v1"
    for suite in suites().values():
        everything = dict.fromkeys(
            ("shift", "severity", "corruption", "protocol", "split", "limit", "labels", "part"), "x"
        )
        assert SUITE.fullmatch(suite.told(everything))


def test_a_board_names_only_what_is_a_suite(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of-suite is what a run of a suite writes"):
        make_spec({"method": "source", "shift": "digits-c", "of_suite": "<b>digits</b> v1"})


def test_a_suite_excludes_a_run_file_and_the_demonstration(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    for more in (["--demo"], [tmp_path / "run.toml"]):
        failed = bench("run", *more, "--suite", "digits")
        assert isinstance(failed.exception, UsageError)
        assert "exclude each other" in str(failed.exception)
