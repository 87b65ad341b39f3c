"""Cached predictions equal measured ones, and are used only for the same model, images and settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core import environment as fingerprint
from bench.core.cache_dir import answers_dir
from bench.core.conditions import digest_of
from bench.evaluation import prediction_cache as answers
from bench.evaluation import stream
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.planning.cost_estimate import estimate
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.runs.repeat import repeat
from bench.runs.run import Outcome, run
from bench.settings.run_spec import make_spec
from bench.shifts.digits import Digits
from leaderboards.predictions import Predictions
from leaderboards.record import Record
from leaderboards.store import Store

Quick = Callable[..., Outcome]
QUICK = {"set": {"source": {"epochs": 1}}}


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each batch that was made."""
    sizes: list[int] = []
    true = stream.make_pixels

    def counted(*arguments: Any) -> torch.Tensor:
        sizes.append(len(arguments[2]))
        return true(*arguments)

    monkeypatch.setattr(stream, "make_pixels", counted)
    return sizes


def told(folder: Path) -> dict[Any, Any]:
    """Records and predictions, image by image in the order of the stream, without keys, dates and times."""
    store = Store(folder)
    found = {}
    for record in store.records():
        values = record.model_dump(mode="json", exclude={"created", "key", "predictions", "protocol"})
        for name in ("fit_seconds", "predict_seconds", "peak_memory_mb"):
            del values["cost"][name]
        columns = vars(store.predictions(record))
        found[record.method, record.corruption, record.severity, record.seed] = (
            values,
            {name: column.tolist() for name, column in columns.items() if column is not None},
        )
    return found


def cost(record: Record) -> Any:
    assert record.cost is not None
    return record.cost


@pytest.mark.parametrize(
    "protocol",
    ["reset_each_shift", "continual", "mixed_domains", "correlated", "gradual", "label_shifts:ratio=5.0"],
)
def test_another_protocol_asks_nothing_twice(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, batches: list[int], protocol: str
) -> None:
    settings = {**settings, "severity": "3,5"}
    run_quick(settings, protocol="episodic", out=tmp_path / "first")
    batches.clear()
    assert run_quick(settings, protocol=protocol, out=tmp_path / "kept").exit_code == 0
    assert batches == []
    shutil.rmtree(answers_dir())
    run_quick(settings, protocol=protocol, out=tmp_path / "anew")
    assert batches
    kept, anew = told(tmp_path / "kept"), told(tmp_path / "anew")
    assert kept.keys() == anew.keys()
    for name, (values, columns) in anew.items():
        for column, wanted in columns.items():
            # Another order makes other batches, for which kernels may round differently.
            np.testing.assert_allclose(kept[name][1][column], wanted, rtol=0, atol=1e-6)
        without = {**values, "metrics": None, "diagnostics": None}
        assert {**kept[name][0], "metrics": None, "diagnostics": None} == without
        assert kept[name][0]["metrics"]["accuracy"] == values["metrics"]["accuracy"]
        assert (kept[name][0]["diagnostics"] is None) == (values["diagnostics"] is None)


def test_seeds_share_the_answers_of_a_ready_classifier(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, batches: list[int]
) -> None:
    """Only weights identify a classifier: a copy of the file is the same one, other weights are another."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10)
    for name in ("one", "copy"):
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    torch.nn.init.normal_(network.get_parameter("fc.weight"))
    save_file(network.state_dict(), tmp_path / "other.safetensors")
    del settings["stock"]
    settings |= {"shift": "digits-c", "method": "source", "corruption": "fog"}

    def made(name: str, **changes: Any) -> int:
        batches.clear()
        model = f"timm:test_resnet@{tmp_path / name}.safetensors"
        outcome = run(make_spec({**settings, "model": model, "out": tmp_path / "out" / name, **changes}))
        assert outcome.exit_code == 0
        return sum(batches)

    assert made("one", seeds=3) == 24  # seeds differ only in the order
    assert made("copy", seeds=3) == 0
    assert made("other") == 24


def test_what_is_recalled_costs_what_it_cost(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, batches: list[int]
) -> None:
    first = {r.corruption: cost(r) for r in run_quick(settings, out=tmp_path / "first").records()}
    batches.clear()
    again = {r.corruption: cost(r) for r in run_quick(settings, protocol="continual").records()}
    assert not batches
    for name, wanted in first.items():
        assert again[name].predict_seconds == pytest.approx(wanted.predict_seconds)
        assert again[name].peak_memory_mb == wanted.peak_memory_mb
        assert (again[name].forwards, again[name].backwards) == (wanted.forwards, wanted.backwards) == (12, 0)


def test_memory_measured_in_company_is_measured_by_who_runs_alone(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, batches: list[int]
) -> None:
    run_quick(settings, method="source,tent", out=tmp_path / "company")
    batches.clear()
    alone = run_quick(settings, protocol="episodic", out=tmp_path / "alone")
    assert batches
    assert all(cost(record).peak_memory_mb for record in alone.records())
    batches.clear()
    members = run_quick(settings, method="source,lame", protocol="continual", out=tmp_path / "again")
    assert all(cost(record).peak_memory_mb is None for record in members.records())


def test_only_what_changes_nothing_is_kept(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, batches: list[int]
) -> None:
    run_quick(settings, method="tent,lame")
    assert not answers_dir().exists()
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))\n"
    )
    del settings["stock"]
    run(make_spec({**settings, "model": f"{own}:make", "out": tmp_path / "own"}))
    assert not answers_dir().exists()


def _stream(settings: dict[str, Any], **changes: Any) -> Evaluation:
    spec = make_spec({**settings, "protocol": "mixed_domains", **changes}, QUICK)
    run(spec)
    streams = [task.arguments[0] for task, *_ in missing_streams(make_plan(spec.model_copy(update={"rerun": True})))]
    longest: Evaluation = max(streams, key=lambda stream: len(stream.segments[0].ids))
    return replace(longest, fresh=False)


def test_what_changes_answers_or_their_cost_measures_anew(settings: dict[str, Any], batches: list[int]) -> None:
    job = _stream(settings)
    batches.clear()
    evaluate(job)
    assert batches == []
    changes: list[dict[str, Any]] = [{"batch_size": 4}, {"precision": "bf16"}, {"fresh": True}, {"plain": False}]
    for change in changes:
        evaluate(replace(job, **change))
        assert sum(batches) == len(job.segments[0].ids) + (12 if job.clean is not None else 0), change
        batches.clear()


def other(what: str, job: Evaluation, patch: pytest.MonkeyPatch) -> Evaluation:
    """Change the machine, the code or the images under a job; return the job as it is then planned."""
    match what:
        case "threads":
            patch.setattr(torch, "get_num_threads", lambda: 77)
        case "code":
            patch.setattr(answers, "identity", lambda name: "2")
        case "versions":
            patch.setattr(answers, "libraries", lambda: {**fingerprint.libraries(), "torch": "9.9"})
        case "machine":
            patch.setattr(answers, "device_name", lambda device: "another processor")
        case "images":
            assert job.expected is not None
            digests = dict.fromkeys(job.expected.digests, "sha256:other")
            patch.setattr(Digits, "digest", lambda self, ids, condition: "sha256:other")
            return replace(job, expected=replace(job.expected, digests=digests))
        case "numbers":
            patch.setattr(answers, "_digest", lambda model: "other")
        case "layers":
            patch.setattr(answers, "repr", lambda model: "other", raising=False)
        case "members":
            patch.setattr(Digits, "members", ((0,),))
    return job


def test_another_machine_version_or_image_measures_anew(
    settings: dict[str, Any], batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _stream(settings)
    for what in ("threads", "code", "versions", "machine", "images", "numbers", "layers", "members"):
        batches.clear()
        with monkeypatch.context() as patch:
            evaluate(other(what, job, patch))
        assert batches, what
        batches.clear()
        evaluate(job)
        assert not batches, what


def test_a_run_that_repeats_its_trials_replaces_what_is_kept(
    settings: dict[str, Any], run_quick: Quick, batches: list[int]
) -> None:
    run_quick(settings)
    for path in answers_dir().glob("*.npz"):
        path.with_suffix(".json").unlink()
    run_quick(settings, rerun=True)
    assert len(list(answers_dir().glob("*.json"))) == 3
    batches.clear()
    run_quick(settings, rerun=True)
    assert sum(batches) == 36


def test_a_record_is_repeated_by_measuring(settings: dict[str, Any], run_quick: Quick, batches: list[int]) -> None:
    record = next(record for record in run_quick(settings).records() if record.corruption == "fog")
    batches.clear()
    assert repeat(record, {"stock": settings["stock"], "jobs": 1})["same"]
    assert sum(batches) == 24


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _other(path: Path) -> None:
    """Replace the file with the complete file of another condition."""
    others = [other for other in path.parent.glob(f"*{path.suffix}") if other.read_bytes() != path.read_bytes()]
    shutil.copy(others[0], path)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "empty": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "another's": _other,
    "a list": lambda path: path.write_text("[]"),
    "flipped": _flipped,
}


def test_a_damaged_file_is_measured_anew(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, batches: list[int]
) -> None:
    run_quick(settings, out=tmp_path / "first")
    for damage, suffix in product(DAMAGES, (".npz", ".json")):
        for path in answers_dir().glob(f"*{suffix}"):
            DAMAGES[damage](path)
        batches.clear()
        again = tmp_path / f"{damage} {suffix}"
        run_quick(settings, out=again)
        assert batches, (damage, suffix)
        assert told(again) == told(tmp_path / "first"), (damage, suffix)
        batches.clear()
        run_quick(settings, out=tmp_path / f"after {damage} {suffix}")
        assert not batches, (damage, suffix)


def rewrite(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Put other predictions into every cached file, complete and with matching digests."""
    for path in answers_dir().glob("*.npz"):
        with np.load(path) as kept:
            other = Predictions(**change(dict(kept)))
        other.save(path)
        facts, _ = json.loads(path.with_suffix(".json").read_text())
        facts["predictions"] = other.digest()
        path.with_suffix(".json").write_text(json.dumps([facts, digest_of(facts)]))


def test_labels_that_moved_are_measured_anew(settings: dict[str, Any], batches: list[int]) -> None:
    job = _stream(settings)
    rewrite(lambda columns: {**columns, "id": np.roll(columns["id"], 1)})
    batches.clear()
    evaluate(job)
    assert batches


def test_answers_that_lack_an_image_are_measured_anew(settings: dict[str, Any], batches: list[int]) -> None:
    """Detected even if the next image, whose prediction is in its place, has the same label."""
    job = _stream({**settings, "limit": 100})

    def without_one(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        order = np.argsort(columns["id"])
        same = np.flatnonzero(np.diff(columns["label"][order]) == 0)
        return {name: np.delete(column, order[same[0]]) for name, column in columns.items()}

    rewrite(without_one)
    batches.clear()
    evaluate(job)
    assert batches


def test_blended_streams_are_not_kept(settings: dict[str, Any], run_quick: Quick, batches: list[int]) -> None:
    for speed, out in ((4, "slow"), (2, "fast")):
        batches.clear()
        run_quick(settings, protocol=f"ccc_uncalibrated:speed={speed},images=24", out=settings["out"] / out)
        assert sum(batches) == 24 + (12 if speed == 4 else 0)
    assert len(list(answers_dir().glob("*.npz"))) == 1


def test_a_cache_that_cannot_be_written_costs_no_record(
    settings: dict[str, Any], own_cache: Path, run_quick: Quick
) -> None:
    own_cache.mkdir(exist_ok=True)
    answers_dir().write_text("in the way")
    assert run_quick(settings).exit_code == 0


def test_a_dry_run_knows_what_is_answered(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    run_quick(settings, out=tmp_path / "first")
    files = len(list(answers_dir().glob("*")))
    options = {"set": {"source": {"epochs": 2, "batch_size": 50}}}
    again = estimate(make_plan(make_spec({**settings, "protocol": "episodic"}, options)))
    assert (again.answered, again.passes, again.costs, again.seconds) == (3, 0, (), 0)
    more = estimate(make_plan(make_spec({**settings, "protocol": "episodic", "corruption": "fog,pixelate"}, options)))
    assert (more.answered, more.passes, more.samples) == (2, 1, (12, 0))
    members = estimate(make_plan(make_spec({**settings, "method": "source,lame", "protocol": "episodic"}, options)))
    assert (members.answered, members.passes) == (3, 3)
    assert [cost.label for cost in members.costs] == ["lame"]
    assert len(list(answers_dir().glob("*"))) == files
