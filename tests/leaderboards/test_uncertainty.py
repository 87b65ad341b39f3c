"""Intervals cover what they claim, by counting or by simulation; tests are those of scipy, or of all assignments."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leaderboards.uncertainty import (
    FEWEST,
    ImageScores,
    Interval,
    Outcomes,
    SeedError,
    Withheld,
    average_scores,
    holm,
    image_scores,
    mean_accuracy_interval,
    p_value,
    paired_difference,
    shared_seed_error,
    sign_test,
)


def runs_of(hits: NDArray[np.bool_]) -> list[list[Outcomes]]:
    """Outcomes of hits [seeds, conditions, images]."""
    ids = np.arange(hits.shape[-1])
    return [[Outcomes(ids, condition) for condition in seed] for seed in hits]


class TestScores:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(*[st.integers(1, 6)] * 3))
    def test_shared_images_give_plain_means(self, seed: int, shape: tuple[int, int, int]) -> None:
        hits = np.random.default_rng(seed).random(shape) < 0.7
        scores = image_scores(runs_of(hits))
        assert np.allclose(scores.values, hits.mean(axis=(0, 1)))
        assert np.allclose(scores.by_seed, hits.mean(axis=(1, 2)))
        assert scores.accuracy == pytest.approx(hits.mean())

    def test_the_order_of_the_stream_does_not_matter(self) -> None:
        rng = np.random.default_rng(0)
        hits, order = rng.random((2, 3, 20)) < 0.5, rng.permutation(20)
        shuffled = [[Outcomes(o.ids[order], o.hits[order]) for o in seed] for seed in runs_of(hits)]
        assert np.array_equal(image_scores(shuffled).values, image_scores(runs_of(hits)).values)

    def test_unequal_conditions_keep_the_mean_of_their_accuracies(self) -> None:
        few = Outcomes(np.array([7, 3]), np.array([True, True]))
        many = Outcomes(np.array([1, 3, 3, 9, 5]), np.array([False, True, False, False, False]))
        scores = image_scores([[few, many]])
        assert scores.ids.tolist() == [1, 3, 5, 7, 9]
        assert scores.accuracy == pytest.approx((1 + 0.2) / 2)
        assert scores.values.mean() == pytest.approx(scores.accuracy)

    def test_the_linearised_ratio_has_the_spread_of_the_resampled_ratio(self) -> None:
        rng = np.random.default_rng(1)
        counts = rng.integers(0, 4, size=(3, 400))
        ids = [np.repeat(np.arange(400), c) for c in counts]
        skill = rng.random(400)
        outcomes = [Outcomes(i, rng.random(len(i)) < skill[i]) for i in ids]
        draws = []
        for _ in range(600):
            weights = np.bincount(rng.integers(0, 400, 400), minlength=400)
            draws.append(np.mean([(weights[o.ids] * o.hits).sum() / weights[o.ids].sum() for o in outcomes]))
        scores = image_scores([outcomes])
        assert scores.values.std() / np.sqrt(len(scores.ids)) == pytest.approx(np.std(draws), rel=0.12)

    @pytest.mark.parametrize("hits", [[], [[]]])
    def test_nothing_has_no_scores(self, hits: Any) -> None:
        with pytest.raises(ValueError, match="at least one"):
            image_scores(hits)

    def test_seeds_with_different_conditions_are_refused(self) -> None:
        one = Outcomes(np.arange(3), np.ones(3, dtype=bool))
        with pytest.raises(ValueError, match="same conditions"):
            image_scores([[one], [one, one]])

    def test_columns_of_different_lengths_are_refused(self) -> None:
        with pytest.raises(ValueError, match="as many outcomes as ids"):
            image_scores([[Outcomes(np.arange(3), np.ones(2, dtype=bool))]])

    def test_the_average_of_rows_is_the_row_of_all_their_conditions(self) -> None:
        hits = np.random.default_rng(2).random((4, 2, 3, 30)) < 0.5
        average = average_scores([image_scores(runs_of(row)) for row in hits])
        whole = image_scores(runs_of(hits.transpose(1, 0, 2, 3).reshape(2, 12, 30)))
        assert np.allclose(average.values, whole.values)
        assert np.allclose(average.by_seed, whole.by_seed)


def row_of(hits: Any) -> ImageScores:
    """Scores of hits [seeds, conditions, images], or fewer axes for one seed and one condition."""
    hits = np.asarray(hits, dtype=bool)
    return image_scores(runs_of(hits.reshape((1,) * (3 - hits.ndim) + hits.shape)))


def interval_of(hits: Any, **options: Any) -> Interval:
    found = mean_accuracy_interval(row_of(hits), **options)
    assert isinstance(found, Interval)
    return found


class TestInterval:
    @pytest.mark.parametrize("n", [20, 50, 100, 350])
    @pytest.mark.parametrize("p", [0.02, 0.2, 0.5, 0.98])
    def test_one_condition_covers_by_exact_counting(self, n: int, p: float) -> None:
        found = [mean_accuracy_interval(row_of(np.arange(n) < right)) for right in range(n + 1)]
        weights = scipy.stats.binom.pmf(np.arange(n + 1), n, p)
        given_one = np.array([isinstance(each, Interval) for each in found])
        covers = np.array([isinstance(each, Interval) and each.low <= p <= each.high for each in found])
        assert np.array_equal(given_one, [FEWEST <= right <= n - FEWEST for right in range(n + 1)])
        assert weights[given_one & ~covers].sum() <= 0.065
        if weights[given_one].sum() > 0.5:
            assert 0.935 <= weights[covers].sum() / weights[given_one].sum() <= 0.971

    @pytest.mark.parametrize(("n", "right"), [(500, 260), (2000, 1960), (350, 20)])
    def test_one_condition_is_the_binomial_interval(self, n: int, right: int) -> None:
        ours = interval_of(np.arange(n) < right)
        jeffreys = scipy.stats.beta.ppf([0.025, 0.975], right + 0.5, n - right + 0.5)
        exact = scipy.stats.binomtest(right, n).proportion_ci(method="exact")
        assert (ours.low, ours.high) == pytest.approx(tuple(jeffreys), abs=3e-4)
        assert exact.low <= ours.low < ours.estimate < ours.high <= exact.high

    def test_many_images_give_the_interval_of_their_mean(self) -> None:
        rng = np.random.default_rng(0)
        hits = rng.random((12, 4000)) < rng.random(4000)
        theirs = scipy.stats.bootstrap((hits.mean(axis=0),), np.mean, n_resamples=9999, rng=rng).confidence_interval
        ours = interval_of(hits)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=6e-4)

    def test_conditions_are_not_taken_for_independent_images(self) -> None:
        one = np.random.default_rng(0).random(300) < 0.5
        assert interval_of(np.repeat(one[None], 15, axis=0)) == interval_of(one)

    def test_seeds_alone_give_their_t_interval(self) -> None:
        by_seed = np.array([0.48, 0.5, 0.52, 0.54])
        ours = mean_accuracy_interval(ImageScores(np.arange(9), np.full(9, by_seed.mean()), by_seed))
        theirs = scipy.stats.t.interval(0.95, 3, loc=by_seed.mean(), scale=scipy.stats.sem(by_seed))
        assert isinstance(ours, Interval)
        assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-12)

    def test_noise_of_images_is_counted_once(self) -> None:
        # Without easy and hard images, each seed is a sample of its own, and the t interval of the seeds is all.
        hits = np.random.default_rng(1).random((6, 1, 20_000)) < 0.4
        ours, by_seed = interval_of(hits), hits.mean(axis=(1, 2))
        theirs = scipy.stats.t.interval(0.95, 5, loc=by_seed.mean(), scale=scipy.stats.sem(by_seed))
        assert ours.high - ours.low == pytest.approx(theirs[1] - theirs[0], rel=0.04)

    def test_seeds_that_agree_by_chance_are_not_certain(self) -> None:
        first = np.arange(50) % 2 == 0
        found = interval_of(np.stack([first, ~first])[:, None])
        assert found.high - found.low == pytest.approx(2 * scipy.stats.t.ppf(0.975, 1) / 50 / np.sqrt(24))

    def test_a_few_images_that_decide_have_few_degrees_of_freedom(self) -> None:
        hits = np.zeros((12, 350), dtype=bool)
        hits[:, :2] = True
        hits[np.arange(200) % 12, 10 + np.arange(200)] = True
        found, values = interval_of(hits), hits.mean(axis=0)
        a = values.mean()
        n = a * (1 - a) / values.var() * 350
        plain = scipy.stats.beta.ppf([0.025, 0.975], a * n + 0.5, (1 - a) * n + 0.5)
        assert found.high - found.low > 1.05 * (plain[1] - plain[0])

    def test_equal_seeds_add_nothing(self) -> None:
        one = np.random.default_rng(0).random((1, 3, 100)) < 0.5
        assert interval_of(np.repeat(one, 3, axis=0)) == interval_of(one[0])

    def test_stays_inside_zero_and_one(self) -> None:
        # Two seeds of a mean near 1 have a t interval beyond it.
        hits = np.arange(400).reshape(2, 1, 200) % 200 >= np.array([1, 16]).reshape(2, 1, 1)
        found = interval_of(hits)
        assert found.low >= 0
        assert found.high == 1

    def test_more_confidence_is_wider(self) -> None:
        hits = np.random.default_rng(0).random((2, 90)) < 0.5
        narrow, wide = (interval_of(hits, level=level) for level in (0.8, 0.99))
        assert wide.low < narrow.low < narrow.high < wide.high


class TestWithheld:
    @pytest.mark.parametrize(("n", "right"), [(50, 49), (50, 50), (350, 346), (20, 0), (9, 5), (1, 1)])
    def test_few_images_allow_a_one_sided_limit_only(self, n: int, right: int) -> None:
        found = mean_accuracy_interval(row_of(np.arange(n) < right))
        assert isinstance(found, Withheld)
        assert found.estimate == pytest.approx(right / n)
        side, word = ("greater", "at least") if right > n / 2 else ("less", "at most")
        exact = scipy.stats.binomtest(right, n, alternative=side).proportion_ci(0.95, method="exact")
        limit = exact.low if side == "greater" else exact.high
        assert f"the accuracy is {word} {limit:.1%} (one-sided, 95% confidence)" in found.reason

    def test_the_same_images_wrong_everywhere_count_once(self) -> None:
        shared = np.repeat((np.arange(100) >= 4)[None], 12, axis=0)
        spread = np.stack([np.arange(100) // 4 != condition for condition in range(12)])
        assert shared.mean() == spread.mean()
        assert isinstance(mean_accuracy_interval(row_of(shared)), Withheld)
        assert isinstance(mean_accuracy_interval(row_of(spread)), Interval)

    def test_all_images_alike(self) -> None:
        hits = np.repeat([[True], [False]], 30, axis=1)
        found = mean_accuracy_interval(row_of(hits))
        assert isinstance(found, Withheld)
        assert "same score" in found.reason

    def test_seeds_widen_the_limit(self) -> None:
        # One and three wrong of 100; a limit for two wrong of 100 alone would be 93.8 %.
        found = mean_accuracy_interval(row_of(np.stack([np.arange(100) >= 1, np.arange(100) >= 3])[:, None]))
        assert isinstance(found, Withheld)
        bound = re.search(r"at least ([0-9.]+)%", found.reason)
        assert bound
        assert float(bound[1]) < 93.7


class TestDifference:
    @pytest.mark.parametrize(("n", "wins", "losses", "p"), [(4, 4, 0, 0.125), (350, 4, 0, 0.125), (350, 9, 3, None)])
    def test_few_images_have_the_exact_p(self, n: int, wins: int, losses: int, p: float | None) -> None:
        a, b = np.arange(n) < wins, (np.arange(n) >= wins) & (np.arange(n) < wins + losses)
        gap = paired_difference(row_of(a), row_of(b))
        mcnemar = scipy.stats.binomtest(wins, wins + losses).pvalue
        assert gap.p == pytest.approx(p or mcnemar)
        assert gap.p == pytest.approx(mcnemar)
        assert gap.low <= 0 < gap.estimate < gap.high or gap.high == gap.estimate == 1

    def test_the_sign_is_a_minus_b(self) -> None:
        rng = np.random.default_rng(0)
        a, b = (row_of(rng.random((3, 400)) < p) for p in (0.7, 0.5))
        ab, ba = paired_difference(a, b), paired_difference(b, a)
        assert ab.estimate == pytest.approx(a.accuracy - b.accuracy)
        assert (ba.low, ba.high, ba.p) == pytest.approx((-ab.high, -ab.low, ab.p))
        assert ab.low > 0
        assert ab.p < 0.01

    def test_no_image_that_differs_proves_no_equality(self) -> None:
        a = row_of(np.random.default_rng(0).random((3, 2, 60)) < 0.7)
        gap = paired_difference(a, a)
        assert (gap.estimate, gap.p) == (0, 1)
        assert gap.low == -gap.high < -0.01

    def test_pairing_removes_the_difficulty_of_images(self) -> None:
        rng = np.random.default_rng(0)
        easy = rng.random(500) < 0.5
        better = easy | (rng.random(500) < 0.06)
        gap = paired_difference(row_of(better), row_of(easy))
        assert gap.p < 0.01
        assert gap.high - gap.low < 0.5 * (lambda i: i.high - i.low)(interval_of(better))

    def test_many_images_agree_with_the_t_test(self) -> None:
        rng = np.random.default_rng(5)
        a, b = (rng.random((4, 600)) < p for p in (0.53, 0.5))
        ours = paired_difference(row_of(a), row_of(b))
        oracle = scipy.stats.ttest_rel(a.mean(axis=0), b.mean(axis=0))
        limits = oracle.confidence_interval()
        assert 0.001 < oracle.pvalue < 0.5
        assert ours.p == pytest.approx(oracle.pvalue, rel=0.1)  # half a step of the sum more
        assert (ours.low, ours.high) == pytest.approx((limits.low, limits.high), abs=1e-3)

    @pytest.mark.parametrize("shape", [(1, 1, 20), (1, 3, 50), (2, 2, 80), (3, 2, 80)])
    def test_the_interval_holds_zero_where_p_is_large(self, shape: tuple[int, int, int]) -> None:
        rng = np.random.default_rng(7)
        agree = []
        for _ in range(150):
            a, b = (row_of(rng.random(shape) < p) for p in (0.7, 0.5))
            gap = paired_difference(a, b)
            assert gap.p <= 0.05 or gap.low <= 0 <= gap.high
            agree.append((gap.p <= 0.05) == (gap.low > 0 or gap.high < 0))
        assert np.mean(agree) > 0.95

    def test_different_images_or_seeds_are_refused(self) -> None:
        a = row_of(np.ones((2, 1, 5)))
        for other in (
            row_of(np.ones((3, 1, 5))),
            row_of(np.ones((2, 1, 6))),
            ImageScores(a.ids + 1, a.values, a.by_seed),
        ):
            for refused in (paired_difference, p_value, lambda x, y: average_scores([x, y])):
                with pytest.raises(ValueError, match="same images and seeds"):
                    refused(a, other)  # type: ignore[operator]
        with pytest.raises(ValueError, match="at least one row"):
            average_scores([])


def by_enumeration(d: NDArray[np.float64]) -> float:
    """Share of all assignments of signs whose sum is at least as far from zero."""
    signs = np.array(list(product((1, -1), repeat=len(d))))
    return float((np.abs(signs @ np.abs(d)) >= abs(d.sum()) - 1e-9).mean())


class TestSignTest:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(-6, 6), min_size=1, max_size=10), st.sampled_from([0.0, 1 / 36]))
    def test_counts_all_assignments_of_signs(self, values: list[int], step: float) -> None:
        d = np.array(values) / 36
        expected = by_enumeration(np.rint(d * 64 / np.abs(d).max())) if d.any() and not step else by_enumeration(d)
        assert sign_test(d, step) == pytest.approx(expected)

    def test_is_the_permutation_test_of_scipy(self) -> None:
        d = np.random.default_rng(0).integers(-12, 13, 14) / 12
        theirs = scipy.stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_test(d, 1 / 12) == pytest.approx(theirs)

    @pytest.mark.parametrize(("k", "wins"), [(6, 6), (300, 180), (4000, 2080), (5000, 2590), (20_000, 10_200)])
    def test_one_condition_is_mcnemar(self, k: int, wins: int) -> None:
        expected = scipy.stats.binomtest(wins, k).pvalue
        assert sign_test(np.where(np.arange(k) < wins, 1.0, -1.0), 1.0) == pytest.approx(expected, rel=0.01)

    def test_the_normal_sum_joins_the_counted_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(2)
        d = rng.integers(-5, 6, 1300) + (rng.random(1300) < 0.15)
        counted = sign_test(d / 36, 1 / 36)
        monkeypatch.setattr("leaderboards.uncertainty._LATTICE", 10)
        assert sign_test(d / 36, 1 / 36) == pytest.approx(counted, rel=0.02)
        assert 1e-4 < counted < 0.3

    def test_is_never_zero(self) -> None:
        for size in (30, 200, 20_000):
            assert 0 < sign_test(np.ones(size), 1.0) <= max(1e-12, 2.0 ** (1 - size))
        a, b = row_of(np.ones((3, 2, 5000))), row_of(np.zeros((3, 2, 5000)))
        assert 0 < p_value(a, b) < 1e-9
        assert 0 < p_value(a, b, SeedError(1e-9, 200)) < 1e-9

    def test_nothing_that_differs_gives_one(self) -> None:
        assert sign_test(np.zeros(7), 1.0) == sign_test(np.array([1.0, -1.0]), 1.0) == 1

    def test_a_wrong_step_is_not_believed(self) -> None:
        d = np.array([0.1, 0.25, -0.05, 0.3])
        assert sign_test(d, 1 / 3) == sign_test(d)


class TestSeeds:
    def test_seeds_alone_give_the_t_test(self) -> None:
        # Of many images the sign test is sure, and the seeds decide.
        a, b = np.array([0.52, 0.56, 0.55]), np.array([0.5, 0.51, 0.49])
        rows = [ImageScores(np.arange(60), np.full(60, seeds.mean()), seeds) for seeds in (a, b)]
        expected = scipy.stats.ttest_rel(a, b)
        ours = paired_difference(*rows)
        assert p_value(*rows) == ours.p == pytest.approx(expected.pvalue, rel=0.02)
        limits = expected.confidence_interval()
        assert (ours.low, ours.high) == pytest.approx((limits.low, limits.high), abs=3e-3)

    def test_seeds_that_agree_are_no_more_than_their_images(self) -> None:
        a = np.arange(8).reshape(2, 1, 4) < 7
        assert p_value(row_of(a), row_of(np.zeros_like(a))) == pytest.approx(0.125)
        assert scipy.stats.ttest_1samp(a.mean(axis=(1, 2)), 0).pvalue < 0.1

    def test_a_shared_error_takes_the_place_of_their_own(self) -> None:
        a, b = np.array([0.52, 0.56, 0.55]), np.array([0.5, 0.51, 0.49])
        rows = [ImageScores(np.arange(60), np.full(60, seeds.mean()), seeds) for seeds in (a, b)]
        gap = (a - b).mean()
        expected = 2 * scipy.stats.t.sf(gap / 0.02, 10)
        assert p_value(*rows, SeedError(0.02, 10)) == pytest.approx(expected, rel=0.01)

    def test_the_error_over_seeds_is_that_of_two_way_anova(self) -> None:
        # Of two rows it is that of their own differences; of more, what rows and seeds leave, worked out by hand.
        table = np.array([[0.5, 0.6, 0.7], [0.4, 0.5, 0.65], [0.7, 0.75, 0.8]])
        rows = [ImageScores(np.arange(9), np.full(9, seeds.mean()), seeds) for seeds in table]
        assert shared_seed_error(rows[:2]) == SeedError(pytest.approx(scipy.stats.sem(table[0] - table[1])), 2)
        effects = table.mean(axis=1)[:, None] + table.mean(axis=0)[None] - table.mean()
        expected = np.sqrt(2 * ((table - effects) ** 2).sum() / 4 / 3)
        assert shared_seed_error(rows) == SeedError(pytest.approx(expected), 4)
        assert shared_seed_error([row_of(np.ones(5))] * 2) == SeedError(0.0, 0)
        with pytest.raises(ValueError, match="two rows"):
            shared_seed_error(rows[:1])

    @pytest.mark.slow
    @pytest.mark.parametrize(("seeds", "seed_effect"), [(1, 0.0), (2, 0.1), (3, 0.0), (3, 0.2), (5, 0.2)])
    def test_among_equal_rows_one_is_rarely_called_better(self, seeds: int, seed_effect: float) -> None:
        rng = np.random.default_rng(14)
        false = []
        for _ in range(400):
            difficulty = rng.normal(size=(1, 1, 150))
            of_seed = seed_effect * rng.normal(size=(8, seeds, 1, 1))
            hits = difficulty + of_seed + rng.normal(size=(8, seeds, 4, 150)) > 0
            rows = [row_of(each) for each in hits]
            shared = shared_seed_error(rows)
            false.append(min(holm([p_value(a, b, shared) for a, b in combinations(rows, 2)])) <= 0.05)
        assert np.mean(false) <= 0.07


Draw = Callable[[np.random.Generator], NDArray[np.bool_]]


def independent(conditions: int, n: int, p: float) -> Draw:
    return lambda rng: rng.random((1, conditions, n)) < p


def clustered(conditions: int, n: int, p: float, correlation: float) -> Draw:
    """Beta-binomial: outcomes of one image have this correlation."""
    a, b = (share * (1 - correlation) / correlation for share in (p, 1 - p))
    return lambda rng: rng.random((1, conditions, n)) < rng.beta(a, b, n)


def unequal(
    conditions: int, n: int, p: float, share: float, seeds: int = 1, of_seed: float = 0.0, spread: float = 1.2
) -> Draw:
    """Probit: conditions of unequal difficulty; `share` of the variance is the image's, seeds have an effect."""
    scale = np.sqrt(1 + of_seed**2)
    level = np.linspace(-spread, spread, conditions)
    middle = scipy.optimize.brentq(lambda x: scipy.stats.norm.cdf((x + level) / scale).mean() - p, -9, 9)

    def draw(rng: np.random.Generator) -> NDArray[np.bool_]:
        skill = np.sqrt(share) * rng.normal(size=n) + of_seed * rng.normal(size=(seeds, 1, 1))
        rest = np.sqrt(1 - share) * rng.normal(size=(seeds, conditions, n))
        hits: NDArray[np.bool_] = (middle + level)[:, None] + skill + rest > 0
        return hits

    return draw


def coverage(draw: Draw, p: float, draws: int) -> tuple[float, float]:
    """How many of the given intervals hold p, over new images and seeds, and how often one is given."""
    rng = np.random.default_rng(11)
    found = [mean_accuracy_interval(row_of(draw(rng))) for _ in range(draws)]
    given_ones = [each for each in found if isinstance(each, Interval)]
    covered = [each.low <= p <= each.high for each in given_ones]
    return float(np.mean(covered)) if covered else 0.0, len(given_ones) / draws


def check_coverage(draw: Draw, p: float, draws: int, low: float = 0.935, high: float = 0.97) -> None:
    error = np.sqrt(0.95 * 0.05 / draws)
    covered, share = coverage(draw, p, draws)
    if share > 0.5:
        assert low - 2 * error <= covered <= high + 2 * error, (covered, share)


GRID = [(n, p) for n in (20, 50, 100, 350) for p in (0.02, 0.5, 0.98)]  # with few of either, none may be given


@pytest.mark.parametrize(("n", "p"), [(50, 0.02), (50, 0.98), (100, 0.5)])
def test_twelve_conditions_cover(n: int, p: float) -> None:
    check_coverage(independent(12, n, p), p, 500)
    check_coverage(unequal(12, n, p, 0.3), p, 500)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), GRID)
@pytest.mark.parametrize("conditions", [3, 12])
def test_independent_outcomes_cover(conditions: int, n: int, p: float) -> None:
    # At one expected error in 16 images the smallest counts are withheld, and what is left errs on one side only.
    check_coverage(independent(conditions, n, p), p, 1500, high=0.975)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [*GRID, (50, 0.8), (100, 0.9)])
@pytest.mark.parametrize("correlation", [0.05, 0.2, 0.5])
def test_clustered_outcomes_cover(n: int, p: float, correlation: float) -> None:
    check_coverage(clustered(12, n, p, correlation), p, 1500, low=0.93, high=0.975)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [*GRID, (50, 0.8), (100, 0.9)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("conditions", [3, 12])
def test_unequal_conditions_cover(conditions: int, n: int, p: float, share: float) -> None:
    check_coverage(unequal(conditions, n, p, share), p, 1500, low=0.93, high=0.98)


@pytest.mark.parametrize(("seeds", "of_seed"), [
    (3, 0.3),
    *(pytest.param(s, e, marks=pytest.mark.slow) for s in (2, 3, 5, 8) for e in (0.0, 0.05, 0.15, 0.4)),
])  # fmt: skip
def test_seeds_cover(seeds: int, of_seed: float) -> None:
    # Two pieces of unknown size, over images and over seeds: with few seeds wide rather than narrow.
    draw = unequal(4, 150, 0.55, 0.5, seeds, of_seed, 0.6)
    check_coverage(draw, 0.55, 1000, high={2: 0.992, 3: 0.98}.get(seeds, 0.97))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(20, 0.5), (50, 0.5), (50, 0.9), (350, 0.5), (350, 0.98)])
@pytest.mark.parametrize("conditions", [1, 12])
def test_differences_cover(conditions: int, n: int, p: float) -> None:
    """Few images that differ make an interval wide, as they make the exact test cautious; it is never narrow."""
    rng = np.random.default_rng(3)
    gap, covered, found = 0.03 * p * (1 - p) * 4, [], []
    levels = scipy.stats.norm.ppf([p, p - gap])
    for _ in range(2000):
        shared = np.sqrt(0.5) * rng.normal(size=n) + np.sqrt(0.3) * rng.normal(size=(conditions, n))
        rows = [row_of(level + shared + np.sqrt(0.2) * rng.normal(size=(conditions, n)) > 0) for level in levels]
        difference = paired_difference(*rows)
        covered.append(difference.low <= gap <= difference.high)
        equal = row_of(levels[1] + shared + np.sqrt(0.2) * rng.normal(size=(conditions, n)) > 0)
        found.append(p_value(equal, rows[1]) <= 0.05)
    assert np.mean(covered) >= 0.935
    assert np.mean(found) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seed", [0.0, 0.1, 0.3])
def test_differences_over_seeds_are_found_too_rarely_rather_than_too_often(seeds: int, of_seed: float) -> None:
    rng = np.random.default_rng(4)
    found, covered = [], []
    for _ in range(1000):
        shared = rng.normal(size=(1, 1, 1, 100))
        hits = shared + of_seed * rng.normal(size=(2, seeds, 1, 1)) + rng.normal(size=(2, seeds, 4, 100)) > 0
        difference = paired_difference(*(row_of(each) for each in hits))
        found.append(difference.p <= 0.05)
        covered.append(difference.low <= 0 <= difference.high)
    assert np.mean(found) <= 0.062
    assert np.mean(covered) >= 0.935


class TestHolm:
    def test_by_hand(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([]) == []
        assert holm([0.2]) == [0.2]

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
    def test_is_the_closed_bonferroni_test(self, p: list[float]) -> None:
        # A finding holds if every set of hypotheses that contains it is rejected by Bonferroni's bound.
        subsets = [s for size in range(1, len(p) + 1) for s in combinations(range(len(p)), size)]
        closed = [max(min(1, len(s) * min(p[i] for i in s)) for s in subsets if k in s) for k in range(len(p))]
        assert holm(p) == pytest.approx(closed)
