"""Adapters that need the classifier of one recipe: alone, with it, with another, and on ready classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import UsageError
from bench.planning.plan import make_plan
from bench.runs.run import run
from bench.settings.methods import parse_method
from bench.settings.run_spec import make_spec
from leaderboards.verify import verify
from methods import METHODS
from methods.recipes.source_rotation import fine_tune_jointly

FAST: dict[str, dict[str, Any]] = {
    "source_rotation": {"epochs": 2, "batch_size": 50},
    "ttt": {"steps": 1, "copies": 2},
    "ttt_online": {"copies": 2},
    "ttt_mae": {"steps": 1, "views": 2},
    "ttt_mae_online": {"steps": 1, "views": 2},
    "source_contrast": {"epochs": 2, "batch_size": 50},
    "ttt_pp": {"queue": 10, "encoder_scale": 1e-3, "projection_scale": 1e-3},
}
NEEDY = [name for name, row in METHODS.items() if row.needs]
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), nn.Linear(48, 10)
        self.rotation = {rotation}

    def rotation_logits(self, images):
        return self.rotation(self.body(images))

    def forward(self, images):
        return self.head(self.body(images))
"""


def spec_of(settings: dict[str, Any], method: str, **changes: Any) -> Any:
    merged = {**settings, **changes, "method": method}
    names = {row.name for m in map(parse_method, method.split(",")) for row in (m.recipe, m.adapter) if row}
    return make_spec(merged, {"set": {name: FAST[name] for name in names if name in FAST}})


@pytest.mark.filterwarnings("error")
def test_alone_it_runs_on_what_it_needs_and_shares_the_training(settings: dict[str, Any]) -> None:
    names = "source_rotation,ttt,ttt_online,source_rotation+tent"
    plan = make_plan(spec_of(settings, names))
    jobs = {entry.trial.method: entry.job for entry in plan.entries}
    assert all(job is not None and job.function is fine_tune_jointly for job in jobs.values())
    assert len(plan.trainings) == 2  # the probe and one training
    outcome = run(spec_of(settings, names, corruption="fog"))
    assert outcome.exit_code == 0
    records = {record.method: record for record in outcome.records() if record.corruption == "fog"}
    assert {name: record.track for name, record in records.items()} == {
        "source_rotation": "R",
        "ttt": "A",
        "ttt_online": "A",
        "source_rotation+tent": "A",
    }
    assert records["ttt"].options.keys() == {"source_rotation", "ttt"}
    assert verify(outcome.out).ok
    out = settings["out"]
    again = run(
        spec_of(settings, "ttt", corruption="contrast", stock=None, init_from=str(out), out=out.parent / "other")
    )
    assert again.exit_code == 0


@pytest.mark.filterwarnings("error")
def test_a_run_that_aligns_with_the_source_is_done_and_in_its_track(settings: dict[str, Any]) -> None:
    outcome = run(spec_of(settings, "source_contrast,ttt_pp", corruption="fog"))
    assert outcome.exit_code == 0
    tracks = {record.method: record.track for record in outcome.records() if record.corruption == "fog"}
    assert tracks == {"source_contrast": "R", "ttt_pp": "B"}
    assert verify(outcome.out).ok


def test_options_of_the_source_hold_for_both_trainings(settings: dict[str, Any]) -> None:
    options = make_plan(spec_of(settings, "ttt")).entries[0].trial.options["source_rotation"]
    plain = make_plan(spec_of(settings, "source")).entries[0].trial.options["source"]
    assert not options["flip"]
    assert {
        name: value for name, value in options.items() if name in plain and name not in FAST["source_rotation"]
    } == {name: value for name, value in plain.items() if name not in FAST["source_rotation"]}


@pytest.mark.parametrize("name", NEEDY)
def test_an_estimate_has_what_the_adapter_needs(settings: dict[str, Any], name: str) -> None:
    from bench.planning.cost_estimate import estimate

    assert estimate(make_plan(spec_of(settings, name))) is not None


@pytest.mark.parametrize("recipe", ["source", "supervised_soup"])
@pytest.mark.parametrize("name", NEEDY)
def test_another_recipe_of_the_table_is_refused_before_it_is_trained(
    settings: dict[str, Any], recipe: str, name: str
) -> None:
    sentence = rf"{recipe} does not train what {name} needs; use {METHODS[name].needs}\+{name}"
    with pytest.raises(UsageError, match=sentence):
        make_plan(spec_of(settings, f"{recipe}+{name}"))


def test_an_adapter_of_a_file_names_what_it_needs_as_well(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from methods.adapters.ttt import Ttt\n\nclass Mine(Ttt):\n    pass\n")
    assert parse_method(f"{tmp_path / 'mine.py'}:Mine").recipe.name == "source_rotation"
    with pytest.raises(UsageError, match=r"source does not train what mine\.py:Mine needs; use source_rotation"):
        make_plan(spec_of(settings, f"source+{tmp_path / 'mine.py'}:Mine"))


def test_a_ready_classifier_may_have_the_head_itself(settings: dict[str, Any], tmp_path: Path) -> None:
    changed = {key: value for key, value in settings.items() if key != "stock"}
    for rotation, code, said in (("nn.Linear(48, 4)", 0, ""), ("None", 2, "this one has 0; use source_rotation+ttt")):
        file = tmp_path / f"model{code}.py"
        file.write_text(MODEL.format(rotation=rotation))
        outcome = run(spec_of(changed, "ttt", model=f"{file}:Net", out=tmp_path / str(code)))
        assert (outcome.exit_code != 0) == (code != 0)
        errors = {str(record.error) for record in outcome.records() if record.status != "done"}
        assert all(said in error for error in errors)
        assert bool(errors) == bool(said)
    with pytest.raises(UsageError, match="source_rotation starts from a stock"):
        make_plan(spec_of(changed, "source_rotation+ttt", model=f"{tmp_path / 'model0.py'}:Net"))
