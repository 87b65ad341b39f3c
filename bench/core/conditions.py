"""Conditions and trials: one recipe and adapter over the conditions of one shift. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from leaderboards.identity import digest_of as digest_of

Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Condition:
    """One cell of a shift: a corruption at a severity. Clean is `Condition(None, 0)`."""

    corruption: str | None
    severity: float

    def __post_init__(self) -> None:
        if (self.corruption is None) != (self.severity == 0):
            raise ValueError("clean is Condition(None, 0); a corruption needs a severity above 0")

    def __str__(self) -> str:
        return "clean" if self.corruption is None else f"{self.corruption}@{self.severity:g}"


CLEAN = Condition(None, 0)
NATURAL = "natural"
"""The corruption name of test images that are shifted as collected, without a synthetic corruption."""


@dataclass(frozen=True)
class Trial:
    """One method on one shift under one protocol, split and seed.

    `method` is the string as given ("selfsoup+sar"); `recipe` and `adapter` are its two halves. `options` holds the
    resolved options of both, by name. `labels_per_class` limits the labelled clean images (None: all of them).
    `limit` caps the number of scored and of adapted images (None: no cap; a limited trial cannot be published).
    """

    method: str
    recipe: str
    adapter: str | None
    options: Options
    shift: str
    conditions: tuple[Condition, ...]
    model: str
    protocol: str
    split: str
    draws: Draws
    batch_size: int
    precision: str
    labels_per_class: int | None
    limit: int | None

    @property
    def seed(self) -> int:
        """The seed that names the trial."""
        return self.draws.labels


class Draws(NamedTuple):
    """The seeds of a trial: of labels, fine-tuning and stream (`labels`), and of training without labels."""

    labels: int
    ingredients: int


def stream_rng(seed: int, *purpose: str) -> np.random.Generator:
    """Return a generator for one purpose, seeded by these arguments alone and by no global state."""
    key = hashlib.blake2b("|".join((str(seed), *purpose)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
