"""Starting from the classifier of another run: same weights, same numbers, and its access is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import MissingDataError, UsageError
from bench.planning.init_from import inherit
from bench.planning.plan import make_plan
from bench.runs.run import Outcome
from leaderboards.record import Record

Quick = Callable[..., Outcome]


def accuracies(outcome: Outcome, method: str, part: str | None = None) -> dict[tuple[str | None, int], float]:
    found: list[Record] = [r for r in outcome.records() if r.method == method and r.part == part]
    return {(r.corruption, r.seed): r.metrics.accuracy for r in found if r.metrics is not None}


def test_adapters_start_from_the_soup_of_another_run(
    settings: dict[str, Any], own_cache: Path, run_quick: Quick
) -> None:
    first = run_quick(settings, method="selfsoup,selfsoup+tent", seeds=2)
    trained = set((own_cache / "weights").iterdir())
    later = {key: value for key, value in settings.items() if key != "stock"}
    second = run_quick(later, method="source,tent", seeds=2, init_from=str(first.out), out=first.out.parent / "second")
    assert set((own_cache / "weights").iterdir()) == trained  # nothing is trained again
    assert accuracies(second, "source") == accuracies(first, "selfsoup", "soup")
    assert accuracies(second, "tent") == accuracies(first, "selfsoup+tent")
    for record in second.records():
        assert (record.model, record.track, record.access.test) == ("selfsoup@out", "D", "pool")
        assert record.weights.ready
        assert record.data.history == ("fog@3", "contrast@3")


def test_a_method_is_chosen_and_its_weights_are_made_again_where_they_are_gone(
    settings: dict[str, Any], own_cache: Path, run_quick: Quick
) -> None:
    first = run_quick(settings, method="source,supervised_soup")
    for path in (own_cache / "weights").iterdir():
        path.unlink()
    later = {key: value for key, value in settings.items() if key != "stock"}
    second = run_quick(
        later, init_from=f"{first.out}:supervised_soup", corruption="pixelate", out=first.out.parent / "b"
    )
    third = run_quick(settings, method="supervised_soup", corruption="pixelate", out=first.out.parent / "c")
    assert accuracies(second, "source") == accuracies(third, "supervised_soup")
    assert {record.track for record in second.records()} == {"R"}


def test_what_cannot_be_started_from_is_one_sentence(settings: dict[str, Any], run_quick: Quick) -> None:
    first = run_quick(settings)
    later = {key: value for key, value in settings.items() if key != "stock"}
    for changes, error, sentence in (
        ({"init_from": "nowhere"}, MissingDataError, "no run at nowhere"),
        ({"init_from": f"{first.out}:selfsop"}, UsageError, "unknown method of"),
        ({"init_from": str(first.out), "method": "selfsoup"}, UsageError, "starts from a stock"),
    ):
        with pytest.raises(error, match=sentence):
            run_quick(later, **changes)
    with pytest.raises(UsageError, match="exclude each other"):
        run_quick(settings, init_from=str(first.out))
    found = inherit(str(first.out), (0,), "cpu", make_plan)
    assert (found.classes, found.architecture.dim) == (10, 16)
