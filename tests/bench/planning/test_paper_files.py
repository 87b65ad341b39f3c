"""The run files of the paper's tables, planned on small copies of the published layouts, hold the paper's numbers.

The numbers are those of Fuller, Green, Shelhamer 2026, arXiv:2602.02890v1, sections 4.1 to 4.5 and appendices B and D.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_copies
from typer.testing import CliRunner

from bench.cli.main import app
from bench.planning.plan import Plan
from bench.planning.training_cost import expected_jobs, published_setting
from bench.runs.callbacks import RunCallback
from bench.runs.grid import plan_grid
from bench.settings.grid import GridCell, cells_of
from bench.settings.methods import parse_method
from bench.settings.run_spec import read_run_file
from bench.settings.suites import find_suite
from bench.shifts import find_row
from bench.shifts.catalog import TASKS
from bench.training.job_cache import all_jobs, job_key
from methods.base import Job

HOME = Path(__file__).parents[3]

EIGHT = ["imagenet-c", "laion-c", "imagenet-real", "imagenet-v2", "imagenet-hr", "imagenet-a", "imagenet-r"]
"""The sets of table 1; ImageNet-Val is the clean row of the first."""

IN_RATES = [6e-5, 8e-5, 1e-4, 1.5e-4]
FOUR_RATES = [1e-5, 2e-5, 3e-5, 4e-5]


@dataclass(frozen=True)
class Copies:
    """A data root with the copies, and the stock."""

    root: Path
    stock: Path


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    root = tmp_path_factory.mktemp("copies")
    small_copies.imagenet(root)
    small_copies.mini_vtab(root)
    return Copies(root, small_copies.stock(root / "tiny.safetensors"))


def cells(name: str, **changes: Any) -> tuple[GridCell, ...]:
    return cells_of(read_run_file(HOME / "runs" / f"{name}.toml"), changes)


def plans(name: str, copies: Copies, out: Path, **changes: Any) -> list[tuple[GridCell, Plan]]:
    """Plan every run of a file on the copies; none may be left out."""
    local = {"data_root": copies.root, "stock": str(copies.stock), "out": out, "device": "cpu", "offline": True}
    grid = plan_grid(cells(name, **local, **changes), RunCallback())
    assert grid.refused == ()
    return list(grid.plans)


def jobs_of(planned: list[tuple[GridCell, Plan]]) -> list[Job]:
    """All jobs of a grid, what runs share counted once."""
    found = {}
    for _, plan in planned:
        for entry in plan.entries:
            targets = [job for job in (entry.job, entry.report) if job is not None]
            found |= {job_key(job, entry.trial.seed): job for job in all_jobs(targets)}
    return list(found.values())


def named(jobs: list[Job], function: str) -> list[Job]:
    return [job for job in jobs if job.function.__name__ == function]


def kinds(jobs: list[Job]) -> dict[str, int]:
    return dict(Counter(job.function.__name__ for job in jobs))


def rates(jobs: list[Job]) -> list[float]:
    return sorted(round(job.config.lr, 9) for job in jobs)


def same(jobs: list[Job], **wanted: Any) -> None:
    """Every job has these options; a point in a name goes into an option that has options of its own."""
    for job in jobs:
        for name, value in wanted.items():
            found: Any = job.config
            for part in name.split("__"):
                found = getattr(found, part)
            assert found == value, (job.label, name, found)


def as_published(jobs: list[Job], epochs: int) -> None:
    """What the paper says of all trainings: AdamW with decay 0.01, 10 % warm-up, 3-Augment, batches of 128."""
    tuned, inter = named(jobs, "fine_tune"), named(jobs, "inter_train")
    same(tuned, epochs=epochs, batch_size=128, weight_decay=0.01, warmup=0.1, label_smoothing=0.0)
    same(inter, weight_decay=0.01, warmup=0.1, head_warmup=0.01)
    for job in (*tuned, *inter):
        views = job.config.views
        assert (views.scale, views.flip, views.three_augment, views.jitter) == ((0.08, 1.0), True, True, 0.3)


def algorithms(jobs: list[Job]) -> list[str]:
    return sorted(type(job.config.objective).__module__.rpartition(".")[2] for job in jobs)


def on_train(jobs: list[Job]) -> None:
    """Inter-training for 5 epochs in batches of 256: 1,281,167 images are 5,004 whole batches."""
    assert 5 * (find_row("imagenet-c").train_images // 256) == 25_020
    same(jobs, steps=25_020, batch_size=256, lr=1e-5)
    found = {type(job.config.objective).__module__.rpartition(".")[2]: job.config.objective for job in jobs}
    if "mae" in found:
        assert (found["mae"].mask_ratio, found["mae"].decoder_depth) == (0.9, 1)
    if "mmcr" in found:
        assert found["mmcr"].local
    assert "mocov3" not in found or found["mocov3"].temperature == 1


def test_one_classifier_is_scored_on_all_eight_sets(copies: Copies, tmp_path: Path) -> None:
    """Figure 2: three algorithms, one fine-tuning of each at 8e-5, 49 mixtures and the three alone."""
    planned = plans("paper-algorithms", copies, tmp_path)
    assert [plan.shift.name for _, plan in planned] == EIGHT
    jobs = jobs_of(planned)
    inter, tuned = named(jobs, "inter_train"), named(jobs, "fine_tune")
    assert algorithms(inter) == ["mae", "mmcr", "mocov3"]
    on_train(inter)
    assert rates(tuned) == [8e-5] * 3
    as_published(jobs, epochs=10)
    assert len(named(jobs, "mixed_soup")) == 49 + 3
    parts = [entry.part for entry in planned[0][1].entries]
    assert len(parts) == len(set(parts)) == 1 + 49 + 3
    assert "soup:shares:7:7:7" in parts
    assert "soup:shares:0:0:1" in parts
    for _, plan in planned:
        assert {entry.trial.split for entry in plan.entries} == {"transductive"}
        assert len(plan.entries[0].scored) == len(plan.shift.ids("test"))
    assert len(planned[0][1].entries[0].keys) == 1 + 15
    assert len(planned[1][1].entries[0].keys) == 6
    assert {len(plan.entries[0].keys) for _, plan in planned[2:]} == {1}


def test_table_1_trains_nothing_twice(copies: Copies, tmp_path: Path) -> None:
    """Four fine-tunings of the stock, four of each of three inter-trainings, for four soups on seven shifts."""
    planned = plans("paper-imagenet", copies, tmp_path)
    assert len(planned) == 4 * len(EIGHT)
    assert len({cell.name for cell, _ in planned}) == len(planned)
    assert all("run " not in cell.name for cell, _ in planned)
    jobs = jobs_of(planned)
    inter, tuned = named(jobs, "inter_train"), named(jobs, "fine_tune")
    on_train(inter)
    assert algorithms(inter) == ["mae", "mmcr", "mocov3"]
    assert rates(tuned) == sorted(IN_RATES * 4)
    as_published(jobs, epochs=10)
    assert [kinds(jobs)[way] for way in ("uniform_soup", "greedy_soup", "best_ingredient")] == [5, 5, 5]
    chosen = {len(job.inputs) for job in named(jobs, "uniform_soup")}
    assert chosen == {4, 12}


def test_before_the_data_the_cost_is_known() -> None:
    """The trainings of table 1 on ImageNet's 1,281,167 images: 3 inter-trainings and 16 fine-tunings of ViT-B/16."""
    setting = published_setting(find_row("imagenet-c"))
    assert setting is not None
    jobs = {}
    for cell in cells("paper-imagenet", shift="imagenet-c"):
        found = expected_jobs(cell.spec, [parse_method(name) for name in cell.spec.method], setting)
        jobs |= {job_key(job, 0): job for job in found}
    tuned = named(list(jobs.values()), "fine_tune")
    kept = 1_281_167 - setting.classes * round(0.02 * 1_281_167 / setting.classes)
    for job in tuned:
        assert job.work is not None
        assert job.work.steps == pytest.approx(10 * kept / 128, rel=1e-3)
        # 105.4 GFLOP an image, counted by hand from the layers of ViT-B/16.
        assert job.work.flops == pytest.approx(10 * kept * 105.4e9, rel=0.01)
    assert len(tuned) == 16


@pytest.mark.parametrize(
    "name", ["paper-imagenet-c", "paper-laion-c", "paper-union", "paper-contrast", "paper-joint", "paper-sar"]
)
def test_tables_2_and_3(name: str, copies: Copies, tmp_path: Path) -> None:
    """MAE for 100,000 steps at four rates on even-numbered images, each fine-tuned four times."""
    planned = plans(name, copies, tmp_path)
    jobs = jobs_of(planned)
    as_published(jobs, epochs=10)
    pools = [job for job in named(jobs, "inter_train") if job.data is not None and job.data.digest.startswith("pool:")]
    shifts = 2 if name in ("paper-union", "paper-joint") else 1
    assert rates(pools) == sorted(FOUR_RATES * shifts)
    same(pools, steps=100_000, batch_size=128, objective__mask_ratio=0.75, objective__norm_pix=False)
    soups = {len(job.inputs) for job in named(jobs, "uniform_soup")}
    assert max(soups) == 16 * (shifts if name != "paper-sar" else 1)
    for _, plan in planned:
        first = plan.entries[0]
        even, odd = plan.shift.ids("test")[0::2], plan.shift.ids("test")[1::2]
        assert first.scored.tolist() == (even if name == "paper-joint" else odd).tolist()
        assert {condition.severity for condition in first.keys} - {0} == {5}
        assert first.trial.batch_size == 128
        for entry in plan.entries:
            if entry.adapter.name == "sar":
                assert entry.config.lr == pytest.approx(5e-5 * 128 / 64)


def test_the_joint_half_needs_no_training_of_its_own(copies: Copies, tmp_path: Path) -> None:
    disjoint = [
        plan for name in ("paper-imagenet-c", "paper-laion-c", "paper-union") for plan in plans(name, copies, tmp_path)
    ]
    before = {job_key(job, 0) for job in jobs_of(disjoint)}
    joint = plans("paper-joint", copies, tmp_path)
    assert {job_key(job, 0) for job in jobs_of(joint)} <= before


def vtab(planned: list[tuple[GridCell, Plan]], tasks: int) -> None:
    """Four inter-trainings of 10,000 steps, 16 fine-tunings of them and 4 of the stock, for each task."""
    jobs = jobs_of(planned)
    inter, tuned = named(jobs, "inter_train"), named(jobs, "fine_tune")
    assert rates(inter) == sorted(FOUR_RATES * tasks)
    same(inter, steps=10_000, batch_size=128, objective__mask_ratio=0.75)
    assert rates(tuned) == sorted(FOUR_RATES * 5 * tasks)
    as_published(jobs, epochs=100)
    assert {len(job.inputs) for job in named(jobs, "uniform_soup")} == {4, 16}
    assert {len(plan.entries[0].keys) for _, plan in planned} == {16}  # 336 test sets over 21 tasks
    assert len(planned) == 5 * tasks
    chosen = {job.data.digest.partition(":")[0] for job in named(jobs, "greedy_soup") if job.data is not None}
    assert chosen == {"val"}


def test_transfer(copies: Copies, tmp_path: Path) -> None:
    tasks = ["mini-vtab-c:dtd", "mini-vtab-c:svhn"]
    vtab(plans("paper-vtab", copies, tmp_path, shift=tasks), 2)
    names = [cell.spec.shift for cell in cells("paper-vtab")]
    assert sorted(set(names)) == sorted(f"mini-vtab-c:{task}" for task in TASKS)
    assert len(names) == 5 * 21


@pytest.mark.slow
def test_transfer_to_all_tasks(copies: Copies, tmp_path: Path) -> None:
    vtab(plans("paper-vtab", copies, tmp_path), 21)


def test_seasoning(copies: Copies, tmp_path: Path) -> None:
    """Table 5: the stock and five inter-trainings at 4e-5, mixed without fine-tuning."""
    assert sorted(cell.spec.shift for cell in cells("paper-seasoning")) == sorted(f"mini-vtab:{task}" for task in TASKS)
    planned = plans("paper-seasoning", copies, tmp_path, shift=["mini-vtab:dtd"])
    jobs = jobs_of(planned)
    inter = named(jobs, "inter_train")
    assert algorithms(inter) == ["mae", "mmcr", "mmcr", "mocov3", "mocov3"]
    same(inter, steps=10_000, batch_size=128, lr=4e-5)
    assert {job.config.objective.temperature for job in inter if "mocov3" in job.label} == {0.1, 1.0}
    assert {bool(job.config.objective.local) for job in inter if "mmcr" in job.label} == {False, True}
    assert named(jobs, "fine_tune") == []
    (own,), (labelled,) = named(jobs, "self_seasoned"), named(jobs, "supervised_seasoned")
    same([own], epochs=100, batch_size=256, lr=0.1, last_lr=0.01, neighbours=16, temperature=0.07)
    same([labelled], draws=1000)
    assert len(own.inputs) == len(labelled.inputs) == 6
    assert len(planned[0][1].entries) == 3 + 6
    assert len(named(jobs, "nearest_neighbours")) == 3 + 6
    assert len(planned[0][1].entries[0].scored) == len(planned[0][1].shift.ids("test"))


def test_the_second_stock_asks_for_its_file(copies: Copies, tmp_path: Path) -> None:
    planned = plans("paper-franca", copies, tmp_path)
    jobs = jobs_of(planned)
    assert algorithms(named(jobs, "inter_train")) == ["mae", "mocov3"]
    on_train(named(jobs, "inter_train"))
    as_published(jobs, epochs=10)
    assert len(named(jobs, "mixed_soup")) == 12


def test_the_suite_covers_every_set_of_imagenet(copies: Copies, tmp_path: Path) -> None:
    local = {"data_root": copies.root, "stock": str(copies.stock), "out": tmp_path, "device": "cpu", "offline": True}
    methods = "source,tent,selfsoup,selfsoup_diverse_clean"
    grid = plan_grid(cells_of(find_suite("imagenet").settings, {"method": methods, **local}), RunCallback())
    planned = {plan.shift.name: plan for _, plan in grid.plans}
    assert grid.refused == ()
    assert set(planned) == {*EIGHT, "imagenet-c-bar", "imagenet-sketch"}
    conditions = {name: len(plan.entries[0].keys) for name, plan in planned.items()}
    assert {name: count for name, count in conditions.items() if count > 1} == {
        "imagenet-c": 1 + 15, "imagenet-c-bar": 1 + 10, "laion-c": 6,
    }  # fmt: skip
    # On the sets of corruptions the recipe is the paper's.
    jobs = jobs_of([pair for pair in grid.plans if pair[1].shift.name == "imagenet-c"])
    pools = [job for job in named(jobs, "inter_train") if job.data is not None and job.data.digest.startswith("pool:")]
    assert rates(pools) == FOUR_RATES
    as_published(jobs, epochs=10)


def test_the_registered_study_is_what_its_page_says() -> None:
    """Three tasks, each from a stock of other pictures; every soup averages four fine-tunings; eight draws."""
    found = cells("transfer-small")
    tasks = {cell.spec.shift: (cell.spec.labels, cell.spec.stock) for cell in found}
    assert tasks == {
        "cifar10-c-gen": (100, "transfer-fashion.safetensors"),
        "fashion-c": (100, "transfer-cifar10.safetensors"),
        "digits-c": (60, "transfer-cifar10.safetensors"),
    }
    assert Counter(name for cell in found for name in cell.spec.method) == {
        "source": 3, "supervised_soup": 3, "selfsoup_clean": 3, "continued_ssl_soup": 3,
    }  # fmt: skip
    for cell in found:
        assert (cell.spec.seed_list, cell.spec.split, cell.spec.severity) == (tuple(range(8)), "transductive", (3.0,))
        for method, options in cell.spec.options.items():
            if method != "source":
                assert len(options["scales"]) * len(options.get("ingredients", "1")) == 4


def told(words: Iterator[object] | list[object]) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "runs"),
    [
        ([HOME / "runs" / "paper-imagenet-c.toml", "--split", "disjoint,joint"], 2),
        ([HOME / "runs" / "paper-vtab.toml", "--shift", "mini-vtab-c:dtd,mini-vtab-c:svhn"], 10),
        (["--suite", "imagenet", "--method", "source,tent,selfsoup"], 9),
    ],
    ids=["imagenet-c", "vtab", "suite"],
)
def test_a_dry_run_states_the_cost_of_each_cell(asked: list[object], runs: int, copies: Copies, tmp_path: Path) -> None:
    local = ["--data-root", copies.root, "--stock", copies.stock, "--device", "cpu", "--jobs", 1, "--offline"]
    found = told(["run", *asked, *local, "--out", tmp_path / "out", "--dry-run", "--json"])
    assert found["left_out"] == []
    assert len(found["runs"]) == runs
    for row in found["runs"]:
        assert row["trainings"] > 0
        assert row["flops"] > 0
        assert row["seconds"] > 0
        assert row["missing"] == row["records"] > 0
    assert not (tmp_path / "out").exists()
