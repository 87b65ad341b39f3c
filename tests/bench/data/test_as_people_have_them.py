"""Inputs from public issue reports of data loaders: the right accuracy or one clear error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel, Value
from PIL import Image
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.conditions import CLEAN
from bench.core.errors import MissingDataError, UsageError
from bench.data.hf_tables import read_parquet
from bench.models.load_model import load_ready
from bench.shifts import load_shift
from bench.training.pretrain_stock import StockSpec, plan_stock

from .greys import CIFAR, arrays, grey, knows, png, table, tree

FOUR = ["n01443537", "n01629819", "n02132136", "n09246464"]
THREE = [0, 1, 2]
TWELVE = [k for k in range(12) for _ in range(4)]


def test_numbers_as_text_are_numbers(knower: Any, tmp_path: Path) -> None:
    table(tmp_path / "d/test-0.parquet", TWELVE, 12, list(map(str, TWELVE)), Value("string"))
    assert knower(f"folder:{tmp_path}/d", 12)[0] == {"natural": (1.0, 48)}


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    table(tmp_path / "test-0.parquet", TWELVE, 12, [None, *TWELVE[1:]], Value("int64"))
    with pytest.raises(UsageError, match=r"test-0\.parquet, row 0 has no label in label; write the table"):
        load_shift(f"folder:{tmp_path}")


def test_parts_that_name_classes_otherwise_are_matched_by_name(knower: Any, tmp_path: Path) -> None:
    truth = [i % 3 for i in range(60)]
    test, train = ["airplane", "bird", "cat"], ["airplane", "bird", "Cat"]
    table(tmp_path / "d/test-0.parquet", truth, 3, [test[k] for k in truth], Value("string"))
    table(tmp_path / "d/train-0.parquet", truth, 3, [train[k] for k in truth], Value("string"))
    assert knower(f"folder:{tmp_path}/d", 3)[0] == {"natural": (1.0, 60)}
    shift = load_shift(f"folder:{tmp_path}/d")
    ids = shift.ids("train")
    assert knows(shift, ids, 3) == 1


def test_the_label_is_not_the_fold(tmp_path: Path) -> None:
    truth = [i % 3 for i in range(60)]
    kind = ClassLabel(names=["0", "1", "2"])
    table(tmp_path / "test-0.parquet", truth, 3, truth, kind)
    table(
        tmp_path / "train-0.parquet",
        truth,
        3,
        truth,
        kind,
        {"fold": (Value("string"), [str(i // 20) for i in range(60)])},
    )
    shift = load_shift(f"folder:{tmp_path}")
    assert knows(shift, shift.ids("train"), 3) == knows(shift, shift.ids("test"), 3) == 1
    alone = read_parquet([tmp_path / "train-0.parquet"], classes=["0", "1", "2"])
    assert alone.labels.tolist() == truth


def test_cifar_under_the_names_of_a_tutorial(knower: Any, tmp_path: Path) -> None:
    arrays(tmp_path)
    for part in ("train", "test"):
        tree(tmp_path / "cifar10" / part, ["plane", "car", *CIFAR[2:]])
    found, notes = knower("cifar10-c", 10, corruption="fog", data_root=tmp_path)
    assert found["fog"] == (1.0, 40)
    shift = load_shift("cifar10-c", tmp_path)
    ids = np.concatenate([shift.ids("train"), shift.ids("dev")])
    assert len(ids) == 40
    assert knows(shift, ids, 10) == 1
    assert any("40 test images have other labels than" in note for note in notes)


def test_two_copies_of_one_set_have_their_own_pixels(knower: Any, tmp_path: Path) -> None:
    for copy in ("1", "2"):
        place = arrays(tmp_path / copy)
        if copy == "2":
            np.save(place / "fog.npy", 255 - np.load(place / "fog.npy"))
        for file in place.iterdir():
            os.utime(file, (0, 0))
    assert knower("cifar10-c", 10, corruption="fog", data_root=tmp_path / "1")[0]["fog"][0] == 1
    mirrored = knower("cifar10-c", 10, corruption="fog", data_root=tmp_path / "2")[0]["fog"][0]
    assert mirrored == 0


def test_one_severity_is_not_cut_into_fifths(knower: Any, tmp_path: Path) -> None:
    arrays(tmp_path, ("gaussian_noise", "fog"), severities=1)
    with pytest.raises(
        UsageError, match=r"noise\.npy holds one severity, not the published five.* score it unchanged with: (.*)"
    ):
        load_shift("cifar10-c", tmp_path).ids("test")
    with pytest.raises(UsageError) as caught:
        load_shift("cifar10-c", tmp_path).ids("test")
    words = str(caught.value).rpartition(": --shift ")[2].split()
    assert knower(words[0], 10, corruption=words[2])[0] == {"natural": (1.0, 40)}


def test_a_stock_sees_all_shards(tmp_path: Path) -> None:
    for shard in range(3):
        table(tmp_path / f"train-{shard:05d}-of-00003.parquet", TWELVE, 12, TWELVE, Value("int64"))
    table(tmp_path / "test-0.parquet", TWELVE, 12, TWELVE, Value("int64"))
    plan = plan_stock(StockSpec(f"folder:{tmp_path}", arch="vit_micro_patch8_32", steps=2, device="cpu"))
    assert len(plan.data) == 144 - 15
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(MissingDataError, match="has 2 of the 3 files of train: number 1 is missing; copy it there"):
        load_shift(f"folder:{tmp_path}")


def test_no_stock_of_test_images(tmp_path: Path) -> None:
    for part in ("test", "validation"):
        table(tmp_path / f"{part}-0.parquet", [0, 1] * 10, 2, [0, 1] * 10, Value("int64"))
    spec = StockSpec(f"folder:{tmp_path}", arch="vit_micro_patch8_32", steps=2, device="cpu")
    with pytest.raises(UsageError, match=r"parts test, validation and no train images, and a stock is"):
        plan_stock(spec)


def test_of_two_sets_of_weights_the_one_that_timm_takes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    raw, ema = (timm.create_model("test_resnet", num_classes=10) for _ in range(2))
    torch.save({"state_dict": raw.state_dict(), "state_dict_ema": ema.state_dict(), "epoch": 1}, tmp_path / "ema.pth")
    reference = timm.create_model("test_resnet", num_classes=10, checkpoint_path=str(tmp_path / "ema.pth"))
    model = load_ready(f"timm:test_resnet@{tmp_path}/ema.pth")
    assert torch.equal(model.network.state_dict()["fc.weight"], reference.state_dict()["fc.weight"])
    assert "state_dict_ema" in model.notes[0]
    assert "state_dict_ema" in model.name
    other = load_ready(f"timm:test_resnet@{tmp_path}/ema.pth#state_dict")
    assert torch.equal(other.network.state_dict()["fc.weight"], raw.state_dict()["fc.weight"])


def test_tiny_imagenet_c_with_one_severity(knower: Any, tmp_path: Path) -> None:
    for name in ("fog", "snow"):
        tree(tmp_path / "tiny-imagenet-c" / name / "5", FOUR, side=64, name="ILSVRC2012_val_{k}{i}.png")
    found, _ = knower("tiny-imagenet-c", 4, 64, "fog,snow", data_root=tmp_path)
    assert found == {"fog": (1.0, 16), "snow": (1.0, 16)}


def test_the_published_frost_has_classes_beside_the_200(knower: Any, tmp_path: Path) -> None:
    for name in ("gaussian_noise", "frost"):
        for severity in "15":
            tree(tmp_path / "tiny-imagenet-c" / name / severity, FOUR, side=64)
    for severity in "15":
        tree(tmp_path / "tiny-imagenet-c/frost" / severity, ["n01440764"], side=64)
    found, notes = knower("tiny-imagenet-c", 4, 64, "gaussian_noise,frost", data_root=tmp_path)
    assert found == {"gaussian_noise": (1.0, 16), "frost": (1.0, 16)}
    assert any("frost has 1 folders of classes that the other corruptions lack (n01440764" in note for note in notes)


def test_tiny_imagenet_c_is_not_made_of_tiny_imagenet(knower: Any, tmp_path: Path) -> None:
    for severity in "15":
        tree(tmp_path / "tiny-imagenet-c/fog" / severity, FOUR, side=64, name="ILSVRC2012_val_000{k}000{i}.JPEG")
    val = tmp_path / "tiny-imagenet-200/val"
    (val / "images").mkdir(parents=True)
    lines = []
    for number in range(16):
        pixels = grey(number // 4, 4, number, 64)
        pixels[:8, :8] = 128  # what the corrupted ones do not have
        Image.fromarray(pixels).save(val / f"images/val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{FOUR[number // 4]}\t0\t0\t63\t63\n")
    (val / "val_annotations.txt").write_text("".join(lines))
    found, notes = knower("tiny-imagenet-c", 4, 64, "fog", data_root=tmp_path)
    assert found == {"clean": (1.0, 16), "fog": (1.0, 16)}
    assert any("clean is a condition of its own" in note for note in notes)
    shift = load_shift("tiny-imagenet-c", tmp_path)
    reference = np.asarray(Image.open(val / "images/val_9.JPEG").convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(shift.images(np.array([11]), CLEAN)[0].numpy(), reference)  # sorted by text: 10, …, 15, 8, 9
    (val / "val_annotations.txt").write_text("".join(lines[:15]))
    found, notes = knower("tiny-imagenet-c", 4, 64, "fog", data_root=tmp_path)
    assert found == {"fog": (1.0, 16)}
    assert any("not as many of each class" in note for note in notes)


@pytest.mark.parametrize("part", [None, "train", "validation"])
def test_a_test_part_without_labels(part: str | None, knower: Any, tmp_path: Path) -> None:
    truth = [k for k in range(12) for _ in range(2)]
    kind = ClassLabel(names=[f"n{k:02d}" for k in range(12)])
    table(tmp_path / "test-0.parquet", truth, 12, [-1] * 24, kind)
    for name in ("train", "validation"):
        table(tmp_path / f"{name}-0.parquet", truth, 12, truth, kind)
    found, notes = knower(f"folder:{tmp_path}", 12, part=part)
    assert found == {"natural": (1.0, 24)}
    assert any("has no labels and is not scored; the part validation is" in note for note in notes) == (part is None)
    plan = plan_stock(StockSpec(f"folder:{tmp_path}", arch="vit_micro_patch8_32", steps=2, device="cpu"))
    assert len(plan.data) == 21
    with pytest.raises(UsageError, match=r"test-0\.parquet has no labels in label; choose another part"):
        knower(f"folder:{tmp_path}", 12, part="test")


def test_a_few_synsets_for_a_model_of_that_many_classes(knower: Any, tmp_path: Path) -> None:
    for part in ("train", "val"):
        tree(tmp_path / "imagenette" / part, ["n01440764", "n02102040", "n02979186"])
    found, notes = knower(f"folder:{tmp_path}/imagenette", 3)
    assert found == {"natural": (1.0, 12)}
    assert any("has 3 of ImageNet's classes, as many as the model has outputs" in note for note in notes)
    shift = load_shift(f"folder:{tmp_path}/imagenette")
    assert (shift.classes, sorted({*shift.labels(shift.ids("test"))})) == (1000, [0, 217, 482])


def test_a_test_part_may_lack_a_class(knower: Any, tmp_path: Path) -> None:
    tree(tmp_path / "d/train", ["a", "b", "c"])
    tree(tmp_path / "d/test", ["a", "c"], n=3, classes=[0, 2])
    found, notes = knower(f"folder:{tmp_path}/d", 3)
    assert found == {"natural": (1.0, 8)}
    assert "no scored image is of 1 of the 3 classes: b" in notes


def test_damaged_exif(knower: Any, tmp_path: Path) -> None:
    tree(tmp_path / "d", ["a", "b"])
    (tmp_path / "d/a/x.png").write_bytes(png(grey(0, 2), exif=b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03"))
    assert knower(f"folder:{tmp_path}/d", 2)[0] == {"natural": (1.0, 9)}


def test_a_name_that_is_not_utf_8(knower: Any, tmp_path: Path) -> None:
    tree(tmp_path / "d", ["a", "b"])
    odd = os.fsencode(tmp_path) + b"/d/a/M\xf6we.png"
    Path(os.fsdecode(odd)).write_bytes(png(grey(0, 2)))
    for command in (["run", "--method", "source", "--model", f"{tmp_path}/knows.py:of2s32"], ["data", "verify"]):
        words = [*command, *(["--shift"] if command[0] == "run" else []), f"folder:{tmp_path}/d"]
        said = CliRunner().invoke(app, words)
        assert isinstance(said.exception, UsageError), said.exception
        assert str(said.exception).endswith(r"a/M\xf6we.png is not named in UTF-8; rename it")
    os.rename(odd, tmp_path / "d/a/Möwe.png")  # noqa: PTH104 - bytes
    assert knower(f"folder:{tmp_path}/d", 2)[0] == {"natural": (1.0, 9)}


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_without_meaning(orientation: int, knower: Any, tmp_path: Path) -> None:
    tree(tmp_path / "d", ["a", "b"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey(0, 2)).save(tmp_path / "d/a/x.jpg", exif=exif.tobytes(), quality=95)
    assert knower(f"folder:{tmp_path}/d", 2)[0] == {"natural": (1.0, 9)}


def test_a_folder_as_hf_keeps_all_its_images(knower: Any, tmp_path: Path) -> None:
    tree(tmp_path / "d", ["cat", "dog"])
    for k, name in enumerate(("cat", "dog")):
        Image.fromarray(grey(k, 2, 9)).save(tmp_path / "d" / name / "my_test.png")
    assert knower(f"hf:{tmp_path}/d", 2)[0] == {"natural": (1.0, 10)}


def test_what_systems_leave_behind_is_no_class(knower: Any, tmp_path: Path) -> None:
    tree(tmp_path / "d", ["a", "b"])
    for name in ("__MACOSX", "@eaDir", "lost+found", ".hidden"):
        (tmp_path / "d" / name).mkdir()
        (tmp_path / "d" / name / "._a").write_bytes(b"x")
    assert knower(f"folder:{tmp_path}/d", 2)[0] == {"natural": (1.0, 8)}
