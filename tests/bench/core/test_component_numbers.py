"""What each component gives on its fixed input, against the numbers that its version stands for."""

from __future__ import annotations

import pytest
import torch

from bench.core.components import all_components, component_of
from tests.component_numbers import comparable, differ, golden, numbers_of, quick_names


@pytest.mark.parametrize(
    ("kind", "everything"),
    [
        *(("corruption:", True), ("method:", True), ("methods.", False), ("", True)),
        pytest.param("methods.", True, marks=pytest.mark.slow),
    ],
)
def test_numbers_of_a_component_change_with_its_version_only(kind: str, everything: bool) -> None:
    """Of all, and of those that need no dear training."""
    if kind in ("method:", "methods.") and not comparable():
        pytest.skip(
            "the first steps of a training amplify rounding; stored numbers are those of another processor or torch"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kinds = ("corruption:", "method:", "methods.")
    names = [n for n in all_components() if (n.startswith(kind) if kind else not n.startswith(kinds))]
    known = golden()
    if not everything:
        names = [name for name in names if name in quick_names()]
    try:
        wrong = [
            name
            for name in names
            if known.get(name, (0, []))[0] != component_of(name).version or differ(known[name][1], numbers_of(name))
        ]
    finally:
        torch.set_num_threads(threads)
    assert names
    assert not wrong, f"{', '.join(wrong)} gives other numbers; raise its version and run `make components`"
