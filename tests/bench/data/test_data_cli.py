"""The commands bench data status, verify and clean, and the notes of runs on skipped images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.conditions import CLEAN, Condition
from bench.core.errors import BenchError
from bench.data.decoded_store import PixelStore
from bench.shifts import load_shift
from bench.shifts.catalog import OPEN, SHIFTS
from leaderboards.store import Store

from .conftest import picture, save, write_tree

THREE = ["n01440764", "n01443537", "n02979186"]
FACTORY = """
import torch
class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.pool, self.head = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Linear(48, OUTPUTS)
    def forward(self, images):
        return self.head(self.pool(images).flatten(1))
factory = Mean
"""


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def refused(*arguments: str) -> BenchError:
    error = bench(*arguments).exception
    assert isinstance(error, BenchError), error
    return error


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """ImageNet-C of three classes under all corruptions at severity 5, clean val, and a model file."""
    conditions = [f"{name}/{level}" for name in load_corruptions() for level in (1, 2, 3, 4, 5)]
    write_tree(tmp_path / "imagenet-c", THREE, conditions, each=1)
    for number, name in enumerate(THREE):
        save(tmp_path / "imagenet/val" / name / f"ILSVRC2012_val_{number + 1:08d}.JPEG", picture(number, (260, 240)))
    (tmp_path / "model.py").write_text(FACTORY.replace("OUTPUTS", "1000"))
    return tmp_path


def load_corruptions() -> tuple[str, ...]:
    from bench.shifts.corruption_sets import COMMON

    return COMMON


def test_status_names_every_shift_what_it_weighs_and_what_brings_it(tmp_path: Path) -> None:
    done = bench("data", "status", "--data-root", tmp_path, "--json")
    assert done.exit_code == 0
    found = {row["shift"]: row for row in json.loads(done.stdout)["shifts"]}
    assert set(found) == set(SHIFTS) - set(OPEN)
    for name, row in found.items():
        assert row["licence"]
        assert row["citation"]
        assert row["size"]
        if not row["here"]:
            assert row["fetch"].startswith((f"bench data fetch {name}", "image-net.org", "github.com")), name
    assert "bench data fetch imagenet-c" in bench("data", "status", "--data-root", tmp_path).stdout


def test_status_tells_where_clean_and_train_images_are(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    done = bench("data", "status", "--data-root", tmp_path, "--json")
    found = {row["shift"]: row for row in json.loads(done.stdout)["shifts"]}
    places = [(found[name]["clean"], found[name]["train"]) for name in ("cifar10-c", "cifar10-c-gen", "digits-c")]
    assert places == [(str(tmp_path / "cifar10"),) * 2] * 2 + [("scikit-learn",) * 2]


def test_status_needs_no_torch() -> None:
    modules = "bench.cli.data, bench.data_tools.locate"
    code = f"import sys; import {modules}; assert not {{'torch', 'datasets', 'timm'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_status_finds_what_is_there_and_clean_frees_what_was_decoded(root: Path) -> None:
    shift = load_shift("imagenet-c", root)
    shift.images(shift.ids("test"), Condition("fog", 5))
    shift.images(shift.ids("test"), CLEAN)
    done = bench("data", "status", "imagenet-c", "--data-root", root)
    assert f"scored images: {root / 'imagenet-c'}" in done.stdout
    assert f"clean copies: {root / 'imagenet/val'}" in done.stdout
    assert "licence: CC BY 4.0" in done.stdout
    (row,) = json.loads(bench("data", "status", "imagenet-c", "--data-root", root, "--json").stdout)["shifts"]
    assert row["decoded"] >= 3 * 3 * 224 * 224
    assert "freed" in bench("data", "clean", "imagenet-c", "--data-root", root).stdout
    held = json.loads(bench("data", "status", "--data-root", root, "--json").stdout)
    decoded = {row["shift"]: row["decoded"] for row in held["shifts"] if row["decoded"]}
    assert "imagenet-c" not in decoded
    assert decoded["imagenet-c-gen"] > 0
    assert held["cache"]["pixels"]["bytes"] > 0
    bench("data", "clean")
    held = json.loads(bench("data", "status", "--data-root", root, "--json").stdout)
    assert held["cache"].get("pixels", {}).get("bytes", 0) == 0
    assert "is not found" in str(refused("data", "clean", "laion-c", "--data-root", root))


def test_verify_reads_every_image_of_every_condition(root: Path) -> None:
    done = bench("data", "verify", "imagenet-c", "--data-root", root)
    assert done.exit_code == 0, done.output
    assert f"{3 + 75 * 3} images read: no problems" in done.stdout
    (root / "imagenet-c/snow/2" / THREE[1] / "ILSVRC2012_val_00000002.JPEG").write_bytes(b"\xff\xd8\xff broken")
    for level in (1, 3):
        (root / f"imagenet-c/fog/{level}" / THREE[0] / "ILSVRC2012_val_00000001.JPEG").unlink()
    done = bench("data", "verify", "imagenet-c", "--data-root", root, "--json")
    assert done.exit_code == 4
    problems = json.loads(done.stdout)["problems"]
    assert len(problems) == 3
    assert sum("fog@" in text and "has 2 images" in text for text in problems) == 2
    assert sum("snow/2" in text and "ILSVRC2012_val_00000002.JPEG" in text for text in problems) == 1
    assert refused("data", "verify", "laion-c", "--data-root", root).exit_code == 3


def test_verify_holds_files_against_their_sums_and_kept_pixels_against_their_digests(root: Path) -> None:
    from bench.data_tools.verify import file_digest

    tree = root / "imagenet-c"
    files = sorted(path for path in tree.rglob("*.JPEG"))
    sums = "".join(f"{file_digest(path)}  {path.relative_to(tree)}\n" for path in files)
    (tree / "SHA256SUMS").write_text(sums + f"{'0' * 64}  ../imagenet/val/x\nnonsense\n")
    shift: Any = load_shift("imagenet-c", root)
    store: PixelStore = shift._stores(shift.open_test().images)
    store.read(np.arange(3))
    with store.path().open("r+b") as file:
        file.write(b"\0" * 50)
    picture_of = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    done = bench("data", "verify", "imagenet-c", "--data-root", root, "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 4
    assert report["checked"] == len(files) - 1
    assert sum("does not match SHA256SUMS" in text for text in report["problems"]) == 1
    assert sum("x is missing" in text for text in report["problems"]) == 1
    assert sum("the line 'nonsense'" in text for text in report["problems"]) == 1
    assert sum("cached pixels of" in text and "were dropped" in text for text in report["problems"]) == 1
    files[0].write_bytes(picture_of)
    (tree / "SHA256SUMS").write_text(sums)
    done = bench("data", "verify", "imagenet-c", "--data-root", root)
    assert f"{len(files)} files agree with SHA256SUMS: no problems" in done.stdout


def _run(root: Path, shift: str, *more: str) -> Result:
    return bench("run", "--method", "source", "--shift", shift, "--model", f"{root}/model.py:factory", "--data-root",
                 root, "--out", root / "out", "--split", "transductive", "--jobs", "1", *more)  # fmt: skip


def test_a_published_tree_from_run_to_record(root: Path) -> None:
    done = _run(root, "imagenet-c", "--corruption", "fog,snow", "--severity", "2,5")
    assert done.exit_code == 0, done.output
    records = Store(root / "out").records()
    assert len(records) == 5
    for record in records:
        assert (record.shift, record.data.storage, record.data.profile) == ("imagenet-c", "jpeg85", "imagenet224")
        assert (record.n, record.data.skipped) == (3, 0)
    digests = [record.data.digest for record in records]
    assert len(set(digests)) == 5


def test_a_skipped_image_is_counted_in_the_record_and_keeps_it_from_being_published(root: Path) -> None:
    left_out = f"{THREE[1]}/ILSVRC2012_val_00000002.JPEG"
    (root / "imagenet/val" / left_out).write_bytes(b"")
    stopped = _run(root, "imagenet-c-gen", "--corruption", "fog")
    assert isinstance(stopped.exception, BenchError)
    assert left_out in str(stopped.exception)
    assert "skipped.txt" in str(stopped.exception)
    assert not (root / "out/records").is_dir()
    (root / "imagenet/val/skipped.txt").write_text(left_out + "\n")
    assert _run(root, "imagenet-c-gen", "--corruption", "fog").exit_code == 0
    assert {(record.n, record.data.skipped) for record in Store(root / "out").records()} == {(2, 1)}
    checked = bench("publish", "check", root / "out")
    assert checked.exit_code == 4
    assert "left out 1 test images; mend them and run it again on all of them" in checked.stdout


def test_a_stream_of_changing_corruptions_runs_from_val(root: Path) -> None:
    stopped = _run(root, "ccc", "--corruption", "fog,contrast").exception
    assert "ccc is one stream, not conditions side by side; add --protocol ccc_uncalibrated" in str(stopped)
    done = _run(root, "ccc", "--corruption", "fog,contrast", "--protocol", "ccc_uncalibrated")
    assert done.exit_code == 0, done.output
    records = Store(root / "out").records()
    assert {record.shift for record in records} == {"ccc"}
    assert all(record.status == "done" for record in records)


def test_superclasses_are_scored_in_a_run(root: Path) -> None:
    write_tree(root / "laion-c", ["bird", "dog", "tools"], ["mosaic/intensity_level_5"])
    assert _run(root, "laion-c", "--corruption", "mosaic").exit_code == 0
    (record,) = Store(root / "out").records()
    stored = Store(root / "out").predictions(record)
    assert stored.label.max() < 16
    assert (record.n, record.data.storage) == (6, "jpeg100")


def test_several_labels_are_right_in_a_run(root: Path) -> None:
    assert _run(root, "imagenet-real").exit_code == 0
    (record,) = Store(root / "out").records()
    shift = load_shift("imagenet-real", root)
    stored = Store(root / "out").predictions(record)
    answers = shift.answers(stored.id)
    assert answers is not None
    assert stored.correct is not None
    assert np.array_equal(stored.correct, answers[np.arange(len(stored.id)), stored.predicted])
    assert record.corruption == "natural"


def test_offline_and_wrong_names_end_in_one_sentence(root: Path) -> None:
    assert refused("data", "fetch", "cifar10-c", "--offline", "--data-root", root).exit_code == 2
    assert "did you mean 'imagenet-" in str(refused("data", "status", "imagenet-cc", "--data-root", root))
    error = refused("run", "--method", "source", "--shift", "imagenet-sketch", "--offline", "--data-root", root,
                    "--model", f"{root}/model.py:factory")  # fmt: skip
    assert error.exit_code == 3
    assert "bench data fetch" in str(error)
