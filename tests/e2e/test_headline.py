"""`bench run --method selfsoup --shift imagenet-c`: on a small copy of the published layout, and without any data."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_processes
import torch
from PIL import Image

from bench.core.errors import UsageError
from bench.models.weights_io import MAE_BASE
from bench.planning.plan import Plan, make_plan
from bench.planning.training_cost import TrainingSetting, expected_cost
from bench.settings.methods import parse_method
from bench.settings.run_spec import make_spec
from bench.shifts.imagenet import synsets
from bench.shifts.shift import trained_on
from bench.training.job_cache import all_jobs, job_key, stock_of
from methods.base import Labelled
from methods.nets.weights import Architecture, Weights, build_encoder, sine_cosine_positions
from methods.selfsoup.objectives.mae import Decoder
from methods.training.loop import reset

Bench = Callable[..., subprocess.CompletedProcess[str]]
PIXELS = 64
CLASSES = [synsets()[place] for place in (3, 281, 440, 817)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    environment = {**os.environ, "SOUPBENCH_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return quick_processes.run(["-m", "bench", *arguments], cwd=tmp_path, env=environment, timeout=600)

    return call


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for a plan that is made in this process."""
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))


def picture(rng: np.random.Generator, label: int, size: tuple[int, int]) -> Image.Image:
    shade = np.array([[60, 120, 180], [180, 60, 120], [120, 180, 60], [200, 200, 40]])[label]
    return Image.fromarray((shade + rng.integers(-30, 30, (*size, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Clean train and val trees, and a published tree of two corruptions at severity 5."""
    return write_trees(tmp_path / "data", PIXELS)


def write_trees(folder: Path, pixels: int) -> Path:
    rng = np.random.default_rng(0)
    trees = {"imagenet/train": 12, "imagenet/val": 8, "imagenet-c/fog/5": 8, "imagenet-c/contrast/5": 8}
    for tree, count in trees.items():
        size = (pixels, pixels) if "-c" in tree else (90, 120)
        for label, name in enumerate(CLASSES):
            for number in range(count):
                path = folder / tree / name / f"ILSVRC2012_val_{number:08d}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(rng, label, size).save(path, quality=85)
    return folder


TINY = Architecture(PIXELS, 16, dim=64, depth=2, heads=1, decoder_dim=32, decoder_depth=1, decoder_heads=1)
BASE = Architecture(224, 16, 768, 12, 12, decoder_dim=512, decoder_depth=8, decoder_heads=16)


def write_mae(path: Path, shape: Architecture = TINY) -> None:
    """A random masked autoencoder under the names of the release."""
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = build_encoder(shape), Decoder(shape)
    reset(encoder, generator)
    reset(decoder, generator)
    tensors = dict(encoder.state_dict())
    for name, tensor in decoder.state_dict().items():
        tensors[name if name == "mask_token" else f"decoder_{name}"] = tensor
    tensors["decoder_pos_embed"] = sine_cosine_positions(shape.decoder_dim, shape.image_size // 16)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": tensors}, path)


SMALL = [
    *("--corruption", "fog,contrast", "--jobs", "1"),
    *("--set", "selfsoup.steps=2", "--set", "selfsoup.batch=8", "--set", "selfsoup.epochs=1"),
    *("--set", "selfsoup.ingredients=['mae','mae:rate=2e-3:norm_pix=1']", "--set", "selfsoup.scales=[1.0]"),
    *("--set", "selfsoup.mixes=['uniform']", "--set", "selfsoup.holdout=0.0"),
]


@pytest.mark.slow
def test_it_runs_from_the_published_files_to_a_board(bench: Bench, root: Path) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    command = ["run", "--method", "selfsoup", "--shift", "imagenet-c", "--data-root", str(root), "--out", "out", *SMALL]
    done = bench(*command, "--json")
    assert done.returncode == 0, done.stderr
    board = json.loads(done.stdout)
    assert {row["part"] for row in board["rows"]} == {
        "soup",
        "mean",
        "ingredient:mae",
        "ingredient:mae:rate=2e-3:norm_pix=1",
    }
    assert set(board["corruptions"]) == {"fog", "contrast"}
    assert board["n"] == len(CLASSES) * 4
    records = [json.loads(path.read_text()) for path in (root.parent / "out" / "records").glob("*.json")]
    assert {(record["model"], record["weights"]["ready"]) for record in records} == {(f"{MAE_BASE}.pth", False)}
    assert bench("verify", "out").returncode == 0
    again = bench(*command)
    assert "0 measured" in again.stderr
    assert again.returncode == 0


@pytest.mark.slow
def test_an_encoder_alone_starts_a_fresh_decoder_and_says_so(bench: Bench, root: Path) -> None:
    write_mae(root / "whole.pth")
    tensors = torch.load(root / "whole.pth", weights_only=True)["model"]
    kept = {name: t for name, t in tensors.items() if not name.startswith(("decoder_", "mask_token"))}
    torch.save({"model": kept}, root / "encoder.pth")
    shared = ["--shift", "imagenet-c", "--data-root", str(root), "--out", "out", "--stock", str(root / "encoder.pth")]
    done = bench("run", "--method", "selfsoup", *shared, *SMALL, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "has no decoder" in done.stderr
    done = bench("run", "--method", "source", *shared, "--corruption", "fog", "--dry-run")
    assert "has no decoder" not in done.stderr


def planned(root: Path, **changes: Any) -> Plan:
    """The plan of the sentence on the box, with the rows of its paper."""
    settings = {"method": "selfsoup,source,supervised_soup", "shift": "imagenet-c", "data_root": root, "device": "cpu"}
    chosen = {"corruption": "fog,contrast", "out": root / "out", "workers": 0, **changes}
    return make_plan(make_spec(settings, chosen))


def configs(plan: Plan, method: str, part: str | None, function: str) -> list[Any]:
    entry = next(entry for entry in plan.entries if (entry.trial.method, entry.part) == (method, part))
    assert entry.job is not None
    return [job.config for job in all_jobs([entry.job]) if job.function.__name__ == function]


def the_soup_is_of_one_pool_and_one_probe(plan: Plan) -> None:
    """What the paper's numbers of ingredients are applied to: stock, pool, halves, head, mixture."""
    entry = next(entry for entry in plan.entries if (entry.trial.method, entry.part) == ("selfsoup", "soup"))
    assert entry.job is not None
    jobs = all_jobs([entry.job])
    assert (entry.job.function.__name__, len(entry.job.inputs)) == ("uniform_soup", 16)
    shape = stock_of(entry.job).architecture
    assert (shape.decoder_depth, shape.layer_norm_eps) == (8, 1e-6)
    # Every ingredient sees the even half of all conditions, without labels; the odd half is scored.
    pools = {job.data.digest: job.data for job in jobs if job.function.__name__ == "inter_train" and job.data}
    (pool,) = pools.values()
    assert not isinstance(pool, Labelled)
    assert len(pool) == 2 * len(CLASSES) * 8 // 2
    assert (entry.trial.split, {condition.severity for condition in entry.trial.conditions}) == ("disjoint", {0, 5})
    assert {int(row) % 2 for segment in entry.segments for row in segment.ids} == {1}
    # One probe of the stock starts every head, and no fine-tuning sees shifted images.
    assert len({job_key(job, 0) for job in jobs if job.function.__name__ == "probe"}) == 1
    tuned = [job for job in jobs if job.function.__name__ == "fine_tune"]
    assert all(isinstance(job.data, Labelled) for job in tuned)
    assert not {job.data.digest for job in tuned if job.data} & set(pools)
    starts = [[part.function.__name__ for part in job.inputs if not isinstance(part, Weights)] for job in tuned]
    assert starts == [["inter_train", "probe"]] * 16


@pytest.mark.slow
def test_the_plan_of_a_base_model_is_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4.3 of the paper, number by number."""
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    root = write_trees(tmp_path / "data", 224)
    write_mae(root / "stocks" / f"{MAE_BASE}.pth", BASE)
    plan = planned(root, with_baselines=True)
    inter = configs(plan, "selfsoup", "soup", "inter_train")
    assert sorted(one.lr for one in inter) == [1e-5, 2e-5, 3e-5, 4e-5]
    lengths = {(one.steps, one.batch_size, one.weight_decay, one.warmup, one.head_warmup) for one in inter}
    assert lengths == {(100_000, 128, 0.01, 0.1, 0.01)}
    assert {(o.objective.mask_ratio, o.objective.norm_pix, o.objective.decoder_depth) for o in inter} == {
        (0.75, False, None)
    }
    rates = [6e-5, 8e-5, 1e-4, 1.5e-4]
    for method, part, count in [("selfsoup", "soup", 16), ("source", None, 4), ("supervised_soup", "soup", 4)]:
        tuned = configs(plan, method, part, "fine_tune")
        assert len(tuned) == count
        assert sorted(round(one.lr, 9) for one in tuned) == sorted(rates * (count // 4))
        lengths = {(o.epochs, o.batch_size, o.weight_decay, o.warmup, o.label_smoothing) for o in tuned}
        assert lengths == {(10, 128, 0.01, 0.1, 0.0)}
    the_soup_is_of_one_pool_and_one_probe(plan)
    diverse = configs(plan, "selfsoup_diverse_clean", "soup", "inter_train")
    assert {(one.steps, one.batch_size, one.lr) for one in diverse} == {(5 * (1_281_167 // 256), 256, 1e-5)}
    mae, moco, mmcr = (one.objective for one in diverse)
    assert (mae.mask_ratio, mae.decoder_depth, moco.temperature, mmcr.local) == (0.9, 1, 1, 1)
    assert len(configs(plan, "selfsoup_diverse_clean", "soup", "fine_tune")) == 12
    for one in [*inter, *diverse, *configs(plan, "selfsoup", "soup", "fine_tune")]:
        assert (one.views.scale, one.views.flip, one.views.three_augment) == ((0.08, 1.0), True, True)
        assert one.views.jitter == 0.3
    # The best of the source's rates is the best ingredient of the supervised soup: one training for both.
    best = next(e.job for e in plan.entries if (e.trial.method, e.part) == ("supervised_soup", "soup:best"))
    (source,) = (entry.job for entry in plan.entries if entry.trial.method == "source")
    assert job_key(best, 0) == job_key(source, 0)


@pytest.mark.slow
def test_the_smoke_budget_runs_to_the_end_with_every_row(bench: Bench, root: Path) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    methods = "selfsoup,source,supervised_soup,selfsoup_diverse_clean"
    shared = ["--shift", "imagenet-c", "--data-root", str(root), "--corruption", "fog,contrast", "--jobs", "1"]
    done = bench("run", "--method", methods, *shared, "--budget", "smoke", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert "budget smoke" in done.stderr
    rows = {(row["method"], row["part"]) for row in json.loads(done.stdout)["rows"]}
    ingredients = {(row, part) for row, part in rows if str(part).startswith("ingredient:")}
    assert len(ingredients) == 16
    soups = {
        (method, part)
        for method in ("selfsoup", "supervised_soup", "selfsoup_diverse_clean")
        for part in ("soup", "soup:greedy", "soup:best")
    }
    assert rows - ingredients == {("source", None), ("selfsoup", "mean"), *soups}


def test_a_budget_is_less_than_what_is_set_by_hand(root: Path, own: None) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    by_hand = {"selfsoup": {"epochs": 3, "ingredients": ["mae"]}, "source": {"lr": 7e-5}}
    plan = planned(root, budget="smoke", labels=3, set=by_hand)
    tuned = configs(plan, "selfsoup", "soup", "fine_tune")
    assert {(one.epochs, one.batch_size) for one in tuned} == {(3, 128)}
    assert len(configs(plan, "selfsoup", "soup", "inter_train")) == 1
    assert max(one.lr for one in configs(plan, "source", None, "fine_tune")) == pytest.approx(7e-5 * 1.5)
    trial = plan.entries[0].trial
    assert (trial.labels_per_class, trial.limit) == (3, 16)
    assert plan.notes[0].startswith("budget smoke (")
    # The sentence is that of the plan: 1 ingredient; 4 fine-tunings of it, and the 4 that source and its soup share.
    kinds = dict(plan.training_cost.counts)
    assert kinds == {"inter-training of 4 steps": 1, "fine-tuning of 3 epochs": 4, "fine-tuning of 1 epoch": 8}


def test_the_bill_before_the_data_is_that_of_the_plan(root: Path, own: None) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    plan = planned(root)
    methods = [parse_method(name) for name in plan.spec.method]
    architecture = plan.entries[0].job and stock_of(plan.entries[0].job).architecture
    assert architecture is not None
    before = expected_cost(plan.spec, methods, TrainingSetting("imagenet-c", "imagenet", 1000, 43, architecture, 1))
    assert before.counts == plan.training_cost.counts
    assert "cheaper: --budget short" in plan.notes[1]
    short = planned(root, budget="short")
    assert short.training_cost.flops < plan.training_cost.flops / 5


def test_recipes_learn_all_classes_where_superclasses_are_scored(root: Path, own: None) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    superclasses = planned(root, shift="laion-c-gen", corruption="mosaic,stickers", budget="smoke")
    everything = planned(root, shift="imagenet-c", budget="smoke")
    for method in ("source", "supervised_soup"):
        (one, *_), (other, *_) = (
            [entry for entry in plan.entries if entry.trial.method == method] for plan in (superclasses, everything)
        )
        assert one.job is not None
        assert other.job is not None
        assert {job.data.classes for job in all_jobs([one.job]) if isinstance(job.data, Labelled)} == {1000}
        assert superclasses.shift.classes == 16
    # Dev images of the superclasses are dev images of all classes, so no recipe learns from them.
    shift = superclasses.shift
    assert not set(shift.ids("dev").tolist()) & set(shift.ids("train").tolist())
    whole = trained_on(shift)
    assert whole.classes == 1000
    kept = {int(row) for row in whole._train().at(whole.ids("train"))}  # type: ignore[attr-defined]
    assert not kept & {int(row) for row in shift._train().at(shift.ids("dev"))}  # type: ignore[attr-defined]


def test_a_union_has_the_ingredients_of_both_shifts(root: Path, own: None) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    union = {"selfsoup": {"also_on": ["laion-c-gen"], "ingredients": ["mae", "stock"]}}
    plan = planned(root, budget="smoke", set=union)
    inter = configs(plan, "selfsoup", "soup", "inter_train")
    assert len(inter) == 2
    assert len(configs(plan, "selfsoup", "soup", "fine_tune")) == 12
    parts = [entry.part for entry in plan.entries if entry.part and "laion-c-gen" in entry.part]
    assert parts == [f"ingredient:mae on laion-c-gen@{scale}" for scale in ("0.6", "0.8", "1", "1.5")]
    alone = planned(root, budget="smoke", set={"selfsoup": {"ingredients": ["mae", "stock"]}})
    keys = {entry.part: set(entry.keys.values()) for entry in alone.entries if entry.trial.method == "selfsoup"}
    assert not set.union(*keys.values()) & set(plan.keys)
    with pytest.raises(UsageError, match="also_on names imagenet-c, the shift of the run"):
        planned(root, budget="smoke", set={"selfsoup": {"also_on": ["imagenet-c"]}})
    with pytest.raises(UsageError, match="one pool; run selfsoup_single without also_on"):
        planned(root, method="selfsoup_single", budget="smoke", set=union)


def test_a_soup_of_one_shift_is_scored_on_another_and_trained_once(root: Path, own: None) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    there = planned(root, shift="laion-c-gen", corruption=None, budget="smoke")
    here = planned(root, budget="smoke", pool="laion-c-gen")
    jobs = [
        {entry.part: job_key(entry.job, 0) for entry in plan.entries if entry.trial.method == "selfsoup" and entry.job}
        for plan in (there, here)
    ]
    assert jobs[0] == jobs[1] != {}
    tracks = {(entry.trial.method, entry.access.track) for entry in here.entries}
    assert tracks == {("selfsoup", "F"), ("source", "R"), ("supervised_soup", "R")}
    assert {met.partition(" of ")[2] for entry in here.entries for met in entry.history} == {"laion-c-gen"}
    assert any(note.startswith("selfsoup: other shift seen: laion-c-gen (6 conditions") for note in here.notes)


@pytest.mark.slow
def test_a_union_is_scored_on_both_shifts(bench: Bench, root: Path) -> None:
    write_mae(root / "stocks" / f"{MAE_BASE}.pth")
    shared = ["--data-root", str(root), "--jobs", "1", "--budget", "smoke", "--json"]
    union = ["--set", "selfsoup.also_on=['laion-c-gen']", "--set", "selfsoup.ingredients=['mae']"]
    done = bench(
        "run", "--method", "selfsoup", "--shift", "imagenet-c", "--corruption", "fog", *union, *shared, "--out", "u"
    )
    assert done.returncode == 0, done.stderr
    there = ["--shift", "laion-c-gen", "--corruption", "stickers", "--init-from", "u:selfsoup", "--out", "v"]
    done = bench("run", "--method", "source", *there, *shared)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["track"] == "D"


def test_without_the_data_one_command_is_named(bench: Bench, tmp_path: Path) -> None:
    done = bench("run", "--method", "selfsoup", "--shift", "imagenet-c", "--jobs", "1")
    assert done.returncode == 3
    assert "bench data fetch imagenet-c" in done.stderr
    assert "Traceback" not in done.stderr
    assert "4 inter-trainings of 100,000 steps and 16 fine-tunings of 10 epochs" in done.stderr
    assert "cheaper: --budget short" in done.stderr
    assert "bench run --method selfsoup --shift digits-c" in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.json"))


def test_without_the_stock_one_command_is_named(bench: Bench, root: Path) -> None:
    done = bench("run", "--method", "selfsoup", "--shift", "imagenet-c", "--data-root", str(root), "--jobs", "1")
    assert done.returncode == 3
    assert f"curl --create-dirs -C - -Lo {root / 'stocks' / MAE_BASE}.pth https://" in done.stderr


def test_a_stock_for_other_pixels_is_refused(bench: Bench, root: Path) -> None:
    """Published files are never resized, so a stock for 32 px cannot use them."""
    done = bench(
        "run",
        "--method",
        "selfsoup",
        "--shift",
        "imagenet-c",
        "--data-root",
        str(root),
        "--stock",
        "digits",
        "--corruption",
        "fog",
        "--jobs",
        "1",
    )
    assert done.returncode == 2
    assert "never resized" in done.stderr
    assert "Traceback" not in done.stderr
