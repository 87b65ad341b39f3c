"""Boards beside published tables: what is paired, places, and the rank correlation of another author's software."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
import scipy.stats

import corruptions
from leaderboards import agreement, make_board
from leaderboards.agreement import agreements, rank_correlation
from leaderboards.reference import our_method, reference_rows
from methods import METHODS

SHARES = {"source": 20, "bn": 40, "tent": 38, "eata": 42, "sar": 30, "lame": 10}
"""Right answers of 50, by method. The zoo's continual table has EATA, TENT, BN-1 and SAR (equal), Source, LAME."""
COMMON = corruptions.names("imagenet_c")[:15]


@pytest.fixture
def field(results: Any) -> Any:
    for method, right in SHARES.items():
        track = "R" if method == "source" else "A"
        hits = [number < right for number in range(50)]
        for corruption in COMMON:
            results.add(method, corruption, track=track, hits=hits, shift="cifar10-c-gen", protocol="continual")
    results.add("roid", "fog", error="it broke", shift="cifar10-c-gen", protocol="continual")
    return results


def found(results: Any) -> list[agreement.Agreement]:
    return agreements([make_board(results.records, results.store.predictions)])


def test_the_interval_is_that_of_the_authors_own_software() -> None:
    # The example of ci.spear in D. G. Bonett's R package statpsych, with its printed result.
    y = [21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19]
    x = [67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51]
    made = rank_correlation(y, x)
    assert made is not None
    assert (made.rho, made.low, made.high) == pytest.approx((0.8699639, 0.5840951, 0.9638297), abs=1e-6)
    assert made.n == 15


@pytest.mark.parametrize(("b", "rho"), [([1, 2, 3, 4, 5], 1), ([5, 4, 3, 2, 1], -1)])
def test_the_same_order_has_no_interval(b: list[float], rho: float) -> None:
    made = rank_correlation([10, 20, 30, 40, 50], b)
    assert made is not None
    assert (made.rho, made.low, made.high) == (rho, None, None)
    assert f"{rho:.2f} over 5 methods" in str(made)


@pytest.mark.parametrize(
    ("a", "b"), [([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4, 5], [2] * 5), ([2] * 5, [1, 2, 3, 4, 5])]
)
def test_too_few_methods_or_equal_numbers_have_no_correlation(a: list[float], b: list[float]) -> None:
    assert rank_correlation(a, b) is None


def test_a_board_of_generated_images_is_beside_the_published_table(field: Any) -> None:
    (each,) = found(field)
    assert [pair.ours.method for pair in each.pairs] == ["eata", "tent", "bn", "sar", "source", "lame"]
    assert [pair.their_place for pair in each.pairs] == [1, 2, 3.5, 3.5, 5, 6]
    assert [pair.our_place for pair in each.pairs] == [1, 3, 2, 4, 5, 6]
    published = {row.method: row.accuracy for row in reference_rows("cifar10-c", "wrn28-10", "continual")}
    assert each.pairs[0].accuracy == pytest.approx(SHARES["eata"] / 50)
    assert each.pairs[0].published.accuracy == published["EATA"]
    assert set(each.only_published) == {"CoTTA", "RoTTA", "AdaContrast", "RMT", "ROID"}  # ROID is incomplete here
    ours = [pair.accuracy for pair in each.pairs]
    theirs = [row.published.accuracy for row in each.pairs]
    assert each.correlation is not None
    assert each.correlation.rho == pytest.approx(scipy.stats.spearmanr(ours, theirs).statistic)
    assert "not here: " in str(each)


@pytest.mark.parametrize("fields", [{"protocol": "episodic"}, {"shift": "digits-c"}, {"severity": 3}])
def test_nothing_is_beside_another_protocol_shift_or_severity(results: Any, fields: dict[str, Any]) -> None:
    wanted = {"shift": "cifar10-c", "protocol": "continual"}
    for corruption in COMMON:
        results.add("tent", corruption, **wanted | fields)
        results.add("bn", corruption, **wanted)
    tent, bn = ([record for record in results.records if record.method == method] for method in ("tent", "bn"))
    assert agreements([make_board(tent)]) == []
    assert [pair.ours.method for each in agreements([make_board(bn)]) for pair in each.pairs] == ["bn"]


def test_a_mean_over_some_corruptions_is_beside_nothing(field: Any) -> None:
    fewer = [record for record in field.records if record.corruption != "fog"]
    assert agreements([make_board(fewer, field.store.predictions)]) == []


def test_a_subset_of_the_images_is_beside_the_published_shift(results: Any) -> None:
    for corruption in COMMON:
        results.add("tent", corruption, shift="imagenet-c-5k", protocol="continual")
    assert {each.published.model for each in found(results)} == {"resnet50", "swin-b", "vit-b-16"}


def test_another_setting_of_a_method_is_not_taken_for_it(results: Any) -> None:
    wanted = {"shift": "cifar10-c", "protocol": "continual"}
    for lr, right in ((0.1, 30), (0.2, 40), (0.3, 20)):  # the first has the plain name
        hits = [number < right for number in range(50)]
        for corruption in COMMON:
            results.add("tent", corruption, hits=hits, **wanted, options={"tent": {"lr": lr}})
    (each,) = found(results)
    assert [(pair.ours.setting, pair.accuracy) for pair in each.pairs] == [(None, pytest.approx(0.6))]
    assert each.correlation is None
    assert "no rank correlation of fewer than 5 methods" in str(each)


def test_every_form_has_the_same_numbers(field: Any) -> None:
    made = agreement.renderings(found(field))
    lines = list(csv.DictReader(io.StringIO(made["csv"]())))
    (content,) = json.loads(made["json"]())["agreements"]
    assert [line["method"] for line in lines] == [pair["method"] for pair in content["pairs"]]
    assert [float(line["ours"]) for line in lines] == [pair["ours"] for pair in content["pairs"]]
    assert content["board"] == {"shift": "cifar10-c-gen", "model": "resnet50.tv_in1k", "protocol": "continual", "n": 50}
    assert content["correlation"]["n"] == 6
    table = made["md"]()
    assert "| tent" in table
    assert "| 80.0 " in table
    assert f"{content['correlation']['rho']:.2f} \\[" in table


def test_published_numbers_are_listed_by_table() -> None:
    made = agreement.published_tables(reference_rows("cifar10-c"))
    table = made["md"]()
    assert "ROID 83.8, CoTTA 83.5" in table
    assert table.count("wrn28-10") == 3
    lines = list(csv.DictReader(io.StringIO(made["csv"]())))
    assert len(lines) == len(reference_rows("cifar10-c"))
    assert {line["shift"] for line in lines} == {"cifar10-c"}


def test_published_names_lead_to_methods_that_exist() -> None:
    names = {row.method for row in reference_rows() if not row.model.startswith("mae-")}
    unknown = {name for name in names if our_method(name) not in METHODS}
    assert unknown == {"ONDA", "PL", "NOTE*"}  # what is not built here
