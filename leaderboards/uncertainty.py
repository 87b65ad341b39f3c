"""Uncertainty of numbers: intervals of accuracies, and paired comparisons of two rows on the same images.

The unit is the image. One image appears in every condition of a shift and under every seed, and every method sees the
same images, so an image enters with the mean of all its outcomes; conditions taken separately would overstate the
precision. Nothing is resampled: equal outcomes give equal numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FEWEST = 5.0  # independent images that must be right, and as many wrong, for an interval
_LATTICE = 4096  # sums of signs up to here are counted exactly; beyond, they are normal to three digits
_GRID = 64  # steps to which scores without a common step are rounded in a test
_SMALLEST = 1e-12  # p-value below which sums of floating-point numbers say nothing


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the limits of its confidence interval, fractions in [0, 1]."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Withheld:
    """An estimate in [0, 1] whose outcomes allow no interval of the wanted confidence, with the reason in words."""

    estimate: float
    reason: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference in [-1, 1] with its interval, and the two-sided p-value of no difference, in (0, 1]."""

    estimate: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class SeedError:
    """Standard error over seeds of a difference, a fraction, and its degrees of freedom; 0 and 0 with one seed."""

    error: float
    freedom: int


@dataclass(frozen=True, eq=False, slots=True)
class Outcomes:
    """One condition under one seed: image ids (int64 [n]) and whether each was classified correctly (bool [n])."""

    ids: NDArray[np.int64]
    hits: NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class ImageScores:
    """The contribution of each image to an accuracy: ascending ids [m], values [m] whose mean is the accuracy.

    `by_seed` holds the accuracy of every seed [s]. `noise` [s, m] is what neither the image nor the seed explains: its
    rows and columns have mean zero; None with one seed. `step` is the number of which all values are whole multiples, 0
    if there is none. `draws` [s] holds equal numbers for seeds that share their ingredients; empty if none do.
    """

    ids: NDArray[np.int64]
    values: NDArray[np.float64]
    by_seed: NDArray[np.float64]
    noise: NDArray[np.float32] | None = None
    step: float = 0.0
    draws: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float:
        """Mean over conditions and seeds."""
        return float(self.by_seed.mean())


def image_scores(seeds: Sequence[Sequence[Outcomes]], draws: Sequence[int] = ()) -> ImageScores:
    """Scores per image of an accuracy that is averaged over conditions and seeds: `seeds[s][j]` is condition j.

    `draws[s]` names the ingredients of seed s, where seeds share them.

    Where every condition holds every image once, the score of image i is the mean of its outcomes x_ij. Otherwise it
    is the linearised contribution to a mean of ratios, a + m * mean_j (sum x_ij - a_j c_ij) / n_j, with c_ij the times
    that condition j shows image i, n_j its size, a_j its accuracy and a their mean (Davison & Hinkley 1997,
    section 2.7.2).
    Raises ValueError if there are no outcomes or seeds have different numbers of conditions.
    """
    if not seeds or not seeds[0] or any(len(conditions) != len(seeds[0]) for conditions in seeds):
        raise ValueError("every seed needs the same conditions, at least one; leave out the seeds that lack some")
    ids = _all_ids([outcomes.ids for conditions in seeds for outcomes in conditions])
    each = [_scores_of_seed(conditions, ids) for conditions in seeds]
    scores, whole = np.stack([total for total, _ in each]), all(shared for _, shared in each)
    divisor = len(seeds[0])
    of_image, of_seed = scores.sum(axis=0), scores.mean(axis=1)
    noise = None
    if len(seeds) > 1:
        rest = scores - of_image / len(seeds) - of_seed[:, None] + of_seed.mean()
        noise = (rest / divisor).astype(np.float32)
    step = 1 / (divisor * len(seeds))
    shared_draws = tuple(draws) if len(set(draws)) < len(draws) else ()
    return ImageScores(ids, of_image * step, of_seed / divisor, noise, step if whole else 0.0, shared_draws)


def _all_ids(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    known = np.unique(columns[0])
    for column in columns[1:]:
        # Conditions share their images almost always, and sorting one is cheaper than merging all.
        if len(column) != len(known) or not np.array_equal(np.sort(column), known):
            known = np.union1d(known, column)
    return known


def _scores_of_seed(conditions: Sequence[Outcomes], ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], bool]:
    """Return the sum over conditions for each image, and whether every condition holds every image once."""
    total, shared = np.zeros(len(ids)), True
    for outcomes in conditions:
        if len(outcomes.ids) != len(outcomes.hits) or len(outcomes.ids) == 0:
            raise ValueError("a condition needs as many outcomes as ids, at least one; give both columns of one file")
        where = np.searchsorted(ids, outcomes.ids)
        counts = np.bincount(where, minlength=len(ids))
        hits = np.bincount(where, weights=outcomes.hits, minlength=len(ids))
        if np.all(counts == 1):
            total += hits  # whole numbers, so that equal scores stay exactly equal
        else:
            accuracy, shared = hits.sum() / len(outcomes.ids), False
            total += accuracy + (hits - accuracy * counts) * (len(ids) / len(outcomes.ids))
    return total, shared


def average_scores(several: Sequence[ImageScores]) -> ImageScores:
    """Scores of the mean accuracy of several rows, which share images and seeds.

    Raises ValueError if there are none, or if images or numbers of seeds differ.
    """
    if not several:
        raise ValueError("a mean needs at least one row")
    check_paired(several)
    if len(several) == 1:
        return several[0]
    values = np.mean([scores.values for scores in several], axis=0)
    noises = [scores.noise for scores in several if scores.noise is not None]
    noise = np.mean(noises, axis=0) if len(noises) == len(several) else None
    steps = {scores.step for scores in several}
    step = steps.pop() / len(several) if len(steps) == 1 else 0.0
    by_seed = np.mean([s.by_seed for s in several], axis=0)
    return ImageScores(several[0].ids, values, by_seed, noise, step, joined_draws(several))


def over_stocks(stocks: Sequence[ImageScores]) -> ImageScores:
    """Scores of one row's mean over stocks, each of which is one observation whatever seeds it has, as `by_seed`.

    Stocks are a random effect: what is said of them is said of others like them. Raises ValueError if there are fewer
    than two or their images differ.
    """
    if len(stocks) < 2 or any(not np.array_equal(each.ids, stocks[0].ids) for each in stocks):
        raise ValueError("a mean over stocks needs two of them at least, scored on the same images")
    table = np.stack([each.values for each in stocks])
    by_stock, values = np.array([each.accuracy for each in stocks]), table.mean(axis=0)
    noise = (table - values - by_stock[:, None] + by_stock.mean()).astype(np.float32)
    steps = {each.step for each in stocks}
    step = steps.pop() / len(stocks) if len(steps) == 1 else 0.0
    return ImageScores(stocks[0].ids, values, by_stock, noise, step)


def joined_draws(rows: Sequence[ImageScores]) -> tuple[int, ...]:
    """The seeds that share ingredients in any of these rows, directly or through others; empty if none do."""
    return join_draws([row.draws for row in rows if row.draws], len(rows[0].by_seed))


def join_draws(rows: Iterable[Sequence[int]], seeds: int) -> tuple[int, ...]:
    """Equal numbers for seeds that share their draw in any of these rows, [seeds] each; empty if none do."""
    group = list(range(seeds))
    for draws in set(map(tuple, rows)):
        first: dict[int, int] = {}
        for seed, draw in enumerate(draws):
            old, new = group[seed], group[first.setdefault(draw, seed)]
            group = [new if each == old else each for each in group]
    return tuple(group) if len(set(group)) < seeds else ()


_Rows = TypeVar("_Rows", bound=np.generic)


def _by_draw(by_seed: NDArray[_Rows], draws: Sequence[int]) -> NDArray[_Rows]:
    """The means of seeds, rows [s, ...], that share ingredients: independent draws, whose spread is that of both.

    Label draws nested in draws of ingredients, a random effect: the mean of a draw of ingredients varies by itself and
    by its label draws (Scheffe 1959, The analysis of variance, section 7.6). If all share theirs, the seeds as they
    are, whose spread speaks of these ingredients alone.
    """
    names = sorted(set(draws))
    if len(names) < 2:
        return by_seed
    which = np.asarray(draws)
    return np.stack([by_seed[which == name].mean(axis=0) for name in names])


def check_paired(rows: Sequence[ImageScores]) -> None:
    """Raise ValueError unless all rows have the same images and the same number of seeds."""
    for row in rows:
        if not np.array_equal(row.ids, rows[0].ids) or len(row.by_seed) != len(rows[0].by_seed):
            raise ValueError("a paired comparison needs the same images and seeds; keep those that all have")


def mean_accuracy_interval(scores: ImageScores, *, level: float = 0.95) -> Interval | Withheld:
    """The interval of a mean accuracy over images and, with two seeds or more, over seeds.

    Over images it is the Jeffreys interval of a binomial share (Brown, Cai & DasGupta 2001, Interval estimation for a
    binomial proportion) at the effective number of images a (1 - a) / V, V the variance of the mean of the image
    scores, reduced as by Korn & Graubard 1998 (Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data). With one condition and seed the effective number is that of the images.

    With S seeds, or S draws of ingredients that seeds share, the error over them, t with S - 1 degrees of freedom times
    their standard error, is added in squares (Zou & Donner 2008, Construction of confidence limits about effect
    measures). The spread of the seeds holds noise of single images, as V does; it is estimated from what neither image
    nor seed explains, and taken off V.

    Withheld if the right or the wrong answers amount to fewer than `FEWEST` images: limits that depend on so few cover
    far more or far less often than they say (a binomial with n = 50 and p = 0.02 allows 92.2 % or 98.2 % and nothing
    between). The reason holds what the outcomes do show, an exact one-sided limit.
    """
    a, tail = scores.accuracy, (1 - level) / 2
    spread = _spread(scores.values, scores.by_seed, scores.noise, scores.step, scores.draws)
    seeds = spread.freedom + 1
    few = min(a, 1 - a) * _effective(a, spread.images, len(scores.ids))
    if few < FEWEST - 1e-9 or spread.images + spread.seeds == 0:
        return Withheld(a, _reason(scores, spread, seeds, few, level))
    freedom = _freedom(a, scores.values)
    low, high = _jeffreys(a, max(0.0, spread.images - spread.noise), freedom, tail)
    if seeds > 1:
        low, high = _with_seeds(a, (low, high), spread.seeds, seeds - 1, tail)
    return Interval(a, max(0.0, low), min(1.0, high))


def paired_difference(a: ImageScores, b: ImageScores, *, level: float = 0.95) -> Difference:
    """Accuracy of `a` minus accuracy of `b` on the same images, seeds paired in order; the p-value is `p_value`'s.

    Over images it is a t interval after one more image in favour of each row, of the typical size u of a difference,
    u^2 = sum d^4 / sum d^2 (Agresti & Min 2005, Simple improved confidence intervals for comparing matched proportions:
    u = 1 with one condition and seed). The error over seeds is added as in `mean_accuracy_interval`, but the interval
    is never narrower than over images alone, and holds zero if p > 1 - level: it claims no more than the exact test.
    Raises ValueError if images or numbers of seeds differ.
    """
    gap = _Gap.of(a, b)
    d, m, tail = gap.values, len(gap.values), (1 - level) / 2
    squares = float(np.square(d).sum())
    typical = float((d**4).sum()) / squares if squares else 1.0
    centre = float(d.sum()) / (m + 2)
    variance = ((squares + 2 * typical) / (m + 2) - centre**2) / (m + 2)
    half = _t(max(1, m - 1), 1 - tail) * np.sqrt(variance)
    low, high = min(gap.estimate, centre - half), max(gap.estimate, centre + half)
    if gap.spread.seeds > 0:
        half *= np.sqrt(gap.share)
        rest = min(gap.estimate, centre - half), max(gap.estimate, centre + half)
        wide = _with_seeds(gap.estimate, rest, gap.spread.seeds, gap.spread.freedom, tail)
        low, high = min(low, wide[0]), max(high, wide[1])
    p = gap.p_value()
    if p > 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(gap.estimate, max(-1.0, float(low)), min(1.0, float(high)), p)


def p_value(a: ImageScores, b: ImageScores, seed_error: SeedError | None = None) -> float:
    """Two-sided p-value of no difference between two rows, never 0.

    With one seed it is the exact sign test over images: if the rows do not differ, each image is as likely to favour
    one as the other, by as much (Fisher 1935, The design of experiments, section 21; with one condition it is
    McNemar's exact test). k images that differ cannot give less than 2^(1 - k), and no value below 1e-12 is told.

    With several seeds it is the larger of that and of the p at which the estimate is a limit,
    estimate^2 = z(p)^2 V + t(p)^2 c^2, with V the variance over images without noise and c the standard error over
    seeds with it. `seed_error` takes the place of that of the two rows alone.
    Raises ValueError if images or numbers of seeds differ.
    """
    return _Gap.of(a, b).p_value(seed_error)


def shared_seed_error(rows: Sequence[ImageScores]) -> SeedError:
    """Error over seeds of a difference of any two of these rows.

    The error term of a two-way analysis of variance without replication: what neither the row nor the seed explains,
    (R - 1)(S - 1) degrees of freedom for R rows (Scheffe 1959, The analysis of variance, chapter 4). Three seeds of two
    rows say little about their spread, three seeds of twenty rows enough. With two rows it is the standard error of
    their own differences. Raises ValueError if there are fewer than two rows, or they are not paired.
    """
    if len(rows) < 2:
        raise ValueError("a difference needs two rows; give at least two")
    check_paired(rows)
    draws = joined_draws(rows)
    table = np.stack([_by_draw(row.by_seed, draws) for row in rows])
    seeds = table.shape[1]
    if seeds < 2:
        return SeedError(0.0, 0)
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    freedom = (len(rows) - 1) * (seeds - 1)
    return SeedError(float(np.sqrt(2 * np.square(rest).sum() / freedom / seeds)), freedom)


def unpaired_seed_error(a: ImageScores, b: ImageScores, rows: Sequence[ImageScores]) -> SeedError:
    """Error over seeds of the difference of two rows whose seeds are not the same.

    The variance of single seeds is pooled over all `rows` with two or more; what a seed does to all rows alike does not
    cancel here, so it is not taken off.
    """
    several = [_by_draw(row.by_seed, row.draws) for row in rows if len(row.by_seed) > 1]
    count_a, count_b = (len(_by_draw(row.by_seed, row.draws)) for row in (a, b))
    freedom = sum(len(by_seed) - 1 for by_seed in several)
    if not freedom:
        return SeedError(0.0, 0)
    variance = sum(float(np.square(by_seed - by_seed.mean()).sum()) for by_seed in several) / freedom
    return SeedError(float(np.sqrt(variance * (1 / count_a + 1 / count_b))), freedom)


def unpaired_p_value(a: ImageScores, b: ImageScores, rows: Sequence[ImageScores]) -> float:
    """`p_value` of two rows on the same images whose seeds are not the same; see `unpaired_seed_error`."""
    means = [ImageScores(row.ids, row.values, np.array([row.accuracy])) for row in (a, b)]
    return p_value(means[0], means[1], unpaired_seed_error(a, b, rows))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order, that bound the chance of any false finding.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


@dataclass(frozen=True, slots=True)
class _Spread:
    """Variances of a mean: over `images`, over `seeds`, and the `noise` of single images that both of them hold.

    `freedom` are the degrees of freedom of that over seeds: independent seeds, or draws that seeds share, less one.
    """

    images: float
    seeds: float
    noise: float
    freedom: int


def _spread(
    values: NDArray[np.float64],
    by_seed: NDArray[np.float64],
    noise: NDArray[np.float32] | None,
    step: float,
    draws: Sequence[int],
) -> _Spread:
    m, seeds, by_draw = len(values), len(by_seed), _by_draw(by_seed, draws)
    freedom = len(by_draw) - 1
    images = float(values.var()) / m
    over_seeds = float(by_draw.var(ddof=1)) / len(by_draw) if freedom else 0.0
    square = 0.0
    if noise is not None and m > 1:
        # What a shared draw does to an image is noise of that draw, and not of each of its seeds.
        square = float(np.square(_by_draw(noise, draws), dtype=np.float64).mean()) / freedom / (m - 1)
    # Equal scores must not differ by what the order of a sum leaves.
    images, over_seeds, square = (0.0 if variance < 1e-24 else variance for variance in (images, over_seeds, square))
    if square > 0:
        # Few images let seeds agree by chance: the error of rounding to a whole number of hits, its step squared by 12.
        over_seeds += (step * seeds / m) ** 2 / 12 / seeds
    return _Spread(images, over_seeds, square, freedom)


@dataclass(frozen=True, eq=False, slots=True)
class _Gap:
    """The difference of two rows: by image [m], whole multiples of `step` if that is not 0, and its spread."""

    values: NDArray[np.float64]
    step: float
    estimate: float
    spread: _Spread

    @staticmethod
    def of(a: ImageScores, b: ImageScores) -> _Gap:
        check_paired([a, b])
        values = np.round(a.values - b.values, 12)
        by_seed = np.round(a.by_seed - b.by_seed, 12)
        noise = None if a.noise is None or b.noise is None else a.noise - b.noise
        step = min(a.step, b.step)
        spread = _spread(values, by_seed, noise, step, joined_draws([a, b]))
        return _Gap(values, step, float(by_seed.mean()), spread)

    @property
    def share(self) -> float:
        """The share of the variance over images that is not noise, which the spread of the seeds holds already."""
        return max(0.0, 1 - self.spread.noise / self.spread.images) if self.spread.images else 0.0

    def p_value(self, seed_error: SeedError | None = None) -> float:
        p = sign_test(self.values, self.step)
        error = seed_error or SeedError(float(np.sqrt(self.spread.seeds)), self.spread.freedom)
        if error.error > 0:
            images = self.share * float(np.square(self.values).sum()) / len(self.values) ** 2
            p = max(p, _p_with_seeds(abs(self.estimate), images, error))
        return p


def sign_test(d: NDArray[np.float64], step: float = 0.0) -> float:
    """Two-sided p-value of the sum of `d` [m] if the sign of each of its values were that of a fair coin, in (0, 1].

    All 2^k sums are counted, by their generating function, where values are multiples of `step` (rounded to 64ths of
    the largest otherwise, which leaves the test exact) with a total of at most `_LATTICE` steps. A larger total has
    so many values that the sum is normal; that is corrected for continuity.
    """
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    steps = d / step if step else d
    if not step or np.abs(steps - np.rint(steps)).max() > 1e-6:
        steps = d * (_GRID / np.abs(d).max())
    whole = np.rint(steps).astype(np.int64)
    sizes, observed = np.abs(whole[whole != 0]), abs(int(whole.sum()))
    if observed == 0:
        return 1.0
    if sizes.sum() <= _LATTICE:
        p = _share_of_sums(sizes, observed)
    else:
        from scipy.special import ndtr

        p = 2 * float(ndtr((np.gcd.reduce(sizes) - observed) / np.sqrt(np.square(sizes).sum())))
    return min(1.0, max(p, 2.0 ** max(1 - len(sizes), -60), _SMALLEST))


def _share_of_sums(sizes: NDArray[np.int64], observed: int) -> float:
    """Return the share of the sums of +-sizes that are at least `observed` away from zero."""
    length = 1 << int(2 * sizes.sum() + 1).bit_length()
    log, negative = _log_cosine(length)
    place = np.arange(length // 2 + 1)
    # The characteristic function of the sum is a product of cosines, one for each size.
    total, odd = np.zeros(len(place)), np.zeros(len(place), dtype=bool)
    for size, times in zip(*np.unique(sizes, return_counts=True), strict=True):
        at = size * place & (length - 1)
        total += times * log[at]
        if times % 2:
            odd ^= negative[at]
    transform = np.exp(total)
    transform[odd] *= -1
    return float(np.fft.irfft(transform, length)[observed : length - observed + 1].sum())


@lru_cache(maxsize=4)
def _log_cosine(length: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return ln |cos x| at `length` places around the circle, a power of two, and where cos x is negative."""
    cosine = np.cos(2 * np.pi * np.arange(length) / length)
    log = np.log(np.abs(cosine))
    log[[length // 4, 3 * length // 4]] = -np.inf
    return log, cosine < 0


def _p_with_seeds(estimate: float, images: float, error: SeedError) -> float:
    """Return the p at which estimate^2 = z(p)^2 images + t(p)^2 error^2."""
    from scipy.optimize import brentq
    from scipy.special import ndtr, stdtrit

    def beyond(z: float) -> float:
        t = float(stdtrit(error.freedom, ndtr(-z)))
        return z * z * images + (t * error.error) ** 2 - estimate**2

    most = 7.0  # 2.6e-12 two-sided
    return 2 * float(ndtr(-(brentq(beyond, 0.0, most) if beyond(most) > 0 else most)))


def _effective(a: float, variance: float, m: int) -> float:
    """Return the number of independent images, of one outcome each, whose share of hits has this variance."""
    if variance == 0:
        return m if a in (0, 1) else np.inf
    return a * (1 - a) / variance


def _freedom(a: float, values: NDArray[np.float64]) -> float:
    """Return the degrees of freedom of the design effect V m / (a (1 - a)), m - 1 if every score is 0 or 1.

    Satterthwaite's 2 / CV^2, with the coefficient of variation CV of that ratio by the delta method.
    """
    m, d = len(values), values - a
    variance = float(np.square(d).mean())
    if variance == 0:
        return m - 1
    influence = np.square(d) / variance - 1 - (1 - 2 * a) / (a * (1 - a)) * d
    square = float(np.square(influence).mean())
    return max(1.0, min(m - 1, 2 * m / max(square, 1e-12)))


def _jeffreys(a: float, variance: float, freedom: float, tail: float) -> tuple[float, float]:
    """Return the limits of an accuracy in (0, 1) whose estimate has this variance over images."""
    from scipy.special import betaincinv, ndtri

    if variance == 0:
        return a, a
    n = a * (1 - a) / variance * (float(ndtri(1 - tail)) / _t(freedom, 1 - tail)) ** 2
    low, high = betaincinv(a * n + 0.5, (1 - a) * n + 0.5, [tail, 1 - tail])
    return float(low), float(high)


def _with_seeds(
    estimate: float, limits: tuple[float, float], variance: float, freedom: int, tail: float
) -> tuple[float, float]:
    """Return limits over images widened by the error over seeds, whose square is `variance`."""
    more = _t(freedom, 1 - tail) * np.sqrt(variance)
    return estimate - float(np.hypot(estimate - limits[0], more)), estimate + float(
        np.hypot(limits[1] - estimate, more)
    )


def _t(freedom: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _reason(scores: ImageScores, spread: _Spread, seeds: int, few: float, level: float) -> str:
    """Return why there is no interval, with the one-sided limit of Clopper and Pearson at the effective number."""
    from scipy.special import betaincinv

    a, m = scores.accuracy, len(scores.ids)
    if few >= FEWEST - 1e-9:
        return f"all {m} images have the same score, which says nothing about their spread"
    rare = min(a, 1 - a)
    n = _effective(a, spread.images, m)
    limit = float(betaincinv(rare * n + 1, (1 - rare) * n, level))
    if seeds > 1:
        limit = rare + float(np.hypot(limit - rare, _t(seeds - 1, level) * np.sqrt(spread.seeds)))
    kind, bound = ("wrong", f"at least {1 - limit:.1%}") if a > 0.5 else ("right", f"at most {limit:.1%}")
    return (
        f"{kind} answers amount to {few:.1f} of {m} images, and an interval needs {FEWEST:g}; "
        f"the accuracy is {bound} (one-sided, {level:.0%} confidence)"
    )
