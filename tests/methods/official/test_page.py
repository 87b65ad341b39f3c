"""The page of parity names what is stored, and each class says truly what it is tested against."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from official_streams import FOLDER, PAGE, TABLE_END, TABLE_START, all_runs
from official_values import all_values

from bench.core.import_object import load_object
from methods import METHODS

HOME = Path(__file__).parents[3]
ADAPTERS = [row for row in METHODS.values() if row.kind == "adapter"]
# The name of BN in the golden runs.
BN = "norm"


def named_runs() -> list[str]:
    _, _, after = PAGE.read_text().partition(TABLE_START)
    return [line.split("|")[2].strip(" `") for line in after.partition(TABLE_END)[0].strip().splitlines()]


def test_the_page_names_every_stored_run() -> None:
    runs = sorted(run.name for run in all_runs())
    assert len(set(runs)) == len(runs)
    stored = {file.stem for file in FOLDER.glob("*.npz")}
    assert stored == {*runs, *(values.name for values in all_values())}
    assert sorted(named_runs()) == runs, "run tests/support/official_streams.py --table"


@pytest.mark.parametrize("row", ADAPTERS, ids=lambda row: row.name)
def test_golden_says_that_a_stream_of_the_release_is_stored(row: object) -> None:
    stored = json.loads((HOME / "tests" / "golden" / "golden.json").read_text())["runs"].values()
    held = {f"{run.adapter.__module__}:{run.adapter.__qualname__}" for run in all_runs()}
    held |= {METHODS["bn" if run["method"] == BN else run["method"]].path for run in stored}
    assert (load_object(row.path).tested_against == "golden") == (row.path in held)  # type: ignore[attr-defined]
