"""`--pool SHIFT`: a recipe learns from one shift, once, and is scored on others, and every record says what it saw."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.core.errors import UsageError
from bench.planning.init_from import inherit
from bench.planning.other_pool import access_with, check_pool, seen_from
from bench.planning.plan import make_plan
from bench.runs.callbacks import RunCallback
from bench.runs.grid import plan_grid, run_grid
from bench.runs.repeat import repeat, spec_of
from bench.runs.run import Outcome
from bench.runs.vocabulary import method_of, vocabulary
from bench.settings.grid import cells_of
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift
from leaderboards.boards import MEANING
from leaderboards.record import Record, condition_met
from leaderboards.vocabulary import method_problems, word_problems
from methods import METHODS
from methods.table import TRACKS, Access
from tests.bench.conftest import FAST

Quick = Callable[..., Outcome]

BODY = """
import torch
from sklearn.datasets import load_digits
from bench.shifts.user_shift import OwnShift

class Lamp(OwnShift):
    classes = 10
    corruptions = ("dark", "bright")
    default_labels = 10

    def images(self, part):
        small, labels = load_digits(return_X_y=True)
        images = (small.reshape(-1, 8, 8) * 15).astype("uint8").repeat(4, 1).repeat(4, 2)
        rows = slice(0, 600) if part == "train" else slice(600, 700)
        return images[rows], labels[rows]

    def corrupt(self, images, corruption, severity, ids):
        factor = 1 / (1 + severity) if corruption == "dark" else 1 + severity
        return (images * factor).clamp(0, 255).to(torch.uint8)

class Named(Lamp):
    classes = tuple("abcdefghij")
"""


@pytest.fixture
def lamp(tmp_path: Path) -> str:
    file = tmp_path / "lamps.py"
    file.write_text(BODY)
    return f"{file}:Lamp"


def rows(outcome: Outcome, part: str | None = None) -> list[Record]:
    return [record for record in outcome.records() if record.part == part]


def fast(*methods: str) -> dict[str, Any]:
    return {"set": {name: FAST[name] for name in methods}}


def trainings(cache: Path) -> set[str]:
    return {path.name for path in (cache / "weights").iterdir()}


def test_one_soup_is_trained_once_and_scored_on_every_shift(
    settings: dict[str, Any], lamp: str, own_cache: Path
) -> None:
    asked = {**settings, "method": "selfsoup,selfsoup+tent", "corruption": None, "limit": 8}
    grid = {"shift": ["digits-c", lamp], "pool": "digits-c"}
    run_grid(plan_grid(cells_of(asked, {"shift": "digits-c"}, fast("selfsoup", "tent")), RunCallback()), RunCallback())
    alone = trainings(own_cache)
    done = run_grid(plan_grid(cells_of(asked, grid, fast("selfsoup", "tent")), RunCallback()), RunCallback())
    assert trainings(own_cache) == alone
    (_, here), (_, there) = done
    assert here.reused == len(here.keys)  # the pool of the scored shift is no other pool
    for record in (*rows(there, "soup"), *[r for r in there.records() if r.method == "selfsoup+tent"]):
        assert (record.track, record.access.test, record.other_shifts) == ("F", "other", ("digits-c",))
        assert len(record.data.history) == 12
        assert record.data.history[0] == "gaussian_noise@3 of digits-c"
        assert list(method_problems(record, method_of(record.method))) == []  # type: ignore[arg-type]
        wrong = "has a history that its access and protocol do not give"
        problems = list(word_problems(record, vocabulary()))
        assert not any(wrong in problem for problem in problems)
        for history in ((), ("fog@3",), ("fog@3 of digits-c", "fog@3 of laion-c")):
            other = record.model_copy(update={"data": record.data.model_copy(update={"history": history})})
            assert any(wrong in problem for problem in word_problems(other, vocabulary()))
    assert {record.track for record in rows(here, "soup")} == {"D"}
    named = {row.name for row in there.board().rows if row.part == "soup"}
    assert named == {"selfsoup [saw digits-c] (soup)"}


def test_its_number_is_that_of_init_from(settings: dict[str, Any], lamp: str, run_quick: Quick) -> None:
    """Two ways to the same classifier: planned with --pool, or taken from the folder of the run that trained it."""
    whole = {**settings, "corruption": None}
    first = run_quick(whole, method="selfsoup")
    pooled = run_quick({**whole, "shift": lamp, "out": first.out.parent / "pooled"}, method="selfsoup", pool="digits-c")
    later = {key: value for key, value in whole.items() if key != "stock"}
    taken = run_quick(
        {**later, "shift": lamp, "out": first.out.parent / "taken"}, method="source", init_from=f"{first.out}:selfsoup"
    )
    numbers = [
        {record.corruption: record.metrics for record in rows(outcome, part)}
        for outcome, part in ((pooled, "soup"), (taken, None))
    ]
    assert numbers[0] == numbers[1] != {}
    told = [(r.track, r.access.test, r.data.history) for o, p in ((pooled, "soup"), (taken, None)) for r in rows(o, p)]
    assert len(set(told)) == 1
    assert told[0][:2] == ("F", "other")
    back = inherit(f"{pooled.out}:selfsoup", (0,), "cpu", make_plan)
    assert seen_from("digits-c", back.shift, back.met) == first.records()[0].data.history


def test_other_methods_and_the_identity_of_the_own_pool_are_untouched(
    settings: dict[str, Any], lamp: str, run_quick: Quick
) -> None:
    def keys(**changes: Any) -> dict[tuple[str, str | None, str | None], str]:
        plan = make_plan(make_spec({**settings, "shift": lamp, "corruption": None, **changes}, fast("selfsoup")))
        return {
            (entry.trial.method, entry.part, condition.corruption): key
            for entry in plan.entries
            for condition, key in entry.keys.items()
        }

    own, other = (keys(method="source,selfsoup,tent", pool=pool) for pool in (None, "digits-c"))
    assert own.keys() == other.keys()
    for place, key in own.items():
        assert (key == other[place]) == (place[0] != "selfsoup"), place
    assert keys(method="selfsoup", pool=lamp) == {p: key for p, key in own.items() if p[0] == "selfsoup"}
    some = keys(method="selfsoup", corruption="dark")
    assert not set(some.values()) & set(keys(method="selfsoup", corruption="dark", pool=lamp).values())


def test_the_pool_is_whole_whatever_is_scored(settings: dict[str, Any], lamp: str) -> None:
    plan = make_plan(make_spec({**settings, "method": "selfsoup", "pool": "digits-c"}, fast("selfsoup")))
    assert all(len(entry.history) == 12 for entry in plan.entries)
    assert all(" of " not in met for entry in plan.entries for met in entry.history)
    assert len(plan.entries[0].keys) == 3
    assert "selfsoup: all of digits-c (12 conditions, its adapt half) and scored on digits-c" in plan.notes


def test_a_stream_and_a_union_are_told_beside_the_pool(settings: dict[str, Any], lamp: str) -> None:
    base = {**settings, "shift": lamp, "corruption": "dark", "method": "selfsoup", "pool": "digits-c"}
    plan = make_plan(make_spec(base, {"protocol": "continual", "corruption": "dark,bright"}, fast("selfsoup")))
    assert plan.entries[0].history[-2:] == ("dark@3", "bright@3")
    assert plan.entries[0].access.test == "other"
    assert plan.entries[0].trial.options["selfsoup"]["ssl_area"] == 0.5  # tuned on the digits, not on the lamps
    union = make_plan(make_spec(base, fast("selfsoup"), {"set": {"selfsoup": {"also_on": [lamp]}}}))
    assert union.entries[0].access.track == "D"
    assert set(union.entries[0].history) >= {"dark@3", "bright@3", "fog@3 of digits-c"}
    with pytest.raises(UsageError, match="also_on names digits-c, the shift of --pool"):
        make_plan(make_spec(base, fast("selfsoup"), {"set": {"selfsoup": {"also_on": ["digits-c"]}}}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "source,tent"}, "--pool digits-c: no method of this run learns from a pool"),
        ({"model": "MODEL", "method": "tent"}, "a ready classifier learns from no pool"),
        ({"shift": "NAMED"}, "its classes are not those of lamps.py:Named in the same order"),
        ({"set": {"selfsoup": {"shift_pool": "per_corruption"}}}, "shift_pool = per_corruption divides the pool"),
        ({"pool": "digit-c"}, "did you mean 'digits-c'"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    settings: dict[str, Any], lamp: str, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef net():\n return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))\n"
    )
    asked = {**settings, "method": "selfsoup", "shift": lamp, "pool": "digits-c", "corruption": None, **changes}
    if asked["shift"] == "NAMED":
        asked["shift"] = lamp.replace(":Lamp", ":Named")
    if "model" in changes:
        asked = {**asked, "model": f"{tmp_path / 'net.py'}:net", "stock": None}
    with pytest.raises(UsageError, match=sentence) as caught:
        make_plan(make_spec(asked))
    assert "\n" not in str(caught.value)


def test_a_record_of_it_is_planned_again_from_itself(settings: dict[str, Any], lamp: str, run_quick: Quick) -> None:
    outcome = run_quick({**settings, "shift": "digits-c", "corruption": "fog"}, method="selfsoup", pool=lamp)
    found = next(record for record in rows(outcome, "soup") if record.corruption == "fog")
    asked = spec_of(found)
    assert (asked["pool"], asked["corruption"], asked["severity"]) == ("lamps.py:Lamp", ["fog"], [3.0])
    flags = {"stock": settings["stock"], "jobs": 1}
    result = repeat(found.model_copy(update={"data": _at(found, lamp)}), flags)
    assert (result["same"], result["same_identity"]) == (True, True)


def _at(record: Record, place: str) -> Any:
    """The data of a record that names the file where it lies, as shifts of a name do."""
    history = tuple(f"{condition_met(met)[0]} of {place}" for met in record.data.history)
    return record.data.model_copy(update={"history": history})


def test_a_shift_of_some_of_the_classes_scores_a_classifier_of_all(lamp: str) -> None:
    """As ImageNet-R does: 200 of the 1000 classes, the others masked."""
    whole = load_shift(lamp)
    data = SimpleNamespace(shift=whole)
    some = {"name": "some", "classes": 2, "members": ((3,), (7,)), "family": whole.family, "whole_source": None}
    for wanted, fits in ((10, True), (9, False)):
        scored = SimpleNamespace(**some, source_classes=wanted)
        with contextlib.nullcontext() if fits else pytest.raises(UsageError, match="its classes are not those of some"):
            check_pool(data, scored, ["selfsoup"], from_stock=True)  # type: ignore[arg-type]


def test_histories_read_from_every_side() -> None:
    assert seen_from("a", "b", ["fog@5", "snow@3 of a", "frost@1 of c"]) == ("fog@5 of b", "snow@3", "frost@1 of c")
    assert condition_met("fog@2.5 of mini-vtab:dtd") == ("fog@2.5", "mini-vtab:dtd")
    assert condition_met("a of b.py:dim@5") == ("a of b.py:dim@5", None)
    pool = METHODS["tent_pool"].access
    assert access_with(pool, ("fog@5 of b",)).track == "E"
    assert access_with(pool, ("fog@5 of b", "fog@5")).track == "C"
    assert access_with(METHODS["source"].access, ("fog@5 of b",)).track == "R"
    assert (Access(test="other") | Access(test="stream")).test == "other"
    assert (Access(test="other") | Access(test="pool")).test == "pool"


def test_both_tables_of_tracks_name_the_same(settings: dict[str, Any]) -> None:
    assert list(TRACKS) == list(MEANING)
    assert (
        json.dumps([TRACKS[track].partition(":")[0] for track in ("E", "F")])
        == '["other shift seen", "other shift seen"]'
    )
