"""Designs of nested draws against simulated studies of their size, closed forms and textbook mean squares."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import gamma

from leaderboards import BoardError, compare_rows
from leaderboards import compare as comparing
from leaderboards import design as designing
from leaderboards.design import design, planned
from leaderboards.uncertainty import ImageScores, Outcomes, image_scores, over_stocks, paired_difference
from leaderboards.variance import Counts, Spread, components, half_width


def latent(
    rng: np.random.Generator, stocks: int, sets: int, labels: int, n: int, spread: Spread
) -> NDArray[np.float64]:
    """Outcomes [stocks, sets, labels in each, images] with the given spread and mean zero."""
    shapes = {"": (1, 1, 1), "stocks": (stocks, 1, 1), "ingredient_draws": (stocks, sets, 1)}
    shapes["label_draws"] = (stocks, sets, labels)
    total = np.zeros((stocks, sets, labels, n))
    for name, shape in shapes.items():
        if name:
            total = total + getattr(spread, name) * rng.normal(size=(*shape, 1))
        of_images = getattr(spread, f"images_by_{name}" if name else "images")
        total = total + of_images * rng.normal(size=(*shape, n))
    return total


@pytest.mark.parametrize("sizes", [(3, 4, 3), (2, 5, 1), (1, 4, 4), (4, 1, 3)])
def test_components_are_those_that_were_drawn(sizes: tuple[int, int, int]) -> None:
    """The mean of many estimates, also where a level has one draw."""
    rng = np.random.default_rng(0)
    spread = Spread(0.3, 0.2, 0.15, 0.1, 0.25, 0.2, 0.15)
    found = np.mean(
        [components([list(stock) for stock in latent(rng, *sizes, 20, spread)]) for _ in range(600)], axis=0
    )
    expected = spread.variances
    for level in reversed(range(3)):
        if sizes[level] == 1:  # its effect is that of the draw around it, and on images alone if there is none
            around = next((outer for outer in reversed(range(level)) if sizes[outer] > 1), None)
            main, cross = expected[1 + level], expected[4 + level]
            expected[[1 + level, 4 + level]] = 0
            expected[0 if around is None else 4 + around] += cross
            if around is not None:
                expected[1 + around] += main
    np.testing.assert_allclose(found, expected, atol=8e-3)


def test_unequal_numbers_of_label_draws_leave_the_estimates_unbiased() -> None:
    rng = np.random.default_rng(1)
    spread = Spread(0.3, ingredient_draws=0.15, label_draws=0.1, images_by_ingredient_draws=0.2)
    found = []
    for _ in range(600):
        table = latent(rng, 1, 3, 4, 30, spread)[0]
        found.append(components([[table[0], table[1][:2], table[2][:1]]]))
    np.testing.assert_allclose(np.mean(found, axis=0), spread.variances, atol=8e-3)


def test_a_balanced_table_gives_the_textbook_mean_squares() -> None:
    """One number for each label draw (Searle, Casella & McCulloch, section 3.5), all images alike."""
    by_seed = np.random.default_rng(2).normal(size=(3, 4))
    found = components([[row[:, None] + np.zeros((1, 20)) for row in by_seed]])
    within = by_seed.var(axis=1, ddof=1).mean()
    between = 4 * by_seed.mean(axis=1).var(ddof=1)
    np.testing.assert_allclose(found, [0, 0, (between - within) / 4, within, 0, 0, 0], atol=1e-12)
    assert between / within == pytest.approx(stats.f_oneway(*by_seed).statistic)


def test_half_widths_have_closed_forms() -> None:
    """Where only draws vary, the mean of t times a standard error is a mean of chi; where only images do, it is t."""
    labels, sets = 0.01, 0.02
    for level, (n, of_sets, of_labels) in product((0.8, 0.95), ((500, 3, 12), (500, 2, 2), (500, 10, 40))):
        found = half_width(Spread(0, 0, sets, labels).variances, Counts(n, 1, of_sets, of_labels), level)
        free = of_sets - 1
        mean_of_chi = math.sqrt(2) * gamma((free + 1) / 2) / gamma(free / 2)
        error = math.sqrt(sets**2 / of_sets + labels**2 / of_labels)
        expected = stats.t.ppf((1 + level) / 2, free) * error * mean_of_chi / math.sqrt(free)
        assert found == pytest.approx(expected, rel=3e-3)
    alone = Counts(400, 1, 1, 1)
    assert half_width(Spread(0.4, 0, sets, labels).variances, alone, 0.95) == pytest.approx(
        stats.t.ppf(0.975, 399) * 0.4 / 20
    )
    fixed = half_width(Spread(0, 0, sets, labels).variances, Counts(400, 1, 1, 4), 0.95)
    one = half_width(Spread(0, 0, 0, labels).variances, Counts(400, 1, 4, 4), 0.95)
    assert fixed == one  # with one set, its own effect is part of what is measured


def scores(outcomes: NDArray[np.float64], shared: bool) -> ImageScores:
    """Scores of outcomes [sets, labels, images]: their signs, against a row that is always right on half the images."""
    sets, labels, n = outcomes.shape
    seeds = [[Outcomes(np.arange(n), row > 0)] for row in outcomes.reshape(-1, n)]
    return image_scores(seeds, tuple(np.repeat(np.arange(sets), labels)) if shared and labels > 1 else ())


@pytest.mark.parametrize(("stocks", "sets", "labels"), [(1, 3, 4), (1, 6, 1), (3, 2, 2), (1, 1, 4)])
def test_studies_have_the_expected_width_and_hold_the_truth(stocks: int, sets: int, labels: int) -> None:
    """Simulated studies, analysed as `bench compare` does: half-widths are those expected, intervals hold 95 %."""
    rng = np.random.default_rng(3)
    n, runs = 250, 300
    spread = Spread(
        0.8,
        stocks=0.1 if stocks > 1 else 0.0,
        ingredient_draws=0.1 if sets > 1 else 0.0,
        label_draws=0.08,
        images_by_ingredient_draws=0.3,
        images_by_label_draws=0.5,
        images_by_stocks=0.2,
    )
    # Hits of one row are signs of the latent outcomes, those of the other of outcomes with another mean.
    pilots, found, truth = [], [], []
    for _ in range(runs):
        rows = []
        for mean in (0.3, 0.1):
            each = latent(rng, stocks, sets, labels, n, spread)
            rows.append(each + mean)
        pilots.append(
            components(
                [
                    [(one > 0).astype(float) - (two > 0) for one, two in zip(*pair, strict=True)]
                    for pair in zip(*rows, strict=True)
                ]
            )
        )
        own = [[scores(stock, shared=sets > 1) for stock in row] for row in rows]
        a, b = (over_stocks(each) if stocks > 1 else each[0] for each in own)
        difference = paired_difference(a, b)
        found.append((difference.high - difference.low) / 2)
        sigma = math.sqrt(float(spread.variances.sum()))
        expected = stats.norm.cdf(0.3 / sigma) - stats.norm.cdf(0.1 / sigma)
        truth.append(difference.low <= expected <= difference.high)
    expected = half_width(np.mean(pilots, axis=0), Counts(n, stocks, sets, sets * labels), 0.95)
    assert expected == pytest.approx(np.mean(found), rel=0.08)
    assert 0.925 <= np.mean(truth) <= 0.985


@pytest.fixture(scope="module")
def pilot(new_results: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Records of two methods on three stocks, three sets of ingredients and two label draws of each."""
    made = new_results(tmp_path_factory.mktemp("nested") / "pilot")
    rng = np.random.default_rng(4)
    spread = Spread(0.8, 0.1, 0.15, 0.1, 0.2, 0.2, 0.3)
    for method, mean in (("selfsoup", 0.4), ("source", 0.1)):
        for corruption in ("fog", "snow"):
            hits = latent(rng, 3, 3, 2, 120, spread) + mean > 0
            for stock, seed in product(range(3), range(6)):
                draw = seed % 3
                data = {"ingredients": draw} if method == "selfsoup" and draw != seed else {}
                where = {"model": f"stock{stock}", "weights": {"digest": f"sha256:{stock}{stock}"}}
                made.add(method, corruption, seed=seed, hits=hits[stock, draw, seed // 3], data=data, **where)
    return made


def test_a_pilot_of_several_stocks_and_shared_ingredients(pilot: Any) -> None:
    found = design(pilot.records, "selfsoup", "source", pilot.store.predictions, stocks=[1, 3])
    assert found.pilot is not None
    sizes = [(size.n, size.stocks, size.ingredient_draws, size.seeds) for size in found.sizes]
    assert sizes[:6] == [
        (120, 1, 3, 6),
        (120, 1, 6, 12),
        (120, 1, 12, 24),
        (120, 3, 3, 6),
        (120, 3, 6, 12),
        (120, 3, 12, 24),
    ]
    assert "3 sets of ingredients on each of 3 stocks" in found.caption
    text = designing.renderings(found)["md"]()
    assert "| images | conditions | stocks | ingredient draws | label draws |" in " ".join(text.split())
    assert "the spread over sets of ingredients is known from 3" in text
    # The spread that it prints is one that it takes, and gives what the pilot gave.
    given = next(note for note in found.notes if "--spread" in note).split(": ")[1]
    again = Spread.named({name: float(x) / 100 for name, x in (pair.split("=") for pair in given.split(","))})
    other = planned("selfsoup", "source", again, n=[120], seeds=[6], ingredient_draws=[3], stocks=[3])
    assert other.sizes[0].difference == pytest.approx(found.sizes[3].difference, rel=0.01)


def test_a_comparison_across_stocks_has_each_as_one_observation(pilot: Any) -> None:
    found = compare_rows(pilot.records, "selfsoup", "source", pilot.store.predictions, across_stocks=True)
    each = [
        compare_rows([r for r in pilot.records if r.model == name], "selfsoup", "source", pilot.store.predictions)
        for name in ("stock0", "stock1", "stock2")
    ]
    by_stock = np.array([one.overall.difference.estimate for one in each])
    overall = found.overall.difference
    assert overall.estimate == pytest.approx(by_stock.mean())
    t = stats.ttest_1samp(by_stock, 0).confidence_interval()
    assert overall.high - overall.low >= 0.99 * (t.high - t.low)
    assert found.stocks == ("stock0", "stock1", "stock2")
    assert set(found.a.keys) == {r.key for r in pilot.records if r.method == "selfsoup"}
    assert "3 stocks (stock0, stock1, stock2)" in comparing.renderings(found)["md"]()
    with pytest.raises(BoardError, match="model"):
        compare_rows(pilot.records, "selfsoup", "source", pilot.store.predictions)


def test_stocks_that_cannot_be_joined_are_refused(pilot: Any) -> None:
    one = [record for record in pilot.records if record.model == "stock0"]
    with pytest.raises(BoardError, match="two of them at least"):
        compare_rows(one, "selfsoup", "source", pilot.store.predictions, across_stocks=True)
    uneven = [r for r in pilot.records if r.model != "stock1" or r.corruption == "fog"]
    for refuse in (
        lambda: compare_rows(uneven, "selfsoup", "source", pilot.store.predictions, across_stocks=True),
        lambda: design(uneven, "selfsoup", "source", pilot.store.predictions),
    ):
        with pytest.raises(BoardError, match=r"differ in corruptions|same conditions"):
            refuse()


def test_one_set_of_ingredients_says_nothing_of_others(results: Any) -> None:
    rng = np.random.default_rng(5)
    for method, seed in product(("selfsoup", "source"), range(3)):
        results.add(method, "fog", seed=seed, hits=rng.random(60) < 0.6, data={"ingredients": 9})
    found = design(results.records, "selfsoup", "source", results.store.predictions)
    assert [(size.seeds, size.ingredient_draws) for size in found.sizes] == [(3, 1)] * 3
    assert "with one set of ingredients, intervals speak of that set only" in found.notes
    with pytest.raises(BoardError, match="cannot be told apart"):
        design(results.records, "selfsoup", "source", results.store.predictions, seeds=[6], ingredient_draws=[2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_draws": 0.1}, "over images is missing"),
        ({"images": 0.4, "seeds": 0.1}, "no spread over 'seeds'"),
        ({"images": 1.4}, "between 0 and 100 points, not 140"),
        ({"images": float("nan")}, "not nan"),
    ],
)
def test_a_spread_that_means_nothing_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spread.named(values)
