"""The parts of a grid over shares may be published where the options ask for a grid, and no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.runs.vocabulary import method_of
from leaderboards.record import Record
from leaderboards.vocabulary import method_problems


def problems(part: str, mixes: list[str], ready: bool = False, method: str = "selfsoup") -> list[str]:
    words = method_of(method)
    assert words is not None
    options: dict[str, Any] = {"selfsoup": {"mixes": mixes, "ingredients": ["mae"], "scales": [1.0]}}
    record = SimpleNamespace(
        method=method, access=words.access, part=part, options=options, weights=SimpleNamespace(ready=ready)
    )
    return list(method_problems(cast("Record", record), words))


@pytest.mark.parametrize("part", ["soup", "soup:shares:1:1:19", "soup:shares:3:1", "soup:shares:2:1:1"])
def test_a_mixture_that_the_options_make(part: str) -> None:
    assert problems(part, ["uniform", "simplex:side=7", "shares:2:1:1"]) == []


@pytest.mark.parametrize(
    ("part", "mixes"),
    [
        ("soup:shares:1:1:19", ["uniform"]),
        ("soup:shares:1:1:19", ["uniform", "shares:1:1:18"]),
        ("soup:shares:1", ["simplex"]),
        ("soup:shares:1:1:1:1", ["simplex"]),
        ("soup:shares:1:x:1", ["simplex"]),
        ("soup:shares:1:1:1<b>", ["simplex"]),
        ("soup:shares:00001:1:1", ["simplex"]),
    ],
)
def test_a_mixture_that_they_do_not(part: str, mixes: list[str]) -> None:
    (said,) = problems(part, mixes)
    assert "its options do not make" in said


@pytest.mark.parametrize("word", ["shares:1:b", "shares", "simplex:side=<b>"])
def test_words_of_a_grid_are_plain(word: str) -> None:
    found = problems("soup", ["uniform", word])
    assert found == ([] if word == "shares" else [found[0]])
    assert all("that it never takes" in said for said in found)
