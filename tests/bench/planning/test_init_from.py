"""Starting from the classifier of another run: same weights, same numbers, and its access is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

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


def in_file(folder: Path, settings: dict[str, Any], **lists: Any) -> str:
    """A folder with the settings of a grid, of which nothing has been run."""
    folder.mkdir()
    given = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    (folder / "run.toml").write_text(tomli_w.dumps(given | lists))
    return str(folder)


def test_a_grid_gives_the_classifier_that_its_runs_share(settings: dict[str, Any], tmp_path: Path) -> None:
    one = inherit(in_file(tmp_path / "one", settings), (0, 1), "cpu", make_plan)
    grid = in_file(tmp_path / "grid", settings, protocol=["continual", "mixed_domains"], method=["tent", "source"])
    for text in (grid, f"{grid}:source"):
        found = inherit(text, (0, 1), "cpu", make_plan)
        assert found.digest == one.digest
        assert found.jobs.keys() == {0, 1}


def test_runs_of_a_grid_with_several_classifiers_are_told_apart(settings: dict[str, Any], tmp_path: Path) -> None:
    grid = in_file(tmp_path / "grid", settings, labels=[2, 3])
    with pytest.raises(UsageError, match="another classifier in each of several runs of"):
        inherit(grid, (0,), "cpu", make_plan)


def test_runs_of_a_grid_that_cannot_be_are_left_out(settings: dict[str, Any], tmp_path: Path) -> None:
    grid = in_file(tmp_path / "grid", settings, corruption=["fog"], runs=[{}, {"corruption": ["fogg"]}])
    assert inherit(grid, (0,), "cpu", make_plan).digest
    none = in_file(tmp_path / "none", settings, runs=[{"corruption": ["fogg"]}, {"corruption": ["snoww"]}])
    with pytest.raises(UsageError, match="fogg"):
        inherit(none, (0,), "cpu", make_plan)
