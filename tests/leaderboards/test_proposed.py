"""Shifts whose data nobody can pin: the first submission proposes, others confirm or contradict; and reviews."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.runs import publishing
from leaderboards import make_bundle, read_bundle, write_bundle
from leaderboards.identity import labels_digest
from leaderboards.known import Definition, Known, scored
from leaderboards.provenance import Reproduction, Reviews, Withdrawal, reviews, weakest, weights_word
from leaderboards.submit import Checker, check_bundle, check_folder

Make = Callable[..., Path]
MODEL = "timm:resnet50.a1_in1k"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "published"
    path.mkdir()
    return path


@pytest.fixture
def make(new_results: Any, tmp_path: Path, folder: Path) -> Make:
    """Writes a bundle of `source` and `tent` on a shift with 15 corruptions, as a run on somebody's disk gives it."""
    number = iter(range(1000))

    def build(
        name: str,
        who: str | None = None,
        *,
        shift: str = "imagenet-c",
        images: int = 40,
        pixels: str = "a",
        labels: int = 0,
        weights: str = "b",
        model: str = MODEL,
        methods: tuple[str, ...] = ("source", "tent"),
        clean: bool = True,
        place: str | None = None,
        lr: float = 0.00025,
        ids: Any = None,
    ) -> Path:
        definition = publishing.checker().known.definitions[shift]
        results = new_results(tmp_path / f"run{next(number)}")
        shown = scored("disjoint", images) if ids is None else ids
        for method in methods:
            for place_of, corruption in enumerate([*([None] if clean else []), *definition.corruptions]):
                results.add(
                    method,
                    corruption,
                    ids=shown,
                    labels=(shown + labels) % 10,
                    hits=np.arange(len(shown)) % 5 > 0,
                    track="R" if method == "source" else "A",
                    severity=5.0 if corruption else 0,
                    shift=shift,
                    model=model,
                    options={"tent": {"lr": lr}} if method == "tent" else {},
                    components={"harness": "1"}
                    | ({"method:tent": "1"} if method == "tent" else {})
                    | ({f"corruption:{corruption}": "1"} if corruption and definition.made_here else {}),
                    data={
                        "digest": f"sha256:{pixels * 30}{place_of:02d}",
                        "storage": definition.storage,
                        "profile": definition.profile,
                    },
                    weights={"digest": f"sha256:{weights * 64}", "ready": True},
                    cost={"forwards": len(shown)},
                    env={"project": "0.1.0", "git": "0123456789ab", "dirty": False},
                )
        path = folder / f"{name}.jsonl"
        write_bundle(path, make_bundle(results.records, results.store.predictions, submitter=who, weights=place))
        return path

    return build


def words_of(folder: Path, checker: Checker | None = None) -> dict[str, set[str]]:
    bundles, problems = check_folder(folder, checker or publishing.checker())
    assert problems == []
    return {name: set(bundle.provenance.values()) for name, bundle in bundles.items()}


def problems_of(folder: Path, checker: Checker | None = None) -> list[tuple[str, str]]:
    return [(p.file, p.message) for p in check_folder(folder, checker or publishing.checker())[1]]


@pytest.mark.parametrize(
    "shift", ["imagenet-c", "cifar10-c-gen", "imagenet-c-bar", "tiny-imagenet-c", "laion-c", "fashion-c"]
)
def test_a_standard_shift_can_be_published(make: Make, folder: Path, shift: str) -> None:
    path = make("first", "ada", shift=shift)
    assert publishing.check(path, None, as_json=False) == 0
    assert words_of(folder) == {"first.jsonl": {"single source"}}


def test_others_confirm(make: Make, folder: Path) -> None:
    make("first", "ada")
    make("second", "bob", lr=0.001, methods=("tent",))
    assert words_of(folder) == {"first.jsonl": {"confirmed by 1"}, "second.jsonl": {"confirmed by 1"}}
    make("third", "eve", lr=0.002, methods=("tent",))
    assert words_of(folder)["third.jsonl"] == {"confirmed by 2"}


def test_nobody_confirms_himself(make: Make, folder: Path) -> None:
    make("first", "ada")
    make("second", "ada", lr=0.001, methods=("tent",))
    assert set.union(*words_of(folder).values()) == {"single source"}
    make("third", lr=0.002, methods=("tent",))
    make("fourth", lr=0.003, methods=("tent",))  # two without a name are one voice
    assert words_of(folder)["fourth.jsonl"] == {"confirmed by 1"}


def test_the_same_data_with_other_weights_confirm_no_pixels(make: Make, folder: Path) -> None:
    make("first", "ada")
    make("second", "bob", model="timm:resnet18.a1_in1k", weights="c", pixels="d")
    assert set.union(*words_of(folder).values()) == {"single source"}


@pytest.mark.parametrize(("other", "what"), [
    ({"pixels": "c"}, "has other pixels than"), ({"labels": 1}, "has other labels than"),
    ({"weights": "c", "pixels": "c"}, "has other weights than"),
])  # fmt: skip
def test_who_contradicts_is_named(make: Make, folder: Path, other: dict[str, Any], what: str) -> None:
    make("first", "ada")
    make("second", "bob", lr=0.001, methods=("tent",), **other)
    found = problems_of(folder)
    assert {file for file, message in found if what in message} == {"first.jsonl", "second.jsonl"}
    make("third", "eve", lr=0.002, methods=("tent",))
    found = problems_of(folder)
    assert {file for file, message in found if what in message} == {"second.jsonl"}
    assert all("; " in message for _, message in found)


def test_many_files_of_one_submitter_are_one_voice(make: Make, folder: Path) -> None:
    for number in range(3):
        make(f"flood{number}", "mallory", lr=0.01 + number, methods=("tent",), labels=1, pixels="c")
    make("honest", "ada")
    make("honest2", "bob", lr=0.001, methods=("tent",))
    assert {file for file, _ in problems_of(folder)} == {"flood0.jsonl", "flood1.jsonl", "flood2.jsonl"}


def test_a_file_name_of_two_people_is_no_contradiction(make: Make, folder: Path) -> None:
    make("first", "ada", model="mine.safetensors")
    make("second", "bob", model="mine.safetensors", weights="c", pixels="c", lr=0.001, methods=("tent",))
    assert problems_of(folder) == []


def test_a_part_of_the_images_is_another_set(make: Make, folder: Path) -> None:
    make("first", "ada", images=40)
    make("second", "bob", images=30, pixels="c", lr=0.001, methods=("tent",))
    assert problems_of(folder) == []


@pytest.mark.parametrize("ids", [
    np.arange(0, 40, 2), np.arange(3, 43, 2), np.arange(1, 41, 2)[::-1][:19][::-1], np.repeat(np.arange(1, 21, 2), 2),
    np.append(np.arange(1, 39, 2), 99),
])  # fmt: skip
def test_images_are_not_chosen(make: Make, folder: Path, ids: Any) -> None:
    make("first", ids=ids)
    assert all("each once" in message for _, message in problems_of(folder))
    assert problems_of(folder)


def test_there_are_no_more_images_than_the_shift_has(make: Make, folder: Path) -> None:
    checker = publishing.checker()
    small = checker.known.definitions["imagenet-c"].model_copy(update={"images": 38})
    known = checker.known.model_copy(update={"definitions": {"imagenet-c": small}})
    make("first")
    assert "on the 19 images of split disjoint" in problems_of(folder, replace(checker, known=known))[0][1]


def test_labels_of_a_whole_set_in_order_are_known(make: Make, folder: Path) -> None:
    """A shift of 40 images, four of each of ten classes: labels that are no multiple of that are refused."""
    checker = publishing.checker()
    whole = checker.known.definitions["imagenet-c"].model_copy(update={"images": 40, "per_class": 4, "classes": 10})
    known = checker.known.model_copy(update={"definitions": {"imagenet-c": whole}})
    make("first")
    assert "the labels of" in problems_of(folder, replace(checker, known=known))[0][1]


def test_clean_images_are_optional_where_they_may_be_missing(make: Make, folder: Path) -> None:
    make("first", clean=False)
    assert problems_of(folder) == []
    make("second", shift="cifar10-c-gen", clean=False)
    assert any("lacks clean" in message for _, message in problems_of(folder))


def test_a_stream_of_blends(new_results: Any, tmp_path: Path) -> None:
    """ccc: one record for a stream that shows every image as often as there are corruptions."""
    corruptions = publishing.checker().known.definitions["ccc"].corruptions
    shown = np.repeat(scored("disjoint", 20), len(corruptions))
    for number, times in enumerate((shown, np.append(shown[:-10], [shown[0]] * 10))):
        results = new_results(tmp_path / f"ccc{number}")
        for corruption, ids in ((None, scored("disjoint", 20)), ("ccc_uncalibrated", times)):
            results.add(
                "tent",
                corruption,
                ids=ids,
                hits=ids % 7 > 1,
                severity=5.0 if corruption else 0,
                shift="ccc",
                protocol="ccc_uncalibrated",
                model=MODEL,
                options={"tent": {"lr": 0.001}},
                components={"harness": "1", "method:tent": "1"}
                | ({f"corruption:{name}": "1" for name in corruptions} if corruption else {}),
                data={
                    "digest": "sha256:" + "a" * 32,
                    "profile": "imagenet224",
                    "history": [f"{name}@5" for name in corruptions],
                },
                weights={"digest": "sha256:" + "b" * 64, "ready": True},
                cost={"forwards": len(ids)},
                env={"project": "0.1.0", "git": "0123456789ab", "dirty": False},
            )
        bundle = make_bundle(results.records, results.store.predictions)
        found = [message for _, message in check_bundle(bundle, publishing.checker())]
        assert found == [] if number == 0 else any("more often than others" in message for message in found), found


class TestReviews:
    def test_withdrawn_rows_are_left_out_and_their_return_is_refused(self, make: Make, folder: Path) -> None:
        path = make("first", "ada")
        bundle = read_bundle(path)
        key = next(record.key for record in bundle.records if record.method == "tent")
        gone = Reviews({key: Withdrawal(date="2026-11-30", reason="wrong images")}, {})
        checker = replace(publishing.checker(), reviews=gone)
        bundles, problems = check_folder(folder, checker)
        assert problems == []
        assert {record.method for record in bundles["first.jsonl"].records} == {"source"}
        (message,) = [message for _, message in check_bundle(bundle, checker)]
        assert message.endswith("was withdrawn on 2026-11-30: wrong images; leave it out")

    def test_a_file_without_a_row_left_is_left_out(self, make: Make, folder: Path) -> None:
        bundle = read_bundle(make("first", methods=("source",)))
        gone = Reviews({bundle.records[0].key: Withdrawal(date="2026-11-30", reason="x")}, {})
        assert check_folder(folder, replace(publishing.checker(), reviews=gone)) == ({}, [])

    def test_reproduced_records_say_so(self, make: Make, folder: Path) -> None:
        key = read_bundle(make("first")).records[0].key
        found = Reviews({}, {key: Reproduction(date="2026-11-30", by="a maintainer")})
        bundles, _ = check_folder(folder, replace(publishing.checker(), reviews=found))
        words = bundles["first.jsonl"].provenance
        assert words.pop(key) == "reproduced"  # type: ignore[attr-defined]
        assert set(words.values()) == {"single source"}

    def test_the_files_are_tables(self) -> None:
        assert reviews() == Reviews({}, {})

    def test_a_row_is_as_well_confirmed_as_its_least_record(self) -> None:
        assert weakest(["reproduced", "confirmed by 12", "confirmed by 2"]) == "confirmed by 2"
        assert weakest(["known data", "single source", "confirmed by 2"]) == "single source"
        assert weakest(["known data", "reproduced"]) == "known data"


def test_weights_are_known_stated_or_only_named(make: Make, submission: Path) -> None:
    known = publishing.checker().known
    link = f"hf:ada/net@{'0' * 40}"
    stated, named, pinned = (
        read_bundle(path) for path in (make("a", place=link, model="x.pt"), make("b", model="x.pt"), submission)
    )
    assert weights_word(stated.records[0], stated, known) == f"weights stated at {link}"
    assert "stated nowhere" in weights_word(named.records[0], named, known)
    assert weights_word(pinned.records[0], pinned, known) == "known weights"


def test_notes_say_what_a_reader_must_know(make: Make, folder: Path, submission: Path) -> None:
    make("first", "ada", place="https://x.y/net.pt", model="x.pt")
    bundles, _ = check_folder(folder, publishing.checker())
    said = " ".join(bundles["first.jsonl"].notes)
    assert "Submitted by ada." in said
    assert "x.pt: weights stated at https://x.y/net.pt." in said
    assert "Scored on 20 of the 25000 images that imagenet-c has with split disjoint." in said
    assert "follow from the probabilities" in said
    bundles, _ = check_folder(submission.parent, publishing.checker())
    said = " ".join(bundles[submission.name].notes)
    assert "does not say who" in said
    assert "Scored on" not in said


def test_the_definitions_are_those_of_the_code() -> None:
    from bench.runs.known_data import definitions

    assert publishing.checker().known.definitions == definitions()


def test_a_definition_is_what_its_loader_says() -> None:
    from bench.shifts import load_shift

    shift, definition = load_shift("digits-c"), publishing.checker().known.definitions["digits-c"]
    assert list(shift.corruptions) == definition.corruptions
    assert (shift.storage, shift.profile, shift.classes) == (definition.storage, definition.profile, definition.classes)
    assert (shift.made_here, shift.tiles is not None) == (definition.made_here, definition.tiles)


def test_a_table_of_one_s_own(make: Make, tmp_path: Path) -> None:
    table = tmp_path / "known.json"
    definition = publishing.checker().known.definitions["imagenet-c"]
    table.write_text(json.dumps(Known(definitions={"mine-c": definition}).model_dump(mode="json")))
    assert publishing.check(make("first"), None, as_json=False, table=table) == 4
    table.write_text(json.dumps(Known(definitions={"imagenet-c": definition}).model_dump(mode="json")))
    assert publishing.check(make("first"), None, as_json=False, table=table) == 0


def test_definition_of_a_split() -> None:
    for split in ("disjoint", "joint", "transductive"):
        assert np.array_equal(
            scored(split, 7), {"disjoint": [1, 3, 5], "joint": [0, 2, 4, 6], "transductive": range(7)}[split]
        )
    made = Definition(
        classes=2, images=8, per_class=4, corruptions=["fog"], severities=[5.0], clean="never", storage="uint8",
        profile="auto", made_here=True,
    )  # fmt: skip
    assert made.conditions == {"fog@5"}
    assert made.most("disjoint") == 4
    assert made.labels("disjoint", 3) is None
    assert made.labels("disjoint", 4) == labels_digest(np.array([1, 3, 5, 7]), np.array([0, 0, 1, 1]))
