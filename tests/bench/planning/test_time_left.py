"""The time left: weighted by work and measured on finished work."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.execution.progress_files import Now
from bench.planning.time_left import Estimate, WorkItem, makespan


def item(name: str, work: float, *after: str, kind: str = "", training: bool = False) -> WorkItem:
    return WorkItem((name,), kind or name, work, frozenset(after), training)


def now(share: float, gained: float, seconds: float) -> Now:
    return Now("x", "", "step", 1, 2, None, None, share, gained, seconds)


def slow(work_items: list[WorkItem], seconds: Mapping[str, int], jobs: int) -> int:
    """A reference that simulates every second."""
    left = dict(seconds)
    running: list[str] = []
    done: set[str] = set()
    for clock in itertools.count():
        for key in [key for key in running if left[key] == 0]:
            running.remove(key)
            done.add(key)
        for each in work_items:
            waits = each.after & {p.key for p in work_items}
            if len(running) < jobs and each.key not in done and each.key not in running and waits <= done:
                running.append(each.key)
        if not running:
            return clock
        for key in running:
            left[key] -= 1
    raise AssertionError


@settings(deadline=None, max_examples=200)
@example([(1, set()), (2, set()), (1, set()), (1, {0, 1, 2}), (2, {0, 2}), (1, set())], 2)
@given(st.lists(st.tuples(st.integers(1, 9), st.sets(st.integers(0, 9))), min_size=1, max_size=10), st.integers(1, 4))
def test_the_end_is_that_of_a_walk_second_by_second(items: list[tuple[int, set[int]]], jobs: int) -> None:
    work_items = [
        item(str(number), 1.0, *(str(other) for other in after if other < number), "ended long ago")
        for number, (_, after) in enumerate(items)
    ]
    seconds = {str(number): length for number, (length, _) in enumerate(items)}
    assert makespan(work_items, seconds, jobs) == slow(work_items, seconds, jobs)


def test_a_long_piece_counts_by_its_work() -> None:
    clock = [0.0]
    work_items = [*(item(f"short {n}", 1.0, kind="k") for n in range(9)), item("long", 91.0, kind="k")]
    estimate = Estimate(work_items, 1, lambda: clock[0])
    assert estimate.left({}).seconds is None
    for n in range(9):
        estimate.started(f"short {n}")
        clock[0] += 2.0
        estimate.finished(f"short {n}")
    left = estimate.left({})
    assert (left.done, left.of) == (9, 10)
    assert left.seconds == pytest.approx(182)  # by number of items it would be 2
    estimate.started("long")
    clock[0] += 91.0
    assert estimate.left({}).seconds == pytest.approx(91)
    assert estimate.left({"long": now(0.75, 0.75, 136.5)}).seconds == pytest.approx(182 * 0.25)


def test_a_first_piece_that_is_hardly_any_work_says_nothing_yet() -> None:
    clock = [0.0]
    estimate = Estimate([item("probe", 1.0), item("short", 9.0), item("long", 990.0)], 1, lambda: clock[0])
    for name, seconds, known in (("probe", 5.0, False), ("short", 1.0, True)):
        estimate.started(name)
        clock[0] += seconds
        estimate.finished(name)
        assert (estimate.left({}).seconds is not None) == known


def test_each_kind_has_its_own_pace_and_what_is_new_takes_that_of_its_like() -> None:
    clock = [0.0]
    work_items = [
        item("a", 10.0, kind="fast", training=True),
        item("b", 10.0, kind="slow", training=False),
        item("a2", 10.0, kind="fast", training=True),
        item("b2", 10.0, kind="slow", training=False),
        item("c", 10.0, "a2", kind="new", training=True),
    ]
    estimate = Estimate(work_items, 1, lambda: clock[0])
    for name, seconds in (("a", 1.0), ("b", 30.0)):
        estimate.started(name)
        clock[0] += seconds
        estimate.finished(name)
    assert estimate.left({}).seconds == pytest.approx(1 + 30 + 1)


def test_what_a_killed_process_had_done_says_nothing_about_the_pace() -> None:
    estimate = Estimate([item("a", 100.0), item("b", 100.0, kind="a")], 1, lambda: 0.0)
    estimate.started("a")
    # 60 of 100 existed before; the next 10 took 5 seconds.
    assert estimate.left({"a": now(0.7, 0.1, 5.0)}).seconds == pytest.approx(15 + 50)


def test_streams_of_one_pass_end_together() -> None:
    clock = [0.0]
    shared = WorkItem(("x", "y"), "pass", 10.0, frozenset())
    estimate = Estimate([shared, item("other", 10.0, kind="pass")], 2, lambda: clock[0])
    estimate.started("x")
    estimate.started("y")
    told = {"x": now(0.5, 0.5, 4.0), "y": now(0.5, 0.5, 4.0)}
    assert estimate.left(told).seconds == pytest.approx(8)
    clock[0] = 8.0
    estimate.finished("x")
    assert estimate.left({}).done == 0
    estimate.finished("y")
    assert estimate.left({}) == type(estimate.left({}))(1, 2, pytest.approx(8))
