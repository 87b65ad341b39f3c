"""Friedman's test of several methods over blocks, and which pairs differ after it (Nemenyi, or Holm).

Source: Demsar 2006, Statistical comparisons of classifiers over multiple data sets, JMLR 7, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from leaderboards.uncertainty import holm

FEWEST_METHODS = 3
FEWEST_BLOCKS = 3  # over two, no two mean ranks can lie apart by the critical difference at 5 %


@dataclass(frozen=True, slots=True)
class Friedman:
    """The test of k methods over n blocks. Methods are in the order of their mean ranks, the best (lowest) first.

    `ranks` are in [1, k], ties share theirs. `statistic` is Friedman's chi-square with k - 1 degrees of freedom,
    corrected for ties, `p` its p-value. `pairs` holds the adjusted p-value of each pair of places (i < j), and `groups`
    the first and last place of each largest group of methods without a significant difference; a method that differs
    from all others is in none. Without a significant Friedman test all are one group, whatever the pairs say.
    `critical` is Nemenyi's critical difference of two mean ranks, None with Holm's test.
    """

    names: tuple[str, ...]
    ranks: tuple[float, ...]
    blocks: int
    statistic: float
    p: float
    posthoc: str
    alpha: float
    critical: float | None
    pairs: Mapping[tuple[int, int], float]
    groups: tuple[tuple[int, int], ...]

    @property
    def significant(self) -> bool:
        """Whether the methods are not all alike."""
        return self.p <= self.alpha


def friedman(
    names: Sequence[str],
    accuracies: NDArray[np.float64],
    *,
    posthoc: str = "nemenyi",
    alpha: float = 0.05,
    blocks: str = "columns",
) -> Friedman | str:
    """Test methods over blocks: `accuracies` [k, n] hold k methods in n blocks, higher is better.

    Returns the reason in one sentence if the test can show nothing: fewer than three methods or blocks, or
    equal accuracies everywhere. `blocks` is what that sentence calls them.
    """
    count, n = accuracies.shape
    if count < FEWEST_METHODS:
        return f"Friedman's test needs {FEWEST_METHODS} methods that are complete in all columns, and there are {count}"
    if n < FEWEST_BLOCKS:
        return f"Friedman's test needs {FEWEST_BLOCKS} {blocks}, for over {n} no two methods can differ significantly"
    table = np.round(accuracies, 12)  # sums of equal outcomes may differ in their last digits
    if np.all(table == table[0]):
        return f"all {count} methods have the same accuracy in all {blocks}, so there is nothing to rank"
    return _tested(names, table, posthoc, alpha)


def mean_ranks(accuracies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean rank [k] of each row of accuracies [k, n], 1 for the highest; ties share their ranks."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-np.round(accuracies, 12), axis=0).mean(axis=1))


def critical_difference(count: int, blocks: int, alpha: float) -> float:
    """Return Nemenyi's critical difference of the mean ranks of two of `count` methods over `blocks` blocks."""
    from scipy.stats import studentized_range

    return float(studentized_range.isf(alpha, count, np.inf) / np.sqrt(2) * _error(count, blocks))


def _tested(names: Sequence[str], table: NDArray[np.float64], posthoc: str, alpha: float) -> Friedman:
    from scipy.stats import friedmanchisquare

    count, blocks = table.shape
    ranks = mean_ranks(table)
    order = np.argsort(ranks, kind="stable")
    found = friedmanchisquare(*table)
    gaps = {(i, j): float(ranks[order[j]] - ranks[order[i]]) for i, j in combinations(range(count), 2)}
    pairs = POSTHOC[posthoc](gaps, count, blocks)
    p = float(found.pvalue)
    return Friedman(
        names=tuple(names[i] for i in order),
        ranks=tuple(float(ranks[i]) for i in order),
        blocks=blocks,
        statistic=float(found.statistic),
        p=p,
        posthoc=posthoc,
        alpha=alpha,
        critical=critical_difference(count, blocks, alpha) if posthoc == "nemenyi" else None,
        pairs=pairs,
        groups=_groups(pairs, count, alpha) if p <= alpha else ((0, count - 1),),
    )


def _groups(pairs: Mapping[tuple[int, int], float], count: int, alpha: float) -> tuple[tuple[int, int], ...]:
    """Return the first and last place of each largest group, given p-values that fall as mean ranks move apart."""
    ends = [max([i, *(j for j in range(i + 1, count) if pairs[i, j] > alpha)]) for i in range(count)]
    return tuple((i, end) for i, end in enumerate(ends) if end > i and (i == 0 or end > ends[i - 1]))


def _error(count: int, blocks: int) -> float:
    """Return the standard error of the difference of two mean ranks."""
    return float(np.sqrt(count * (count + 1) / (6 * blocks)))


_Pairs = dict[tuple[int, int], float]


def _nemenyi(gaps: Mapping[tuple[int, int], float], count: int, blocks: int) -> _Pairs:
    from scipy.stats import studentized_range

    spans = np.array(list(gaps.values())) / _error(count, blocks) * np.sqrt(2)
    return dict(zip(gaps, map(float, studentized_range.sf(spans, count, np.inf)), strict=True))


def _holm(gaps: Mapping[tuple[int, int], float], count: int, blocks: int) -> _Pairs:
    from scipy.special import ndtr

    p = [2 * float(ndtr(-gap / _error(count, blocks))) for gap in gaps.values()]
    return dict(zip(gaps, holm(p), strict=True))


# Adjusted p-values of all pairs, given the differences of their mean ranks, the numbers of methods and of blocks.
POSTHOC: dict[str, Callable[[Mapping[tuple[int, int], float], int, int], _Pairs]] = {"nemenyi": _nemenyi, "holm": _holm}
