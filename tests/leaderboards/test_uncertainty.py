"""Intervals cover what they claim; the bootstrap is the plain one, only faster."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leaderboards.uncertainty import (
    ImageScores,
    Outcomes,
    Resamples,
    average_scores,
    chance_of_reversal,
    holm,
    image_scores,
    mean_accuracy_interval,
    paired_difference,
    resampled_means,
)

FEW = 1000


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


class TestInterval:
    def test_is_the_percentile_bootstrap_of_scipy(self) -> None:
        hits = np.random.default_rng(0).random((1, 5, 200)) < 0.6
        ours = mean_accuracy_interval(image_scores(runs_of(hits)), resamples=20_000)
        theirs = scipy.stats.bootstrap(
            (hits[0].mean(axis=0),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
        ).confidence_interval
        assert ours.estimate == pytest.approx(hits.mean())
        assert ours.low == pytest.approx(theirs.low, abs=0.004)
        assert ours.high == pytest.approx(theirs.high, abs=0.004)

    def test_seeds_alone_give_their_t_interval(self) -> None:
        by_seed = np.array([0.48, 0.5, 0.52, 0.54])
        scores = ImageScores(np.arange(9), np.full(9, by_seed.mean()), by_seed)
        ours = mean_accuracy_interval(scores, resamples=200_000)
        theirs = scipy.stats.t.interval(0.95, 3, loc=by_seed.mean(), scale=scipy.stats.sem(by_seed))
        assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-3)

    def test_conditions_are_not_taken_for_independent_images(self) -> None:
        one = np.random.default_rng(0).random((1, 1, 300)) < 0.5
        same = np.repeat(one, 15, axis=1)
        alone, repeated = (mean_accuracy_interval(image_scores(runs_of(hits))) for hits in (one, same))
        assert (alone.low, alone.high) == (repeated.low, repeated.high)

    def test_one_seed_number_gives_one_answer(self) -> None:
        scores = image_scores(runs_of(np.random.default_rng(0).random((2, 2, 50)) < 0.5))
        assert mean_accuracy_interval(scores, seed=3) == mean_accuracy_interval(scores, seed=3)
        assert mean_accuracy_interval(scores, seed=3) != mean_accuracy_interval(scores, seed=4)

    def test_the_global_generator_is_left_alone(self) -> None:
        before = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
        mean_accuracy_interval(image_scores(runs_of(np.ones((2, 2, 9), dtype=bool))))
        assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002

    @pytest.mark.parametrize("n", [10, 1000])
    def test_all_right_or_all_wrong_is_not_certainty(self, n: int) -> None:
        # Clopper and Pearson's limits for n of n and 0 of n.
        right = mean_accuracy_interval(image_scores(runs_of(np.ones((1, 3, n), dtype=bool))))
        wrong = mean_accuracy_interval(image_scores(runs_of(np.zeros((1, 3, n), dtype=bool))))
        exact = scipy.stats.binomtest(n, n).proportion_ci(method="exact")
        assert (right.estimate, right.high, wrong.estimate, wrong.low) == (1, 1, 0, 0)
        assert right.low == pytest.approx(exact.low)
        assert wrong.high == pytest.approx(1 - exact.low)

    def test_stays_inside_zero_and_one(self) -> None:
        hits = np.stack([np.ones((2, 40), dtype=bool), np.arange(80).reshape(2, 40) % 4 > 0])
        interval = mean_accuracy_interval(image_scores(runs_of(hits)))
        assert interval.low >= 0
        assert interval.high == 1

    def test_more_confidence_is_wider(self) -> None:
        scores = image_scores(runs_of(np.random.default_rng(0).random((1, 2, 90)) < 0.5))
        narrow, wide = (mean_accuracy_interval(scores, level=level) for level in (0.8, 0.99))
        assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.25, 0.5, 1.0], [0.1, 0.1, 0.1]])
def test_resampled_means_have_the_moments_of_drawing_images(values: list[float]) -> None:
    population = np.repeat(values, 30)
    means = resampled_means(population[:, None], 40_000, np.random.default_rng(0))
    assert means.mean() == pytest.approx(population.mean(), abs=1e-3)
    assert means.std() == pytest.approx(population.std() / np.sqrt(len(population)), rel=0.03, abs=1e-12)


def test_many_distinct_scores_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboards.uncertainty._CHUNK", 500)
    population = np.random.default_rng(0).random(70)
    means = resampled_means(population[:, None], 4000, np.random.default_rng(0))
    assert means.shape == (4000, 1)
    assert means.std() == pytest.approx(population.std() / np.sqrt(70), rel=0.05)


class TestDifference:
    def test_the_sign_is_a_minus_b(self) -> None:
        rng = np.random.default_rng(0)
        a, b = (image_scores(runs_of(rng.random((1, 3, 400)) < p)) for p in (0.7, 0.5))
        ab, ba = paired_difference(a, b), paired_difference(b, a)
        assert ab.estimate == pytest.approx(a.accuracy - b.accuracy)
        assert ab.low > 0
        assert ba.high < 0
        assert ab.p < 0.01

    def test_equal_rows_do_not_differ(self) -> None:
        a = image_scores(runs_of(np.random.default_rng(0).random((3, 2, 60)) < 0.7))
        assert (lambda d: (d.estimate, d.low, d.high, d.p))(paired_difference(a, a)) == (0, 0, 0, 1)

    def test_pairing_removes_the_difficulty_of_images(self) -> None:
        rng = np.random.default_rng(0)
        easy = rng.random(500) < 0.5
        better = easy | (rng.random(500) < 0.06)
        a, b = (image_scores([[Outcomes(np.arange(500), hits)]]) for hits in (better, easy))
        gap = paired_difference(a, b)
        assert gap.p < 0.01
        assert gap.high - gap.low < 0.5 * (lambda i: i.high - i.low)(mean_accuracy_interval(a))

    def test_p_agrees_with_the_normal_approximation(self) -> None:
        rng = np.random.default_rng(5)
        a, b = (rng.random((1, 4, 600)) < p for p in (0.53, 0.5))
        ours = paired_difference(image_scores(runs_of(a)), image_scores(runs_of(b)), resamples=40_000)
        oracle = scipy.stats.ttest_rel(a[0].mean(axis=0), b[0].mean(axis=0))
        assert 0.001 < oracle.pvalue < 0.5
        assert ours.p == pytest.approx(oracle.pvalue, rel=0.2)

    def test_the_interval_excludes_zero_where_p_is_small(self) -> None:
        rng = np.random.default_rng(7)
        for _ in range(40):
            a, b = (image_scores(runs_of(rng.random((3, 2, 80)) < p)) for p in (0.62, 0.5))
            gap = paired_difference(a, b, resamples=FEW)
            assert (gap.p < 0.05) == (gap.low > 0 or gap.high < 0) or abs(gap.p - 0.05) < 0.01

    def test_different_images_or_seeds_are_refused(self) -> None:
        a = image_scores(runs_of(np.ones((2, 1, 5), dtype=bool)))
        for other in (
            image_scores(runs_of(np.ones((3, 1, 5), dtype=bool))),
            image_scores(runs_of(np.ones((2, 1, 6), dtype=bool))),
            ImageScores(a.ids + 1, a.values, a.by_seed),
        ):
            with pytest.raises(ValueError, match="same images and seeds"):
                paired_difference(a, other)
            with pytest.raises(ValueError, match="same images and seeds"):
                average_scores([a, other])


def experiment(rng: np.random.Generator, seeds: int, seed_effect: float) -> tuple[NDArray[np.bool_], float]:
    """Hits [seeds, 4 conditions, 150 images] that share difficulty and seed effects, and their expected accuracy."""
    difficulty = rng.normal(size=(1, 1, 150))
    of_seed = seed_effect * rng.normal(size=(seeds, 1, 1))
    of_condition = np.array([-0.5, 0.0, 0.3, 0.8]).reshape(1, 4, 1)
    hits = of_condition + difficulty + of_seed + rng.normal(size=(seeds, 4, 150)) > 0
    scale = np.sqrt(2 + seed_effect**2)
    return hits, float(scipy.stats.norm.cdf(of_condition / scale).mean())


@pytest.mark.parametrize(("seeds", "seed_effect"), [
    (1, 0.0),
    (5, 0.3),
    pytest.param(3, 0.0, marks=pytest.mark.slow),
    pytest.param(3, 0.15, marks=pytest.mark.slow),
    pytest.param(3, 0.3, marks=pytest.mark.slow),
    pytest.param(5, 0.0, marks=pytest.mark.slow),
    pytest.param(8, 0.05, marks=pytest.mark.slow),
    pytest.param(10, 0.2, marks=pytest.mark.slow),
])  # fmt: skip
def test_intervals_cover_the_truth_as_often_as_they_say(seeds: int, seed_effect: float) -> None:
    assert coverage(seeds, seed_effect) == pytest.approx(0.95, abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("seed_effect", [0.0, 0.1, 0.3])
def test_with_two_seeds_intervals_are_wide_rather_than_narrow(seed_effect: float) -> None:
    assert coverage(2, seed_effect) >= 0.935


def coverage(seeds: int, seed_effect: float) -> float:
    """How many of 2000 intervals hold the expected accuracy, over new images and new seeds."""
    rng = np.random.default_rng(11)
    covered = []
    for _ in range(2000):
        hits, truth = experiment(rng, seeds, seed_effect)
        interval = mean_accuracy_interval(image_scores(runs_of(hits)), resamples=FEW)
        covered.append(interval.low <= truth <= interval.high)
    return float(np.mean(covered))


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "seed_effect"), [(1, 0.0), (3, 0.2), (5, 0.2)])
def test_equal_methods_are_rarely_called_different(seeds: int, seed_effect: float) -> None:
    rng = np.random.default_rng(12)
    found = []
    for _ in range(600):
        difficulty = rng.normal(size=(1, 1, 150))
        of_seed = seed_effect * rng.normal(size=(2, seeds, 1, 1))
        a, b = difficulty + of_seed + rng.normal(size=(2, seeds, 4, 150)) > 0
        found.append(paired_difference(image_scores(runs_of(a)), image_scores(runs_of(b)), resamples=FEW).p < 0.05)
    assert np.mean(found) < 0.065


class TestProbability:
    """Tails that a few thousand resamples cannot see: bounded, never below the truth."""

    @staticmethod
    def rows(*accuracies: Any) -> list[ImageScores]:
        return [image_scores([[Outcomes(np.arange(len(hits)), np.asarray(hits))]]) for hits in accuracies]

    @pytest.mark.parametrize("better", [12, 40])
    def test_never_worse_is_the_chance_of_drawing_only_ties(self, better: int) -> None:
        # A resample shows no difference only if none of the images that differ is drawn: (1 - q)^m.
        gap = np.arange(100) < better
        assert chance_of_reversal(gap.astype(float)) == pytest.approx((1 - better / 100) ** 100, rel=0.02)

    @pytest.mark.parametrize(("m", "right"), [(100, 75), (1000, 620), (400, 230)])
    def test_the_bound_holds_and_is_close(self, m: int, right: int) -> None:
        gap = np.where(np.arange(m) < right, 1.0, -1.0)
        exact = scipy.stats.binom.cdf(m // 2, m, right / m)
        assert exact <= chance_of_reversal(gap) <= 30 * exact
        assert chance_of_reversal(-gap) == pytest.approx(chance_of_reversal(gap))

    @pytest.mark.parametrize(("gap", "bound"), [(np.zeros(9), 1.0), (np.ones(9), 0.0)])
    def test_no_difference_and_nothing_but_difference(self, gap: Any, bound: float) -> None:
        assert chance_of_reversal(gap) == pytest.approx(bound, abs=1e-9)

    def test_clear_differences_survive_any_number_of_comparisons(self) -> None:
        rng = np.random.default_rng(0)
        a, b = self.rows(rng.random(2000) < 0.8, rng.random(2000) < 0.6)
        assert Resamples([a, b], resamples=200).p_value(0, 1) < 1e-9

    def test_many_resamples_agree_with_few(self) -> None:
        rng = np.random.default_rng(3)
        a, b = self.rows(rng.random(300) < 0.64, rng.random(300) < 0.5)
        few, many = (Resamples([a, b], resamples=count).p_value(0, 1) for count in (2000, 200_000))
        assert 1e-3 < many < 0.05
        assert few == pytest.approx(many, rel=0.35)

    def test_seeds_alone_give_the_t_test(self) -> None:
        a, b = np.array([0.52, 0.56, 0.55]), np.array([0.5, 0.51, 0.49])
        rows = [ImageScores(np.arange(9), np.full(9, seeds.mean()), seeds) for seeds in (a, b)]
        expected = scipy.stats.ttest_rel(a, b).pvalue
        assert Resamples(rows, resamples=10_000).p_value(0, 1) == pytest.approx(expected, abs=3e-4)

    def test_the_error_over_seeds_is_that_of_two_way_anova(self) -> None:
        # Of two rows it is that of their own differences; of more, what rows and seeds leave, worked out by hand.
        table = np.array([[0.5, 0.6, 0.7], [0.4, 0.5, 0.65], [0.7, 0.75, 0.8]])
        rows = [ImageScores(np.arange(9), np.full(9, seeds.mean()), seeds) for seeds in table]
        drawn = Resamples(rows, resamples=10)
        error, freedom = drawn.seed_error([0, 1])
        assert (error, freedom) == (pytest.approx(scipy.stats.sem(table[0] - table[1])), 2)
        error, freedom = drawn.seed_error([0, 1, 2])
        effects = table.mean(axis=1)[:, None] + table.mean(axis=0)[None] - table.mean()
        assert (error, freedom) == (pytest.approx(np.sqrt(2 * ((table - effects) ** 2).sum() / 4 / 3)), 4)
        with pytest.raises(ValueError, match="two rows"):
            drawn.seed_error([0])

    @pytest.mark.slow
    @pytest.mark.parametrize(("seeds", "seed_effect"), [(3, 0.0), (3, 0.2), (5, 0.2)])
    def test_among_equal_rows_one_is_rarely_called_better(self, seeds: int, seed_effect: float) -> None:
        rng = np.random.default_rng(14)
        false = []
        for _ in range(400):
            difficulty = rng.normal(size=(1, 1, 150))
            of_seed = seed_effect * rng.normal(size=(8, seeds, 1, 1))
            hits = difficulty + of_seed + rng.normal(size=(8, seeds, 4, 150)) > 0
            drawn = Resamples([image_scores(runs_of(row)) for row in hits], resamples=300)
            error = drawn.seed_error(range(8))
            pairs = combinations(range(8), 2)
            false.append(min(holm([drawn.p_value(a, b, error) for a, b in pairs])) <= 0.05)
        assert np.mean(false) <= 0.07

    def test_rows_share_their_resamples(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.random((40, 1))
        draws = resampled_means(np.hstack([values, 1 - values, values]), 500, np.random.default_rng(1))
        assert np.allclose(draws[:, 0], draws[:, 2])
        assert np.allclose(draws[:, 0] + draws[:, 1], 1)


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
