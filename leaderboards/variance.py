"""Variance components of outcomes by image under nested draws, and the half-widths that they let a study expect.

Label draws are nested in draws of ingredients, and these in stocks; every draw meets the same images. Each level has a
variance of its own (what its draws do to all images alike) and one with images (what they do to single images).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leaderboards.uncertainty import FEWEST

Floats = NDArray[np.float64]
Study = Sequence[Sequence[Floats]]
"""Outcomes [label draws, images] for each draw of ingredients of each stock: study[stock][draw of ingredients]."""

_LEVELS = 3
_NODES = 200  # quantiles over which a half-width is averaged


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviations of an outcome in [-1, 1], each 0 or more: over images, and over the draws of each level.

    `images_by_…`: what a draw does to single images, beyond what it does to all of them alike.
    """

    images: float
    stocks: float = 0.0
    ingredient_draws: float = 0.0
    label_draws: float = 0.0
    images_by_stocks: float = 0.0
    images_by_ingredient_draws: float = 0.0
    images_by_label_draws: float = 0.0

    @staticmethod
    def of(variances: Floats) -> Spread:
        """The square roots of variances, in the order of the fields; of estimates below zero, 0."""
        return Spread(*np.sqrt(np.maximum(0, variances)).tolist())

    @property
    def variances(self) -> Floats:
        """The variances, in the order of the fields."""
        return np.square([getattr(self, field.name) for field in fields(self)])

    @staticmethod
    def named(values: Mapping[str, float]) -> Spread:
        """Read standard deviations by name. Raises ValueError for an unknown name, a value below 0 or above 1."""
        names = [field.name for field in fields(Spread)]
        for name, value in values.items():
            if name not in names:
                raise ValueError(f"there is no spread over '{name}'; name one of {', '.join(names)}")
            if not 0 <= value <= 1:
                raise ValueError(f"the spread over {name} must lie between 0 and 100 points, not {100 * value:g}")
        if "images" not in values:
            raise ValueError("the spread over images is missing; with one condition, images=45 is a fifth that differ")
        return Spread(**values)


class Counts(NamedTuple):
    """The size of a study: images, stocks, draws of ingredients for each stock, and label draws for each stock."""

    n: int
    stocks: int
    ingredient_draws: int
    label_draws: int

    @property
    def levels(self) -> Floats:
        """All stocks, all draws of ingredients and all label draws."""
        return self.stocks * np.array([1.0, self.ingredient_draws, self.label_draws])

    @property
    def unit(self) -> int:
        """The level whose means are the observations of the analysis: the outermost of which there are several."""
        return next((level for level, count in enumerate(self[1:]) if count > 1), _LEVELS)


def components(study: Study) -> Floats:
    """Estimate the variances of an outcome, in the order of the fields of `Spread`; estimates may lie below zero.

    From the innermost level outwards, the two-way analysis of variance of each level's means and images, less what the
    means owe to the levels inside (Searle, Casella & McCulloch 1992, Variance components, chapters 4 and 5;
    unweighted means, so that unequal numbers leave it unbiased). A level without two draws has 0, and what its draws do
    to images is then the images' own.
    """
    alone, with_images = np.zeros(_LEVELS), np.zeros(_LEVELS)
    for level in reversed(range(_LEVELS)):
        found = []
        for node in _nodes(study, level):
            if len(node) > 1:
                _, main, cross = two_way(np.stack([_mean(child) for child in node]))
                inside = np.mean([_shares(child, level + 1) for child in node], axis=0)
                found.append((len(node) - 1, main - inside @ alone, cross - inside @ with_images))
        if found:
            weights, mains, crosses = zip(*found, strict=True)
            alone[level], with_images[level] = (np.average(each, weights=weights) for each in (mains, crosses))
    images = _mean(study).var(ddof=1) - _shares(study, 0) @ with_images
    return np.concatenate([[images], alone, with_images])


def two_way(table: Floats) -> Floats:
    """Return the variances [images, draws, both] of outcomes [draws, images]; with one draw all is the images'."""
    draws, n = table.shape
    if draws == 1:
        return np.array([table[0].var(ddof=1), 0.0, 0.0])
    of_image, of_draw = table.mean(axis=0), table.mean(axis=1)
    rest = table - of_image - of_draw[:, None] + table.mean()
    both = float(np.square(rest).sum()) / ((draws - 1) * (n - 1))
    return np.array([of_image.var(ddof=1) - both / draws, of_draw.var(ddof=1) - both / n, both])


def half_width(variances: Floats, size: Counts, level: float, share: float | None = None) -> float | None:
    """Return the expected half-width of the interval of a mean with these variances, None where there would be none.

    share: the accuracy whose interval it is, in [0, 1]; None for a difference of two.
    """
    from scipy.special import chdtri, stdtrit

    variances, n, unit = np.maximum(0, variances), size.n, size.unit
    alone, with_images = variances[1 : 1 + _LEVELS] / size.levels, variances[1 + _LEVELS :] / size.levels / n
    # Levels outside the unit have one draw, whose effect on all images is part of what is measured.
    images, noise = variances[0] / n + with_images[:unit].sum(), with_images[unit:].sum()
    if share is not None and min(share, 1 - share) * share * (1 - share) < FEWEST * (images + noise):
        return None
    upper = (1 + level) / 2
    of_images = stdtrit(n - 1, upper) * np.sqrt(images + noise)
    if unit == _LEVELS:
        return float(of_images)
    freedom = size[1 + unit] - 1
    # The spread that a study sees is its own: the half-width is averaged over it.
    seen = chdtri(freedom, (np.arange(_NODES) + 0.5) / _NODES) / freedom
    of_draws = stdtrit(freedom, upper) * np.sqrt((alone[unit:].sum() + noise) * seen)
    halves = np.hypot(stdtrit(n - 1, upper) * np.sqrt(images), of_draws)
    if share is None:  # never narrower than over images alone
        return float(np.maximum(halves, of_images).mean())
    return float((np.minimum(halves, share) + np.minimum(halves, 1 - share)).mean() / 2)  # limits in [0, 1]


def _nodes(node: Study | Sequence[Floats] | Floats, level: int) -> Iterator[Study | Sequence[Floats] | Floats]:
    """Yield the parts of a study whose children are the draws of a level."""
    if level == 0:
        yield node
        return
    for child in node:
        yield from _nodes(child, level - 1)


def _mean(node: Study | Sequence[Floats] | Floats) -> Floats:
    """Return the mean outcome of each image, [images], each draw of a level weighing the same."""
    if isinstance(node, np.ndarray):
        return node if node.ndim == 1 else node.mean(axis=0)
    mean: Floats = np.mean([_mean(child) for child in node], axis=0)
    return mean


def _shares(node: Study | Sequence[Floats] | Floats, level: int) -> Floats:
    """Return how much of each level's variance the mean of a part has; its children are the draws of `level`."""
    shares = np.zeros(_LEVELS)
    if level == _LEVELS:
        return shares
    shares[level] = 1 / len(node)
    inside: Floats = np.sum([_shares(child, level + 1) for child in node], axis=0) / len(node) ** 2
    return shares + inside
