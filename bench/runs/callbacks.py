"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence

from bench.execution.task_pool import Task
from bench.planning.time_left import WorkItem


class RunCallback:
    """What a run tells while it goes on; the default says nothing."""

    def planned(self, work_items: Sequence[WorkItem], jobs: int) -> None:
        """Called once, before the first task, with all that is to be done by `jobs` processes."""

    def noted(self, text: str) -> None:
        """Something that the user should know."""

    def started(self, task: Task) -> None:
        """A task begins."""

    def finished(self, task: Task, error: Exception | None) -> None:
        """A task ended."""
