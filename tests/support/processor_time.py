"""A plugin of pytest that tells the processor seconds of each file and test, which do not depend on who else computes.

    PYTHONPATH=tests/support python -m pytest -p processor_time [--of-each 1]

Processes that a test starts count too, once they were waited for, and the server of `quick_processes` always. With
`--of-each N`, N tests drawn from those of each parametrized function run, and stand for all of them in the sums.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_TICKS = os.sysconf("SC_CLK_TCK")
_started: set[int] = set()
_seconds: Counter[str] = Counter()
_stands_for: dict[str, float] = {}


class _Noted(subprocess.Popen):  # type: ignore[type-arg]
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        _started.add(self.pid)


subprocess.Popen = _Noted  # type: ignore[misc]


def _now() -> float:
    """Return the seconds of this process and of those that it started, with all that they waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for number in list(_started):
        try:
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            _started.discard(number)
        else:
            total += sum(map(int, fields[11:15])) / _TICKS
    return total


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--of-each", type=int, default=0, help="run only so many tests of each parametrized function")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    count = config.getoption("--of-each")
    if not count:
        return
    functions: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        functions[item.nodeid.partition("[")[0]].append(item)
    kept: set[pytest.Item] = set()
    for name, group in functions.items():
        some = random.Random(name).sample(group, min(count, len(group)))
        _stands_for[name] = len(group) / len(some)
        kept.update(some)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = _now()
    try:
        return (yield)
    finally:
        name = item.nodeid.partition("[")[0]
        _seconds[name] += (_now() - before) * _stands_for.get(name, 1.0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    files: Counter[str] = Counter()
    for name, seconds in _seconds.items():
        files[name.partition("::")[0]] += seconds
    terminalreporter.section(f"processor seconds: {sum(files.values()):.0f} in tests, {_now():.0f} in all")
    for counted in (files, _seconds):
        for name, seconds in counted.most_common(20):
            terminalreporter.line(f"{seconds:8.1f}  {name}")
        terminalreporter.line("")
