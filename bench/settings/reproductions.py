"""Reproduction cards: published numbers, each with the run that repeats it. Does not import torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.core.errors import UsageError, nearest

Percent = Annotated[float, Field(ge=0, le=100)]


class _CardPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedNumbers(_CardPart):
    """A published number: the error or the accuracy of a method, in percent.

    part: a row inside the method ("best"); None for the method itself. each: the same for each corruption, in the order
    of the shift, where the source prints them. tolerance: the largest difference, in points, that counts as agreement.
    """

    method: str
    part: str | None = None
    error: Percent | None = None
    accuracy: Percent | None = None
    each: tuple[Percent, ...] = ()
    tolerance: float = Field(gt=0, lt=100)

    @model_validator(mode="after")
    def _one_quantity(self) -> PublishedNumbers:
        if (self.error is None) == (self.accuracy is None):
            raise ValueError("a published number is either an error or an accuracy")
        return self

    @property
    def quantity(self) -> Literal["error", "accuracy"]:
        return "accuracy" if self.error is None else "error"

    @property
    def value(self) -> float:
        """The number, in percent."""
        return float(getattr(self, self.quantity))

    @property
    def row(self) -> str:
        """The name of the row, as in "selfsoup (best)"."""
        return f"{self.method} ({self.part})" if self.part else self.method


class Card(_CardPart):
    """One card: where its numbers are published, what they are, and the run that repeats them.

    source: the place, with its table; url: its address. measures: what the numbers are. data, weights: what the run
    needs and where it comes from. why: what the tolerances rest on. differs: what is known to differ from the source.
    files: files that the data root must hold besides the shift, each with where it comes from. run: settings as in a
    run file.
    """

    name: str
    summary: str
    source: str
    url: str
    measures: str
    data: str
    weights: str
    why: str
    differs: tuple[str, ...]
    files: dict[str, str] = Field(default_factory=dict)
    run: dict[str, Any]
    published: Annotated[tuple[PublishedNumbers, ...], Field(min_length=1)]

    @property
    def folder(self) -> str:
        """The name of its default folder of records."""
        return f"reproduce-{self.name}"


@cache
def cards() -> Mapping[str, Card]:
    """Return all cards by name."""
    files = (resources.files("bench") / "assets" / "reproduce").iterdir()
    names = sorted((file.name.removesuffix(".toml"), file) for file in files if file.name.endswith(".toml"))
    return {name: _read(name, file.read_text(encoding="utf-8"), name) for name, file in names}


def find_card(name: str) -> Card:
    """Return a card by its name, or from a file of the user (FILE.toml). Raises UsageError."""
    if not name.endswith(".toml"):
        return cards()[nearest(name, cards(), "reproduction")]
    path = Path(name).expanduser()
    try:
        return _read(path.stem, path.read_text(encoding="utf-8"), str(path))
    except OSError:
        raise UsageError(f"no card {path}; see `bench list reproductions`, or give the file of a card") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a TOML file; save it as UTF-8") from None


def _read(name: str, text: str, where: str) -> Card:
    try:
        return Card.model_validate({**tomllib.loads(text), "name": name})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not a TOML file: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "card"
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}, {place}: {message}; compare it with a card of bench/assets/reproduce") from None
