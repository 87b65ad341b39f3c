"""`--head`: what is put on a stock is part of what a number is, and is said on every board."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from bench.core.conditions import CLEAN, Condition
from bench.core.errors import UsageError
from bench.models.weights_io import load_stock
from bench.planning.plan import make_plan
from bench.runs.run import Outcome
from bench.runs.vocabulary import method_of
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift
from bench.shifts.shift import labelled_source
from leaderboards.boards import make_board
from leaderboards.store import Store
from leaderboards.vocabulary import method_problems
from methods.nets.weights import Classifier

Quick = Callable[..., Outcome]


def keys(settings: dict[str, Any], **changes: Any) -> set[str]:
    return set(make_plan(make_spec({**settings, **changes})).keys)


def test_neighbours_are_scored_as_by_another_library(settings: dict[str, Any], run_quick: Quick) -> None:
    outcome = run_quick(settings, method="source", head="knn", limit=40)
    shift, stock = load_shift("digits-c"), load_stock(settings["stock"])
    source = labelled_source(shift, 10, 0)
    model = Classifier(stock.architecture, 10).eval()
    model.encoder.load_state_dict(stock.part("encoder"))
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    pixels = source.images[:]
    theirs.fit(model.features(pixels.float() / 255).detach().numpy(), source.labels.numpy())
    for record in outcome.records():
        condition = CLEAN if record.corruption is None else Condition(record.corruption, record.severity)
        found = Store(outcome.out).predictions(record)
        images = shift.images(found.id, condition).float() / 255
        assert (theirs.predict(model.features(images).detach().numpy()) == found.predicted).mean() >= 0.97
        assert record.options["source"]["head"] == "knn"
        assert list(method_problems(record, method_of("source"))) == []  # type: ignore[arg-type]


def test_a_soup_mixes_encoders_and_each_ingredient_has_a_head(settings: dict[str, Any], run_quick: Quick) -> None:
    probe = run_quick(settings, method="selfsoup,tent", head="probe")
    knn = run_quick(settings, method="selfsoup,selfsoup_single,ssl_clean", head="knn")
    parts = {(r.method, r.part) for r in knn.records()}
    assert parts == {
        *(("selfsoup", part) for part in ("soup", "ingredient:mae", "ingredient:mocov3")),
        ("selfsoup_single", None),
        ("ssl_clean", None),
    }
    assert {r.options["selfsoup"]["order"] for r in knn.records()} == {"soup_then_tune"}
    plan = make_plan(make_spec({**settings, "method": "selfsoup", "head": "knn", "seed": 1}))
    assert not [task.label for task in plan.trainings if task.label.startswith("fine-tune")]
    records = [*probe.records(), *knn.records(), *run_quick(settings, method="selfsoup").records()]
    names = {row.name for row in make_board(records).rows if row.part == "soup"}
    assert names == {"selfsoup (soup)", "selfsoup [head=probe] (soup)", "selfsoup [head=knn] (soup)"}
    assert {row.name for row in knn.board().rows} >= {"selfsoup [head=knn] (mean)", "ssl_clean [head=knn]"}
    assert any(row.name == "tent [head=probe]" for row in probe.board().rows)


def test_the_default_head_changes_no_key(settings: dict[str, Any]) -> None:
    methods = "source,selfsoup,tent"
    usual = keys(settings, method=methods)
    assert keys(settings, method=methods, head="fine-tuned") == usual
    assert not keys(settings, method=methods, head="probe") & usual
    assert not keys(settings, method="source", head="probe") & keys(settings, method="source", head="knn")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "source,supervised_soup"}, "--head knn: supervised_soup trains in a way of its own"),
        ({"method": "continued_ssl_soup"}, "with a head, run ssl_clean"),
        ({"method": "tent"}, "tent: nearest neighbours have no layer that tent could adapt; use --head probe"),
        ({"method": "ttt"}, "--head knn: source_rotation trains in a way of its own"),
        ({"model": "MODEL", "stock": None}, "--head knn: a ready classifier has a head; leave it out"),
        ({"head": "fine-tuned", "method": "selfsoup", "set": {"selfsoup": {"head": "knn"}}}, "put on mixed encoders"),
        ({"head": "linear"}, "--head must be 'fine-tuned', 'probe' or 'knn', not 'linear'"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef net():\n return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))\n"
    )
    asked = {**settings, "head": "knn", **changes}
    if "model" in changes:
        asked["model"] = f"{tmp_path / 'net.py'}:net"
    with pytest.raises(UsageError, match=sentence) as caught:
        make_plan(make_spec(asked))
    assert "\n" not in str(caught.value)


def test_ways_of_mixing_classifiers_give_way(settings: dict[str, Any]) -> None:
    asked = {**settings, "method": "selfsoup", "head": "knn"}
    ways = {"set": {"selfsoup": {"mixes": ["uniform", "greedy"], "holdout": 0.1}}}
    with pytest.raises(UsageError, match="'greedy' mixes classifiers, not encoders"):
        make_plan(make_spec(asked, ways))
    seasoned = {"set": {"selfsoup": {"mixes": ["uniform", "seasoned:epochs=1"]}}}
    assert {entry.part for entry in make_plan(make_spec(asked, seasoned)).entries} >= {"soup", "soup:seasoned:epochs=1"}
