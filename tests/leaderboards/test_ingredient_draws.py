"""Seeds that share their ingredients are no independent draws of them; against scipy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from leaderboards.boards import make_board
from leaderboards.uncertainty import (
    ImageScores,
    Interval,
    Outcomes,
    SeedError,
    average_scores,
    image_scores,
    joined_draws,
    mean_accuracy_interval,
    paired_difference,
    shared_seed_error,
    unpaired_seed_error,
)

from .conftest import Results

DRAWS = (0, 1, 2) * 4


def alone(by_seed: np.ndarray, draws: tuple[int, ...] = ()) -> ImageScores:
    """Scores of which the images say nothing, so that the seeds are all."""
    return ImageScores(np.arange(60), np.full(60, by_seed.mean()), by_seed, draws=draws)


def nested(rng: np.random.Generator, of_draw: float = 0.02, of_label: float = 0.01) -> np.ndarray:
    return 0.5 + of_draw * rng.normal(size=3)[list(DRAWS)] + of_label * rng.normal(size=12)


def test_the_unit_is_the_draw_of_ingredients() -> None:
    by_seed = nested(np.random.default_rng(0))
    found = mean_accuracy_interval(alone(by_seed, DRAWS))
    means = by_seed.reshape(4, 3).mean(axis=0)
    assert isinstance(found, Interval)
    expected = scipy.stats.t.interval(0.95, 2, loc=means.mean(), scale=scipy.stats.sem(means))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_intervals_hold_the_mean_over_both_draws() -> None:
    rng = np.random.default_rng(1)
    held = {}
    for draws in (DRAWS, ()):
        found = [mean_accuracy_interval(alone(nested(rng), draws)) for _ in range(600)]
        held[draws] = np.mean([isinstance(each, Interval) and each.low <= 0.5 <= each.high for each in found])
    assert 0.93 <= held[DRAWS] <= 0.97
    assert held[()] < 0.85  # as if the seeds were independent


def test_a_pair_shares_the_draws_of_either() -> None:
    rng = np.random.default_rng(2)
    soup, source = nested(rng), 0.45 + 0.01 * rng.normal(size=12)
    expected = scipy.stats.ttest_1samp((soup - source).reshape(4, 3).mean(axis=0), 0).confidence_interval()
    for a, b in ((alone(soup, DRAWS), alone(source)), (alone(soup), alone(source, DRAWS))):
        found = paired_difference(a, b)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=3e-3)


def test_with_one_draw_the_seeds_speak_for_it_alone() -> None:
    by_seed = nested(np.random.default_rng(3))
    assert mean_accuracy_interval(alone(by_seed, (7,) * 12)) == mean_accuracy_interval(alone(by_seed))


def test_label_draws_that_change_nothing_add_nothing() -> None:
    """Twelve seeds that repeat three sets of ingredients, image by image, say what three seeds say."""
    hits = np.random.default_rng(7).random((2, 3, 400)) < np.array([0.7, 0.5])[:, None, None]

    def rows(draws: tuple[int, ...]) -> list[ImageScores]:
        return [image_scores([[Outcomes(np.arange(400), row[d])] for d in draws], draws) for row in hits]

    few, many = rows((0, 1, 2)), rows(DRAWS)
    for measure in (lambda pair: mean_accuracy_interval(pair[0]), lambda pair: paired_difference(*pair)):
        one, other = measure(few), measure(many)
        assert (other.low, other.high) == pytest.approx((one.low, one.high), rel=1e-3)


def test_draws_that_are_all_different_change_nothing() -> None:
    hits = np.random.default_rng(4).random((3, 2, 40)) < 0.6
    seeds = [[Outcomes(np.arange(40), row) for row in seed] for seed in hits]
    assert image_scores(seeds, (4, 5, 6)).draws == image_scores(seeds).draws == ()
    assert image_scores(seeds, (4, 5, 4)).draws == (4, 5, 4)


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        ((0, 0, 1, 1), (), (0, 0, 2, 2)),
        ((0, 0, 1, 1), (5, 6, 5, 6), (0, 0, 0, 0)),
        ((0, 0, 1, 2), (3, 4, 4, 5), (0, 0, 0, 3)),
        ((0, 0, 1, 2), (3, 4, 3, 5), (0, 0, 0, 3)),
        ((0, 1, 0, 2), (3, 3, 4, 5), (0, 0, 0, 3)),
        ((0, 0, 0, 1), (0, 0, 1, 0), (0, 0, 0, 0)),
        ((), (), ()),
    ],
)
def test_seeds_are_joined_by_what_any_row_shares(
    one: tuple[int, ...], other: tuple[int, ...], joined: tuple[int, ...]
) -> None:
    rows = [alone(np.full(4, 0.5), one), alone(np.full(4, 0.5), other)]
    for given in (rows, rows[::-1]):
        found = joined_draws(given)
        assert [found.index(each) for each in found] == [joined.index(each) for each in joined]


def test_a_mean_of_rows_has_their_draws() -> None:
    rows = [alone(np.array([0.5, 0.6, 0.7]), (0, 1, 0)), alone(np.array([0.4, 0.5, 0.6]))]
    assert [average_scores(rows).draws.index(each) for each in average_scores(rows).draws] == [0, 1, 0]


def test_errors_over_seeds_count_draws() -> None:
    rng = np.random.default_rng(5)
    soup, source = nested(rng), 0.45 + 0.01 * rng.normal(size=12)
    gap = (soup - source).reshape(4, 3).mean(axis=0)
    assert shared_seed_error([alone(soup, DRAWS), alone(source)]) == SeedError(pytest.approx(scipy.stats.sem(gap)), 2)
    rows = [alone(soup, DRAWS), alone(source)]
    means = soup.reshape(4, 3).mean(axis=0)
    pooled = (np.square(means - means.mean()).sum() + np.square(source - source.mean()).sum()) / (2 + 11)
    expected = np.sqrt(pooled * (1 / 3 + 1 / 12))
    assert unpaired_seed_error(*rows, rows) == SeedError(pytest.approx(expected), 13)


def test_a_board_says_that_seeds_share_ingredients(results: Results) -> None:
    rng = np.random.default_rng(6)
    for seed in range(4):
        for method in ("selfsoup", "tent"):
            data = {"ingredients": seed % 2} if method == "selfsoup" and seed % 2 != seed else {}
            results.add(method, "fog", seed=seed, hits=rng.random(200) < 0.6, data=data)
    board = make_board(results.records, results.store.predictions)
    assert board.versions == ("the 4 seeds of selfsoup share 2 sets of ingredients, over which intervals are",)
    rows = {row.method: row for row in board.rows}
    widths = {name: row.interval.high - row.interval.low for name, row in rows.items() if row.interval is not None}
    assert widths["selfsoup"] > widths["tent"]  # t with one degree of freedom instead of three


def test_a_board_says_that_there_is_one_set(results: Results) -> None:
    for seed in range(2):
        results.add("selfsoup", "fog", seed=seed, hits=np.arange(40) % 2 == 0, data={"ingredients": 9})
    assert make_board(results.records).versions == ("the 2 seeds of selfsoup share one set of ingredients",)
