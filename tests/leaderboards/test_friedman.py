"""Friedman's test against published numbers, scipy and scikit-posthocs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata

from leaderboards.friedman import (
    FEWEST_BLOCKS,
    POSTHOC,
    Friedman,
    critical_difference,
    friedman,
    mean_ranks,
)

# Demsar 2006, table 6: AUC of four kinds of C4.5 on fourteen data sets. The last value of "voting" is printed like the
# one before it, and ranked behind it.
NAMES = ("plain", "m", "cf", "m+cf")
AUC = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.975, 0.974],
        [0.957, 0.978, 0.946, 0.970],
    ]
).T
RANKS = {"plain": 3.143, "m": 2.000, "cf": 2.893, "m+cf": 1.964}
# scikit-posthocs 0.17.1 on that table: posthoc_nemenyi_friedman, posthoc_siegel_friedman(p_adjust="holm").
PAIRS = {
    "nemenyi": {
        ("plain", "m"): 0.08867270928888271,
        ("plain", "cf"): 0.9561771752218107,
        ("plain", "m+cf"): 0.07418479506874454,
        ("m", "cf"): 0.2592280701547286,
        ("m", "m+cf"): 0.999859449385133,
        ("cf", "m+cf"): 0.22669688602641525,
    },
    "holm": {
        ("plain", "m"): 0.09586242377611554,
        ("plain", "cf"): 1.0,
        ("plain", "m+cf"): 0.09431988126014766,
        ("m", "cf"): 0.22815949699622226,
        ("m", "m+cf"): 1.0,
        ("cf", "m+cf"): 0.22815949699622226,
    },
}


def done(table: NDArray[np.float64], names: tuple[str, ...] = NAMES, **how: float | str) -> Friedman:
    found = friedman(names, table, **how)  # type: ignore[arg-type]
    assert isinstance(found, Friedman)
    return found


def test_the_published_example() -> None:
    found = done(AUC)
    assert found.names == ("m+cf", "m", "cf", "plain")
    assert dict(zip(found.names, found.ranks, strict=True)) == pytest.approx(RANKS, abs=5e-4)
    # Published without the correction for ties, which divides by 1 - sum(t^3 - t) / (n (k^3 - k)).
    ties = sum(int(np.sum(c**3 - c)) for c in (np.unique(block, return_counts=True)[1] for block in AUC.T))
    assert found.statistic * (1 - ties / (14 * 60)) == pytest.approx(9.28, abs=0.01)
    assert found.critical == pytest.approx(1.25, abs=0.005)
    assert found.groups == ((0, 3),)


def test_the_groups_that_the_paper_finds_at_ten_percent() -> None:
    found = done(AUC, alpha=0.1)
    assert found.critical == pytest.approx(1.12, abs=0.005)
    assert [found.names[a : b + 1] for a, b in found.groups] == [("m+cf", "m", "cf"), ("cf", "plain")]


@pytest.mark.parametrize("posthoc", sorted(POSTHOC))
def test_pairs_are_those_of_scikit_posthocs(posthoc: str) -> None:
    found = done(AUC, posthoc=posthoc)
    for (i, j), p in found.pairs.items():
        pair = (found.names[i], found.names[j])
        assert p == pytest.approx(PAIRS[posthoc].get(pair, PAIRS[posthoc].get(pair[::-1])), abs=1e-10)
    assert (found.critical is None) == (posthoc == "holm")


def test_the_statistic_is_that_of_scipy() -> None:
    table = np.random.default_rng(0).random((6, 9))
    found = done(table, tuple("abcdef"))
    assert (found.statistic, found.p) == pytest.approx(tuple(friedmanchisquare(*table)))
    assert sorted(found.ranks) == pytest.approx(sorted(rankdata(-table, axis=0).mean(axis=1)))


def test_critical_values_are_the_published_ones() -> None:
    # Demsar 2006, table 5 (a): q at 5 % for two to ten classifiers.
    published = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for count, q in enumerate(published, start=2):
        assert critical_difference(count, 7, 0.05) == pytest.approx(q * np.sqrt(count * (count + 1) / 42), abs=2e-3)


def test_with_two_blocks_nothing_could_be_found_and_with_three_something() -> None:
    for count in range(3, 40):
        assert critical_difference(count, FEWEST_BLOCKS - 1, 0.05) > count - 1
        assert critical_difference(count, FEWEST_BLOCKS, 0.05) < count - 1
    ordered = np.outer([0.9, 0.5, 0.1], np.ones(3))
    for posthoc in POSTHOC:
        found = done(ordered, tuple("abc"), posthoc=posthoc)
        assert found.significant
        assert found.pairs[0, 2] <= 0.05 < found.pairs[0, 1]
        assert found.groups == ((0, 1), (1, 2))


def test_what_can_show_nothing_is_refused_in_a_sentence() -> None:
    two, few, equal = np.random.default_rng(0).random((2, 9)), np.ones((4, 2)), np.full((3, 5), 0.3)
    for table, said in ((two, "needs 3 methods"), (few, "needs 3 conditions"), (equal, "nothing to rank")):
        found = friedman("abcd"[: len(table)], table, blocks="conditions")
        assert isinstance(found, str)
        assert said in found
    assert isinstance(friedman((), np.empty((0, 0))), str)
    almost = equal + np.linspace(0, 1e-15, 15).reshape(3, 5)  # what is left of sums in another order is no difference
    assert isinstance(friedman("abc", almost), str)


def test_without_a_significant_test_all_are_one_group() -> None:
    table = np.random.default_rng(53).random((6, 8))
    table[0] += 0.45
    found = done(table, tuple("abcdef"))
    assert friedmanchisquare(*table).pvalue > 0.05 > min(found.pairs.values())  # a pair would be apart
    assert not found.significant
    assert found.groups == ((0, 5),)


def test_groups_are_the_largest_and_a_method_that_differs_from_all_is_in_none() -> None:
    # Over 100 blocks the first is always the first; of the others each is above the next in 60 of 100.
    rng = np.random.default_rng(1)
    rest = np.array([rng.permutation(3) for _ in range(100)]).T + np.array([[0.9], [0.0], [-0.9]]) * 0.8
    table = np.vstack([np.full(100, 9.0), rest])
    found = done(table, tuple("abcd"))
    assert found.names == tuple("abcd")
    assert found.critical is not None
    apart = {(i, j): found.ranks[j] - found.ranks[i] > found.critical for i, j in combinations(range(4), 2)}
    assert apart == {pair: p <= 0.05 for pair, p in found.pairs.items()}
    assert [apart[0, j] for j in (1, 2, 3)] == [True] * 3
    joined = [(i, j) for (i, j), away in apart.items() if not away]
    largest = tuple(g for g in joined if not any(o != g and o[0] <= g[0] and g[1] <= o[1] for o in joined))
    assert found.groups == largest != ()


def test_ties_share_their_ranks() -> None:
    assert mean_ranks(np.array([[0.1, 0.3], [0.3, 0.3], [0.1 + 1e-16, 0.2]])) == pytest.approx([2.0, 1.25, 2.75])
