"""Published numbers keep their source and protocol, and never enter a ranking."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import leaderboards
from leaderboards import reference
from leaderboards.reference import reference_rows

FOLDER = Path(leaderboards.__file__).parent / "reference"
TABLES = [
    table
    for name in ("papers.toml", "selfsoup.toml")
    for table in tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))["table"]
]
MAE = "mae-vit-base-patch16"


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
    ("imagenet-a", MAE, "reset_each_shift", "Self-Soup on train, uniform", 0.0843),
    ("laion-c", MAE, "reset_each_shift", "Self-Soup on LAION-C (disjoint)", 0.2948),
    ("mini-vtab:dsprites_x", MAE, "reset_each_shift", "Seasoning", 0.116),
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
    assert sum(len(reference_rows(*setting)) for setting in settings) == sum(
        len(table.get("error_percent", table.get("accuracy_percent"))) for table in TABLES
    )


def test_the_tables_of_self_souping_are_those_that_were_printed() -> None:
    """Within rounding, printed means over 21 tasks follow from the tasks, and the abstract's gains from table 2."""
    # Table 4b prints these means. Table 4a has 33.3 for the best ingredient of a Self-Soup, which its tasks contradict.
    printed = {
        "Supervised soup, best ingredient": 33.6,
        "Supervised soup, greedy": 34.3,
        "Supervised soup, uniform": 34.6,
        "Continued SSL + supervised soup, best ingredient": 33.0,
        "Continued SSL + supervised soup, greedy": 33.8,
        "Continued SSL + supervised soup, uniform": 34.3,
        "Self-Soup, best ingredient": 33.2,
        "Self-Soup, greedy": 34.4,
        "Self-Soup, uniform": 35.1,
    }
    tasks = {table["shift"] for table in TABLES if table["shift"].startswith("mini-vtab-c:")}
    assert len(tasks) == 21
    for method, mean in printed.items():
        rows = [row for task in tasks for row in reference_rows(task, MAE, "reset_each_shift") if row.method == method]
        assert 100 * sum(row.accuracy for row in rows) / 21 == pytest.approx(mean, abs=0.06)
    seasoned = [row for task in tasks for row in reference_rows(task.replace("-c:", ":"), MAE, "reset_each_shift")]
    best = {row.shift: row.accuracy for row in sorted(seasoned, key=lambda row: row.accuracy)}
    won = {row.shift for row in seasoned if row.method == "Self-Seasoning" and row.accuracy == best[row.shift]}
    assert len(won) == 4  # section 4.5: the most accurate on 4 of 21 tasks
    for shift, own, gain in (("imagenet-c", "ImageNet-C", 0.035), ("laion-c", "LAION-C", 0.07)):
        found = {row.method: row for row in reference_rows(shift, MAE, "reset_each_shift") if row.severity == 5}
        after, before = found[f"Self-Soup on {own} (disjoint)"], found["Self-Soup on train, uniform"]
        assert after.accuracy - before.accuracy == pytest.approx(gain, abs=0.001)


def printed(heading: str) -> list[list[str]]:
    """Return the cells of the rows of the first table below a heading of docs/paper.md."""
    page = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
    lines = page.partition(f"## {heading}")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first + 1 :])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def published(shift: str, severity: float, method: str) -> float:
    (row,) = (
        row
        for row in reference_rows(shift, MAE, "reset_each_shift")
        if (row.severity, row.method) == (severity, method)
    )
    return row.accuracy


def test_the_page_of_the_paper_shows_the_reference_rows() -> None:
    kinds = {"supervised": "Supervised soup", "continued SSL + supervised": "Continued SSL + supervised soup"}
    kinds["Self-Soup"] = "Self-Soup on train"
    sets = [
        ("imagenet-c", 0.0),
        ("imagenet-real", 1.0),
        ("imagenet-v2", 1.0),
        ("imagenet-hr", 1.0),
        ("imagenet-a", 1.0),
    ]
    sets += [("imagenet-r", 1.0), ("imagenet-c", 5.0), ("laion-c", 5.0)]
    kind = ""
    for name, mix, *values in printed("Table 1"):
        kind = kinds[name] if name else kind
        method = f"{kind}, {mix.replace('best', 'best ingredient')}"
        assert [published(*where, method) for where in sets] == pytest.approx([float(value) / 100 for value in values])
    names = [f"Self-Soup on {on}{best}" for on in ("ImageNet-C", "LAION-C") for best in ("", ", best ingredient")]
    for name, (_, *values) in zip([*names, "Self-Soup on ImageNet-C and LAION-C"], printed("Table 2"), strict=True):
        halves = [(shift, f"{name} ({half})") for half in ("disjoint", "joint") for shift in ("imagenet-c", "laion-c")]
        found = [published("imagenet-c", 0.0, name), *(published(shift, 5.0, row) for shift, row in halves)]
        assert found == pytest.approx([float(value) / 100 for value in values])
    sar = {"supervised": "Supervised soup", "Self-Soup on train images": "Self-Soup on train"}
    for name, without, after in printed("Table 3"):
        method = sar.get(name, name)
        assert published("imagenet-c", 5.0, f"{method}, odd half") == pytest.approx(float(without) / 100)
        assert published("imagenet-c", 5.0, f"{method} + SAR") == pytest.approx(float(after) / 100)


@pytest.mark.parametrize("change", [
    {"accuracy_percent": {"TENT": 1.0}}, {"error_percent": {}},
    {"url": "javascript:alert(1)"}, {"error_percent": {"TENT": 101.0}}, {"source": ""}, {"extra": 1}, {"n": 0},
])  # fmt: skip
def test_a_wrong_table_is_refused(change: dict[str, Any]) -> None:
    reference._Table.model_validate(TABLES[0])
    with pytest.raises(ValidationError):
        reference._Table.model_validate(TABLES[0] | change)
