"""Published numbers keep their source and protocol, and never enter a ranking."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import leaderboards
from leaderboards import reference
from leaderboards.reference import reference_rows

TABLES = tomllib.loads((Path(leaderboards.__file__).parent / "reference" / "papers.toml").read_text())["table"]


@pytest.mark.parametrize(("shift", "model", "protocol", "method", "accuracy"), [
    ("imagenet-c", "resnet50", "continual", "ROID", 0.455),
    ("imagenet-c", "swin-b", "continual", "RMT", 0.474),
    ("cifar10-c", "wrn28-10", "continual", "CoTTA", 0.835),
    ("cifar100-c", "resnext29", "continual", "LAME", 0.015),
    ("imagenet-c", "resnet50", "mixed_domains", "TENT", 0.136),
    ("imagenet-c", "vit-b-16", "correlated", "ROID", 0.832),
    ("imagenet-c", "resnet50", "reset_each_shift", "EATA", 0.478),
    ("imagenet-c", "resnet50-gn", "label_shifts", "SAR", 0.372),
    ("cifar10-c", "wrn28-10", "reset_each_shift", "TENT", 0.814),
])  # fmt: skip
def test_published_numbers(shift: str, model: str, protocol: str, method: str, accuracy: float) -> None:
    (row,) = (row for row in reference_rows(shift, model, protocol) if row.method == method)
    assert row.accuracy == pytest.approx(accuracy, abs=1e-9)


def test_one_name_of_a_model_stands_for_several_weights() -> None:
    rows = reference_rows("imagenet-c", "vit-b-16", "reset_each_shift")
    sources = {row.weights: row.accuracy for row in rows if row.method == "Source"}
    assert sorted(sources.values()) == pytest.approx([0.398, 0.555])
    assert [row.accuracy for row in rows] == sorted((row.accuracy for row in rows), reverse=True)


def test_nothing_is_known_of_other_settings() -> None:
    assert reference_rows("digits-c", "digits", "reset_each_shift") == []
    assert reference_rows("imagenet-c", "resnet50", "episodic") == []


def test_every_published_table_is_reached() -> None:
    settings = {(table["shift"], table["model"], table["protocol"]) for table in TABLES}
    assert sum(len(reference_rows(*setting)) for setting in settings) == sum(len(t["error_percent"]) for t in TABLES)


@pytest.mark.parametrize("change", [
    {"url": "javascript:alert(1)"}, {"error_percent": {"TENT": 101.0}}, {"source": ""}, {"extra": 1}, {"n": 0},
])  # fmt: skip
def test_a_wrong_table_is_refused(change: dict[str, Any]) -> None:
    reference._Table.model_validate(TABLES[0])
    with pytest.raises(ValidationError):
        reference._Table.model_validate(TABLES[0] | change)
