"""Comparisons are made once: recalled while nothing changed, made again as soon as anything did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboards import Memory, Record, make_board, to_json, to_markdown
from leaderboards.store import find_scored, state_of


@pytest.fixture
def filled(results: Any) -> Any:
    rng = np.random.default_rng(0)
    for method, track, share in (("source", "R", 0.5), ("tent", "A", 0.7), ("sar", "A", 0.4)):
        for corruption in ("fog", "snow", None):
            results.add(method, corruption, track=track, hits=rng.random(80) < share)
    return results


class Counting:
    """Reads predictions and counts how often."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reads = folder, 0

    def __call__(self, record: Record) -> Any:
        self.reads += 1
        return find_scored([self.folder], record)


@pytest.fixture
def counting(filled: Any) -> Counting:
    return Counting(filled.store.folder)


@pytest.fixture
def memory(filled: Any, tmp_path: Path) -> Memory:
    return Memory(tmp_path / "memory", lambda record: state_of([filled.store.folder], record))


def test_the_second_board_is_the_first_and_reads_nothing(filled: Any, counting: Counting, memory: Memory) -> None:
    first = make_board(filled.records, counting, memory=memory)
    assert counting.reads == 6
    assert make_board(filled.records, counting, memory=memory) == first == make_board(filled.records, counting)
    assert counting.reads == 12  # those of the board without a memory
    assert any(row.rank == 2 for row in first.rows)


def add_a_method(results: Any) -> None:
    for corruption in ("fog", "snow", None):
        results.add("eta", corruption, hits=np.arange(80) < 60)


def rewrite_predictions(results: Any) -> None:
    record = results.records[0]
    path = results.store.folder / record.predictions
    made = results.store.predictions(record)
    path.unlink()
    made.save(path)


@pytest.mark.parametrize("change", [add_a_method, rewrite_predictions])
def test_what_changed_is_measured_again(
    filled: Any, counting: Counting, memory: Memory, change: Callable[[Any], None]
) -> None:
    make_board(filled.records, counting, memory=memory)
    before = counting.reads
    change(filled)
    board = make_board(filled.records, counting, memory=memory)
    assert counting.reads > before
    assert board == make_board(filled.records, counting)


def test_another_confidence_is_another_comparison(filled: Any, counting: Counting, memory: Memory) -> None:
    make_board(filled.records, counting, memory=memory)
    board = make_board(filled.records, counting, memory=memory, level=0.9)
    assert board == make_board(filled.records, counting, level=0.9)
    assert board != make_board(filled.records, counting)


def test_a_withheld_interval_is_remembered(filled: Any, counting: Counting, memory: Memory) -> None:
    for corruption in ("fog", "snow", None):
        filled.add("eta", corruption, hits=np.arange(80) < 78)
    first = make_board(filled.records, counting, memory=memory)
    reads = counting.reads
    assert make_board(filled.records, counting, memory=memory) == first
    assert counting.reads == reads
    withheld = {row.method: row.withheld for row in first.rows if row.interval is None}
    assert list(withheld) == ["eta"]
    assert f"eta has no interval: {withheld['eta']}" in to_markdown(first)
    assert json.loads(to_json(first))["rows"][-1].keys() >= {"interval", "withheld"}


@pytest.mark.parametrize("content", [b"", b"[", b"{}", b"[1]", b'[{"method": "tent"}]', b"\xff"])
def test_a_damaged_file_is_measured_again(filled: Any, counting: Counting, memory: Memory, content: bytes) -> None:
    first = make_board(filled.records, counting, memory=memory)
    (file,) = memory.folder.iterdir()
    file.write_bytes(content)
    assert make_board(filled.records, counting, memory=memory) == first


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    filled: Any, counting: Counting, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    memory = Memory(tmp_path / "file" / "memory", lambda record: "")
    assert make_board(filled.records, counting, memory=memory) == make_board(filled.records, counting)


def test_false_predictions_are_not_remembered(filled: Any, counting: Counting, memory: Memory) -> None:
    other = filled.store.predictions(filled.records[3])
    other.save(filled.store.folder / filled.records[0].predictions)
    for _ in range(2):
        with pytest.raises(ValueError, match="does not follow from its predictions"):
            make_board(filled.records, counting, memory=memory)
