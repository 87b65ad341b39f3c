"""Estimate the time left of a run: the known amounts of work times the measured seconds per unit of work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from heapq import heappop, heappush

from bench.execution.progress_files import Left, Now

_ENOUGH = 0.01
"""The part of all work that must be done before an estimate: until then, most of the time is start-up."""


@dataclass(frozen=True)
class WorkItem:
    """The estimated size of a task: a training, or the streams (`members`) of one pass.

    Items of one `kind` take the same time for the same amount of `work`, which is in floating-point operations,
    roughly. `after` names the tasks that must end first.
    """

    members: tuple[str, ...]
    kind: str
    work: float
    after: frozenset[str]
    training: bool = False

    @property
    def key(self) -> str:
        return self.members[0]


def makespan(work_items: Sequence[WorkItem], seconds: Mapping[str, float], jobs: int) -> float:
    """Return the seconds until the last item ends, with `jobs` processes that take the items in order.

    `seconds` is the duration of each item, by key. Tasks in `after` that are not among the items have ended.
    """
    listed = {key: item.key for item in work_items for key in item.members}
    place = {item.key: number for number, item in enumerate(work_items)}
    order = TopologicalSorter({item.key: {listed[key] for key in item.after & listed.keys()} for item in work_items})
    order.prepare()
    ready = sorted(place[key] for key in order.get_ready())
    running: list[tuple[float, str]] = []
    clock = 0.0
    while ready or running:
        while ready and len(running) < jobs:
            key = work_items[heappop(ready)].key
            heappush(running, (clock + seconds[key], key))
        clock = running[0][0]
        while running and running[0][0] == clock:  # free all processes that end now before the next items start
            _, ended = heappop(running)
            order.done(ended)
            for key in order.get_ready():
                heappush(ready, place[key])
    return clock


class Estimate:
    """Estimates the time left from the finished part of a run. Thread-safe."""

    def __init__(self, work_items: Sequence[WorkItem], jobs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._items, self._jobs, self._clock = tuple(work_items), jobs, clock
        self._of = {member: item for item in work_items for member in item.members}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._waiting = {item.key: set(item.members) for item in work_items}
        self._lock = threading.Lock()

    def started(self, key: str) -> None:
        """Record that a task has started."""
        with self._lock:
            self._began.setdefault(self._of[key].key, self._clock())

    def finished(self, key: str) -> None:
        """Record that a task has ended, with or without an error."""
        item = self._of[key]
        with self._lock:
            self._waiting[item.key].discard(key)
            if not self._waiting[item.key]:
                self._took[item.key] = self._clock() - self._began.get(item.key, self._clock())

    def left(self, now: Mapping[str, Now]) -> Left:
        """Return the progress of the run and the time left, given the progress of its streams and trainings."""
        with self._lock:
            took, began = dict(self._took), dict(self._began)
        todo = [item for item in self._items if item.key not in took]
        # Of the streams in one pass, the one with the latest report is the most accurate.
        latest = {p.key: max(seen, key=lambda n: n.seconds) for p in todo if (seen := _reports(p.members, now))}
        rates = self._rates(took, latest)
        measured = sum(p.work * (latest[p.key].gained if p.key in latest else p.key in took) for p in self._items)
        if measured < _ENOUGH * sum(item.work for item in self._items):
            return Left(len(took), len(self._items), None)
        seconds: dict[str, float] = {}
        for item in todo:
            rate = next((rates[name] for name in (item.kind, item.training, None) if name in rates), None)
            if rate is None and item.work:
                return Left(len(took), len(self._items), None)
            whole = item.work * (rate or 0.0)
            if item.key in latest:
                seconds[item.key] = whole * (1 - latest[item.key].share)
            else:
                seconds[item.key] = max(whole - (self._clock() - began.get(item.key, self._clock())), 0.0)
        # Items that already run come first.
        order = sorted(todo, key=lambda item: item.key not in began)
        return Left(len(took), len(self._items), makespan(order, seconds, self._jobs))

    def _rates(self, took: Mapping[str, float], latest: Mapping[str, Now]) -> dict[str | bool | None, float]:
        """Return seconds per unit of work: by kind, for trainings (True), streams (False) and everything (None)."""
        sums: dict[str | bool | None, list[float]] = {}
        for item in self._items:
            if item.key in took:
                seconds, work = took[item.key], item.work
            elif item.key in latest:
                seconds, work = latest[item.key].seconds, latest[item.key].gained * item.work
            else:
                continue
            for name in (item.kind, item.training, None):
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += seconds
                total[1] += work
        return {name: seconds / work for name, (seconds, work) in sums.items() if work}


def _reports(members: Iterable[str], now: Mapping[str, Now]) -> list[Now]:
    return [now[name] for name in members if name in now and now[name].gained > 0]
