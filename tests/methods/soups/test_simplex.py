"""The grid over shares: the centres of the triangles that an independent triangulation finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import Delaunay

from methods.soups.simplex import centres, expand, is_grid

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])


@pytest.mark.parametrize("side", [1, 2, 7])
def test_three_ingredients_have_the_centres_of_all_small_triangles(side: int) -> None:
    lattice = np.array([(a, b, side - a - b) for a in range(side + 1) for b in range(side + 1 - a)]) / side @ CORNERS
    # A nearly flat edge of the hull is no triangle.
    triangles = [lattice[each] for each in Delaunay(lattice).simplices]
    wanted = np.array([each.mean(0) for each in triangles if abs(np.linalg.det(each[1:] - each[0])) > 1e-6])
    found = np.array(list(centres(side, 3))) / (3 * side) @ CORNERS
    assert len(found) == len(wanted) == side**2
    assert np.allclose(found[np.lexsort(found.round(6).T)], wanted[np.lexsort(wanted.round(6).T)])


def test_the_published_grid_has_49_mixtures_around_the_uniform_one() -> None:
    """Section 4.1 of the paper: 49 evenly spread mixtures beside the three ingredients themselves."""
    shares = np.array(list(centres(7, 3)))
    assert len({tuple(row) for row in shares}) == 49
    assert (shares.sum(1) == 21).all()
    assert (shares > 0).all()
    assert [7, 7, 7] in shares.tolist()
    assert np.allclose(shares.mean(0) / 21, 1 / 3)


def test_two_ingredients_have_the_middles_of_the_parts_of_a_line() -> None:
    assert list(centres(2, 2)) == [(1, 3), (3, 1)]
    assert [first / 20 for first, _ in centres(10, 2)] == pytest.approx(np.arange(0.05, 1, 0.1))


def test_names() -> None:
    assert is_grid("simplex:side=3")
    assert is_grid("simplex")
    assert not is_grid("shares:1:1")
    assert expand("simplex", 3) == expand("simplex:side=7", 3)
    assert expand("simplex:side=1", 3) == ["shares:1:1:1"]
    for text in ("simplex:side=0", "simplex:side=-1", "simplex:side", "simplex:edge=2", "simplex:"):
        with pytest.raises(ValueError, match="must be 'simplex' or"):
            expand(text, 3)
    for count in (1, 4):
        with pytest.raises(ValueError, match=f"not {count}"):
            expand("simplex", count)
