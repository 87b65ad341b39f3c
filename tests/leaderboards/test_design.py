"""Expected half-widths are those that simulated studies of that size have; what a pilot cannot say is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from leaderboards import BoardError
from leaderboards import design as designing
from leaderboards.design import Design, design
from leaderboards.uncertainty import Interval, Outcomes, image_scores, mean_accuracy_interval, paired_difference

SKILL, OWN, SEED, ROUGH = 0.8, 0.5, 0.12, 0.15


def outcomes(rng: np.random.Generator, seeds: int, conditions: int, n: int) -> NDArray[np.bool_]:
    """Hits [2 rows, seeds, conditions, images]: images differ in difficulty and in which row they favour."""
    skill = SKILL * rng.normal(size=(1, 1, 1, n)) + OWN * rng.normal(size=(2, 1, 1, n))
    skill = skill + SEED * rng.normal(size=(2, seeds, 1, 1)) + ROUGH * rng.normal(size=(2, seeds, conditions, 1))
    hits: NDArray[np.bool_] = skill + 0.4 + rng.normal(size=(2, seeds, conditions, n)) > 0
    return hits


def filled(results: Any, hits: NDArray[np.bool_]) -> Any:
    for method, row in zip(("tent", "sar"), hits, strict=True):
        for seed, of_seed in enumerate(row):
            for j, each in enumerate(of_seed):
                results.add(method, f"c{j}", seed=seed, hits=each)
    return results


def designed(results: Any, **sizes: Any) -> Design:
    return design(results.records, "tent", "sar", results.store.predictions, **sizes)


@pytest.fixture(scope="module")
def pilot(new_results: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study of 24 seeds, 5 conditions and 800 images."""
    return filled(new_results(tmp_path_factory.mktemp("pilot")), outcomes(np.random.default_rng(8), 24, 5, 800))


@pytest.mark.parametrize(("seeds", "conditions", "n"), [(2, 5, 60), (3, 2, 200), (6, 12, 40), (1, 5, 120)])
def test_half_widths_are_those_of_simulated_studies(pilot: Any, seeds: int, conditions: int, n: int) -> None:
    rng = np.random.default_rng(9)
    (size,) = designed(pilot, n=[n], conditions=[conditions], seeds=[seeds]).sizes
    assert (size.n, size.conditions, size.seeds) == (n, conditions, seeds)
    halves, ids = [], np.arange(n)
    for _ in range(200):
        rows = [
            image_scores([[Outcomes(ids, each) for each in seed] for seed in row])
            for row in outcomes(rng, seeds, conditions, n)
        ]
        intervals = [paired_difference(*rows), *map(mean_accuracy_interval, rows)]
        assert all(isinstance(each, Interval) for each in intervals[1:])
        halves.append([(each.high - each.low) / 2 for each in intervals])  # type: ignore[union-attr]
    expected = np.mean(halves, axis=0)
    assert [size.difference, size.a, size.b] == pytest.approx(expected.tolist(), rel=0.13)


def test_the_size_of_the_pilot_is_about_its_own_interval(results: Any) -> None:
    hits = outcomes(np.random.default_rng(1), 1, 3, 300)
    sizes = designed(filled(results, hits)).sizes
    assert [(size.n, size.conditions, size.seeds) for size in sizes] == [(300, 3, 1), (600, 3, 1), (1200, 3, 1)]
    rows = [image_scores([[Outcomes(np.arange(300), each) for each in row[0]]]) for row in hits]
    gap = paired_difference(*rows)
    assert sizes[0].difference == pytest.approx((gap.high - gap.low) / 2, rel=0.02)
    assert sizes[2].difference == pytest.approx(sizes[0].difference / 2, rel=0.01)


def test_an_accuracy_that_would_have_no_interval_has_no_half_width(results: Any) -> None:
    rng = np.random.default_rng(1)
    pilot = filled(results, np.stack([rng.random((1, 1, 200)) < 0.97, rng.random((1, 1, 200)) < 0.5]))
    small, large = designed(pilot, n=[60, 2000]).sizes
    assert (small.a, small.b is None) == (None, False)
    assert large.a is not None
    assert "–" in designing.renderings(designed(pilot, n=[60]))["md"]()


def test_every_form_has_the_same_numbers(results: Any) -> None:
    found = designed(filled(results, outcomes(np.random.default_rng(1), 2, 2, 50)))
    lines = list(csv.DictReader(io.StringIO(designing.renderings(found)["csv"]())))
    whole = json.loads(designing.renderings(found)["json"]())
    assert [{k: float(v) for k, v in line.items()} for line in lines] == whole["sizes"]
    pilot = {"n": 50, "conditions": 2, "seeds": 2, "ingredient_draws": 2, "stocks": 1, "shares_ingredients": False}
    assert whole["pilot"] == pilot
    text, latex = designing.renderings(found)["md"](), designing.renderings(found)["latex"]()
    for line in whole["sizes"]:
        for name in ("difference", "a", "b"):
            assert f"±{100 * line[name]:.1f}" in text
            assert f"{100 * line[name]:.1f}" in latex
    assert "the spread over seeds is known from 2" in text


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((1, 2, 40), {"seeds": [3]}, "one seed says nothing about the spread"),
        ((4, 2, 40), {"seeds": [4], "ingredient_draws": [2]}, "cannot be told apart in this pilot"),
        ((4, 2, 40), {"seeds": [4], "ingredient_draws": [3]}, "4 label draws cannot be divided among 3 sets"),
        ((2, 2, 40), {"stocks": [2]}, "one stock says nothing about others"),
        ((2, 1, 40), {"conditions": [3]}, "one condition says nothing about others"),
        ((2, 2, 40), {"n": [1]}, "two images"),
        ((2, 2, 40), {"seeds": [0]}, "one condition, one stock and one seed"),
    ],
)
def test_what_the_pilot_cannot_say_is_refused(
    results: Any, shape: tuple[int, int, int], sizes: Any, message: str
) -> None:
    pilot = filled(results, outcomes(np.random.default_rng(1), *shape))
    with pytest.raises(BoardError, match=message):
        designed(pilot, **sizes)


def test_conditions_of_different_images_are_refused(results: Any) -> None:
    for method in ("tent", "sar"):
        results.add(method, "fog", hits=[True, False] * 10, ids=range(20))
        results.add(method, "snow", hits=[True, False] * 10, ids=range(20, 40))
    with pytest.raises(BoardError, match="same images in all conditions"):
        designed(results)


def test_a_mean_of_parts_may_be_designed(results: Any) -> None:
    rng = np.random.default_rng(0)
    for part in ("soup", "ingredient:mae", "ingredient:mmcr"):
        for corruption in ("fog", "snow"):
            results.add("selfsoup", corruption, part=part, track="D", hits=rng.random(80) < 0.6)
    found = design(results.records, "selfsoup", "selfsoup (mean)", results.store.predictions)
    assert found.sizes[0].b is not None
    assert found.sizes[0].a is not None
    assert found.sizes[0].b < found.sizes[0].a
