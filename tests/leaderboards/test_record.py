"""A record is consistent or it does not exist; its text gives it back exactly."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboards import record as record_module
from leaderboards.record import Access, Connectivity, MixtureShares, Record, RecordError
from methods import table

Content = dict[str, Any]

LEVELS = {
    "source": ("none", "statistics", "unlabelled", "labelled"),
    "test": ("none", "image", "stream", "pool"),
    "state": ("fixed", "episodic", "online", "offline"),
    "backprop": ("none", "norm", "partial", "full"),
}


def changed(content: Content, **fields: Any) -> str:
    return json.dumps(content | fields)


UNSAID = {"source": None, "classes": None, "label": None, "part": None, "ingredients": None}


def test_text_gives_the_record_back(content: Content) -> None:
    record = Record.from_json(json.dumps(content))
    assert Record.from_json(record.to_json()) == record
    assert json.loads(record.to_json()) == content | {
        "diagnostics": None,
        "connectivity": None,
        "mixture": None,
        "data": content["data"]
        | {"labels_per_class": None, "history": [], "skipped": 0, "tiles": None, "seen": None, **UNSAID},
        "weights": content["weights"] | {"ready": False},
    }
    assert "\n" not in record.to_json()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 .:+|_-]{0,20}", fullmatch=True)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=st.dictionaries(names, st.dictionaries(names, json_values, max_size=3), max_size=3),
    method=names,
    part=st.none() | names,
    severity=st.floats(0, 5),
    accuracy=st.floats(0, 1),
    nll=st.floats(0, 1e6),
    env=st.dictionaries(names, st.none() | st.booleans() | st.text(max_size=20), max_size=3),
)
def test_every_valid_record_survives_its_text(content: Content, accuracy: float, nll: float, **fields: Any) -> None:
    metrics = content["metrics"] | {"accuracy": accuracy, "nll": nll}
    record = Record.model_validate(content | fields | {"metrics": metrics})
    assert Record.from_json(record.to_json()) == record


def test_properties(content: Content) -> None:
    record = Record.from_json(json.dumps(content))
    assert not record.clean
    assert record.error_rate == pytest.approx(0.57)
    assert Record.from_json(changed(content, corruption=None, severity=0)).clean


def test_a_failed_record_has_an_error_rate_of_none(content: Content) -> None:
    failed = {"status": "failed", "metrics": None, "predictions": None, "cost": None, "error": "out of memory"}
    assert Record.from_json(changed(content, **failed)).error_rate is None


@pytest.mark.parametrize("fields", [
    {"metrics": {"accuracy": 1.7, "nll": 1, "ece": 0, "brier": 0}},
    {"metrics": {"accuracy": -0.1, "nll": 1, "ece": 0, "brier": 0}},
    {"metrics": {"accuracy": 0.5, "nll": -1, "ece": 0, "brier": 0}},
    {"metrics": {"accuracy": 0.5, "nll": 1, "ece": 1.1, "brier": 0}},
    {"metrics": {"accuracy": 0.5, "nll": 1, "ece": 0, "brier": 2.1}},
    {"metrics": {"accuracy": float("nan"), "nll": 1, "ece": 0, "brier": 0}},
    {"metrics": {"accuracy": 0.5, "nll": float("inf"), "ece": 0, "brier": 0}},
    {"metrics": {"accuracy": "0.5", "nll": 1, "ece": 0, "brier": 0}},
    {"metrics": {"accuracy": 0.5, "nll": 1, "ece": 0}},
    {"metrics": None},
    {"cost": None},
    {"n": 0},
    {"n": 12.5},
    {"seed": True},
    {"unknown": 1},
    {"key": "../../etc"},
    {"key": "ABCDEF00"},
    {"predictions": None},
    {"predictions": "../predictions/0f.npz"},
    {"predictions": "/etc/passwd"},
    {"predictions": "predictions/../../secret.npz"},
    {"predictions": "predictions/" + "0e" * 16 + ".npz"},
    {"created": "yesterday"},
    {"created": "2026-11-22T20:00:00"},
    {"status": "running"},
    {"status": "failed"},
    {"status": "failed", "metrics": None, "predictions": None, "error": None},
    {"status": "failed", "metrics": None, "predictions": None, "error": ""},
    {"status": "failed", "metrics": None, "error": "out of memory"},
    {"status": "failed", "predictions": None, "error": "out of memory"},
    {"error": "but done"},
    {"severity": 5.5},
    {"severity": -1},
    {"corruption": None},
    {"track": "R"},
    {"access": {"source": "none", "test": "everything", "state": "online", "backprop": "norm"}},
    {"access": {"source": "none", "test": "stream", "state": "online"}},
    {"limit": 0},
    {"batch_size": 0},
    {"options": {"tent": {"lr": float("nan")}}},
    {"options": {"tent": {"lr": [1, {"deep": float("inf")}]}}},
    {"options": {"tent": 1}},
    {"method": ""},
    {"method": "=1+1"},
    {"method": "two\nlines"},
    {"method": "ends with a line\n"},
    {"env": {"torch": 2}},
])  # fmt: skip
def test_contradictions_and_impossible_values_are_refused(content: Content, fields: Content) -> None:
    with pytest.raises(RecordError) as caught:
        Record.from_json(changed(content, **fields))
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message  # what is wrong, then what to do


@pytest.mark.parametrize("field", [
    "schema", "key", "created", "status", "method", "part", "access", "track", "shift", "corruption", "severity",
    "model", "protocol", "split", "seed", "batch_size", "precision", "options", "limit", "n", "metrics", "cost", "data",
    "weights", "env", "predictions", "error",
])  # fmt: skip
def test_every_field_is_required_in_text(content: Content, field: str) -> None:
    del content[field]
    with pytest.raises(RecordError):
        Record.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"a": 1}', "\xff", "[" * 100_000])
def test_text_that_is_no_record(text: str) -> None:
    with pytest.raises(RecordError, match=r"not JSON|not a record"):
        Record.from_json(text)


@pytest.mark.parametrize("schema", [99, 0, "1", None, [1], {}])
def test_another_schema_is_named(content: Content, schema: Any) -> None:
    with pytest.raises(RecordError, match=r"schema .* is not known"):
        Record.from_json(changed(content, schema=schema))


def test_records_do_not_change(content: Content) -> None:
    record: Any = Record.from_json(json.dumps(content))
    with pytest.raises(ValueError, match="frozen"):
        record.seed = 3
    with pytest.raises(ValueError, match="frozen"):
        record.metrics.accuracy = 1.0


def test_tracks_are_those_of_the_table_of_methods() -> None:
    for values in product(*LEVELS.values()):
        original = table.Access(**dict(zip(LEVELS, values, strict=True)))  # type: ignore[arg-type]
        assert Access.model_validate(original).track == original.track, values


def test_a_text_that_says_a_thing_twice_is_refused(content: Content) -> None:
    text = json.dumps(content)
    with pytest.raises(RecordError, match="'n' occurs twice"):
        Record.from_json(text[:-1] + ', "n": 50}')
    with pytest.raises(RecordError, match="'accuracy' occurs twice"):
        Record.from_json(text.replace('"accuracy"', '"accuracy": 0.9, "accuracy"'))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ['"nll": 2.81', '"lr": 0.00025', '"severity": 5'])
def test_numbers_that_are_none(content: Content, number: str, field: str) -> None:
    text = json.dumps(content)
    assert field in text
    with pytest.raises(RecordError):
        Record.from_json(text.replace(field, field.split()[0] + f" {number}"))


def test_earlier_schemas_are_migrated_step_by_step(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_minus_one(old: Content) -> Content:
        return {("method" if name == "name" else name): value for name, value in old.items()}

    def from_zero(old: Content) -> Content:
        return old | {"severity": old["severity"] / 10}

    monkeypatch.setattr(record_module, "MIGRATIONS", {0: from_minus_one, 1: from_zero, 2: dict})
    old = {("name" if name == "method" else name): value for name, value in content.items()}
    migrated = Record.from_json(json.dumps(old | {"schema": 0, "severity": 50}))
    assert migrated == Record.from_json(json.dumps(content))
    for unknown in (-1, 4, True, "1", 1.0, None):
        with pytest.raises(RecordError, match="schema"):
            Record.from_json(json.dumps(content | {"schema": unknown}))


def test_the_json_schema_takes_what_is_written_and_refuses_the_rest(content: Content) -> None:
    check = jsonschema.Draft202012Validator(record_module.schema())
    jsonschema.Draft202012Validator.check_schema(record_module.schema())
    written = json.loads(Record.from_json(json.dumps(content)).to_json())
    assert check.is_valid(written)
    for change in ({"surprise": 1}, {"schema": 1}, {"n": -1}, {"severity": 6}, {"method": "=1+1"}, {"track": "G"}):
        assert not check.is_valid(written | change), change
    assert not check.is_valid({name: value for name, value in written.items() if name != "access"})


def test_the_barrier_is_the_deepest_fall_below_the_line_between_two_ends() -> None:
    line = {"first": "a", "second": "b"}
    found = Connectivity.model_validate(
        {
            "n": 10,
            "positions": (0.0, 0.25, 1.0),
            "lines": ({**line, "accuracy": (0.8, 0.6, 0.4)}, {**line, "accuracy": (0.5, 0.75, 0.5)}),
        }
    )
    assert found.barrier == pytest.approx(0.8 * 0.75 + 0.4 * 0.25 - 0.6)
    flat = found.model_copy(update={"lines": found.lines[1:]})
    assert flat.barrier == 0.0


def test_a_mixture_has_a_share_for_each_ingredient() -> None:
    found = MixtureShares.model_validate(
        {"ingredients": ("a", "b"), "shares": {"head": (0.5, 0.5), "norm": (1.0, 0.0)}}
    )
    assert found.means == (0.75, 0.25)
    for wrong in ({"all": (1.0,)}, {}, {"all": (float("nan"), 1.0)}):
        with pytest.raises(ValueError, match="share"):
            MixtureShares.model_validate({"ingredients": ("a", "b"), "shares": wrong})
