"""The state that an adapter keeps between conditions, and the effect of an error in one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.runs.run import Outcome
from leaderboards.record import Record

Quick = Callable[..., Outcome]

COUNTER = """
from methods.base import Adapter
from methods.table import Access

class Counter(Adapter):
    '''Surer with every batch that it has seen.'''
    access = Access(test="stream", state="online")

    def configure(self, source):
        self.seen = 0

    def predict(self, images):
        self.seen += 1
        {then}
        return self.model(images).detach() * self.seen
"""


def records(outcome: Outcome) -> dict[str | None, Record]:
    return {record.corruption: record for record in outcome.records()}


@pytest.fixture
def play(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> Callable[..., dict[str | None, Record]]:
    def run(then: str = "pass", **changes: Any) -> dict[str | None, Record]:
        plugin = tmp_path / "counter.py"
        plugin.write_text(COUNTER.format(then=then))
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        return records(run_quick(settings, method=f"{plugin}:Counter", out=out, **changes))

    return run


def test_continual_carries_on_where_resets_begin_anew(play: Callable[..., dict[str | None, Record]]) -> None:
    anew, on = play(), play(protocol="continual")
    for corruption in (None, "fog"):  # clean images are a separate stream, fog is the first of the others
        assert on[corruption].metrics == anew[corruption].metrics
    assert on["contrast"].metrics != anew["contrast"].metrics
    only = play(protocol="continual", corruption="contrast")
    assert only["contrast"].metrics == anew["contrast"].metrics


def test_an_error_in_one_condition_leaves_the_next_as_it_would_be(
    play: Callable[..., dict[str | None, Record]],
) -> None:
    whole = play()
    # The brightest digits, in fog, raise an error after the state has changed.
    hurt = play("assert float(images.mean()) < 0.385")
    failed = {corruption for corruption, record in hurt.items() if record.status == "failed"}
    assert failed == {"fog"}
    for corruption in (None, "contrast"):
        assert hurt[corruption].metrics == whole[corruption].metrics


def test_an_error_along_one_stream_fails_all_that_comes_after(play: Callable[..., dict[str | None, Record]]) -> None:
    hurt = play("assert self.seen < 5", protocol="continual")  # three batches of each condition
    assert hurt[None].status == "done"
    assert hurt["contrast"].status == "failed"
    assert hurt["contrast"].metrics is None


def test_mixed_domains_keep_the_books_of_every_domain(play: Callable[..., dict[str | None, Record]]) -> None:
    mixed = play(protocol="mixed_domains")
    assert {corruption: record.n for corruption, record in mixed.items()} == {None: 12, "fog": 12, "contrast": 12}
