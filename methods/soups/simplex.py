"""A grid of convex mixtures of two or three ingredients, each named by its shares: "simplex:side=7".

Figure 2 of Fuller et al. 2026 (arXiv:2602.02890) scores 49 evenly spread mixtures of three ingredients. It draws each
as one of the 7 x 7 small triangles of a large one, so the mixtures here are the centres of those triangles. The middle
one is the uniform soup.
"""

from __future__ import annotations

from collections.abc import Iterator

_NAME = "simplex"
_SIDE = 7


def is_grid(text: str) -> bool:
    """Return whether a way of mixing stands for a grid."""
    return text.partition(":")[0] == _NAME


def expand(text: str, count: int) -> list[str]:
    """Return "shares:…" for each mixture of a grid over `count` ingredients, "simplex" or "simplex:side=N".

    Raises ValueError for another text, and unless there are two or three ingredients.
    """
    _, colon, option = text.partition(":")
    key, _, value = option.partition("=")
    if colon and (key != "side" or not value.isdigit() or not int(value)):
        raise ValueError(f"'{text}' must be 'simplex' or 'simplex:side=N' with N of at least 1")
    if count not in (2, 3):
        raise ValueError(f"'{text}' is a grid over two or three ingredients, not {count}; name single shares:… instead")
    side = int(value) if colon else _SIDE
    return [":".join(["shares", *map(str, shares)]) for shares in centres(side, count)]


def centres(side: int, count: int) -> Iterator[tuple[int, ...]]:
    """Yield whole shares in proportion to the centres of the cells of a grid, `side` cells along each edge.

    The shares of each centre sum to `side * count`. Three ingredients have side^2 cells, triangles that point up and
    down; two have `side`, parts of a line.
    """
    for points in range(1, count):
        for places in _places(side - points, count):
            yield tuple(count * place + points for place in places)


def _places(total: int, count: int) -> Iterator[tuple[int, ...]]:
    """Yield all `count` whole numbers of at least 0 with this sum."""
    if count == 1:
        yield from [(total,)] if total >= 0 else []
        return
    for first in range(total + 1):
        for rest in _places(total - first, count - 1):
            yield (first, *rest)
