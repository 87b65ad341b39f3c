"""Numbers that papers and repositories published, each with its source and protocol. Never ranked with records.

`papers.toml` holds one table for each published table. They were measured with other weights, images and code, so
they help to judge a board and cannot stand on it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from leaderboards.record import Name


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One published number: `accuracy` in [0, 1] is the mean over the corruptions of `shift` at `severity`.

    `method` is the published name ("TENT"), `model` the name that records would use, `weights` what the source says
    of them. `n` is the number of images of each condition (None where the source does not say), `setting` its protocol
    in words, `source` who published it and `url` where.
    """

    shift: str
    model: str
    protocol: str
    severity: float
    method: str
    accuracy: float
    n: int | None
    weights: str
    setting: str
    source: str
    url: str


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    shift: Name
    model: Name
    protocol: Name
    severity: Annotated[float, Field(ge=0, le=5)]
    n: Annotated[int, Field(ge=1)] | None = None
    weights: Name
    setting: Name
    source: Name
    url: Annotated[str, Field(pattern=r"^https://[A-Za-z0-9./_-]+$")]
    error_percent: dict[Name, Annotated[float, Field(ge=0, le=100)]]


def reference_rows(shift: str, model: str, protocol: str) -> list[ReferenceRow]:
    """Published numbers of a shift, model and protocol, best first; an empty list where none is known."""
    rows = [row for row in _all_rows() if (row.shift, row.model, row.protocol) == (shift, model, protocol)]
    return sorted(rows, key=lambda row: (-row.accuracy, row.method, row.source))


@cache
def _all_rows() -> tuple[ReferenceRow, ...]:
    text = resources.files("leaderboards").joinpath("reference", "papers.toml").read_text(encoding="utf-8")
    tables = [_Table.model_validate(table) for table in tomllib.loads(text)["table"]]
    return tuple(
        ReferenceRow(
            method=method,
            # Rounded, because published errors have one decimal and 1 - 0.574 has sixteen.
            accuracy=round(1 - error / 100, 6),
            **table.model_dump(exclude={"error_percent"}),
        )
        for table in tables
        for method, error in table.error_percent.items()
    )
