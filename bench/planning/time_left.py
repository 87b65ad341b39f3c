"""How long a run will take from here: work that is known in advance, times what such work has taken so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from heapq import heappop, heappush

from bench.execution.progress_files import Left, Now

_ENOUGH = 0.01
"""The part of all work after which its pace says something: before, most of the time went into starting."""


@dataclass(frozen=True)
class WorkItem:
    """A task as one sees it from outside: a training, or the streams (`members`) of one pass.

    Pieces of one `kind` differ in the amount of `work` alone, so they take the same time for the same work. `work` is
    in floating-point operations, roughly; `after` names the pieces that must have ended before.
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
    """When the last of these pieces has ended, in seconds, with `jobs` processes that take them in order.

    `seconds` says how long each takes, by key. What pieces wait for and is not among them has ended.
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
        while running and running[0][0] == clock:  # all that ends now, before the next ones are taken
            _, ended = heappop(running)
            order.done(ended)
            for key in order.get_ready():
                heappush(ready, place[key])
    return clock


class Estimate:
    """Learns from what a run has done so far, and says what is left. Safe to ask from another thread."""

    def __init__(self, work_items: Sequence[WorkItem], jobs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pieces, self._jobs, self._clock = tuple(work_items), jobs, clock
        self._of = {member: item for item in work_items for member in item.members}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._waiting = {item.key: set(item.members) for item in work_items}
        self._lock = threading.Lock()

    def started(self, key: str) -> None:
        """A task begins."""
        with self._lock:
            self._began.setdefault(self._of[key].key, self._clock())

    def finished(self, key: str) -> None:
        """A task has ended, one way or another."""
        item = self._of[key]
        with self._lock:
            self._waiting[item.key].discard(key)
            if not self._waiting[item.key]:
                self._took[item.key] = self._clock() - self._began.get(item.key, self._clock())

    def left(self, now: Mapping[str, Now]) -> Left:
        """How far the run is, given where its streams and trainings are."""
        with self._lock:
            took, began = dict(self._took), dict(self._began)
        todo = [item for item in self._pieces if item.key not in took]
        # Side by side in one pass, who has told last knows best.
        told = {p.key: max(seen, key=lambda n: n.seconds) for p in todo if (seen := _of(p.members, now))}
        rates = self._rates(took, told)
        measured = sum(p.work * (told[p.key].gained if p.key in told else p.key in took) for p in self._pieces)
        if measured < _ENOUGH * sum(item.work for item in self._pieces):
            return Left(len(took), len(self._pieces), None)
        seconds: dict[str, float] = {}
        for item in todo:
            rate = next((rates[name] for name in (item.kind, item.training, None) if name in rates), None)
            if rate is None and item.work:
                return Left(len(took), len(self._pieces), None)
            whole = item.work * (rate or 0.0)
            if item.key in told:
                seconds[item.key] = whole * (1 - told[item.key].share)
            else:
                seconds[item.key] = max(whole - (self._clock() - began.get(item.key, self._clock())), 0.0)
        # What runs already goes first.
        order = sorted(todo, key=lambda item: item.key not in began)
        return Left(len(took), len(self._pieces), makespan(order, seconds, self._jobs))

    def _rates(self, took: Mapping[str, float], told: Mapping[str, Now]) -> dict[str | bool | None, float]:
        """Seconds for a unit of work: of each kind, of all trainings (True) and streams (False), and of all (None)."""
        sums: dict[str | bool | None, list[float]] = {}
        for item in self._pieces:
            if item.key in took:
                seconds, work = took[item.key], item.work
            elif item.key in told:
                seconds, work = told[item.key].seconds, told[item.key].gained * item.work
            else:
                continue
            for name in (item.kind, item.training, None):
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += seconds
                total[1] += work
        return {name: seconds / work for name, (seconds, work) in sums.items() if work}


def _of(members: Iterable[str], now: Mapping[str, Now]) -> list[Now]:
    return [now[name] for name in members if name in now and now[name].gained > 0]
