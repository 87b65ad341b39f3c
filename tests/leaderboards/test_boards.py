"""Boards: the right numbers, honest ranks, and refusal of every unfair comparison."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leaderboards
from leaderboards import BoardError, compare_rows, make_board, make_boards, read_bundle, to_markdown
from leaderboards.uncertainty import Outcomes, image_scores, mean_accuracy_interval


def hits(accuracy: float, n: int = 100) -> list[bool]:
    """The first images are right: sharing them makes methods differ in few images, as real ones do."""
    return [i < round(accuracy * n) for i in range(n)]


def row_of(board: Any, method: str, part: str | None = None) -> Any:
    (row,) = [row for row in board.rows if (row.method, row.part) == (method, part)]
    return row


def board_of(results: Any, **options: Any) -> Any:
    return make_board(results.records, results.store.predictions, **options)


def test_numbers_by_hand(results: Any) -> None:
    clean = results.add("tent", None, hits=hits(0.9))
    fog = results.add("tent", "fog", hits=hits(0.6), cost={"fit_seconds": 3, "forwards": 200, "backwards": 100})
    snow = results.add("tent", "snow", hits=hits(0.4), cost={"fit_seconds": 5, "forwards": 600, "backwards": 0})
    board = board_of(results)
    (row,) = board.rows
    assert row.accuracy == pytest.approx(0.5)
    assert row.clean_accuracy == pytest.approx(0.9)
    assert row.ece == pytest.approx((fog.metrics.ece + snow.metrics.ece) / 2)
    assert row.per_corruption == pytest.approx({"snow": 0.4, "fog": 0.6})
    assert (row.fit_seconds, row.forwards, row.backwards) == (4, 4, 0.5)
    assert (row.method, row.part, row.track, row.main, row.name) == ("tent", None, "A", True, "tent")
    assert (row.seeds, row.n, row.batch_size, row.incomplete, row.rank) == ((0,), 100, 64, None, 1)
    assert row.keys == tuple(sorted(record.key for record in (clean, fog, snow)))
    assert (board.shift, board.model, board.protocol) == ("imagenet-c", "resnet50.tv_in1k", "reset_each_shift")
    assert (board.split, board.limit, board.labels_per_class, board.n) == ("disjoint", None, None, 100)
    assert (board.corruptions, board.severities, board.seeds) == (("snow", "fog"), (5.0,), (0,))


def test_forgetting_is_the_clean_accuracy_that_the_source_has_more(results: Any) -> None:
    for method, track, clean in (("source", "R", 0.9), ("tent", "A", 0.7), ("soup", "D", 0.95)):
        results.add(method, None, track=track, hits=hits(clean))
        results.add(method, "fog", track=track, hits=hits(0.5))
    results.add("sar", "fog", hits=hits(0.5))
    forgetting = {row.method: row.forgetting for row in board_of(results).rows}
    assert forgetting == pytest.approx({"source": 0, "tent": 0.2, "soup": -0.05, "sar": None})


def test_without_the_source_there_is_no_forgetting(results: Any) -> None:
    results.add("tent", None, hits=hits(0.9))
    results.add("tent", "fog", hits=hits(0.5))
    assert board_of(results).rows[0].forgetting is None


@pytest.mark.parametrize(("memory", "expected"), [((120.0, 300.0), 300.0), ((120.0, None), None)])
def test_memory_is_the_largest_if_all_is_known(results: Any, memory: tuple[Any, Any], expected: Any) -> None:
    for corruption, megabytes in zip(("fog", "snow"), memory, strict=True):
        results.add("tent", corruption, cost={"peak_memory_mb": megabytes})
    assert board_of(results).rows[0].peak_memory_mb == expected


def test_cells_are_single_conditions_with_their_records(results: Any) -> None:
    made = {
        (corruption, severity, seed): results.add(
            "tent", corruption, severity=severity, seed=seed, hits=hits(0.1 * severity + 0.2 * seed)
        )
        for corruption, severity in (("fog", 5), ("fog", 3), (None, 0))
        for seed in (1, 0)
    }
    row = board_of(results).rows[0]
    assert [(c.corruption, c.severity, c.accuracy) for c in row.cells] == [
        (None, 0, pytest.approx(0.1)), ("fog", 3, pytest.approx(0.4)), ("fog", 5, pytest.approx(0.6)),
    ]  # fmt: skip
    for cell in row.cells:
        assert cell.keys == tuple(made[cell.corruption, cell.severity, seed].key for seed in (0, 1))
    assert row.at_severity(3) == pytest.approx(0.4)
    assert row.at_severity(4) is None


def test_means_run_over_severities_and_seeds(results: Any) -> None:
    values = iter([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.8])
    for corruption in ("fog", "snow"):
        for severity in (3, 5):
            for seed in (0, 1):
                results.add("tent", corruption, severity=severity, seed=seed, hits=hits(next(values)))
    row = board_of(results).rows[0]
    assert row.accuracy == pytest.approx(0.5)
    assert row.per_corruption == pytest.approx({"fog": 0.275, "snow": 0.725})
    assert row.seeds == (0, 1)


def test_the_interval_is_that_of_the_corrupted_conditions(results: Any) -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.random((2, 2, 60)) < 0.6
    for seed in (0, 1):
        results.add("tent", None, seed=seed, hits=[True] * 60)
        for j, corruption in enumerate(("fog", "snow")):
            results.add("tent", corruption, seed=seed, hits=outcomes[seed, j])
    expected = mean_accuracy_interval(
        image_scores([[Outcomes(np.arange(60), condition) for condition in seed] for seed in outcomes])
    )
    row = board_of(results).rows[0]
    assert row.accuracy == pytest.approx(outcomes.mean())
    assert (row.interval.low, row.interval.high) == pytest.approx((expected.low, expected.high))


def test_without_predictions_there_are_no_intervals_and_ranks(results: Any) -> None:
    results.add("tent", hits=hits(0.5))
    row = make_board(results.records).rows[0]
    assert row.accuracy == 0.5
    assert (row.interval, row.rank) == (None, None)


def test_tracks_are_ordered_and_ranked_apart(results: Any) -> None:
    results.add("selfsoup", track="D", part="soup", hits=hits(0.9))
    results.add("eata", track="B", hits=hits(0.7))
    results.add("shot", track="C", hits=hits(0.75))
    results.add("tent", track="A", hits=hits(0.5))
    results.add("sar", track="A", hits=hits(0.8))
    results.add("source", track="R", hits=hits(0.2))
    board = board_of(results)
    assert [row.method for row in board.rows] == ["source", "sar", "tent", "eata", "shot", "selfsoup"]
    assert [row.rank for row in board.rows] == [1, 1, 2, 1, 1, 1]


def test_ranks_count_significantly_better_methods(results: Any) -> None:
    for method, accuracy in (("a", 0.8), ("b", 0.79), ("c", 0.6), ("d", 0.59), ("e", 0.2)):
        results.add(method, hits=hits(accuracy))
    ranks = {row.method: row.rank for row in board_of(results).rows}
    assert ranks == {"a": 1, "b": 1, "c": 3, "d": 3, "e": 5}


def test_a_gap_within_the_noise_shares_the_rank(results: Any) -> None:
    rng = np.random.default_rng(0)
    results.add("a", hits=rng.random(100) < 0.55)
    results.add("b", hits=rng.random(100) < 0.5)
    assert [row.rank for row in board_of(results).rows] == [1, 1]


def test_many_rows_raise_the_bar(results: Any) -> None:
    # Seven images of a hundred, all in favour: p near 0.01 alone, nothing among 28 pairs.
    results.add("a", hits=hits(0.57))
    results.add("b", hits=hits(0.5))
    assert {row.method: row.rank for row in board_of(results).rows} == {"a": 1, "b": 2}
    for number in range(6):
        results.add(f"other{number}", hits=hits(0.535))
    assert {row.method: row.rank for row in board_of(results).rows}["b"] == 1


def test_many_rows_can_still_be_told_apart(results: Any) -> None:
    for number in range(22):
        results.add(f"m{number:02}", hits=hits(0.04 * (number + 1), 200))
    ranks = [row.rank for row in board_of(results).rows]
    assert ranks[0] == 1
    assert ranks[-1] > 18


class TestParts:
    @pytest.fixture
    def soup(self, results: Any) -> Any:
        for seed in (0, 1):
            for corruption, shift in (("fog", 0.0), ("snow", 0.1)):
                common = {"track": "D", "seed": seed}
                results.add("selfsoup", corruption, part="soup", hits=hits(0.7 + shift), **common)
                results.add("selfsoup", corruption, part="ingredient:mae", hits=hits(0.5 + shift), **common)
                results.add("selfsoup", corruption, part="ingredient:mmcr", hits=hits(0.3 + shift), **common)
        return results

    def test_ingredients_have_a_mean_row(self, soup: Any) -> None:
        board = board_of(soup)
        mean = row_of(board, "selfsoup", "mean")
        assert mean.accuracy == pytest.approx(0.45)
        assert mean.per_corruption == pytest.approx({"fog": 0.4, "snow": 0.5})
        assert mean.interval.low < 0.45 < mean.interval.high
        assert mean.track == "D"
        assert len(mean.keys) == 8
        parts = [row_of(board, "selfsoup", f"ingredient:{name}") for name in ("mae", "mmcr")]
        assert mean.ece == pytest.approx(np.mean([part.ece for part in parts]))

    def test_the_mean_is_bootstrapped_over_images_of_all_ingredients(self, soup: Any) -> None:
        per_image = np.mean([hits(a) for a in (0.5, 0.3, 0.6, 0.4)], axis=0)
        rng = np.random.default_rng(5)
        draws = per_image[rng.integers(0, 100, (20_000, 100))].mean(axis=1)
        interval = row_of(board_of(soup), "selfsoup", "mean").interval
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.006)

    def test_parts_are_shown_and_never_ranked(self, soup: Any) -> None:
        board = board_of(soup)
        assert [row.part for row in board.rows] == ["soup", "ingredient:mae", "mean", "ingredient:mmcr"]
        assert [row.rank for row in board.rows] == [1, None, None, None]
        assert [row.main for row in board.rows] == [True, False, False, False]

    def test_a_broken_ingredient_breaks_the_mean_but_not_the_soup(self, soup: Any) -> None:
        soup.add("selfsoup", "fog", part="ingredient:lejepa", track="D", error="diverged")
        board = board_of(soup)
        mean = row_of(board, "selfsoup", "mean")
        assert mean.accuracy is mean.interval is None
        assert mean.incomplete.startswith("ingredient:lejepa: fog at severity 5, seed 0, failed: diverged")
        assert row_of(board, "selfsoup", "soup").incomplete is None

    def test_a_recorded_mean_is_kept(self, soup: Any) -> None:
        for seed in (0, 1):
            for corruption in ("fog", "snow"):
                soup.add("selfsoup", corruption, part="mean", track="D", seed=seed, hits=hits(0.11))
        assert row_of(board_of(soup), "selfsoup", "mean").accuracy == pytest.approx(0.11)


class TestIncomplete:
    def test_a_failed_condition_is_never_averaged_away(self, results: Any) -> None:
        for corruption in ("fog", "snow"):
            results.add("tent", corruption, hits=hits(0.5))
        results.add("sar", "fog", hits=hits(0.9))
        results.add("sar", "snow", error="predictions are not finite")
        tent, sar = board_of(results).rows
        assert (tent.method, tent.rank) == ("tent", 1)
        assert sar.accuracy is sar.interval is sar.ece is sar.rank is None
        assert sar.per_corruption == {"snow": None, "fog": 0.9}
        assert sar.incomplete == "snow at severity 5, seed 0, failed: predictions are not finite"

    def test_a_missing_condition_is_named(self, results: Any) -> None:
        for corruption in ("fog", "snow"):
            results.add("tent", corruption, hits=hits(0.5))
        results.add("sar", "fog", hits=hits(0.9))
        assert row_of(board_of(results), "sar").incomplete == "snow at severity 5, seed 0, is missing"

    def test_a_row_is_complete_on_its_own_seeds(self, results: Any) -> None:
        for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
            results.add("tent", seed=seed, hits=hits(accuracy))
        results.add("source", track="R", seed=0, hits=hits(0.5))
        board = board_of(results)
        assert [(row.method, row.accuracy, row.seeds, row.incomplete) for row in board.rows] == [
            ("source", 0.5, (0,), None),
            ("tent", pytest.approx(0.6), (0, 1, 2), None),
        ]
        assert board.seeds == (0, 1, 2)

    def test_a_seed_that_lacks_a_condition_leaves_its_row_without_a_mean(self, results: Any) -> None:
        for seed in (0, 1):
            results.add("tent", "fog", seed=seed, hits=hits(0.5))
        results.add("tent", "snow", seed=0, hits=hits(0.5))
        (row,) = board_of(results).rows
        assert row.incomplete == "snow at severity 5, seed 1, is missing"
        assert row.accuracy is None

    def test_a_failed_clean_condition_counts(self, results: Any) -> None:
        results.add("tent", hits=hits(0.5))
        results.add("tent", None, error="out of memory")
        (row,) = board_of(results).rows
        assert row.incomplete == "clean, seed 0, failed: out of memory"
        assert row.accuracy is row.clean_accuracy is None

    def test_clean_is_not_demanded(self, results: Any) -> None:
        results.add("tent", hits=hits(0.5))
        results.add("tent", None, hits=hits(0.8))
        results.add("source", track="R", hits=hits(0.5))
        source = row_of(board_of(results), "source")
        assert (source.accuracy, source.clean_accuracy, source.incomplete) == (0.5, None, None)

    def test_all_failed(self, results: Any) -> None:
        results.add("tent", error="out of memory")
        board = board_of(results)
        assert board.n is None
        (row,) = board.rows
        assert row.accuracy is row.fit_seconds is row.forwards is row.n is None
        assert row.seeds == ()

    def test_clean_alone_has_no_mean(self, results: Any) -> None:
        results.add("tent", None, hits=hits(0.8))
        (row,) = board_of(results).rows
        assert (row.accuracy, row.clean_accuracy) == (None, 0.8)
        assert row.incomplete == "no corrupted condition was run"

    def test_incomplete_rows_come_last_in_their_track(self, results: Any) -> None:
        results.add("a", error="diverged")
        results.add("b", hits=hits(0.1))
        results.add("z", track="D", hits=hits(0.1))
        assert [row.method for row in board_of(results).rows] == ["b", "a", "z"]


class TestRefusal:
    @pytest.mark.parametrize(("field", "first", "second"), [
        ("shift", "imagenet-c", "cifar10-c"),
        ("model", "vit", "resnet"),
        ("protocol", "reset_each_shift", "continual"),
        ("split", "disjoint", "joint"),
        ("limit", 10, None),
    ])  # fmt: skip
    def test_fields_that_all_rows_share(self, results: Any, field: str, first: Any, second: Any) -> None:
        results.add("tent", **{field: first})
        results.add("sar", **{field: second})
        with pytest.raises(BoardError) as caught:
            board_of(results)
        message = str(caught.value)
        assert f"differ in {field} (" in message
        assert str(first) in message
        assert str(second) in message
        assert f"--where {field}={min(str(first), str(second))}" in message

    def test_numbers_of_labels(self, results: Any) -> None:
        results.add("tent", data={"labels_per_class": 10})
        results.add("sar")
        with pytest.raises(BoardError, match=r"labels_per_class \(10, None\); .*--where labels_per_class=10"):
            board_of(results)

    @pytest.mark.parametrize("field", ["digest", "storage", "profile", "seed"])
    def test_data_of_one_condition(self, results: Any, field: str) -> None:
        results.add("tent", data={field: 1 if field == "seed" else "one"})
        results.add("sar", data={field: 2 if field == "seed" else "two"})
        with pytest.raises(BoardError, match=f"fog at severity 5 differ in data {field}"):
            board_of(results)

    def test_each_condition_has_data_of_its_own(self, results: Any) -> None:
        for method in ("tent", "sar"):
            for corruption in ("fog", "snow", None):
                results.add(method, corruption, data={"digest": f"sha256:{corruption}"})
        assert len(board_of(results).rows) == 2

    def test_severities(self, results: Any) -> None:
        results.add("tent", severity=3)
        results.add("tent", severity=5)
        results.add("sar", severity=5)
        with pytest.raises(
            BoardError,
            match=r"(tent has severity 3, 5 and sar has 5|sar has severity 5 and tent has 3, 5); .*--where severity=5",
        ):
            board_of(results)

    @pytest.mark.parametrize("corruption", ["fog", None])
    def test_numbers_of_images(self, results: Any, corruption: str | None) -> None:
        results.add("tent", corruption, hits=hits(0.5, 100))
        results.add("sar", corruption, hits=hits(0.5, 50))
        with pytest.raises(BoardError, match=r"n, the scored images \(50, 100\)"):
            board_of(results)

    def test_clean_may_have_other_images(self, results: Any) -> None:
        results.add("tent", None, hits=hits(0.5, 70))
        results.add("tent", hits=hits(0.5, 100))
        assert board_of(results).rows[0].n == 100

    def test_weights_behind_one_name(self, results: Any) -> None:
        results.add("tent", weights={"digest": "one"})
        results.add("sar", weights={"digest": "two"})
        with pytest.raises(BoardError, match="differ in weights"):
            board_of(results)

    def test_two_rows_with_two_batch_sizes_are_shown(self, results: Any) -> None:
        results.add("tent", batch_size=64)
        results.add("memo", batch_size=1)
        assert {row.method: row.batch_size for row in board_of(results).rows} == {"tent": 64, "memo": 1}

    def test_one_row_with_two_kinds_of_access(self, results: Any) -> None:
        results.add("tent", "fog", track="A")
        results.add("tent", "snow", track="B")
        with pytest.raises(BoardError, match="differ in access"):
            board_of(results)

    def test_one_cell_of_two_sets_of_weights(self, results: Any) -> None:
        results.add("tent")
        results.add("tent", data={"seen": "other"})
        with pytest.raises(BoardError, match="fog at severity 5 with seed 0 twice; make a board of one results folder"):
            board_of(results)

    def test_versions_within_a_row_and_between_rows_are_noted(self, results: Any) -> None:
        for method in ("tent", "sar"):
            results.add(method, "fog", components={"harness": "1", f"method:{method}": "1", "corruption:fog": "1"})
        assert board_of(results).versions == ()
        results.add("tent", "snow", components={"harness": "1", "method:tent": "2", "corruption:snow": "2"})
        results.add("sar", "snow", components={"harness": "1+0f", "method:sar": "1", "corruption:snow": "2"})
        board = board_of(results)
        assert set(board.versions) == {
            "tent: its numbers were made by versions 1 and 2 of method:tent",
            "sar: its numbers were made by versions 1 and 1+0f of harness",
        }
        assert all(note in to_markdown(board) for note in board.versions)
        found = compare_rows(results.records, "tent", "sar", results.store.predictions)
        assert set(board.versions) <= set(found.notes)

    def test_different_images_of_equal_number(self, results: Any) -> None:
        results.add("tent", hits=hits(0.5), ids=range(100))
        results.add("sar", hits=hits(0.5), ids=range(100, 200))
        with pytest.raises(BoardError, match="different images"):
            board_of(results)

    def test_predictions_of_something_else(self, results: Any, make_predictions: Any) -> None:
        results.add("tent", hits=hits(0.5))
        with pytest.raises(BoardError, match="does not follow from its predictions"):
            make_board(results.records, lambda record: make_predictions(100, hits=hits(0.51)))

    def test_no_records(self) -> None:
        with pytest.raises(BoardError, match="no record"):
            make_board([])


class TestSettings:
    """Two settings of a method are two rows, named by what differs; a third never changes the names of the first."""

    def names(self, results: Any, **options: Any) -> list[str]:
        return sorted(row.name for row in board_of(results, **options).rows)

    def test_options(self, results: Any) -> None:
        results.add("tent", options={"tent": {"lr": 0.1, "steps": 1}}, hits=hits(0.5))
        assert self.names(results) == ["tent"]
        results.add("tent", options={"tent": {"lr": 0.2, "steps": 1}}, hits=hits(0.6))
        assert self.names(results) == ["tent", "tent [lr=0.2]"]
        results.add("tent", options={"tent": {"lr": 0.2, "steps": 9}}, hits=hits(0.7))
        assert self.names(results) == ["tent", "tent [lr=0.2, steps=9]", "tent [lr=0.2]"]
        results.add("tent", options={"tent": {"lr": 10.0}, "source": {"lr": 0.3}}, hits=hits(0.7))
        found = {row.name: row.accuracy for row in board_of(results).rows}
        assert found == {
            "tent": 0.5,
            "tent [lr=0.2]": 0.6,
            "tent [lr=0.2, steps=9]": 0.7,
            "tent [source.lr=0.3, lr=10.0, steps=absent]": 0.7,
        }
        assert {row.method for row in board_of(results).rows} == {"tent"}

    def test_the_setting_that_was_made_first_has_the_plain_name(self, results: Any) -> None:
        for lr, created in ((0.1, "2026-11-22T20:00:00+00:00"), (0.2, "2026-11-22T20:00:00+02:00")):
            results.add("tent", options={"tent": {"lr": lr}}, created=created)
        assert self.names(results) == ["tent", "tent [lr=0.1]"]

    def test_many_differences_are_counted(self, results: Any) -> None:
        results.add("tent", options={"tent": dict.fromkeys("abcde", 1)}, hits=hits(0.5))
        for last in (3, 4):
            results.add("tent", options={"tent": {**dict.fromkeys("abcd", 2), "e": last}}, hits=hits(0.6))
        plain, *others = sorted(self.names(results))
        assert plain == "tent"
        assert len(set(others)) == 2
        for name in others:
            assert re.fullmatch(r"tent \[a=2, b=2, c=2, 2 more: [0-9a-f]{6}\]", name)

    def test_texts_and_numbers_are_told_apart(self, results: Any) -> None:
        for value in ("sgd", "1", 1, None, "x" * 100, ["a"]):
            results.add("tent", options={"tent": {"o": value}})
        found = self.names(results)
        assert len(set(found)) == 6
        assert {name for name in found if len(name) < 30} >= {"tent", 'tent [o="1"]', "tent [o=sgd]", "tent [o=null]"}
        assert max(map(len, found)) < 60

    def test_batch_size_and_precision(self, results: Any) -> None:
        for second, (batch, precision) in enumerate(((64, "fp32"), (16, "fp32"), (64, "bf16"))):
            created = f"2026-11-22T20:00:0{second}Z"
            results.add("tent", batch_size=batch, precision=precision, created=created, hits=hits(0.5))
        assert self.names(results) == ["tent", "tent [batch=16]", "tent [precision=bf16]"]

    def test_versions_of_one_cell(self, results: Any) -> None:
        results.add("tent", hits=hits(0.5))
        results.add("tent", components={"harness": "1", "method:tent": "2"}, hits=hits(0.6))
        results.add("tent", components={"harness": "2", "method:tent": "2"}, hits=hits(0.7))
        found = {row.name: row.accuracy for row in board_of(results).rows}
        assert found == {"tent": 0.5, "tent [version 2]": 0.6, "tent [harness version 2, version 2]": 0.7}

    def test_versions_of_two_seeds_are_not_averaged(self, results: Any) -> None:
        results.add("tent", seed=0, hits=hits(0.5))
        results.add("tent", seed=1, hits=hits(0.6), components={"harness": "1", "method:tent": "2"})
        assert {row.name: (row.accuracy, row.seeds) for row in board_of(results).rows} == {
            "tent": (0.5, (0,)), "tent [version 2]": (0.6, (1,)),
        }  # fmt: skip

    def test_what_a_method_met(self, results: Any) -> None:
        for met, accuracy in ((["fog@5"], 0.5), (["fog@1", "fog@5"], 0.6), (["fog@5", "snow@5"], 0.7)):
            results.add("soup", track="D", data={"history": met, "seen": str(met)}, hits=hits(accuracy))
        found = {row.accuracy: row.name for row in board_of(results).rows}
        assert (found[0.5], found[0.6]) == ("soup", "soup [met severities 1 5]")
        assert re.fullmatch(r"soup \[met 2 other conditions: [0-9a-f]{6}\]", found[0.7])

    def test_parts_belong_to_their_setting(self, results: Any) -> None:
        for lr, add in ((0.1, 0.0), (0.2, 0.1)):
            for part, accuracy in (("soup", 0.7), ("ingredient:a", 0.4), ("ingredient:b", 0.6)):
                options = {"selfsoup": {"lr": lr}}
                results.add("selfsoup", track="D", part=part, options=options, hits=hits(accuracy + add))
        found = {row.name: row.accuracy for row in board_of(results).rows}
        assert found["selfsoup (mean)"] == pytest.approx(0.5)
        assert found["selfsoup [lr=0.2] (mean)"] == pytest.approx(0.6)
        assert found["selfsoup [lr=0.2] (soup)"] == pytest.approx(0.8)
        assert len(found) == 8

    def test_published_settings_have_the_plain_name_on_their_shift(self, results: Any) -> None:
        published = read_bundle(Path(leaderboards.__file__).parent / "results" / "digits-c-field.jsonl").records
        sar = next(record for record in published if record.method == "sar").model_dump(mode="json")
        where = {"shift": "digits-c", "model": "digits", "components": sar["components"]}
        options = sar["options"]
        other = options | {"sar": options["sar"] | {"rho": 0.1}}
        results.add("sar", options=other, **where)
        assert self.names(results) == ["sar"]
        assert self.names(results, full_names=True) == ["sar [rho=0.1]"]
        results.add("sar", options=options, **where | {"components": sar["components"] | {"method:sar": "3"}})
        assert self.names(results) == self.names(results, full_names=True) == ["sar [rho=0.1]", "sar [version 3]"]
        results.add("sar", options=options, **where)
        assert self.names(results) == ["sar", "sar [rho=0.1]", "sar [version 3]"]

    def test_forgetting_is_against_the_same_training_on_shared_seeds(self, results: Any) -> None:
        for lr, clean in ((0.1, 0.9), (0.2, 0.5)):
            for seed in (0, 1, 2):
                for condition, accuracy in ((None, clean + seed / 50), ("fog", 0.5)):
                    options = {"source": {"lr": lr}}
                    results.add("source", condition, track="R", seed=seed, options=options, hits=hits(accuracy))
        for seed, clean in ((1, 0.4), (7, 0.1)):
            for condition in (None, "fog"):
                results.add("tent", condition, seed=seed, options={"source": {"lr": 0.2}}, hits=hits(clean))
        (tent,) = [row for row in board_of(results).rows if row.method == "tent"]
        assert tent.forgetting == pytest.approx(0.52 - 0.4)
        assert {row.forgetting for row in board_of(results).rows if row.method == "source"} == {0.0}


def test_models_are_grouped_never_mixed(results: Any) -> None:
    for model, accuracy in (("vit", 0.7), ("resnet", 0.4)):
        results.add("tent", model=model, hits=hits(accuracy))
    boards = make_boards(results.records, results.store.predictions)
    assert {model: board.rows[0].accuracy for model, board in boards.items()} == {"resnet": 0.4, "vit": 0.7}
    assert list(boards) == ["resnet", "vit"]


def test_the_same_records_give_the_same_board_in_any_order(results: Any) -> None:
    rng = np.random.default_rng(0)
    for method in ("tent", "sar", "lame"):
        for corruption in ("fog", "pixelate", "gaussian_noise", "my_own", None):
            results.add(method, corruption, hits=rng.random(40) < 0.5)
    board = board_of(results)
    assert make_board(results.records[::-1], results.store.predictions) == board
    assert board.corruptions == ("gaussian_noise", "fog", "pixelate", "my_own")
