"""Comparisons of two rows: on the same images, with the intervals of scipy, and the same numbers in every form."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from rich.console import Console

from leaderboards import BoardError, compare, compare_rows, holm

N = 120


@pytest.fixture
def two(results: Any) -> Any:
    """`tent` and `source` with correlated outcomes of one seed, and those outcomes."""
    rng = np.random.default_rng(3)
    skill = rng.normal(size=N)
    results.outcomes = {}
    for corruption in ("fog", "snow", None):
        for method, track, shift in (("tent", "A", 0.7), ("source", "R", 0.2)):
            hits = skill + shift + 0.7 * rng.normal(size=N) > 0
            results.outcomes[method, corruption] = hits
            results.add(method, corruption, track=track, hits=hits)
    return results


def compared(results: Any, a: str = "tent", b: str = "source") -> Any:
    return compare_rows(results.records, a, b, results.store.predictions)


@pytest.mark.parametrize("corruptions", [("fog",), ("snow",), ("fog", "snow"), (None,)])
def test_differences_are_those_of_scipy(two: Any, corruptions: tuple[str | None, ...]) -> None:
    a, b = (np.mean([two.outcomes[m, c] for c in corruptions], axis=0) for m in ("tent", "source"))
    comparison = compared(two)
    lines = {c.corruption: c for c in comparison.per_corruption}
    found = comparison.overall if len(corruptions) > 1 else lines.get(corruptions[0], comparison.clean)
    assert (found.a, found.b) == pytest.approx((a.mean(), b.mean()))
    assert found.difference.estimate == pytest.approx((a - b).mean())
    limits = scipy.stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.difference.low, found.difference.high) == pytest.approx((limits.low, limits.high), abs=0.008)
    assert found.difference.p == pytest.approx(scipy.stats.ttest_1samp(a - b, 0).pvalue, abs=0.015)


def test_p_values_are_adjusted_over_corruptions_only(two: Any) -> None:
    comparison = compared(two)
    assert [c.p_adjusted for c in comparison.per_corruption] == holm(
        [c.difference.p for c in comparison.per_corruption]
    )
    assert comparison.overall.p_adjusted is comparison.clean.p_adjusted is None


def test_every_form_shows_the_same_numbers(two: Any) -> None:
    comparison = compared(two)
    whole = json.loads(compare.renderings(comparison)["json"]())
    expected = {"mean": whole["overall"], "clean": whole["clean"], **whole["per_corruption"]}
    assert list(expected) == ["mean", "clean", "snow", "fog"]
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(compare.renderings(comparison)["terminal"]())
    terminal = console.file.getvalue()  # type: ignore[attr-defined]
    latex = compare.renderings(comparison)["latex"]().replace(r"\textbf{", "").replace("}", "")
    lines = list(csv.DictReader(io.StringIO(compare.renderings(comparison)["csv"]())))
    assert [line["condition"] for line in lines] == list(expected)
    for line in lines:
        numbers = expected[line["condition"]]
        assert {k: float(v) if v else None for k, v in line.items() if k != "condition"} == numbers
        points = [f"{100 * numbers[name]:.1f}" for name in ("a", "b")]
        gap = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * numbers[name] for name in ("difference", "low", "high")))
        wanted = [line["condition"], *points, gap]
        for text, separator in (
            (compare.renderings(comparison)["md"](), r"\s*\|\s*"),
            (terminal, r"\s+"),
            (latex, " & "),
        ):
            assert re.search(separator.join(map(re.escape, wanted)), text), (wanted, text)


def test_different_information_is_told(two: Any) -> None:
    assert "the two saw different information: tent: track A" in compare.renderings(compared(two))["md"]()
    assert compared(two, "tent", "tent").notes == []


def test_a_row_does_not_differ_from_itself(two: Any) -> None:
    difference = compared(two, "tent", "tent").overall.difference
    assert (difference.estimate, difference.p) == (0, 1)


def test_a_filter_leaves_a_row_its_name(results: Any) -> None:
    for corruption in ("fog", "snow"):
        results.add("source", corruption, track="R")
        for part in ("soup", "mean", "ingredient:mae"):
            seen = {"history": ["fog@5", "snow@5"], "seen": "c" * 32}
            results.add("selfsoup", corruption, part=part, track="D", data=seen)
    kept = [record for record in results.records if record.corruption == "fog"]
    for name in ("selfsoup", "selfsoup (soup)"):
        found = compare_rows(kept, name, "source", results.store.predictions)
        assert (found.a.method, found.a.part) == ("selfsoup", "soup")
        assert found.a.setting is not None


def test_a_method_with_parts_stands_for_its_soup(results: Any) -> None:
    rng = np.random.default_rng(0)
    hits = {part: rng.random(80) < 0.6 for part in ("soup", "ingredient:mae", "ingredient:mmcr")}
    for part, outcome in hits.items():
        results.add("selfsoup", part=part, track="D", hits=outcome)
    comparison = compared(results, "selfsoup", "selfsoup (mean)")
    expected = hits["soup"].mean() - np.mean([hits["ingredient:mae"], hits["ingredient:mmcr"]])
    assert comparison.overall.difference.estimate == pytest.approx(expected)
    assert (comparison.a.name, comparison.b.name) == ("selfsoup (soup)", "selfsoup (mean)")


class TestNotebook:
    def test_a_table_of_pandas_has_the_numbers_of_the_csv(self, two: Any) -> None:
        comparison = compared(two)
        frame = comparison.to_pandas()
        read = pd.read_csv(io.StringIO(compare.renderings(comparison)["csv"]()), index_col="condition")
        pd.testing.assert_frame_equal(frame, read)

    def test_html_is_escaped(self, results: Any) -> None:
        rng = np.random.default_rng(0)
        for method in ("tent", "<script>alert(1)</script>&"):
            results.add(method, "<img src=x>", hits=rng.random(60) < 0.5)
        page = compared(results, "tent", "<script>alert(1)</script>&")._repr_html_()
        assert "<script" not in page
        assert "<img" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in page
        assert "&lt;img src=x&gt;" in page
        read = pd.read_html(io.StringIO(page))[0] if find_spec("lxml") else None
        assert read is None or list(read["condition"]) == ["mean", "<img src=x>"]

    def test_the_plot_shows_every_interval(self, two: Any) -> None:
        comparison = compared(two)
        axes = comparison.plot()
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == list(comparison.to_pandas().index)
        frame = 100 * comparison.to_pandas()
        (points,) = (line for line in axes.lines if line.get_marker() == "o")
        assert points.get_xdata() == pytest.approx(frame["difference"].to_numpy())
        (bars,) = axes.collections
        ends = np.array([segment[:, 0] for segment in bars.get_segments()])  # type: ignore[attr-defined]
        assert ends == pytest.approx(frame[["low", "high"]].to_numpy())
        assert comparison.plot(axes) is axes


class TestRefusal:
    def test_unknown_names(self, two: Any) -> None:
        with pytest.raises(BoardError, match="sar is not among the records; compare two of source, tent"):
            compared(two, "tent", "sar")
        with pytest.raises(BoardError, match=r"tent \(mean\) has no row"):
            compared(two, "tent (mean)", "source")

    def test_incomplete_rows(self, two: Any) -> None:
        two.add("tent", "frost", error="diverged")
        with pytest.raises(BoardError, match="tent cannot be compared: frost at severity 5, seed 0, failed: diverged"):
            compared(two)

    def test_different_images(self, results: Any) -> None:
        results.add("tent", hits=[True] * 5, ids=range(5))
        results.add("source", track="R", hits=[True] * 5, ids=range(5, 10))
        with pytest.raises(BoardError, match="different images"):
            compared(results)
