"""Comparisons are made once: recalled while nothing changed, made again as soon as anything did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboards import Memory, Record, make_board
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


@pytest.mark.parametrize("options", [{"level": 0.9}, {"resamples": 500}, {"seed": 1}])
def test_other_ways_to_measure_are_other_comparisons(
    filled: Any, counting: Counting, memory: Memory, options: Any
) -> None:
    make_board(filled.records, counting, memory=memory)
    board = make_board(filled.records, counting, memory=memory, **options)
    assert board == make_board(filled.records, counting, **options)
    assert board != make_board(filled.records, counting)


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
