"""Exports of corrupted copies: their content, their readers, and their continuation after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import quick_processes
import torch
from filelock import FileLock
from PIL import Image

import corruptions
from bench.core.conditions import CLEAN, Condition
from bench.core.errors import MissingDataError, UsageError
from bench.data.arrays import read_npy
from bench.data.decode import Preprocessing
from bench.data_tools.export import LAYOUTS, export, usual_layout
from bench.data_tools.verify import check_sums
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift
from corruptions import weather

SYNSETS = ("n01440764", "n01443537")
TREE, ARRAYS = LAYOUTS["imagenet-c"], LAYOUTS["cifar-c"]


def picture(number: int, side: int) -> Image.Image:
    small = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def write_set(root: Path, classes: tuple[str, ...] = SYNSETS, each: int = 2, side: int = 256) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            picture(10 * label + number, side).save(root / name / f"ILSVRC2012_val_{10 * label + number + 1:08d}.png")
    return root


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pictures(tmp_path: Path) -> Shift:
    return load_shift(f"folder:{write_set(tmp_path / 'pictures')}")


def contents(root: Path) -> dict[str, bytes]:
    """Every file a reader of the copy sees; the manifest says with what it was made."""
    files = (path for path in root.rglob("*") if path.is_file() and ".export" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.name != "manifest.json"}


def test_a_tree_is_read_as_imagenet_c_and_holds_what_its_storage_promises(pictures: Shift, tmp_path: Path) -> None:
    root = tmp_path / "root" / "imagenet-c"
    done = export(pictures, root, ["fog", "contrast"], [2, 5], TREE, workers=2)
    assert (done.images, done.made) == (16, 16)
    assert (root / "fog" / "5" / SYNSETS[1] / "ILSVRC2012_val_00000011.JPEG").is_file()
    assert check_sums(root) == (16, [])
    read = load_shift("imagenet-c", tmp_path / "root")
    ids = pictures.ids("test")
    clean = pictures.images(ids, CLEAN)
    for name in ("fog", "contrast"):
        for severity in (2, 5):
            found = read.images(ids, Condition(name, severity))
            expected = corruptions.corrupt(clean, name, severity, ids=ids.tolist(), storage="jpeg85")
            assert torch.equal(found, expected)
    assert (read.labels(ids) == pictures.labels(ids)).all()
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["profile"] == "imagenet224"
    assert manifest["storage"] == {"jpeg": {"quality": 85, "optimize": True}}
    assert torch.__version__.startswith(manifest["made_with"]["torch"])


def test_arrays_are_read_as_cifar_c(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "small", ("cat", "dog"), each=3, side=32)
    source = load_shift(f"folder:{folder}", reading=Reading(preprocessing=Preprocessing(32, 32)))
    out = tmp_path / "cifar"
    export(source, out, ["snow", "pixelate"], [1, 2, 3, 4, 5], ARRAYS)
    ids = source.ids("test")
    clean = source.images(ids, CLEAN)
    for name in ("snow", "pixelate"):
        for severity in range(1, 6):
            found = read_npy(out / f"{name}.npy", out / "labels.npy", ("cat", "dog"), severity)
            pixels = np.stack([np.asarray(found.read(row)) for row in range(len(found))])
            expected = corruptions.corrupt(clean, name, severity, ids=ids.tolist(), profile="cifar32")
            assert (pixels == expected.permute(0, 2, 3, 1).numpy()).all()
            assert (found.labels == source.labels(ids)).all()
    assert np.load(out / "snow.npy").shape == (30, 32, 32, 3)
    assert check_sums(out) == (3, [])


def test_laion_files_are_stored_without_loss_of_colour(pictures: Shift, tmp_path: Path) -> None:
    export(pictures, tmp_path / "out", ["gaussian_noise"], [3], LAYOUTS["laion-c"])
    files = sorted((tmp_path / "out" / "gaussian_noise" / "intensity_level_3").rglob("*.JPEG"))
    assert len(files) == 4
    with Image.open(files[0]) as image:
        assert all(value == 1 for table in image.quantization.values() for value in table)  # type: ignore[attr-defined]
        assert {component[1:3] for component in image.layer} == {(1, 1)}  # type: ignore[attr-defined]


def test_a_set_is_published_as_its_like(pictures: Shift) -> None:
    assert usual_layout(pictures) is TREE
    assert usual_layout(load_shift("digits-c")) is ARRAYS


def test_what_is_there_is_kept_and_what_was_damaged_is_made_again(pictures: Shift, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(pictures, tmp_path / "whole", ["fog", "snow"], [3], TREE)
    export(pictures, out, ["fog"], [3], TREE)
    assert export(pictures, out, ["fog"], [3], TREE).made == 0
    # As if it had been stopped: the journal is there, one file is cut short, one line of the journal too.
    sums = out / ".export" / "fog-3.sums"
    lines = sums.read_text().splitlines(keepends=True)
    (out / ".export" / "fog-3.journal").write_text("".join(lines[:3]) + lines[3][:70])
    sums.unlink()
    damaged = out / lines[0].split()[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert export(pictures, out, ["fog", "snow"], [3], TREE).made == 2 + 4
    assert contents(out) == contents(tmp_path / "whole")


def test_damaged_rows_of_an_array_are_made_again(tmp_path: Path) -> None:
    digits = load_shift("digits-c")
    export(digits, tmp_path / "whole", ["contrast"], range(1, 6), ARRAYS, limit=20)
    out = tmp_path / "out"
    export(digits, out, ["contrast"], range(1, 6), ARRAYS, limit=20)
    hidden = out / ".export"
    (out / "contrast.npy").rename(hidden / "contrast.npy")
    pixels = np.load(hidden / "contrast.npy", mmap_mode="r+")
    rows = [pixels[start : start + 20].tobytes() for start in range(0, 100, 20)]
    notes = [
        f"{hashlib.sha256(part).hexdigest()}  {','.join(map(str, range(20 * i, 20 * i + 20)))}\n"
        for i, part in enumerate(rows)
    ]
    (hidden / "contrast.journal").write_text("".join(notes[:4]) + "half a li")
    (hidden / "contrast.sums").unlink()
    pixels[25] = 0
    pixels.flush()
    assert export(digits, out, ["contrast"], range(1, 6), ARRAYS, limit=20).made == 40
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["imagenet-c", "cifar-c"])
def test_a_killed_export_goes_on_and_ends_with_the_same_bytes(layout: str, tmp_path: Path) -> None:
    source = write_set(tmp_path / "pictures", each=100, side=224)
    arguments = ["--corruption", "glass_blur,zoom_blur", "--layout", layout, "--device", "cpu", "--json"]

    def start(out: Path) -> quick_processes.Process:
        command = ["-m", "bench", "data", "export", f"folder:{source}", "-o", str(out), *arguments]
        return quick_processes.Process(command, cwd=Path(__file__).parents[3])

    def finish(out: Path) -> int:
        process = start(out)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return int(json.loads(output)["made"])

    assert finish(tmp_path / "whole") == 2000
    out = tmp_path / "out"
    for stop in (1, 2):
        process = start(out)
        wanted = {"imagenet-c": 150 * stop, "cifar-c": 2 * stop}[layout]
        while process.poll() is None and _progress(out, layout) < wanted:
            time.sleep(0.02)
        assert process.poll() is None, "it was to be killed midway"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "SHA256SUMS").exists()
        for file in out.rglob("[!.]*.JPEG"):
            Image.open(file).load()
    assert 0 < finish(out) < 2000
    assert contents(out) == contents(tmp_path / "whole")
    assert check_sums(out)[1] == []


def _progress(out: Path, layout: str) -> int:
    if layout == "imagenet-c":
        return sum(1 for _ in out.rglob("[!.]*.JPEG"))
    return sum(path.read_text().count("  ") for path in (out / ".export").glob("*.journal"))


def test_files_of_one_stem_and_names_that_are_no_folders(tmp_path: Path) -> None:
    source = write_set(tmp_path / "pictures", ("cat", "dog"), each=1)
    picture(7, 256).save(source / "cat" / "ILSVRC2012_val_00000001.bmp")
    export(load_shift(f"folder:{source}"), tmp_path / "out", ["fog"], [1], TREE)
    names = sorted(path.name for path in (tmp_path / "out" / "fog" / "1" / "cat").iterdir())
    assert names == ["ILSVRC2012_val_00000001.bmp.JPEG", "ILSVRC2012_val_00000001.png.JPEG"]

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["../../escaped", "a/b", ""])}
    )
    table = datasets.Dataset.from_dict({"image": [picture(i, 256) for i in range(3)], "label": [0, 1, 2]}, features)
    table.to_parquet(tmp_path / "test.parquet")
    export(load_shift(f"folder:{tmp_path / 'test.parquet'}"), tmp_path / "safe", ["fog"], [1], TREE)
    assert sorted(path.name for path in (tmp_path / "safe" / "fog" / "1").iterdir()) == ["0", "1", "2"]
    assert not (tmp_path / "escaped").exists()


def test_refusals_leave_everything_as_it_was(pictures: Shift, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(pictures, out, ["fog"], [3], TREE)
    before = contents(out)
    with pytest.raises(UsageError, match=r"holds another export \(other digest, ids, images\)"):
        export(pictures, out, ["fog"], [3], TREE, limit=2)
    with pytest.raises(UsageError, match=r"holds another export \(other layout, storage\)"):
        export(pictures, out, ["fog"], [1, 2, 3, 4, 5], ARRAYS)
    with pytest.raises(UsageError, match="have only the severities 1 to 5"):
        export(pictures, out, ["fog"], [2.5], TREE)
    with pytest.raises(UsageError, match="all five severities"):
        export(pictures, tmp_path / "other", ["fog"], [5], ARRAYS)
    with pytest.raises(UsageError, match="nothing to corrupt"):
        export(pictures, out, ["natural"], [1], TREE)
    with FileLock(out / ".export" / "lock"), pytest.raises(UsageError, match="another export is writing"):
        export(pictures, out, ["snow"], [3], TREE)
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"not empty \(thesis.txt, …\) and not an export"):
        export(pictures, tmp_path / "mine", ["fog"], [3], TREE)
    (out / "manifest.json").write_text("[half")
    with pytest.raises(UsageError, match="holds another export"):
        export(pictures, out, ["fog"], [3], TREE)


def test_published_files_are_not_exported(pictures: Shift, tmp_path: Path) -> None:
    root = tmp_path / "root"
    export(pictures, root / "imagenet-c", ["fog"], [1, 2, 3, 4, 5], TREE)
    with pytest.raises(UsageError, match="consists of published files"):
        export(load_shift("imagenet-c", root), tmp_path / "out", ["fog"], [3], TREE)


def test_missing_photographs_are_said_before_anything_is_made(
    pictures: Shift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weather, "frost_folder", lambda: None)
    weather._frost_photographs.cache_clear()
    weather._frost_texture.cache_clear()
    with pytest.raises(MissingDataError, match="corrupt-tta"):
        export(pictures, tmp_path / "out", ["fog", "frost"], [3], TREE)
    assert not list((tmp_path / "out").rglob("*.JPEG"))
