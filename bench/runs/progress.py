"""Show the progress of `bench run` and `bench tune` on stderr: bars on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.core.console import duration, new_console, plural, say
from bench.execution.progress_files import Left, Now, running, tell_left
from bench.execution.task_pool import Task
from bench.planning.time_left import Estimate, WorkItem
from bench.runs.callbacks import RunCallback

_SECONDS_BETWEEN_UPDATES = 1.0
_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_OF_SILENCE = 30.0
_WIDTH_OF_BARS = 60


class RunProgress(RunCallback):
    """Shows tasks, the time left and the progress of each stream and training, whichever process runs it.

    `out` is the folder of the run, where the progress is stored for `bench results --watch`.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._console = new_console(stderr=True)
        self._estimate = Estimate([], 1)
        self._trainings: tuple[str, ...] = ()
        self._bar = _Bars(self._console, self.now)
        self._task: TaskID | None = None
        self._total = self._count = 0
        self._last_printed = time.monotonic()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RunProgress:
        if self._console.is_terminal:
            self._bar.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        if self._console.is_terminal:
            self._bar.stop()  # without a terminal, this would print a blank line
        tell_left(self._out, None)

    def now(self) -> Iterable[Now]:
        """Return the progress of everything that runs now."""
        return running(self._out, self._trainings).values()

    def planned(self, work_items: Sequence[WorkItem], jobs: int) -> None:
        trainings = sum(item.training for item in work_items)
        streams = sum(len(item.members) for item in work_items if not item.training)
        self._total = trainings + streams
        self._trainings = tuple(item.key for item in work_items if item.training)
        self._estimate = Estimate(work_items, jobs)
        self._task = self._bar.add_task("starting", total=self._total, left="")
        if self._total:
            work = f"{plural(trainings, 'training')} and {plural(streams, 'stream')}"
            self.noted(f"{work} in {plural(jobs, 'process', 'processes')}")

    def noted(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def started(self, task: Task) -> None:
        self._estimate.started(task.key)
        if self._task is not None:
            width = max(20, min(60, self._console.width - _WIDTH_OF_BARS))
            self._bar.update(self._task, description=task.label[:width].ljust(width))

    def finished(self, task: Task, error: Exception | None) -> None:
        self._estimate.finished(task.key)
        self._count += 1
        if self._task is not None:
            self._bar.advance(self._task)
        if self._console.is_terminal:
            return
        now = time.monotonic()
        if error or self._count == self._total or now - self._last_printed >= _SECONDS_BETWEEN_LINES:
            self._last_printed = now
            left = "" if self._count == self._total else self._left()
            say(f"[{self._count}/{self._total}] {task.label}" + (f" FAILED: {error}" if error else left))

    def _watch(self) -> None:
        """Store the time left, and print the progress when no task has ended for a while."""
        while not self._over.wait(_SECONDS_BETWEEN_UPDATES):
            if self._task is None:
                continue
            left = self._estimate.left(running(self._out, self._trainings))
            tell_left(self._out, Left(self._count, self._total, left.seconds))
            if self._console.is_terminal:
                self._bar.update(self._task, left=in_words(left))
            elif time.monotonic() - self._last_printed >= _SECONDS_OF_SILENCE:
                self._last_printed = time.monotonic()
                for now in self.now():
                    say(f"[{self._count}/{self._total}] {now}{_after(left)}")

    def _left(self) -> str:
        return _after(self._estimate.left(running(self._out, self._trainings)))


def in_words(left: Left) -> str:
    """Return the time left as text; empty if it is not known yet."""
    return "" if left.seconds is None or left.seconds < 1 else f"about {duration(left.seconds)} left"


def _after(left: Left) -> str:
    words = in_words(left)
    return f" ({words})" if words else ""


def shown(now: Iterable[Now]) -> Table:
    """Return a table with a bar and a number for each stream and training that runs."""
    table = Table.grid(padding=(0, 1))
    for name in ("ellipsis", "fold", "fold", "fold"):
        table.add_column(no_wrap=True, overflow=name)
    for each in now:
        table.add_row(
            Text(f"  {each.name}"),
            ProgressBar(total=each.of, completed=each.done, width=20),
            Text(f"{each.unit} {each.done}/{each.of}"),
            Text(each.value),
        )
    return table


class _Bars(Progress):
    """One bar for all tasks of a run, with one below it for each stream and training that runs."""

    def __init__(self, console: Console, now: Callable[[], Iterable[Now]]) -> None:
        self._now = now
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        super().__init__(*columns, TextColumn("{task.fields[left]}"), console=console, refresh_per_second=4)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield shown(self._now())
