"""Uncertainty of numbers: intervals and paired comparisons that resample images jointly over all conditions.

One image appears in every condition of a shift, and every method sees the same images, so an image is resampled with
all its outcomes; resampling conditions separately would overstate the precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20  # numbers held at once while resampling
_STEPS = 12  # of Newton's method, which needs three or four unless one of two rows is nowhere worse


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the limits of its confidence interval, fractions in [0, 1]."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference in [-1, 1] with its interval, and the two-sided p-value of no difference."""

    estimate: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, eq=False, slots=True)
class Outcomes:
    """One condition under one seed: image ids (int64 [n]) and whether each was classified correctly (bool [n])."""

    ids: NDArray[np.int64]
    hits: NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class ImageScores:
    """The contribution of each image to an accuracy: ascending ids [m], values [m] whose mean is the accuracy.

    `by_seed` holds the accuracy of every seed [s]. `noise` [s, m] is what neither the image nor the seed explains: its
    rows and columns have mean zero. It is None with one or two seeds, which are too few to separate it from the spread
    of the seeds.
    """

    ids: NDArray[np.int64]
    values: NDArray[np.float64]
    by_seed: NDArray[np.float64]
    noise: NDArray[np.float32] | None = None

    @property
    def accuracy(self) -> float:
        """Mean over conditions and seeds."""
        return float(self.by_seed.mean())


def image_scores(seeds: Sequence[Sequence[Outcomes]]) -> ImageScores:
    """Scores per image of an accuracy that is averaged over conditions and seeds: `seeds[s][j]` is condition j.

    Where every condition holds every image once, the score of image i is the mean of its outcomes x_ij. Otherwise it
    is the linearised contribution to a mean of ratios, a + m * mean_j (sum x_ij - a_j c_ij) / n_j, with c_ij the times
    that condition j shows image i, n_j its size, a_j its accuracy and a their mean (Davison & Hinkley 1997,
    section 2.7.2).
    Raises ValueError if there are no outcomes or seeds have different numbers of conditions.
    """
    if not seeds or not seeds[0] or any(len(conditions) != len(seeds[0]) for conditions in seeds):
        raise ValueError("every seed needs the same conditions, at least one; leave out the seeds that lack some")
    ids = _all_ids([outcomes.ids for conditions in seeds for outcomes in conditions])
    scores = np.stack([_scores_of_seed(conditions, ids) for conditions in seeds])
    divisor = len(seeds[0])
    of_image, of_seed = scores.sum(axis=0), scores.mean(axis=1)
    noise = None
    if len(seeds) > 2:
        rest = scores - of_image / len(seeds) - of_seed[:, None] + of_seed.mean()
        noise = (rest / divisor).astype(np.float32)
    return ImageScores(ids, of_image / (divisor * len(seeds)), of_seed / divisor, noise)


def _all_ids(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    known = np.unique(columns[0])
    for column in columns[1:]:
        # Conditions share their images almost always, and sorting one is cheaper than merging all.
        if len(column) != len(known) or not np.array_equal(np.sort(column), known):
            known = np.union1d(known, column)
    return known


def _scores_of_seed(conditions: Sequence[Outcomes], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    total = np.zeros(len(ids))
    for outcomes in conditions:
        if len(outcomes.ids) != len(outcomes.hits) or len(outcomes.ids) == 0:
            raise ValueError("a condition needs as many outcomes as ids, at least one; give both columns of one file")
        where = np.searchsorted(ids, outcomes.ids)
        counts = np.bincount(where, minlength=len(ids))
        hits = np.bincount(where, weights=outcomes.hits, minlength=len(ids))
        if np.all(counts == 1):
            total += hits  # whole numbers, so that equal scores stay exactly equal
        else:
            accuracy = hits.sum() / len(outcomes.ids)
            total += accuracy + (hits - accuracy * counts) * (len(ids) / len(outcomes.ids))
    return total


def average_scores(several: Sequence[ImageScores]) -> ImageScores:
    """Scores of the mean accuracy of several rows, which share images and seeds.

    Raises ValueError if there are none, or if images or numbers of seeds differ.
    """
    if not several or not all(_paired(several[0], scores) for scores in several):
        raise ValueError("a mean needs the same images and seeds in all its rows; keep those that all have")
    values = np.mean([scores.values for scores in several], axis=0)
    noises = [scores.noise for scores in several if scores.noise is not None]
    noise = np.mean(noises, axis=0) if len(noises) == len(several) else None
    return ImageScores(several[0].ids, values, np.mean([scores.by_seed for scores in several], axis=0), noise)


def _paired(a: ImageScores, b: ImageScores) -> bool:
    return np.array_equal(a.ids, b.ids) and len(a.by_seed) == len(b.by_seed)


class Resamples:
    """Accuracies of rows on the same resampled images: from them follow all their intervals and paired differences.

    Draws of a quantity are x* + t c: x* its value on resampled images (seeds and conditions kept), t from Student's
    distribution with S - 1 degrees of freedom, and c the standard error over the S seeds. The sum of the two errors
    is the Behrens-Fisher combination. With one seed c is 0, and everything speaks of that seed only.

    The variance s^2 / S of the mean over seeds holds noise of single images too, which x* has already. For the mean
    of one row, with three seeds or more, it is estimated from the interaction r of image and seed and taken off,
    c^2 = max(0, s^2 / S - r^2 / (m S)), so that intervals are neither wide nor narrow. In a difference the difficulty
    of the images cancels and c is most of the error, so there it stays: one is found too rarely, not too often.
    """

    def __init__(self, rows: Sequence[ImageScores], *, resamples: int = 4000, seed: int = 0) -> None:
        """Raises ValueError if there are no rows, or images or numbers of seeds differ."""
        if not rows or not all(np.array_equal(rows[0].ids, row.ids) for row in rows):
            raise ValueError("a paired comparison needs the same images and seeds; keep those that both have")
        rng = np.random.default_rng(seed)
        self._rows = rows
        self._draws = resampled_means(np.stack([row.values for row in rows], axis=1), resamples, rng)
        # Each number of seeds draws from the same state, so that no row moves the interval of another.
        self._t = {
            seeds: deepcopy(rng).standard_t(seeds - 1, resamples) if seeds > 1 else np.zeros(resamples)
            for seeds in {len(row.by_seed) for row in rows}
        }

    def interval(self, row: int, *, level: float = 0.95) -> Interval:
        """The percentile interval of a mean accuracy.

        If all m images have score 1, no resample differs, and the lower limit is ((1 - level) / 2)^(1 / m): with a
        smaller mean, m scores of 1 would be less likely than (1 - level) / 2. All scores 0 likewise.
        """
        scores, tail = self._rows[row], (1 - level) / 2
        draws = self._draws[:, row] + _seed_error(scores.by_seed, scores.noise) * self._t[len(scores.by_seed)]
        low, high = (float(limit) for limit in np.clip(np.quantile(draws, [tail, 1 - tail]), 0, 1))
        if np.all(scores.values == 1):
            low = tail ** (1 / len(scores.values))
        if np.all(scores.values == 0):
            high = 1 - tail ** (1 / len(scores.values))
        return Interval(scores.accuracy, low, high)

    def difference(self, a: int, b: int, *, level: float = 0.95) -> Difference:
        """Accuracy of row `a` minus that of row `b` on the same images, seeds paired in order."""
        seeds = len(self._rows[a].by_seed)
        if seeds != len(self._rows[b].by_seed):
            raise ValueError("a paired difference needs the same images and seeds; keep those that both have")
        drawn, error, by_seed = self._contrast(a, b)
        tail = (1 - level) / 2
        low, high = (float(limit) for limit in np.quantile(drawn + error * self._t[seeds], [tail, 1 - tail]))
        return Difference(float(by_seed.mean()), low, high, self._p(a, b, drawn, error, seeds - 1))

    def seed_error(self, rows: Sequence[int]) -> tuple[float, int]:
        """Standard error over seeds of a difference of any two of these rows, and its degrees of freedom.

        The error term of a two-way analysis of variance without replication: what neither the row nor the seed
        explains, (R - 1)(S - 1) degrees of freedom for R rows (Scheffe 1959, The analysis of variance, chapter 4).
        Three seeds of two rows say little about their spread, three seeds of twenty rows enough. With two rows it is
        the standard error of their own differences. Raises ValueError if there are fewer than two rows.
        """
        if len(rows) < 2:
            raise ValueError("a difference needs two rows; give at least two")
        seeds = len(self._rows[rows[0]].by_seed)
        if seeds < 2:
            return 0.0, 0
        table = np.stack([self._rows[row].by_seed for row in rows])
        rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        freedom = (len(rows) - 1) * (seeds - 1)
        return float(np.sqrt(2 * np.square(rest).sum() / freedom / seeds)), freedom

    def unpaired_error(self, a: int, b: int, rows: Sequence[int]) -> tuple[float, int]:
        """Standard error over seeds of the difference of two rows without common seeds, and its degrees of freedom.

        The variance of single seeds is pooled over all `rows`; what seeds do to all rows alike does not cancel here.
        """
        several = [self._rows[row].by_seed for row in rows if len(self._rows[row].by_seed) > 1]
        freedom = sum(len(by_seed) - 1 for by_seed in several)
        if not freedom:
            return 0.0, 0
        variance = sum(float(np.square(by_seed - by_seed.mean()).sum()) for by_seed in several) / freedom
        return float(np.sqrt(variance * sum(1 / len(self._rows[row].by_seed) for row in (a, b)))), freedom

    def p_value(self, a: int, b: int, seed_error: tuple[float, int] | None = None) -> float:
        """Two-sided p-value of no difference: twice the probability that a draw is on the far side of zero.

        `seed_error` takes the place of that of the two rows alone. The probability is averaged over resamples of
        images, exact in t. What these few resamples cannot see adds at most 1 / (resamples + 1), or less where the
        bound of Chernoff on resampled means proves less.
        """
        drawn, error, _ = self._contrast(a, b)
        return self._p(a, b, drawn, *(seed_error or (error, len(self._rows[a].by_seed) - 1)))

    def _contrast(self, a: int, b: int) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
        one, two = self._rows[a], self._rows[b]
        # Rounded, because equal rows must not differ by what the order of a sum leaves.
        drawn = np.round(self._draws[:, a] - self._draws[:, b], 12)
        by_seed = one.by_seed - two.by_seed if len(one.by_seed) == len(two.by_seed) else one.by_seed[:0]
        return drawn, _seed_error(by_seed, None), by_seed

    def _p(self, a: int, b: int, drawn: NDArray[np.float64], error: float, freedom: int) -> float:
        if error > 0:
            from scipy.special import stdtr

            below = float(stdtr(freedom, -drawn / error).mean())
            above = 1 - below if below < 0.5 else float(stdtr(freedom, drawn / error).mean())
        else:
            below, above = float((drawn <= 0).mean()), float((drawn >= 0).mean())
        far, unseen = min(below, above), 1 / (len(drawn) + 1)
        if far < unseen:
            gap = np.round(self._rows[a].values - self._rows[b].values, 12)
            unseen = min(unseen, chance_of_reversal(gap))
        return min(1.0, 2 * (far + unseen))


def mean_accuracy_interval(
    scores: ImageScores, *, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Interval:
    """Percentile interval of a mean accuracy over images and, with two seeds or more, over seeds; see `Resamples`."""
    return Resamples([scores], resamples=resamples, seed=seed).interval(0, level=level)


def paired_difference(
    a: ImageScores, b: ImageScores, *, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Difference:
    """Accuracy of `a` minus accuracy of `b` on the same images, seeds paired in order; see `Resamples`.

    Raises ValueError if images or numbers of seeds differ.
    """
    return Resamples([a, b], resamples=resamples, seed=seed).difference(0, 1, level=level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order, that bound the chance of any false finding.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def resampled_means(values: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means [resamples, k] of columns of `values` [m, k] over m rows drawn with replacement, the same for all columns.

    All columns share the draws, so their number costs one product of matrices.
    """
    m = len(values)
    step = max(1, _CHUNK // m)
    means = []
    for done in range(0, resamples, step):
        now = min(step, resamples - done)
        drawn = rng.integers(0, m, (now, m)) + m * np.arange(now)[:, None]
        times = np.bincount(drawn.ravel(), minlength=now * m).reshape(now, m)
        means.append(times.astype(np.float64) @ values / m)
    return np.concatenate(means)


def chance_of_reversal(gap: NDArray[np.float64]) -> float:
    """An upper bound of the probability that the mean of a resample of `gap` [m] has not the sign of its mean.

    Chernoff's bound min_t (mean_i exp(-t |mean| x_i))^m over t > 0 (Chernoff 1952, A measure of asymptotic efficiency
    for tests, Annals of Mathematical Statistics 23). It holds for every t; Newton's method finds a good one.
    """
    x = gap if gap.mean() >= 0 else -gap
    if x.mean() <= 0:
        return 1.0
    t, best = x.mean() / x.var() if x.var() > 0 else 1 / x.mean(), 0.0
    for _ in range(_STEPS):
        weights = np.exp(-t * (x - x.min()))
        exponent = len(x) * (np.log(weights.mean()) - t * x.min())
        if exponent > best - 0.01:
            break
        best = float(exponent)
        weights /= weights.sum()
        mean = weights @ x
        t += mean / max(weights @ (x - mean) ** 2, 1e-300)
    return float(np.exp(best))


def _seed_error(by_seed: NDArray[np.float64], noise: NDArray[np.float32] | None) -> float:
    """Standard error of a mean over seeds, without the noise that single images have in each of them."""
    seeds = len(by_seed)
    if seeds < 2:
        return 0.0
    variance = float(by_seed.var(ddof=1)) / seeds
    if noise is not None and (m := noise.shape[1]) > 1:
        variance -= float(np.square(noise, dtype=np.float64).sum()) / ((seeds - 1) * (m - 1) * m * seeds)
    return float(np.sqrt(max(0.0, variance)))
