"""What `bench tune` tries. Does not import torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.core.errors import UsageError
from bench.settings.run_spec import RunSpec


@dataclass(frozen=True)
class Tuning:
    """Option sets to try for a method.

    run: the run that each trial is, with the options that are fixed. grid: values by option, all combinations of which
    are tried; empty for `trials` sets from the method's own table.

    Raises UsageError for several methods, and for test images: tuning on them would bias the reported numbers.
    """

    run: RunSpec
    trials: int
    grid: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        if len(self.run.method) > 1:
            raise UsageError(f"bench tune takes one method, not {', '.join(self.run.method)}; tune each alone")
        if self.run.split != "dev":
            raise UsageError(
                f"tuning on split '{self.run.split}' would bias the numbers reported on it; use --split dev"
            )


def read_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parse "key=[value, …]" for each option. Raises UsageError for anything else."""
    grid = {}
    for text in texts:
        try:
            ((key, values),) = tomllib.loads(text).items()
        except (tomllib.TOMLDecodeError, ValueError):
            values = None
        if not isinstance(values, list) or not values:
            raise UsageError(f"--grid takes key=[values], as in --grid 'lr=[1e-3, 3e-3]', not '{text}'")
        grid[key] = values
    return grid
