"""Every corruption that has an official script, with our draws in both: the script itself where there are checkouts,
and everywhere what it made, in `goldens.npz`; see `official.py`."""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import corruptions
from corruptions.weather import frost_folder

Case = tuple[str, str, float, int]


def checked(case: Case) -> None:
    if case[1] == "frost" and frost_folder() is None:
        pytest.skip("needs the photographs of corrupt-tta")


@cache
def goldens(path: Any) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(zip(file["names"].tolist(), file["pixels"], strict=True))


def test_runs_official(case: Case, official: ModuleType) -> None:
    checked(case)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = official.official(*case)
    except official.Absent as error:
        pytest.skip(str(error))
    found = official.our_output(*case)
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected.astype(int))
    levels, share = official.tolerance(*case[:3])
    assert difference.max() <= levels
    assert (difference > 0).mean() <= share
    assert np.array_equal(official.sampled(expected), goldens(official.GOLDENS)[official.name_of(case)])


def test_official_pixels(case: Case, official: ModuleType) -> None:
    checked(case)
    expected = goldens(official.GOLDENS)[official.name_of(case)]
    difference = np.abs(official.sampled(official.our_output(*case)).astype(int) - expected.astype(int))
    levels, share = official.tolerance(*case[:3])
    assert difference.max() <= levels
    # A sample has chance, and more of the flat corners; a value more is what other processors may round differently.
    assert (difference > 0).sum() <= 4 * share * difference.size + 1


def test_every_corruption_is_compared(official: ModuleType) -> None:
    compared = {name for _, name, _, _ in official.cases()}
    assert compared == {
        name for name in corruptions.names() if corruptions.describe(name).held_against == "official output"
    }
    assert official.GOLDENS.stat().st_size < 500_000
