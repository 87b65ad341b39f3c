"""Published files together: one right board from honest ones, at an address that stays; nothing published changes."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.runs import publishing
from leaderboards import Record, make_bundle, read_bundle, write_bundle
from leaderboards.bundle import Bits, Bundle
from leaderboards.changes import changes
from leaderboards.identity import key_of
from leaderboards.site import Site, make_site
from leaderboards.submit import settings_of
from leaderboards.union import boards_of, clashes, merge

RESULTS = Path(publishing.__file__).resolve().parents[2] / "leaderboards" / "results"
SLUG = "digits-c-digits-reset-each-shift-disjoint-10-3"
THREE = "digits-c-digits-reset-each-shift-disjoint-10-1-3-5"


@pytest.fixture(scope="module")
def shipped() -> dict[str, Bundle]:
    return {path.name: read_bundle(path) for path in sorted(RESULTS.glob("*.jsonl"))}


@pytest.fixture(scope="module")
def field(shipped: dict[str, Bundle]) -> Bundle:
    return shipped["digits-c-field.jsonl"]


def part_of(bundle: Bundle, wanted: Callable[[Record], bool], **changed: Any) -> Bundle:
    """The bundle of some records, with other fields; outcomes turned around once for every seed beyond the known."""
    records, bits, digests = [], {}, {}
    for record in filter(wanted, bundle.records):
        content = json.loads(record.to_json())
        new = {name: value(content) if callable(value) else value for name, value in changed.items()}
        content |= new
        content["key"] = key_of(content) if new else record.key
        content["predictions"] = f"predictions/{content['key']}.npz"
        made = Record.model_validate_json(json.dumps(content))
        records.append(made)
        bits[made.key], digests[made.key] = bundle.bits[record.key], bundle.digests[record.key]
    return Bundle(bundle.card, settings_of(records), tuple(records), bits, digests)


def of(*methods: str, seeds: Sequence[int] = (0, 1, 2)) -> Callable[[Record], bool]:
    return lambda record: record.method in methods and record.seed in seeds


def with_option(method: str, name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = content["options"]
        return options | {method: options[method] | {name: value}}

    return change


def later(content: dict[str, Any]) -> str:
    made = datetime.datetime.fromisoformat(str(content["created"])) + datetime.timedelta(seconds=1)
    return made.isoformat(timespec="seconds")


@pytest.fixture(scope="module")
def five(field: Bundle) -> dict[str, Bundle]:
    """Five honest files of overlapping methods, seeds and settings."""
    return {
        "a.jsonl": part_of(field, of("source", "tent", seeds=(0, 1))),
        "b.jsonl": part_of(field, of("source", "sar", seeds=(1, 2))),  # source, seed 1, is in both
        "c.jsonl": part_of(field, of("tent"), options=with_option("tent", "lr", 0.01)),
        "d.jsonl": part_of(field, of("tent", "memo", seeds=(0,)), seed=9),
        "e.jsonl": part_of(field, of("tent", seeds=(0, 1)), options=with_option("tent", "steps", 1), batch_size=16),
    }


def numbers_of(site: Site, slug: str = SLUG) -> dict[str, tuple[Any, ...]]:
    (entry,) = [entry for entry in site.entries if entry.slug == slug]
    return {row.name: (row.accuracy, row.clean_accuracy, row.ece, row.seeds) for row in entry.board.rows}


def test_five_files_make_one_right_board(five: dict[str, Bundle]) -> None:
    frame = pd.DataFrame(
        {
            "key": record.key,
            "row": (record.method, json.dumps(record.options["tent"]) if "tent" in record.options else ""),
            "clean": record.clean,
            "seed": record.seed,
            "condition": (record.corruption, record.severity),
            "accuracy": record.metrics.accuracy,
            "ece": record.metrics.ece,
        }
        for bundle in five.values()
        for record in bundle.records
        if record.metrics is not None
    ).drop_duplicates("key")
    expected = []
    for _, own in frame.groupby("row"):
        corrupted = own[~own.clean]
        by_condition = corrupted.groupby("condition")[["accuracy", "ece"]].mean().mean()
        seeds = tuple(sorted(corrupted.seed.unique()))
        expected.append((by_condition.accuracy, own[own.clean].accuracy.mean(), by_condition.ece, seeds))
    site = make_site(five)
    assert [entry.slug for entry in site.entries] == [SLUG]
    found = numbers_of(site)
    assert set(found) == {"source", "sar", "memo", "tent", "tent [lr=0.01]", "tent [batch=16, steps=1]"}
    assert found["tent"][3] == (0, 1, 9)
    for ours, theirs in zip(sorted(found.values()), sorted(expected), strict=True):
        assert ours[:3] == pytest.approx(theirs[:3], abs=1e-12)
        assert ours[3] == theirs[3]
    assert all(row.incomplete is None and row.interval for row in site.entries[0].board.rows)


def test_names_of_files_and_their_order_change_nothing(five: dict[str, Bundle]) -> None:
    expected = make_site(five)
    names = list(five)
    for order in list(permutations(names))[::37]:
        renamed = {new: five[old] for new, old in zip(names, order, strict=True)}
        again = make_site(renamed)
        assert [(e.slug, e.board) for e in again.entries] == [(e.slug, e.board) for e in expected.entries]
        assert again.published.records == expected.published.records


@pytest.mark.parametrize("last", ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl", "e.jsonl"])
def test_every_file_only_adds(five: dict[str, Bundle], last: str) -> None:
    before = make_site({name: bundle for name, bundle in five.items() if name != last})
    found = list(changes(before, make_site(five, before)))
    assert found
    assert all(change.harmless for change in found), found


def test_the_shipped_files_stand_on_one_page(shipped: dict[str, Bundle]) -> None:
    site = make_site(shipped)
    assert [entry.slug for entry in site.entries] == [THREE, SLUG]
    rows = {row.name: row for row in site.entries[1].board.rows}
    assert rows["shot_im"].track == "A"
    assert rows["selfsoup [met severities 1 3 5] (soup)"].track == "D"
    assert rows["tent"].seeds == (0, 1, 2, 3)
    assert all(row.incomplete is None for row in rows.values())
    assert {name for entry in site.entries[1:] for name, _ in entry.bundles} == set(shipped)


def test_one_more_seed_moves_no_other_row(shipped: dict[str, Bundle], field: Bundle) -> None:
    before = make_site(shipped)
    after = make_site({**shipped, "more.jsonl": part_of(field, of("tent", seeds=(0,)), seed=7)}, before)
    then, now = numbers_of(before), numbers_of(after)
    assert {name for name in then if then[name] != now[name]} == {"tent"}
    assert [c.text for c in changes(before, after) if "rank" not in c.text] == [
        "the file more.jsonl is added",
        f"{SLUG}: the row tent has {100 * now['tent'][0]:.1f} over 5 seeds instead of {100 * then['tent'][0]:.1f} over "
        "4 seeds",
    ]


class TestOtherBoards:
    @pytest.mark.parametrize("changed", [
        {"protocol": "continual"}, {"split": "joint"}, {"model": "other"}, {"limit": 100}, {"shift": "digits-d"},
        {"data": lambda content: content["data"] | {"labels_per_class": 5}},
        {"weights": {"digest": "sha256:other"}},
    ])  # fmt: skip
    def test_what_no_row_may_differ_in(self, field: Bundle, changed: dict[str, Any]) -> None:
        other = part_of(field, of("tent"), **changed)
        found = boards_of([*part_of(field, of("tent")).records, *other.records])
        assert len(found) == 2
        assert SLUG in found
        keys = {frozenset(record.key for record in records) for records in found.values()}
        assert keys == {frozenset(r.key for r in own.records) for own in (part_of(field, of("tent")), other)}

    def test_severities(self, shipped: dict[str, Bundle], field: Bundle) -> None:
        demo = shipped["digits-c-demo.jsonl"]
        found = boards_of([*demo.records, *field.records])
        assert set(found) == {THREE, SLUG}
        assert len(found[THREE]) == 333

    def test_a_stream_through_all_conditions_is_never_cut(self, shipped: dict[str, Bundle], field: Bundle) -> None:
        def stream(records: Sequence[Record]) -> list[Record]:
            return [record.model_copy(update={"protocol": "continual"}) for record in records]

        found = boards_of([*stream(shipped["digits-c-demo.jsonl"].records), *stream(field.records)])
        assert {len({r.severity for r in records} - {0.0}) for records in found.values()} == {1, 3}
        assert {r.seed for r in found["digits-c-digits-continual-disjoint-10-3"]} == {0, 1, 2}

    def test_fewer_corruptions_have_an_address_of_their_own(self, field: Bundle) -> None:
        few = part_of(field, lambda r: r.method == "tent" and r.corruption in (None, "contrast"))
        found = boards_of([*field.records, *few.records])
        assert list(found) == [SLUG]
        alone = [r for r in few.records if r.seed == 0]
        more = [r.model_copy(update={"seed": 7}) for r in alone]
        found = boards_of([*field.records, *more])
        assert len(found) == 2
        assert len(found[SLUG]) == len(field.records)
        (other,) = set(found) - {SLUG}
        assert other.startswith(f"{SLUG}-")
        assert len(found[other]) == 2 * (len(field.records) // 13) + 2

    def test_long_addresses_are_cut_and_stay_apart(self, field: Bundle) -> None:
        records = field.records[:1]
        long = [r.model_copy(update={"protocol": "continual:order=" + "x" * n}) for r in records for n in (300, 301)]
        corrupted = [r.model_copy(update={"corruption": "fog", "severity": 3.0}) for r in long]
        found = list(boards_of(corrupted))
        assert len(set(found)) == 2
        assert max(map(len, found)) < 200


class TestClashes:
    def test_the_same_result_twice_is_one(self, field: Bundle) -> None:
        again = part_of(field, of("tent", "sar"))
        both = {"a.jsonl": part_of(field, of("tent", "memo")), "b.jsonl": again}
        assert list(clashes(both)) == []
        published = merge(both)
        assert len(published.records) == 3 * 39
        assert {len(homes) for homes in published.homes.values()} == {1, 2}

    def test_of_two_the_first_made_stays(self, field: Bundle) -> None:
        first = part_of(field, of("tent"))
        late = tuple(record.model_copy(update={"created": "2030-01-01T00:00:00Z"}) for record in first.records)
        second = replace(first, records=late)
        for names in (("a", "b"), ("b", "a")):
            kept = merge(dict(zip(names, (first, second), strict=True))).records
            assert kept == {record.key: record for record in first.records}

    def test_other_outcomes_under_one_key(self, field: Bundle) -> None:
        first = part_of(field, of("tent"))
        key = first.records[0].key
        bits = Bits(first.bits[key].id, ~first.bits[key].hits)
        other = part_of(field, lambda record: record.key == key or record.method == "sar")
        both = {"b": first, "a": replace(other, bits={**other.bits, key: bits})}
        (problem,) = clashes(both, proposed=["a"])
        assert (problem.key, problem.file) == (key, "a")
        assert "with other outcomes under the same key" in problem.message

    def test_a_file_that_adds_nothing(self, field: Bundle) -> None:
        (problem,) = clashes({"a": field, "b": part_of(field, of("tent"))}, proposed=["b"])
        assert (problem.file, problem.message[:40]) == ("b", "holds nothing that is not published alre")

    def test_one_result_under_two_keys(self, field: Bundle) -> None:
        other = part_of(field, of("tent"), data=lambda content: content["data"] | {"seen": "0123"})
        found = list(clashes({"a": part_of(field, of("tent")), "b": other}, proposed=["b"]))
        assert len(found) == 39
        assert {problem.file for problem in found} == {"b"}


class TestCheck:
    """`bench publish check FILE` beside what is published."""

    @pytest.fixture
    def published(self, tmp_path: Path, shipped: dict[str, Bundle]) -> Path:
        folder = tmp_path / "published"
        folder.mkdir()
        for name in shipped:
            shutil.copy(RESULTS / name, folder / name)
        return folder

    def check(
        self, bundle: Bundle, published: Path, capsys: Any, name: str = "mine.jsonl", **more: Any
    ) -> tuple[int, str]:
        path = published.parent / name
        write_bundle(path, bundle)
        code = publishing.check(path, None, False, published, **more)
        return code, capsys.readouterr().out

    def test_another_rate_and_another_seed_are_added(self, published: Path, field: Bundle, capsys: Any) -> None:
        rate = part_of(field, of("tent"), options=with_option("tent", "lr", 0.01), created=later)
        code, said = self.check(rate, published, capsys)
        assert code == 0, said
        assert f"- {SLUG}: the row tent [lr=0.01] is added" in said
        code, said = self.check(part_of(field, of("memo", seeds=(2,)), seed=5, created=later), published, capsys)
        assert code == 0, said
        assert "the row memo has" in said
        assert "over 5 seeds instead of" in said

    def test_a_file_that_replaces_another_makes_results_vanish(
        self, published: Path, field: Bundle, capsys: Any
    ) -> None:
        some = part_of(field, of("tent", "source"))
        code, said = self.check(some, published, capsys, "digits-c-field.jsonl")
        assert code == 4
        assert "39 records of shot_im would vanish; only additions are published" in said
        assert f"{SLUG}: the row shot_im would vanish" in said
        code, said = self.check(some, published, capsys, "digits-c-field.jsonl", allow_changes=True)
        assert code == 0
        assert f"- {SLUG}: the row shot_im would vanish" in said

    @pytest.mark.slow
    def test_a_folder_takes_the_place_of_what_is_published(self, published: Path, field: Bundle, capsys: Any) -> None:
        proposed = published.parent / "proposed"
        shutil.copytree(published, proposed)
        write_bundle(proposed / "more.jsonl", part_of(field, of("tent", seeds=(0,)), seed=7, created=later))
        assert publishing.check(proposed, None, False, published) == 0
        assert "- the file more.jsonl is added" in capsys.readouterr().out
        (proposed / "digits-c-demo.jsonl").unlink()
        assert publishing.check(proposed, None, True, published) == 4
        problems = json.loads(capsys.readouterr().out)["problems"]
        assert any(f"the board {THREE} would vanish" in problem["message"] for problem in problems)

    def test_a_forged_date_changes_a_published_record(self, field: Bundle) -> None:
        before = make_site({"a": field})
        forged = part_of(field, of("source"))
        early = tuple(record.model_copy(update={"created": "2020-01-01T00:00:00Z"}) for record in forged.records)
        after = make_site({"a": field, "b": replace(forged, records=early)}, before)
        assert next(changes(before, after)).text.startswith("39 records of source would change")

    def test_a_run_is_compared_too(self, digits_run: Any, published: Path, capsys: Any) -> None:
        assert publishing.check(digits_run.store.folder, None, False, published) == 0
        assert "the file run.jsonl is added" in capsys.readouterr().out
        assert make_bundle(digits_run.records, digits_run.store.predictions)

    def test_the_default_is_this_checkout(self, submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(RESULTS.parents[1])
        assert publishing.published_beside(submission) == Path("leaderboards/results")
        assert publishing.published_beside(submission.parent) is None
        monkeypatch.chdir(submission.parent)
        assert publishing.published_beside(submission) is None
