"""What a run tells whoever watches it."""

from __future__ import annotations


class Watcher:
    """What a run tells while it goes on; the default says nothing."""

    def planned(self, trainings: int, streams: int, jobs: int) -> None:
        """Called once, before the first task."""

    def noted(self, text: str) -> None:
        """Something that the user should know."""

    def started(self, label: str) -> None:
        """A task begins."""

    def finished(self, label: str, error: Exception | None) -> None:
        """A task ended."""
