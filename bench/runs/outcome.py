"""The outcome of a run: its records and its board. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.cache_dir import cache_dir
from leaderboards.record import Record
from leaderboards.store import Store, state_of

if TYPE_CHECKING:
    from leaderboards.boards import Board


@dataclass(frozen=True)
class Outcome:
    """The result of a run: its folder, the number of records that are done, failed or reused, and notes of its plan."""

    out: Path
    keys: tuple[str, ...]
    done: int
    failed: int
    reused: int
    errors: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0

    def records(self) -> list[Record]:
        """Return the records of this run, without those of other runs in the same folder."""
        wanted = set(self.keys)
        return [record for record in Store(self.out).records() if record.key in wanted]

    def board(self) -> Board:
        """Return the board of this run's records."""
        from leaderboards.boards import make_board
        from leaderboards.memory import Memory

        memory = Memory(cache_dir() / "comparisons", lambda record: state_of([self.out], record))
        return make_board(self.records(), Store(self.out).predictions, memory=memory)
