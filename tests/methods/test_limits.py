"""Types of options that state limits, against what a reader expects of their words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from methods.base import Options
from methods.limits import Count, Finite, FinitePositive, Fraction, FractionBelowOne


@dataclass(frozen=True)
class Few(Options):
    steps: Count = 1
    share: Fraction = 0.5
    restore: FractionBelowOne | None = None
    free: float = -7.0


@dataclass(frozen=True)
class More(Few):
    steps: int = 3  # another default; the limit of the base holds
    lr: FinitePositive = 1.0
    plpd: Finite = 0.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "more.steps must be at least 1, not 0"),
        ({"share": 1.5}, r"more.share must be in \[0, 1\], not 1.5"),
        ({"share": math.nan}, r"more.share must be in \[0, 1\], not nan"),
        ({"restore": 1.0}, r"more.restore must be None or in \[0, 1\), not 1.0"),
        ({"lr": 0.0}, "more.lr must be a finite number above 0, not 0.0"),
        ({"plpd": math.inf}, "more.plpd must be a finite number, not inf"),
    ],
)
def test_a_value_outside_names_its_option(given: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        More(**given)  # type: ignore[arg-type]


def test_values_at_the_limits_are_taken() -> None:
    assert More(steps=1, share=0, restore=0.0, lr=1e-9, plpd=-1e9, free=math.inf) == More(
        1, 0, 0.0, math.inf, 1e-9, -1e9
    )
    assert Few(share=1.0, restore=None).restore is None
