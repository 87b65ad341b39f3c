"""Weights made of sums of Python's floats: the same on every Python, though `sum` corrects itself since 3.12."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

import corruptions
from corruptions.kernels import added, gaussian_taps


def test_each_step_of_a_sum_is_rounded() -> None:
    assert added([0.1] * 10) == 0.9999999999999999  # a tenth is not a double; the corrected sum is 1.0
    assert added([1.0, 1e100, 1.0, -1e100]) == 0.0
    assert added([]) == 0.0


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0, 3.3, 6.0])
def test_taps_are_those_of_a_loop(sigma: float) -> None:
    radius = int(4 * sigma + 0.5)
    sides = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(1, radius + 1)]
    total = 0.0
    for side in sides:
        total += side
    total = 1.0 + 2.0 * total
    assert gaussian_taps(sigma, 4.0) == [w / total for w in (*sides[::-1], 1.0, *sides)]


def test_no_corruption_uses_the_sum_that_depends_on_python() -> None:
    for path in Path(corruptions.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "sum"), path
