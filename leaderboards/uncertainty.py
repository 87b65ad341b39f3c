"""How sure a number is: intervals and paired comparisons that resample images jointly over all conditions.

One image appears in every condition of a shift, and every method sees the same images, so the image is what is drawn
again, with all its outcomes; resampling conditions separately would claim a precision that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 22  # numbers held at once while resampling


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
    """One condition under one seed: image ids (int64 [n]) and whether each was classified right (bool [n])."""

    ids: NDArray[np.int64]
    hits: NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class ImageScores:
    """What each image adds to an accuracy: ascending ids [m], values [m] whose mean is the accuracy, and the
    accuracy of every seed [s]."""

    ids: NDArray[np.int64]
    values: NDArray[np.float64]
    by_seed: NDArray[np.float64]

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
    return ImageScores(ids, scores.sum(axis=0) / (divisor * len(seeds)), scores.mean(axis=1) / divisor)


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
    return ImageScores(several[0].ids, values, np.mean([scores.by_seed for scores in several], axis=0))


def _paired(a: ImageScores, b: ImageScores) -> bool:
    return np.array_equal(a.ids, b.ids) and len(a.by_seed) == len(b.by_seed)


def mean_accuracy_interval(
    scores: ImageScores, *, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Interval:
    """Percentile interval of a mean accuracy over images and, with two seeds or more, over seeds.

    Draws are a* + t s / sqrt(S): a* the accuracy of resampled images (seeds and conditions kept), s the standard
    deviation of the accuracies of the S seeds, t from Student's distribution with S - 1 degrees of freedom. The sum of
    the two errors is the Behrens-Fisher combination; noise that depends on image and seed both is counted in each,
    so the interval is a little wide rather than narrow. With one seed it speaks of that seed only.

    If all m images have score 1, no resample differs, and the lower limit is ((1 - level) / 2)^(1 / m): with a smaller
    mean, m scores of 1 would be less likely than (1 - level) / 2. All scores 0 likewise.
    """
    tail = (1 - level) / 2
    draws = _draws(scores.values, scores.by_seed, resamples, seed)
    low, high = (float(limit) for limit in np.clip(np.quantile(draws, [tail, 1 - tail]), 0, 1))
    if np.all(scores.values == 1):
        low = tail ** (1 / len(scores.values))
    if np.all(scores.values == 0):
        high = 1 - tail ** (1 / len(scores.values))
    return Interval(scores.accuracy, low, high)


def paired_difference(
    a: ImageScores, b: ImageScores, *, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Difference:
    """Accuracy of `a` minus accuracy of `b` on the same images, seeds paired in order.

    Draws are made as in `mean_accuracy_interval`, of the differences per image and per seed. The p-value is twice the
    share of draws on the far side of zero, at least 2 / (resamples + 1).
    Raises ValueError if images or numbers of seeds differ.
    """
    if not _paired(a, b):
        raise ValueError("a paired comparison needs the same images and seeds; keep those that both have")
    by_seed = a.by_seed - b.by_seed
    draws = _draws(a.values - b.values, by_seed, resamples, seed)
    tail = (1 - level) / 2
    low, high = (float(limit) for limit in np.quantile(draws, [tail, 1 - tail]))
    far = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(float(by_seed.mean()), low, high, min(1.0, 2 * (far + 1) / (resamples + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order, that bound the chance of any false finding.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def _draws(values: NDArray[np.float64], by_seed: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    draws = resampled_means(values, resamples, rng)
    if len(by_seed) > 1:
        spread = by_seed.std(ddof=1) / np.sqrt(len(by_seed))
        draws = draws + spread * rng.standard_t(len(by_seed) - 1, resamples)
    return draws


def resampled_means(values: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of `resamples` samples drawn from `values` [m] with replacement, each of size m.

    Scores of images take few distinct values, and how often each is drawn is multinomial: the same distribution as
    drawing images, at the price of the distinct values.
    """
    levels, counts = np.unique(np.round(values, 12), return_counts=True)
    step = max(1, _CHUNK // len(levels))
    means = [
        rng.multinomial(len(values), counts / len(values), size=min(step, resamples - done)) @ levels / len(values)
        for done in range(0, resamples, step)
    ]
    return np.concatenate(means)
