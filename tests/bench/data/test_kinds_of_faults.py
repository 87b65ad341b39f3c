"""Nine kinds of silent data errors, each tried wherever it may occur; the advice of messages works."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Value
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.conditions import Condition
from bench.core.errors import MissingDataError, UsageError
from bench.data.classes import CIFAR10, CIFAR100, joined, match, places_of
from bench.data_tools.explain import explain
from bench.data_tools.locate import look
from bench.data_tools.verify import verify
from bench.shifts import load_shift
from bench.shifts.corruption_sets import BAR, LAION
from bench.shifts.data_root import Reading
from bench.shifts.fashion import CLASSES
from bench.shifts.imagenet import SUPERCLASSES, synsets
from bench.training.pretrain_stock import StockSpec, plan_stock

from .conftest import as_stored, picture, save
from .greys import CIFAR, arrays, grey, knows, png, table, tree

WORDS: list[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


def everything(shift: Any) -> np.ndarray:
    return np.concatenate([shift.ids("train"), shift.ids("dev")])


def labels_of(shift: Any) -> list[int]:
    found: list[int] = shift.labels(shift.ids("test")).tolist()
    return found


class TestIdentityByName:
    def test_class_labels_in_another_order(self, tmp_path: Path) -> None:
        truth = [0, 1, 2] * 10
        table(tmp_path / "test-0.parquet", truth, 3, truth, ClassLabel(names=["ant", "bee", "cow"]))
        other = ["cow", "ant", "bee"]
        written = [other.index(["ant", "bee", "cow"][k]) for k in truth]
        table(tmp_path / "train-0.parquet", truth, 3, written, ClassLabel(names=other))
        shift = load_shift(f"folder:{tmp_path}")
        assert knows(shift, everything(shift), 3) == knows(shift, shift.ids("test"), 3) == 1

    def test_names_beside_class_labels(self, tmp_path: Path) -> None:
        truth = [0, 1, 2] * 10
        names = ["cow", "ant", "bee"]
        table(tmp_path / "test-0.parquet", truth, 3, truth, ClassLabel(names=names))
        table(tmp_path / "train-0.parquet", truth, 3, [names[k].upper() for k in truth], Value("string"))
        shift = load_shift(f"folder:{tmp_path}")
        assert knows(shift, everything(shift), 3) == 1

    def test_numbers_say_nothing_of_names(self, tmp_path: Path) -> None:
        truth = [0, 1] * 10
        table(tmp_path / "test-0.parquet", truth, 2, ["ab"[k] for k in truth], Value("string"))
        table(tmp_path / "train-0.parquet", truth, 2, truth, Value("int64"))
        with pytest.raises(UsageError, match=r"has the class a, which .*train-0\.parquet lacks, while it has 0"):
            load_shift(f"folder:{tmp_path}")
        table(tmp_path / "train-0.parquet", truth, 2, ["ab"[k] for k in truth], Value("string"))
        shift = load_shift(f"folder:{tmp_path}")
        assert knows(shift, everything(shift), 2) == 1

    @pytest.mark.parametrize("how", ["alphabetical words", "numbers from 0", "numbers as names", "synsets"])
    def test_imagenet_in_tables(self, how: str, tmp_path: Path) -> None:
        truth = [1, 2, 483, 999, 0]
        kinds: dict[str, tuple[Any, list[Any]]] = {
            "alphabetical words": (ClassLabel(names=sorted(WORDS)), [sorted(WORDS).index(WORDS[k]) for k in truth]),
            "numbers from 0": (Value("int64"), truth),
            "numbers as names": (ClassLabel(names=list(map(str, range(1000)))), truth),
            "synsets": (Value("string"), [synsets()[k] for k in truth]),
        }
        kind, written = kinds[how]
        table(tmp_path / "imagenet/val/0.parquet", [0] * 5, 2, written, kind)
        assert labels_of(load_shift("imagenet-c-gen", tmp_path)) == truth

    def test_imagenet_counted_from_1(self, tmp_path: Path) -> None:
        table(tmp_path / "imagenet/val/0.parquet", [0] * 3, 2, [1, 500, 1000], Value("int64"))
        with pytest.raises(UsageError, match="numbers 1 to 1000 for its classes, which are not positions from 0 among"):
            load_shift("imagenet-c-gen", tmp_path).ids("test")

    @pytest.mark.parametrize("name", ["imagenet-sketch", "imagenet-r"])
    def test_natural_sets_in_tables_of_words(self, name: str, tmp_path: Path) -> None:
        shown = [1, 99, 207]
        table(tmp_path / name / "0.parquet", [0] * 3, 2, [WORDS[k] for k in shown], Value("string"))
        shift: Any = load_shift(name, tmp_path)
        members = shift.members or [(k,) for k in range(1000)]
        assert [members[label][0] for label in labels_of(shift)] == shown

    def test_synsets_with_words_behind_them(self, tmp_path: Path) -> None:
        tree(tmp_path / "imagenet/val", ["n02085620-Chihuahua", "n01443537 goldfish"], each=1)
        assert labels_of(load_shift("imagenet-c-gen", tmp_path)) == [1, 151]

    def test_a_word_that_is_two_classes_is_refused(self) -> None:
        assert match(["crane", "goldfish"], synsets()) == [None, 1]
        with pytest.raises(UsageError, match=r"has the class crane, .* or could be several; rename it"):
            places_of(["crane"], synsets(), "x")
        assert match(["crane bird"], synsets()) == [134]
        with pytest.raises(UsageError, match="has the class dragon, which is not one of the 1000 classes"):
            places_of(["dragon"], synsets(), "x")

    def test_words_of_the_hub_have_their_places(self) -> None:
        from importlib import resources

        text = (resources.files("timm.data") / "_info" / "imagenet_synset_to_lemma.txt").read_text()
        lemmas = dict(line.split("\t") for line in text.splitlines())
        hub = [lemmas[name] for name in synsets()]
        assert match(hub, synsets()) == list(range(1000))
        shuffled = sorted(set(hub) - {"crane"})
        assert match(shuffled, synsets()) == [hub.index(name) for name in shuffled]
        assert match(WORDS, synsets()) == list(range(1000))
        assert match(list(synsets()), WORDS) == list(range(1000))

    def test_superclasses_and_clothes_by_their_names(self) -> None:
        assert places_of(["Car Truck", "snakes"], tuple(SUPERCLASSES), "x") == (5, 13)
        hub = [
            "T - shirt / top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ]
        assert places_of(hub[::-1], CLASSES, "x") == tuple(range(9, -1, -1))
        assert places_of(["maple tree", "Sweet Pepper"], CIFAR100, "x") == (47, 83)

    def test_two_names_for_one_class(self, tmp_path: Path) -> None:
        tree(tmp_path / "test", ["cat", "dog"])
        tree(tmp_path / "train", ["Cat", "cat", "dog"], classes=[0, 0, 1], n=2)
        with pytest.raises(UsageError, match="has the classes Cat and cat, which are one class; merge them"):
            load_shift(f"folder:{tmp_path}")
        for file in (tmp_path / "train/Cat").iterdir():
            file.rename(tmp_path / "train/cat" / f"x{file.name}")
        (tmp_path / "train/Cat").rmdir()
        assert len(everything(load_shift(f"folder:{tmp_path}"))) == 12

    def test_a_class_folder_that_is_missing(self, tmp_path: Path) -> None:
        arrays(tmp_path)
        tree(tmp_path / "cifar10/train", CIFAR[1:], n=10, classes=range(1, 10))
        tree(tmp_path / "cifar10/test", CIFAR)
        shift = load_shift("cifar10-c", tmp_path)
        assert knows(shift, everything(shift), 10) == 1
        (tmp_path / "cifar10/train/cat").rename(tmp_path / "cifar10/train/kitten")
        with pytest.raises(UsageError, match=r"kitten is not one of the 10 classes .* or rename it if"):
            everything(load_shift("cifar10-c", tmp_path))

    def test_cifar_in_tables_of_another_order(self, tmp_path: Path) -> None:
        other = sorted(CIFAR, reverse=True)
        truth = list(range(10)) * 2
        for part in ("train", "test"):
            written = [other.index(CIFAR[k]) for k in truth]
            table(tmp_path / f"cifar10/{part}-0.parquet", truth, 10, written, ClassLabel(names=other))
        shift = load_shift("cifar10-c-gen", tmp_path)
        assert knows(shift, shift.ids("test"), 10) == knows(shift, everything(shift), 10) == 1
        assert labels_of(shift) == truth

    def test_tasks_whose_parts_are_ordered_otherwise(self, tmp_path: Path) -> None:
        truth = [0, 1, 2] * 5
        names = ["x", "y", "z"]
        for part, order in (("test", names), ("train", names[::-1])):
            written = [order.index(names[k]) for k in truth]
            table(tmp_path / f"mini-vtab/dtd/{part}-0.parquet", truth, 3, written, ClassLabel(names=order))
        shift = load_shift("mini-vtab:dtd", tmp_path)
        assert shift.labels(everything(shift)).tolist().count(0) == 5
        clean = load_shift("mini-vtab-c:dtd", tmp_path)
        assert knows(clean, everything(clean), 3) == 1

    def test_a_classifier_of_another_run_has_its_own_order(self, tmp_path: Path, stock: str) -> None:
        from bench.runs.run import run
        from bench.settings.run_spec import make_spec

        tree(tmp_path / "a/train", ["x", "y", "z"], each=10)
        tree(tmp_path / "a/test", ["x", "y", "z"])
        base = {"method": "source", "corruption": "fog", "limit": 4, "jobs": 1, "launch": "serial"}
        fast = {"set": {"source": {"epochs": 1}}}
        run(make_spec({**base, "shift": f"folder:{tmp_path}/a", "stock": stock, "out": tmp_path / "first"}, fast))
        tree(tmp_path / "b", ["x", "y", "z"])
        (tmp_path / "order.txt").write_text("z\ny\nx\n")
        second = {
            **base,
            "init_from": str(tmp_path / "first"),
            "shift": f"folder:{tmp_path}/b",
            "out": tmp_path / "second",
        }
        with pytest.raises(UsageError, match=r"in another order \(x, y, z, …, not z, y, x, …\).*--classes FILE"):
            run(make_spec({**second, "classes": str(tmp_path / "order.txt")}))
        (tmp_path / "order.txt").write_text("x\ny\nz\n")
        outcome = run(make_spec({**second, "classes": str(tmp_path / "order.txt")}))
        assert (outcome.done, outcome.failed) == (2, 0)
        assert str(outcome.records()[0].data.classes).startswith("order.txt sha256:")

    def test_what_is_joined_is_the_larger_list(self) -> None:
        assert joined(("a", "c"), ("a", "b", "c"), "test", "train") == ("a", "b", "c")
        assert joined(("b", "a"), ("A", "B"), "test", "train") == ("b", "a")

    def test_names_of_other_systems(self, tmp_path: Path) -> None:
        """macOS writes letters and their accents apart."""
        tree(tmp_path / "test", [unicodedata.normalize("NFC", name) for name in ("Möwe", "Ente")])
        tree(tmp_path / "train", [unicodedata.normalize("NFD", name) for name in ("Möwe", "Ente")])
        shift = load_shift(f"folder:{tmp_path}")
        assert shift.classes == 2
        assert len(everything(shift)) == 8

    def test_a_natural_set_without_some_classes_says_so(self, tmp_path: Path, knower: Any) -> None:
        tree(tmp_path / "laion-c/mosaic/intensity_level_1", list(SUPERCLASSES)[1:], side=224)
        shift: Any = load_shift("laion-c", tmp_path)
        assert shift.notes == ("no scored image is of 1 of the 16 classes: ball",)


class TestOrderOfTypes:
    @pytest.mark.parametrize(
        ("written", "kind"),
        [
            (lambda k: f"{k}.0", Value("string")),
            (float, Value("float32")),
            (str, Value("large_string")),
            (lambda k: k, Value("uint8")),
        ],
    )
    def test_numbers_of_any_type(self, written: Callable[[int], Any], kind: Any, tmp_path: Path) -> None:
        truth = list(range(12)) * 2
        table(tmp_path / "test-0.parquet", truth, 12, list(map(written, truth)), kind)
        shift = load_shift(f"folder:{tmp_path}")
        assert knows(shift, shift.ids("test"), 12) == 1

    @pytest.mark.parametrize(("missing", "kind"), [("", Value("string")), (float("nan"), Value("float64"))])
    def test_what_is_empty_is_no_class(self, missing: Any, kind: Any, tmp_path: Path) -> None:
        written = [str(k) if missing == "" else float(k) for k in (0, 1)]
        table(tmp_path / "test-0.parquet", [0, 1, 0], 2, [*written, missing], kind)
        with pytest.raises(UsageError, match=r"row 2 has no label in label; write the table"):
            load_shift(f"folder:{tmp_path}")
        table(tmp_path / "test-0.parquet", [0, 1], 2, written, kind)
        assert labels_of(load_shift(f"folder:{tmp_path}")) == [0, 1]

    def test_fractions_are_no_classes(self, tmp_path: Path) -> None:
        table(tmp_path / "test-0.parquet", [0, 1], 2, [0.5, 1.0], Value("float32"))
        with pytest.raises(UsageError, match="has fractions in label, not classes; name another column with --label"):
            load_shift(f"folder:{tmp_path}")

    @pytest.mark.parametrize("order", ["natural", "imagefolder", "file"])
    def test_the_order_of_numbered_folders_can_be_said(self, order: str, tmp_path: Path) -> None:
        tree(tmp_path / "d", [str(number) for number in range(12)], each=1)
        (tmp_path / "classes.txt").write_text("\n".join(str(number) for number in range(11, -1, -1)))
        said = str(tmp_path / "classes.txt") if order == "file" else order
        shift = load_shift(f"folder:{tmp_path}/d", reading=Reading(classes=said))
        names = [Path(shift.open_test().images.name(row)).parent.name for row in range(12)]  # type: ignore[attr-defined]
        found = dict(zip(names, labels_of(shift), strict=True))
        reference = ImageFolder(str(tmp_path / "d")).class_to_idx
        expected = {
            "natural": {str(number): number for number in range(12)},
            "imagefolder": reference,
            "file": {str(number): 11 - number for number in range(12)},
        }
        assert found == expected[order]


class TestNoGuesses:
    def test_testing_is_not_test(self, tmp_path: Path) -> None:
        table(tmp_path / "test-0.parquet", [0, 1], 2, [0, 1], Value("int64"))
        table(tmp_path / "testing-0.parquet", [1, 0, 1], 2, [1, 0, 1], Value("int64"))
        with pytest.raises(UsageError, match="has the parts test and testing; choose one with --part test"):
            load_shift(f"folder:{tmp_path}")
        for part, count in (("test", 2), ("testing", 3)):
            assert len(labels_of(load_shift(f"folder:{tmp_path}", reading=Reading(part=part)))) == count

    def test_test_small_is_another_part(self, tmp_path: Path) -> None:
        table(tmp_path / "test-00000-of-00001.parquet", [0, 1], 2, [0, 1], Value("int64"))
        table(tmp_path / "test_small.parquet", [1], 2, [1], Value("int64"))
        assert labels_of(load_shift(f"folder:{tmp_path}")) == [0, 1]
        assert labels_of(load_shift(f"folder:{tmp_path}", reading=Reading(part="test_small"))) == [1]

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        tree(tmp_path / "vehicles", ["bus", "car", "train"])
        shift = load_shift(f"folder:{tmp_path}/vehicles")
        assert (shift.classes, knows(shift, shift.ids("test"), 3)) == (3, 1)

    def test_of_two_folders_of_a_corruption_none(self, tmp_path: Path) -> None:
        for group in ("noise", "old"):
            tree(tmp_path / "imagenet-c" / group / "fog/5", ["n01443537"], side=224)
        with pytest.raises(UsageError, match=r"noise/fog and .*old/fog are both fog; move one of them elsewhere"):
            load_shift("imagenet-c", tmp_path).ids("test")
        (tmp_path / "imagenet-c/old").rename(tmp_path / "old")
        assert len(labels_of(load_shift("imagenet-c", tmp_path))) == 4

    def test_two_columns_of_classes(self, tmp_path: Path) -> None:
        kind = ClassLabel(names=["a", "b"])
        table(tmp_path / "test-0.parquet", [0, 1], 2, [0, 1], kind, {"coarse": (kind, [0, 0])}, column="fine")
        with pytest.raises(UsageError, match=r"no single label column \(found: fine, coarse\); name one with --label"):
            load_shift(f"folder:{tmp_path}")
        assert labels_of(load_shift(f"folder:{tmp_path}", reading=Reading(label="fine"))) == [0, 1]
        with pytest.raises(UsageError, match="has no column x; choose one of image, fine, coarse with --label"):
            load_shift(f"folder:{tmp_path}", reading=Reading(label="x"))

    def test_images_in_a_table_of_another_program(self, tmp_path: Path) -> None:
        import pandas

        rows = [{"image": {"bytes": png(grey(k, 2)), "path": None}, "label": "ab"[k]} for k in (0, 1, 1)]
        pandas.DataFrame(rows).to_parquet(tmp_path / "test.parquet")
        shift = load_shift(f"folder:{tmp_path}")
        assert knows(shift, shift.ids("test"), 2) == 1


class TestNothingIsDropped:
    def test_a_class_folder_that_is_a_link_to_nothing(self, tmp_path: Path) -> None:
        tree(tmp_path / "d", ["a", "c"], n=3, classes=[0, 2])
        (tmp_path / "d/b").symlink_to(tmp_path / "gone")
        with pytest.raises(UsageError, match=r"d/b is a broken link; fix or remove it"):
            load_shift(f"folder:{tmp_path}/d")
        tree(tmp_path / "gone", ["."], n=3, classes=[1])
        shift = load_shift(f"folder:{tmp_path}/d")
        assert knows(shift, shift.ids("test"), 3) == 1

    def test_an_empty_class_is_told(self, tmp_path: Path, knower: Any) -> None:
        tree(tmp_path / "d", ["a", "c"], n=3, classes=[0, 2])
        (tmp_path / "d/b").mkdir()
        found, notes = knower(f"folder:{tmp_path}/d", 3)
        assert found == {"natural": (1.0, 8)}
        assert any("1 class folders of" in note and note.endswith("are empty: b") for note in notes)

    def test_the_files_of_systems_in_class_folders(self, tmp_path: Path) -> None:
        tree(tmp_path, ["a", "b"])
        for name in ("Thumbs.db", "desktop.ini", "._x.png"):
            (tmp_path / "a" / name).write_bytes(b"x")
        (tmp_path / "a/@eaDir").mkdir()
        assert len(labels_of(load_shift(f"folder:{tmp_path}"))) == 8

    def test_a_folder_in_capitals(self, tmp_path: Path) -> None:
        tree(tmp_path / "__MACOSX2", ["a", "b"])
        assert len(labels_of(load_shift(f"folder:{tmp_path}/__MACOSX2"))) == 8


BAR_VALUES = {
    "caustic_refraction": "2.35 3.20 4.90 6.60 9.15",
    "inverse_sparkles": "1.00 2.00 4.00 9.00 10.00",
    "sparkles": "1.00 2.00 3.00 5.00 6.00",
    "perlin_noise": "4.60 5.20 5.80 7.60 8.80",
    "blue_noise_sample": "0.80 1.60 2.40 4.00 5.60",
    "plasma_noise": "4.75 7.00 8.50 9.25 10.00",
    "checkerboard_cutout": "2.00 3.00 4.00 5.00 6.00",
    "cocentric_sine_waves": "3.00 5.00 8.00 9.00 10.00",
    "single_frequency_greyscale": "1.00 1.50 2.00 4.50 5.00",
    "brownish_noise": "1.00 2.00 3.00 4.00 5.00",
}
"""Folders of the official generator: the values of its table with two decimals."""


class TestPublishedLayouts:
    @pytest.mark.parametrize("name", BAR)
    def test_imagenet_c_bar_by_value(self, name: str, tmp_path: Path) -> None:
        for severity, value in enumerate(BAR_VALUES[name].split(), start=1):
            save(
                tmp_path / "ImageNet-C-Bar" / name / value / "n01443537/ILSVRC2012_val_00000236.JPEG", picture(severity)
            )
        shift = load_shift("imagenet-c-bar", tmp_path)
        for severity in range(1, 6):
            pixels = shift.images(shift.ids("test"), Condition(name, severity))[0].numpy()
            assert np.array_equal(pixels, as_stored(picture(severity)).transpose(2, 0, 1))

    def test_of_two_folders_for_a_severity_none(self, tmp_path: Path) -> None:
        for folder in ("4.60", "1"):
            tree(tmp_path / "imagenet-c-bar/perlin_noise" / folder, ["n01443537"], side=224)
        with pytest.raises(UsageError, match=r"perlin_noise/4\.60 and .*perlin_noise/1 are both severity 1; move one"):
            load_shift("imagenet-c-bar", tmp_path).ids("test")

    @pytest.mark.parametrize("suffix", ["", "."])
    def test_laion_c_names_files_by_their_distortion(self, suffix: str, tmp_path: Path, knower: Any) -> None:
        called = {"stickers": "sticker", "luminance_checkerboard": "luminance"}
        for name in LAION:
            folder = tmp_path / "laion-c" / name / "intensity_level_3"
            file = "n0{k}_1{i}" + suffix + f"_{called.get(name, name)}_3.JPEG"
            tree(folder, list(SUPERCLASSES), each=2, side=224, name=file)
        shift = load_shift("laion-c", tmp_path)
        for name in LAION:
            assert shift.images(shift.ids("test"), Condition(name, 3)).shape[0] == 32
        first = next((tmp_path / "laion-c/mosaic/intensity_level_3/dog").iterdir())
        first.rename(first.with_name("n09_99_mosaic_3.JPEG"))
        shift = load_shift("laion-c", tmp_path)
        with pytest.raises(UsageError, match="is not named like"):
            shift.images(shift.ids("test"), Condition("mosaic", 3))

    @pytest.mark.parametrize("how", ["devkit", "synsets", "csv", "caffe", "xml"])
    def test_flat_imagenet_with_its_labels(self, how: str, tmp_path: Path) -> None:
        """Five images of the set in one folder, labelled by each of the files that go round."""
        from scipy.io import savemat
        from torchvision.datasets.imagenet import parse_devkit_archive

        truth = [482, 1, 1, 999, 0]
        val = tmp_path / "imagenet/val"
        names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 6)]
        for number, name in enumerate(names):
            save(val / f"{name}.JPEG", picture(number, (260, 260)))
        with pytest.raises(UsageError, match="without class folders or labels; put ILSVRC2012_validation_ground_truth"):
            load_shift("imagenet-c-gen", tmp_path).ids("test")
        if how == "devkit":
            ids = np.random.default_rng(0).permutation(1000) + 1  # of the devkit, in an order of their own
            kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
            rows = np.array([(int(one), name, "w", 0) for one, name in zip(ids, synsets(), strict=True)], dtype=kind)
            data = tmp_path / "imagenet/ILSVRC2012_devkit_t12/data"
            data.mkdir(parents=True)
            savemat(data / "meta.mat", {"synsets": rows})
            (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{ids[k]}\n" for k in truth))
            assert parse_devkit_archive is not None
        elif how == "synsets":
            text = "".join(f"{synsets()[k]}\n" for k in truth)
            (tmp_path / "imagenet/imagenet_2012_validation_synset_labels.txt").write_text(text)
        elif how == "csv":
            rows_ = [
                f"{name},{synsets()[k]} 1 2 3 4 {synsets()[k]} 5 6 7 8" for name, k in zip(names, truth, strict=True)
            ]
            (tmp_path / "imagenet/LOC_val_solution.csv").write_text(
                "\n".join(["ImageId,PredictionString", *rows_[::-1]])
            )
        elif how == "caffe":
            lines = [f"{name}.JPEG {k}" for name, k in zip(names, truth, strict=True)]
            (val / "val.txt").write_text("\n".join(lines))
        else:
            folder = tmp_path / "imagenet/Annotations/CLS-LOC/val"
            folder.mkdir(parents=True)
            for name, k in zip(names, truth, strict=True):
                (folder / f"{name}.xml").write_text(f"<a><object><name>{synsets()[k]}</name></object></a>")
        shift = load_shift("imagenet-c-gen", tmp_path)
        order = [4, 1, 2, 0, 3]  # as from class folders: by class, then by name
        assert labels_of(shift) == sorted(truth)
        for row, number in enumerate(order):
            assert shift.open_test().images.name(row).endswith(f"{names[number]}.JPEG")  # type: ignore[attr-defined]
        assert labels_of(load_shift("imagenet-real", tmp_path)) is not None
        own = load_shift(f"folder:{tmp_path}/imagenet")
        assert labels_of(own) == sorted(truth)

    def test_the_numbers_of_a_devkit_without_its_table(self, tmp_path: Path) -> None:
        save(tmp_path / "imagenet/val/ILSVRC2012_val_00000001.JPEG", picture(0))
        truth = tmp_path / "imagenet/ILSVRC2012_validation_ground_truth.txt"
        truth.write_text("490\n361\n")
        with pytest.raises(UsageError, match=r"meta\.mat, and there is no .*meta\.mat; copy it there"):
            load_shift("imagenet-c-gen", tmp_path).ids("test")

    def test_arrays_of_one_severity_with_labels_of_five(self, tmp_path: Path) -> None:
        place = arrays(tmp_path, images=10)
        fog = np.load(place / "fog.npy")
        np.save(place / "fog.npy", fog[:10])
        with pytest.raises(UsageError, match=r"labels\.npy holds 50 labels but .*fog\.npy 10 images"):
            load_shift("cifar10-c", tmp_path).ids("test")


class TestExceptions:
    def test_an_image_that_is_null(self, tmp_path: Path) -> None:
        table(tmp_path / "test-0.parquet", [0, None, 1], 2, [0, 1, 1], Value("int64"))
        shift = load_shift(f"folder:{tmp_path}")
        sentence = r"test-0\.parquet, row 1 has no image; write the table again without that row"
        with pytest.raises(UsageError, match=sentence):
            shift.images(shift.ids("test"), Condition("natural", 1))
        (problem,) = verify(f"folder:{tmp_path}", Reading()).problems
        assert re.search(sentence, problem)

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le with mark"])
    def test_lists_in_unicode(self, encoding: str, tmp_path: Path) -> None:
        tree(tmp_path, ["a", "ö"])
        text = "ö/1_0.png\r\n"
        content = b"\xff\xfe" + text.encode("utf-16-le") if "mark" in encoding else text.encode(encoding)
        (tmp_path / "skipped.txt").write_bytes(content)
        shift = load_shift(f"folder:{tmp_path}")
        assert (len(labels_of(shift)), shift.skipped) == (7, 1)  # type: ignore[attr-defined]

    def test_lists_in_an_unknown_encoding(self, tmp_path: Path) -> None:
        tree(tmp_path / "d", ["a", "ö"])
        (tmp_path / "d/skipped.txt").write_bytes("ö/1_0.png".encode("latin-1"))
        for use in (load_shift, lambda name: verify(name, Reading())):
            with pytest.raises(UsageError, match="is not text in UTF-8; convert it, for example with: iconv -f LATIN1"):
                use(f"folder:{tmp_path}/d")
        file = tmp_path / "d/skipped.txt"
        os.system(f"iconv -f LATIN1 -t UTF-8 {file} > {file}.utf8")
        file.with_name("skipped.txt.utf8").replace(file)
        assert load_shift(f"folder:{tmp_path}/d").skipped == 1  # type: ignore[attr-defined]

    def test_checksums_in_an_unknown_encoding(self, tmp_path: Path) -> None:
        arrays(tmp_path)
        (tmp_path / "cifar10-c/SHA256SUMS").write_bytes(b"0" * 64 + b"  f\xf6g.npy\n")
        with pytest.raises(UsageError, match=r"SHA256SUMS is not text in UTF-8"):
            verify("cifar10-c", Reading(tmp_path))

    def test_damaged_exif_in_jpeg(self, tmp_path: Path) -> None:
        tree(tmp_path, ["a", "b"])
        Image.fromarray(grey(0, 2)).save(tmp_path / "a/x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
        shift = load_shift(f"folder:{tmp_path}")
        assert knows(shift, shift.ids("test"), 2) == 1


class TestAdvice:
    """What a message says is done to the letter, and helps."""

    def test_a_train_part_alone(self, tmp_path: Path, knower: Any) -> None:
        tree(tmp_path / "d/train", ["a", "b"])
        with pytest.raises(UsageError, match="or score the train images themselves with --part train"):
            knower(f"folder:{tmp_path}/d", 2)
        assert knower(f"folder:{tmp_path}/d", 2, part="train")[0] == {"natural": (1.0, 8)}
        (tmp_path / "d/other").mkdir()
        tree(tmp_path / "d/test", ["a", "b"])
        (tmp_path / "d/other").rmdir()
        assert knower(f"folder:{tmp_path}/d", 2)[0] == {"natural": (1.0, 8)}

    def test_classes_on_one_line(self, tmp_path: Path) -> None:
        tree(tmp_path / "d/test", ["kitty", "dog"])
        tree(tmp_path / "d/train", ["cat", "dog"])
        with pytest.raises(
            UsageError, match="list all of them with --classes FILE, the names of one class on one line"
        ):
            load_shift(f"folder:{tmp_path}/d")
        (tmp_path / "classes.txt").write_text("cat\tkitty\ndog\n")
        shift = load_shift(f"folder:{tmp_path}/d", reading=Reading(classes=str(tmp_path / "classes.txt")))
        assert knows(shift, everything(shift), 2) == knows(shift, shift.ids("test"), 2) == 1

    @pytest.mark.parametrize(
        ("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAIN", "Val"), ("train", "valid")]
    )
    def test_parts_by_other_names(self, train: str, test: str, tmp_path: Path) -> None:
        tree(tmp_path / train, ["a", "b"], each=10)
        tree(tmp_path / test, ["a", "b"])
        shift = load_shift(f"folder:{tmp_path}")
        assert (len(everything(shift)), len(labels_of(shift))) == (20, 8)

    @pytest.mark.parametrize("root", [".", "imagenet", "imagenet/val", "ILSVRC", "ILSVRC/val"])
    def test_the_data_root_may_be_the_folder_itself(self, root: str, tmp_path: Path) -> None:
        top = "ILSVRC" if root.startswith("ILSVRC") else "imagenet"
        for part in ("train", "val"):
            tree(tmp_path / top / part, ["n01443537", "n01629819"], each=5)
        shift = load_shift("imagenet-c-gen", tmp_path / root)
        assert len(labels_of(shift)) == len(everything(shift)) == 10

    def test_the_data_root_may_be_the_published_tree(self, tmp_path: Path) -> None:
        arrays(tmp_path)
        assert len(labels_of(load_shift("cifar10-c", tmp_path / "cifar10-c"))) == 40

    def test_part_and_classes_belong_to_what_has_them(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--part test belongs to folder:PATH and hf:REPO, not to cifar10-c; leave"):
            load_shift("cifar10-c", reading=Reading(tmp_path, part="test"))

    def test_a_part_that_is_not_there(self, tmp_path: Path) -> None:
        tree(tmp_path / "test", ["a", "b"])
        with pytest.raises(UsageError, match="has no part validation, but test; name one of these with --part"):
            load_shift(f"folder:{tmp_path}", reading=Reading(part="validation"))
        assert len(labels_of(load_shift(f"folder:{tmp_path}", reading=Reading(part="test")))) == 8

    def test_a_repeated_record_reads_the_same_part(self, tmp_path: Path, knower: Any) -> None:
        from bench.runs.repeat import spec_of
        from leaderboards.store import Store

        for part, each in (("test", 4), ("val", 3)):
            tree(tmp_path / "d" / part, ["a", "b"], each=each)
        knower(f"folder:{tmp_path}/d", 2, part="val", out=tmp_path / "one")
        (record,) = Store(tmp_path / "one").records()
        assert (record.n, record.data.part) == (6, "val")
        assert spec_of(record)["part"] == "val"


class TestOneReader:
    def test_all_commands_see_the_same(self, tmp_path: Path, knower: Any) -> None:
        root = tmp_path / "d"
        for shard in range(2):
            table(root / f"data/train-{shard:05d}-of-00002.parquet", [0, 1] * 10, 2, [0, 1] * 10, Value("int64"))
        table(root / "data/test-00000-of-00001.parquet", [0, 1, 1], 2, [0, 1, 1], Value("int64"))
        name = f"folder:{root}"
        assert knower(name, 2)[0] == {"natural": (1.0, 3)}
        plan = plan_stock(StockSpec(name, arch="vit_micro_patch8_32", steps=2, device="cpu"))
        assert len(plan.data) == 36
        assert verify(name, Reading()).images == 3
        told = explain(name, Reading())
        assert (told.images, told.train, told.part, told.parts) == (3, 40, "test", ("test", "train"))
        assert look(name, Reading()).train == str(root / "data/train-00000-of-00002.parquet")
        by_hub = explain(f"hf:{root}", Reading())
        assert (by_hub.images, by_hub.classes) == (3, told.classes)

    def test_what_is_explained(self, tmp_path: Path) -> None:
        root = tmp_path / "d"
        tree(root / "test", ["9", "10", "11"])
        tree(root / "train", ["9", "10", "11", "12"])
        (root / "test/__MACOSX").mkdir()
        (root / "notes").mkdir()
        sheet = tmp_path / "sheet.png"
        said = CliRunner().invoke(app, ["data", "explain", f"folder:{root}", "-o", str(sheet)])
        assert said.exit_code == 0, said.exception
        for words in ("scored part: test", "scored images: 12", "classes: 4, in this order; 1 have no scored image",
                      "skipped: __MACOSX: created by the system", "skipped: notes: none of the parts",
                      "note: no scored image is of 1 of the 4 classes: 12"):  # fmt: skip
            assert words in said.stdout
        assert re.search(r"0 +9 +4\n.*1 +10 +4", said.stdout)
        image = Image.open(sheet)
        assert image.size[0] > 600
        first = np.asarray(image.convert("RGB"))[4 + 16, 4 + 16]
        assert abs(int(first[0]) - 20) <= 1, "the first picture is of the first class"
        listed = CliRunner().invoke(app, ["data", "explain", f"folder:{root}", "--json"])
        assert [each["name"] for each in json.loads(listed.stdout)["classes"]] == ["9", "10", "11", "12"]
        with pytest.raises(UsageError, match=r"the sheet is a PNG file; give it that ending"):
            explain(f"folder:{root}", Reading(), tmp_path / "x.jpg")

    def test_flat_images_are_enough_for_a_stock(self, tmp_path: Path) -> None:
        tree(tmp_path / "d", ["."], each=30)
        plan = plan_stock(StockSpec(f"folder:{tmp_path}/d", arch="vit_micro_patch8_32", steps=2, device="cpu"))
        assert len(plan.data) == 27
        with pytest.raises(UsageError, match="is outside of a class folder"):
            load_shift(f"folder:{tmp_path}/d")

    def test_names_and_places_are_known(self) -> None:
        assert tuple(CIFAR) == CIFAR10
        assert png(grey(0, 2))[:4] == b"\x89PNG"
        assert issubclass(MissingDataError, Exception)
