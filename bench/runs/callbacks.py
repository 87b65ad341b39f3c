"""Callbacks that a run invokes to report its progress."""

from __future__ import annotations

from collections.abc import Sequence

from bench.execution.task_pool import Task
from bench.planning.time_left import WorkItem


class RunCallback:
    """Base class for observers of a run; its methods do nothing."""

    def planned(self, work_items: Sequence[WorkItem], jobs: int) -> None:
        """Called once, before the first task, with all work items that `jobs` processes will run."""

    def noted(self, text: str) -> None:
        """Called with a notice for the user."""

    def started(self, task: Task) -> None:
        """Called when a task starts."""

    def finished(self, task: Task, error: Exception | None) -> None:
        """Called when a task has ended, with its error if it failed."""
