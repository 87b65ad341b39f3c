"""Complete runs on a tiny stock: rows, resume, failures, parts, keys, and data hidden from methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core.errors import BenchError, UsageError
from bench.planning.plan import make_plan
from bench.planning.run_methods import BASELINES
from bench.runs import open_results as reading
from bench.runs import run as run_module
from bench.runs.repeat import spec_of
from bench.runs.run import Outcome
from bench.settings.run_spec import make_spec
from leaderboards.record import Record
from leaderboards.store import Store
from leaderboards.verify import verify

Quick = Callable[..., Outcome]

PLUGIN = '''
from dataclasses import dataclass
import torch
from methods.base import Adapter
from methods.losses import entropy
from methods.norms import norm_parameters
from methods.table import Access

class SharpTent(Adapter):
    """Entropy minimisation on confident samples only."""
    access = Access(test="stream", state="online", backprop="norm")

    @dataclass(frozen=True)
    class Config:
        lr: float = 1e-3
        margin: float = 2.0

    def configure(self, source):
        self.parameters = [p.requires_grad_() for p in norm_parameters(self.model).values()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.config.lr)

    def predict(self, images):
        with torch.enable_grad():
            logits = self.model(images)
            losses = entropy(logits)
            losses[losses < self.config.margin].sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return logits.detach()
'''


def by_place(outcome: Outcome) -> dict[tuple[str, str | None, str | None], Record]:
    return {(r.method, r.part, r.corruption): r for r in outcome.records()}


def fingerprints(folder: Path) -> dict[str, tuple[Any, ...]]:
    """The metrics and predictions of a folder, by key, which must not depend on how the run went."""
    store = Store(folder)
    found = {}
    for record in store.records():
        columns = vars(store.predictions(record)) if record.predictions else {}
        found[record.key] = (
            record.status,
            record.metrics,
            {k: v.tobytes() for k, v in columns.items() if v is not None},
        )
    return found


def test_a_run_leaves_a_record_and_predictions_for_every_condition(settings: dict[str, Any], run_quick: Quick) -> None:
    outcome = run_quick(settings, method="source,tent,memo")
    assert (outcome.done, outcome.failed, outcome.exit_code) == (9, 0, 0)
    records = by_place(outcome)
    assert set(records) == {(m, None, c) for m in ("source", "tent", "memo") for c in (None, "fog", "contrast")}
    assert {r.n for r in records.values()} == {12}
    assert records["memo", None, "fog"].cost.forwards == 12 * 5  # type: ignore[union-attr]
    assert records["memo", None, "fog"].cost.backwards == 12 * 4  # type: ignore[union-attr]
    assert records["tent", None, "fog"].cost.backwards == 12  # type: ignore[union-attr]
    assert records["source", None, "fog"].cost.backwards == 0  # type: ignore[union-attr]
    assert verify(outcome.out).ok
    lines = (outcome.out / "records.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in lines) == sorted(outcome.keys)


def test_a_second_run_measures_nothing_and_changes_no_byte(settings: dict[str, Any], run_quick: Quick) -> None:
    first = run_quick(settings, method="source,tent")
    before = {path: path.read_bytes() for path in (first.out / "records").iterdir()}
    second = run_quick(settings, method="source,tent")
    assert (second.done, second.reused) == (0, 6)
    assert {path: path.read_bytes() for path in (second.out / "records").iterdir()} == before


@pytest.mark.parametrize("protocol", ["reset_each_shift", "continual"])
def test_a_run_killed_between_any_two_records_ends_with_the_same_records(
    settings: dict[str, Any], run_quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    whole = fingerprints(run_quick(settings, method="tent", protocol=protocol, out=tmp_path / "whole").out)
    real = Store.write
    for survivors in range(len(whole)):
        folder = tmp_path / f"killed-{survivors}"
        written = 0

        def write(self: Store, *args: Any, last: int = survivors, **kwargs: Any) -> bool:
            nonlocal written
            if written == last:
                raise KeyboardInterrupt
            written += 1
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Store, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run_quick(settings, method="tent", protocol=protocol, out=folder)
        monkeypatch.setattr(Store, "write", real)
        assert len(fingerprints(folder)) == survivors
        resumed = run_quick(settings, method="tent", protocol=protocol, out=folder)
        assert resumed.reused == survivors
        assert fingerprints(folder) == whole


def test_predictions_do_not_depend_on_the_number_of_processes(
    settings: dict[str, Any], run_quick: Quick, tmp_path: Path
) -> None:
    alone = run_quick(settings, method="tent", out=tmp_path / "alone")
    apart = run_quick(settings, method="tent", out=tmp_path / "apart", jobs=2)
    assert fingerprints(alone.out) == fingerprints(apart.out)


def test_source_predictions_do_not_depend_on_batch_size(
    settings: dict[str, Any], run_quick: Quick, tmp_path: Path
) -> None:
    labels = []
    for size in (5, 12):
        outcome = run_quick(settings, batch_size=size, out=tmp_path / str(size))
        store = Store(outcome.out)
        fog = next(r for r in outcome.records() if r.corruption == "fog")
        labels.append((store.predictions(fog).id, store.predictions(fog).p_label))
    assert np.array_equal(labels[0][0], labels[1][0])
    np.testing.assert_allclose(labels[0][1], labels[1][1], atol=1e-5)


def test_seeds_move_the_order_but_not_the_pixels(settings: dict[str, Any], run_quick: Quick) -> None:
    outcome = run_quick(settings, seeds=2)
    store = Store(outcome.out)
    first, second = (next(r for r in outcome.records() if r.corruption == "fog" and r.seed == seed) for seed in (0, 1))
    assert first.data.digest == second.data.digest
    assert first.key != second.key
    orders = [store.predictions(record).id for record in (first, second)]
    assert not np.array_equal(*orders)
    assert np.array_equal(*(np.sort(order) for order in orders))


def test_a_self_soup_comes_with_its_ingredients_and_a_board_with_their_mean(
    settings: dict[str, Any], run_quick: Quick
) -> None:
    outcome = run_quick(settings, method="selfsoup")
    assert {r.part for r in outcome.records()} == {"soup", "ingredient:mae", "ingredient:mocov3"}
    rows = {row.part: row for row in outcome.board().rows}
    assert set(rows) == {"soup", "ingredient:mae", "ingredient:mocov3", "mean"}
    mean = (rows["ingredient:mae"].accuracy + rows["ingredient:mocov3"].accuracy) / 2  # type: ignore[operator]
    assert rows["mean"].accuracy == pytest.approx(mean)
    assert {row.track for row in rows.values()} == {"D"}


def test_an_adapter_starts_from_the_soup(settings: dict[str, Any], run_quick: Quick) -> None:
    outcome = run_quick(settings, method="selfsoup,selfsoup+tent", batch_size=12)
    records = by_place(outcome)
    store = Store(outcome.out)
    soup = store.predictions(records["selfsoup", "soup", "fog"])
    adapted = store.predictions(records["selfsoup+tent", None, "fog"])
    # One batch: TENT predicts before its first update, so with LayerNorm it must equal the soup it starts from.
    np.testing.assert_array_equal(soup.p_label, adapted.p_label)
    assert records["selfsoup+tent", None, "fog"].access.state == "offline"
    assert records["selfsoup+tent", None, "fog"].track == "D"


def test_baselines_come_in_their_own_tracks(settings: dict[str, Any], run_quick: Quick) -> None:
    outcome = run_quick(settings, method="selfsoup", with_baselines=True)
    tracks = {row.name: row.track for row in outcome.board().rows if row.main}
    assert tracks == {
        "source": "R",
        "supervised_soup (soup)": "R",
        "continued_ssl_soup (soup)": "R",
        "selfsoup_clean (soup)": "R",
        "ssl_clean": "R",
        "tent_pool": "C",
        "shot_im_pool": "C",
        "selfsoup_single": "D",
        "selfsoup (soup)": "D",
    }
    soups = ("supervised_soup", "continued_ssl_soup", "selfsoup_clean", "selfsoup")
    parts = {row.name for row in outcome.board().rows}
    assert {f"{method} (soup:{how})" for method in soups for how in ("greedy", "best", "ensemble")} <= parts
    ensemble = next(row for row in outcome.board().rows if row.name == "selfsoup (soup:ensemble)")
    assert ensemble.forwards == 2
    for record in outcome.records():
        assert (record.connectivity is not None) == (record.method in soups and record.part == "soup")
    chosen = {(r.method, r.part): r.mixture for r in outcome.records() if r.mixture is not None}
    assert set(chosen) == {(method, f"soup:{how}") for method in soups for how in ("greedy", "best")}
    best = chosen["selfsoup", "soup:best"]
    assert sorted(best.shares["all"]) == [0.0, 1.0]
    assert [name.startswith("fine-tune ingredient") for name in best.ingredients] == [True, True]
    assert sum(chosen["selfsoup", "soup:greedy"].means) == pytest.approx(1)
    lines = reading._standing(outcome.out)
    usual = [name for name in BASELINES if name != "selfsoup_diverse_clean"]  # which only ImageNet's budgets define
    assert list(dict.fromkeys(line["method"] for line in lines)) == ["selfsoup", *usual]
    assert next(line["shares"] for line in lines if line["part"] == "soup:best") == list(best.means)
    report = next(r.connectivity for r in outcome.records() if r.method == "supervised_soup" and r.connectivity)
    assert report.n == 12  # dev images, at most as many as the run scores
    assert all(len(line.accuracy) == 5 for line in report.lines)
    assert 0 <= report.barrier <= 1


def test_what_is_shared_is_trained_once(settings: dict[str, Any], own_cache: Path, run_quick: Quick) -> None:
    run_quick(settings, method="source")
    first = set((own_cache / "weights").iterdir())
    run_quick(settings, method="source,tent,memo", out=settings["out"].parent / "other")
    assert set((own_cache / "weights").iterdir()) == first
    assert len(first) == 2  # the linear probe and the fine-tuned classifier


def test_a_damaged_cache_file_is_made_again(settings: dict[str, Any], own_cache: Path, run_quick: Quick) -> None:
    whole = fingerprints(run_quick(settings).out)
    for path in (own_cache / "weights").iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    again = run_quick(settings, out=settings["out"].parent / "again")
    assert fingerprints(again.out) == whole


def test_a_failing_method_is_a_record_and_stops_nobody(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(PLUGIN.replace("return logits.detach()", "return logits.detach() * float('nan')"))
    outcome = run_quick(settings, method=f"source,{plugin}:SharpTent")
    assert (outcome.done, outcome.failed, outcome.exit_code) == (3, 3, 1)
    failed = [r for r in outcome.records() if r.status == "failed"]
    assert all(r.metrics is None and "not finite" in (r.error or "") for r in failed)
    row = next(row for row in outcome.board().rows if row.method == "broken.py:SharpTent")
    assert row.accuracy is None
    assert row.incomplete
    assert (
        run_quick(settings, method=f"source,{plugin}:SharpTent").failed == 3
    )  # run again: failed records are not done
    plugin.write_text(PLUGIN)
    assert run_quick(settings, method=f"{plugin}:SharpTent").exit_code == 0  # another file is another method


def test_a_training_that_diverges_fails_its_rows_only(settings: dict[str, Any], run_quick: Quick) -> None:
    wild = {"rate": 1e30, "steps": 3, "epochs": 1, "ingredients": ["mae", "mocov3"]}
    spec = {**settings, "method": "source,selfsoup", "set": {"selfsoup": wild}}
    outcome = run_module.run(make_spec(spec, {"set": {"source": {"epochs": 1}}}))
    assert outcome.done == 3
    assert outcome.failed == 3 * 3
    assert any("not finite" in error for error in outcome.errors)


def test_a_plugin_of_twenty_lines_runs_from_its_file(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick
) -> None:
    assert len([line for line in PLUGIN.strip().splitlines() if line.strip()]) <= 30
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    spec = make_spec(
        {**settings, "method": f"{plugin}:SharpTent"},
        {"set": {"mine.py:SharpTent": {"lr": 0.5}, "source": {"epochs": 1}}},
    )
    outcome = run_module.run(spec)
    assert outcome.exit_code == 0
    record = outcome.records()[0]
    assert record.method == "mine.py:SharpTent"
    assert record.options["mine.py:SharpTent"] == {"lr": 0.5, "margin": 2.0}
    assert str(tmp_path) not in record.to_json()


def test_a_model_of_ones_own(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10), torch.nn.LayerNorm(10))\n"
    )
    changed = {k: v for k, v in settings.items() if k != "stock"} | {"model": f"{file}:build", "method": "source,tent"}
    outcome = run_module.run(make_spec(changed))
    assert outcome.done == 6
    assert {r.model for r in outcome.records()} == {"model.py:build"}
    with pytest.raises(UsageError, match="give --stock instead"):
        make_plan(make_spec({**changed, "method": "selfsoup"}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "tnet"}, "did you mean 'tent'"),
        ({"method": "tent+memo"}, "more than one"),
        ({"shift": "digitsc"}, "did you mean 'digits-c'"),
        ({"protocol": "contnual"}, "did you mean 'continual'"),
        ({"set": {"tent": {"lr": 1}}}, "this run has no method 'tent'"),
        ({"set": {"source": {"learning_rate": 1}}}, "unknown option of source 'learning_rate'"),
        ({"method": "bn", "set": {"bn": {"lr": 1}}}, "unknown option of bn 'lr'; there is none, so leave it out"),
        ({"set": {"source": {"lr": "fast"}}}, "source.lr must be a number"),
        ({"method": "tent", "set": {"tent": {"lr": -1}}}, "tent.*lr"),
        ({"device": "tpu"}, "unknown device|not supported"),
        ({"labels": 300}, "lower --labels"),
        ({"stock": "nothing"}, "no stock 'nothing'"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(
    settings: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BenchError, match=sentence):
        make_plan(make_spec({**settings, **changes}))
    assert not settings["out"].exists()


def test_keys_move_with_what_changes_the_number_and_with_nothing_else(settings: dict[str, Any], tmp_path: Path) -> None:
    def keys(**changes: Any) -> frozenset[str]:
        return frozenset(make_plan(make_spec({**settings, **changes})).keys)

    same = [keys(), keys(out=tmp_path / "x"), keys(jobs=2), keys(rerun=True), keys(device="cpu")]
    assert len(set(same)) == 1
    moved = [
        keys(batch_size=6),
        keys(seed=1),
        keys(limit=11),
        keys(severity=4),
        keys(split="joint"),
        keys(labels=9),
        keys(protocol="episodic"),
        keys(method="tent"),
        keys(set={"source": {"lr": 0.123}}),
    ]
    assert len({*same, *moved}) == 1 + len(moved)
    fog = make_plan(make_spec({**settings, "corruption": "fog"})).keys
    assert set(fog) < set(same[0])  # without a pool or history, a condition's number depends on nothing else
    pooled = make_plan(make_spec({**settings, "method": "selfsoup"})).keys
    alone = make_plan(make_spec({**settings, "method": "selfsoup", "corruption": "fog"})).keys
    assert not set(alone) & set(pooled)
    first, second = (
        make_plan(make_spec({**settings, "protocol": "continual", "corruption": names})).keys
        for names in ("fog,contrast", "contrast")
    )
    assert set(first) & set(second) == {first[0]}  # clean only: contrast came after fog in one of them


def test_adapters_get_pixels_and_nothing_else(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    """A method that searches all reachable objects for labels, ids or later batches finds none."""
    plugin = tmp_path / "spy.py"
    plugin.write_text(
        "import gc, sys, torch\n"
        "from methods.base import Adapter\n"
        "from methods.table import Access\n"
        "class Spy(Adapter):\n"
        "    '''Fails if anything beyond one float batch of images reaches it.'''\n"
        "    access = Access(test='stream')\n"
        "    def configure(self, source):\n"
        "        assert source is None\n"
        "    def predict(self, images):\n"
        "        assert type(images) is torch.Tensor and images.dtype == torch.float32 and len(images) <= 5\n"
        "        assert images.is_contiguous() and images._base is None\n"
        "        assert images.untyped_storage().nbytes() == images.numel() * 4\n"
        "        assert set(vars(self)) == {'config', 'model', 'generator', '_initial', *self.__dict__}\n"
        "        return self.model(images)\n"
    )
    assert run_quick(settings, method=f"{plugin}:Spy").exit_code == 0


def test_recipes_without_the_right_get_no_pool(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    recipe = tmp_path / "greedy.py"
    recipe.write_text(
        "from methods.base import Recipe\n"
        "from methods.recipes.source import SourceOnly\n"
        "from methods.table import Access\n"
        "class Greedy(SourceOnly):\n"
        "    '''Wants test images that it did not declare.'''\n"
        "    def plan(self, stock, source, pool):\n"
        "        assert pool is None, 'got shifted images'\n"
        "        return super().plan(stock, source, pool)\n"
    )
    outcome = run_quick(settings, method=f"selfsoup,{recipe}:Greedy")
    assert outcome.exit_code == 0


def test_scored_images_never_enter_the_pool(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.shifts.digits import Digits

    seen: list[tuple[str, tuple[int, ...]]] = []
    real = Digits.images

    def images(self: Digits, ids: np.ndarray, condition: Any, device: str = "cpu") -> torch.Tensor:
        seen.append((str(condition), tuple(ids.tolist())))
        return real(self, ids, condition, device)

    monkeypatch.setattr(Digits, "images", images)
    plan = make_plan(make_spec({**settings, "method": "selfsoup", "limit": None}))
    scored = {int(i) for entry in plan.entries for segment in entry.segments for i in segment.ids}
    looked_at = {i for _, ids in seen for i in ids}
    assert not scored & looked_at
    shifted = [ids for condition, ids in seen if condition != "clean"]
    train = set(plan.shift.ids("train").tolist())
    assert shifted
    assert not any(train & set(ids) for ids in shifted)


@pytest.mark.parametrize(
    ("method", "protocol"), [("selfsoup", "reset_each_shift"), ("tent", "continual"), ("bn", "episodic")]
)
def test_a_record_alone_is_enough_to_plan_its_run_again(
    settings: dict[str, Any], run_quick: Quick, method: str, protocol: str
) -> None:
    outcome = run_quick(settings, method=method, protocol=protocol, severity="2,3")
    for record in outcome.records():
        planned = make_plan(make_spec(spec_of(record), {"stock": settings["stock"]}))
        assert record.key in planned.keys
