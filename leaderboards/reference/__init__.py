"""Numbers that papers and repositories published, each with its source and protocol. Never ranked with records.

`papers.toml` holds one table for each published table, `selfsoup.toml` those of the paper of Self-Souping. They were
measured with other weights, images and code, so they help to judge a board and cannot stand on it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaderboards.record import Name

_FILES = ("papers.toml", "selfsoup.toml")


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One published number: `accuracy` in [0, 1] is the mean over the corruptions of `shift` at `severity`.

    Severity 0 is the accuracy on its clean images; where a mean is another one, `setting` says so.
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


Percent = Annotated[float, Field(ge=0, le=100)]


class _Table(BaseModel):
    """One published table, with errors or with accuracies, as its source prints them."""

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
    error_percent: dict[Name, Percent] = Field(default_factory=dict)
    accuracy_percent: dict[Name, Percent] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _either(self) -> _Table:
        if bool(self.error_percent) == bool(self.accuracy_percent):
            raise ValueError("a published table has error_percent or accuracy_percent")
        return self

    def rows(self) -> list[ReferenceRow]:
        """Return the numbers of the table, rounded because 1 - 0.574 has sixteen decimals."""
        about = self.model_dump(exclude={"error_percent", "accuracy_percent"})
        percent = {method: 100 - error for method, error in self.error_percent.items()} | self.accuracy_percent
        return [
            ReferenceRow(method=method, accuracy=round(value / 100, 6), **about) for method, value in percent.items()
        ]


def reference_rows(
    shift: str | None = None, model: str | None = None, protocol: str | None = None
) -> list[ReferenceRow]:
    """Published numbers of a shift, model and protocol (None for all), best first; empty where none is known."""
    asked = {"shift": shift, "model": model, "protocol": protocol}
    wanted = {name: value for name, value in asked.items() if value is not None}
    rows = [row for row in _all_rows() if all(getattr(row, name) == value for name, value in wanted.items())]
    return sorted(rows, key=lambda row: (-row.accuracy, row.method, row.source))


def our_method(published: str) -> str:
    """Return the name that a record would use for a published method: "bn" for "BN-1". There need be no such method."""
    return _OURS.get(published, published.lower())


_OURS = {"BN-1": "bn", "BN Stats": "bn"} | {
    f"{name} + COME": f"come_{name.lower()}" for name in ("TENT", "EATA", "SAR")
}


@cache
def _all_rows() -> tuple[ReferenceRow, ...]:
    folder = resources.files("leaderboards").joinpath("reference")
    tables = [
        _Table.model_validate(table)
        for name in _FILES
        for table in tomllib.loads(folder.joinpath(name).read_text(encoding="utf-8"))["table"]
    ]
    return tuple(row for table in tables for row in table.rows())
