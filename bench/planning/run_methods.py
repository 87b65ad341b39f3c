"""The methods of a run: those that it names and, with --with-baselines, those that they are compared with."""

from __future__ import annotations

from bench.core.errors import UsageError
from bench.settings.methods import Method, parse_method
from bench.settings.run_spec import RunSpec
from bench.settings.shift_options import budget_of

_PUBLISHED = "selfsoup_diverse_clean"
"""The soup on clean images that a paper compares with; a baseline where a budget says how it was made."""
BASELINES = (
    "source",
    "supervised_soup",
    "continued_ssl_soup",
    "selfsoup_clean",
    _PUBLISHED,
    "selfsoup_single",
    "ssl_clean",
    "tent_pool",
    "shot_im_pool",
)


def methods_of(spec: RunSpec) -> list[Method]:
    names = list(spec.method)
    if spec.with_baselines:
        budget = budget_of(spec.recipe_shift, spec.budget)
        published = budget is not None and _PUBLISHED in budget.options
        names += [name for name in BASELINES if name not in names and (published or name != _PUBLISHED)]
    return [parse_method(name) for name in names]


def methods_with_options(spec: RunSpec) -> set[str]:
    """Return the names under which the methods of a run take options. Raises UsageError for an unknown method."""
    return {row.options_of or row.name for method in methods_of(spec) for row in (method.recipe, method.adapter) if row}


def check_options(spec: RunSpec) -> None:
    known = methods_with_options(spec)
    for asked in spec.options:
        if asked not in known:
            raise UsageError(f"--set {asked}.…: this run has no method '{asked}'; it has {', '.join(sorted(known))}")
