"""Verification finds every kind of false or missing number, and nothing where all is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboards import Predictions, score
from leaderboards.verify import verify


@pytest.fixture
def honest(results: Any) -> Any:
    results.add("tent")
    results.add("tent", "snow")
    results.add("source", track="R")
    results.add("sar", error="out of memory")
    results.store.compile()
    return results


def messages(results: Any) -> list[str]:
    return [problem.message for problem in verify(results.store.folder).problems]


def rewrite(results: Any, key: str, change: Any) -> None:
    """Change one record in records/ and in records.jsonl alike, as somebody would who wants to deceive."""
    path = results.store.folder / "records" / f"{key}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    lines = [json.loads(line) for line in results.store.jsonl.read_text().splitlines()]
    lines = [record if line["key"] == key else line for line in lines]
    results.store.jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))


def first_done(results: Any) -> Any:
    return next(record for record in results.records if record.status == "done")


def test_an_honest_folder(honest: Any) -> None:
    report = verify(honest.store.folder)
    assert report.ok
    assert report.problems == ()
    assert set(report.checked) == honest.store.done()
    assert len(report.checked) == 3


def test_compiled_lines_alone(honest: Any) -> None:
    for path in (honest.store.folder / "records").iterdir():
        path.unlink()
    (honest.store.folder / "records").rmdir()
    assert verify(honest.store.folder).ok
    assert len(verify(honest.store.folder).checked) == 3


@pytest.mark.parametrize("metric", ["accuracy", "nll", "ece", "brier"])
@pytest.mark.parametrize("by", [0.02, 1e-7])
def test_an_embellished_number(honest: Any, metric: str, by: float) -> None:
    record = first_done(honest)

    def embellish(content: dict[str, Any]) -> None:
        content["metrics"][metric] += by

    rewrite(honest, record.key, embellish)
    report = verify(honest.store.folder)
    assert [(problem.key, problem.file) for problem in report.problems] == [(record.key, record.predictions)]
    assert f"gives {metric} " in report.problems[0].message


def test_rounding_is_no_problem(honest: Any) -> None:
    def nudge(content: dict[str, Any]) -> None:
        content["metrics"]["nll"] += 1e-12

    rewrite(honest, first_done(honest).key, nudge)
    assert verify(honest.store.folder).ok


def test_a_wrong_n(honest: Any) -> None:
    rewrite(honest, first_done(honest).key, lambda content: content.update(n=51))
    assert len(messages(honest)) == 1
    assert "has 50 rows where the record says n = 51" in messages(honest)[0]


def test_predictions_with_other_labels_than_the_rest(honest: Any) -> None:
    record = honest.add("cheat")
    path = honest.store.folder / record.predictions
    made = Predictions.load(path)
    columns = {name: getattr(made, name) for name in ("id", "predicted", "confidence", "sum_p2")}
    Predictions(**columns, label=made.predicted, p_label=made.confidence).save(path)
    cheated = Predictions.load(path)
    assert cheated.hits.all()
    honest.store.compile()
    rewrite(honest, record.key, lambda content: content.update(metrics=score(cheated).model_dump()))
    (message,) = messages(honest)
    assert "other labels" in message


def test_an_image_with_two_labels(results: Any, make_predictions: Any) -> None:
    record = results.add("tent", hits=[True] * 4, ids=[0, 1, 2, 3])
    made = Predictions.load(results.store.folder / record.predictions)
    columns = {name: getattr(made, name) for name in ("label", "predicted", "confidence", "p_label", "sum_p2")}
    Predictions(**columns, id=np.array([0, 1, 2, 2])).save(results.store.folder / record.predictions)
    assert "two labels" in messages(results)[0]


@pytest.mark.parametrize("damage", ["missing", "truncated", "nan", "text"])
def test_predictions_that_cannot_be_read(honest: Any, damage: str) -> None:
    record = first_done(honest)
    path = honest.store.folder / record.predictions
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "text":
        path.write_text("hello")
    else:
        with np.load(path) as file:
            columns = dict(file)
        columns["p_label"][0] = np.nan
        np.savez(path, **columns)
    report = verify(honest.store.folder)
    assert [problem.key for problem in report.problems] == [record.key]
    assert record.key not in report.checked


@pytest.mark.parametrize(("field", "value"), [
    ("predictions", "../../../etc/passwd"),
    ("metrics", {"accuracy": 1.7, "nll": 0, "ece": 0, "brier": 0}),
    ("schema", 99),
    ("surprise", 1),
    ("track", "R"),
])  # fmt: skip
def test_records_that_are_none(honest: Any, field: str, value: Any) -> None:
    key = next(record.key for record in honest.records if record.track == "A" and record.status == "done")
    rewrite(honest, key, lambda content: content.update({field: value}))
    report = verify(honest.store.folder)
    assert f"records/{key}.json" in {problem.file for problem in report.problems}
    assert key not in report.checked


def test_a_failed_record_with_numbers(honest: Any) -> None:
    key = next(record.key for record in honest.records if record.status == "failed")
    numbers = {"accuracy": 0.9, "nll": 1, "ece": 0, "brier": 0}
    rewrite(honest, key, lambda content: content.update(metrics=numbers))
    assert any("a failed record has no metrics" in message for message in messages(honest))


def test_lines_and_files_that_differ(honest: Any) -> None:
    lines = honest.store.jsonl.read_text().splitlines()
    other = json.loads(lines[0])
    other["method"] = "renamed"
    key = json.loads(lines[1])["key"]
    (honest.store.folder / "records" / f"{key}.json").unlink()
    honest.store.jsonl.write_text("\n".join([json.dumps(other), *lines[1:3], lines[2]]) + "\n")
    found = messages(honest)
    assert any("differs from records/" in message for message in found)
    assert any("that records/ lacks" in message for message in found)
    assert any("lacks the record" in message for message in found)
    assert any("repeats a key" in message for message in found)


def test_files_that_belong_to_nothing(honest: Any) -> None:
    (honest.store.folder / "predictions" / "orphan.npz").write_bytes(b"")
    (honest.store.folder / "records" / ".aa.json.bb.tmp").write_bytes(b"")
    files = [problem.file for problem in verify(honest.store.folder).problems]
    assert sorted(files) == ["predictions/orphan.npz", "records/.aa.json.bb.tmp"]


def test_a_record_twice(honest: Any) -> None:
    path = honest.store.folder / "records" / f"{first_done(honest).key}.json"
    (path.parent / ("ab" * 16 + ".json")).write_bytes(path.read_bytes())
    (message,) = messages(honest)
    assert "rename it" in message


def test_nothing_to_verify_is_a_problem(tmp_path: Path) -> None:
    assert not verify(tmp_path).ok
    assert not verify(tmp_path / "missing").ok


def replace_predictions(results: Any, record: Any, made: Predictions) -> None:
    """Give a record other predictions and the numbers that follow from them."""
    made.save(results.store.folder / record.predictions)
    results.store.compile()
    rewrite(results, record.key, lambda content: content.update(metrics=score(made).model_dump(), n=len(made)))


def test_predictions_copied_from_another_condition(honest: Any) -> None:
    fog, snow = (r for r in honest.records if r.method == "tent")
    replace_predictions(honest, snow, Predictions.load(honest.store.folder / fog.predictions))
    (message,) = messages(honest)
    assert "another condition" in message


def test_methods_may_predict_alike(results: Any, make_predictions: Any) -> None:
    made = make_predictions(50)
    for method in ("bn", "source"):
        replace_predictions(results, results.add(method), made)
    assert messages(results) == []


@pytest.mark.parametrize("rows", [range(49), [*range(49), 0], [*range(50), 0]])
def test_lost_and_repeated_images(honest: Any, rows: Any) -> None:
    record = next(r for r in honest.records if (r.method, r.corruption) == ("tent", "fog"))
    made = Predictions.load(honest.store.folder / record.predictions)
    columns = ("id", "label", "predicted", "confidence", "p_label", "sum_p2")
    replace_predictions(honest, record, Predictions(**{name: getattr(made, name)[list(rows)] for name in columns}))
    assert any("has other images than the record" in message for message in messages(honest))
