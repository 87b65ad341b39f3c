"""`--where`: lists of values and groups of corruptions, and what no record has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.core.errors import UsageError
from bench.runs.read_records import filtered, open_records
from leaderboards import Record

FEW = Path(__file__).resolve().parents[3] / "docs" / "results" / "cifar10-c-few0.jsonl"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return open_records([FEW])


def conditions(found: list[Record]) -> set[str | None]:
    return {record.corruption for record in found}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fog", {None, "fog"}),
        ("fog,snow", {None, "fog", "snow"}),
        ("fog, snow", {None, "fog", "snow"}),
        ("noise", {None, "gaussian_noise", "shot_noise", "impulse_noise"}),
        ("noise,fog", {None, "gaussian_noise", "shot_noise", "impulse_noise", "fog"}),
        ("none", {None}),
    ],
)
def test_corruptions(records: list[Record], text: str, expected: set[str | None]) -> None:
    found = filtered(records, [f"corruption={text}"])
    assert conditions(found) == expected
    assert found == [record for record in records if record.corruption in expected]


def test_values_of_other_fields_and_several_conditions(records: list[Record]) -> None:
    found = filtered(records, ["seed=0,2", "method=tent,source", "severity=3.0"])
    assert Counter(record.seed for record in found) == {0: 32, 2: 32}
    assert {record.method for record in found} == {"tent", "source"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("corruption=fog,nois", "no record has corruption=nois; did you mean corruption="),
        ("corruption=fog,", "no record has corruption="),
        ("corruption=pattern", "no record has corruption=pattern"),
        ("seed=0,9", "no record has seed=9"),
        ("severity=5", "no record has severity=5"),
        ("seed", "--where takes FIELD=VALUE"),
        ("sed=0", "did you mean 'seed'?"),
    ],
)
def test_a_value_that_no_record_has_is_named(records: list[Record], text: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        filtered(records, [text])
    assert told in str(refused.value)


def test_a_value_with_a_comma_is_one_value_where_a_record_has_it(records: list[Record]) -> None:
    odd = [record.model_copy(update={"model": "a,b"}) for record in records[:2]] + records[2:]
    assert filtered(odd, ["model=a,b"]) == odd[:2]
