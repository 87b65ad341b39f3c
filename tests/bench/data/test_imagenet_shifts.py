"""The shifts of ImageNet in small copies of their layouts, checked against Pillow, timm and the definitions."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet
from torch import nn
from torchvision.transforms import v2

import corruptions
from bench.core.conditions import CLEAN, Condition
from bench.core.errors import MissingDataError, UsageError
from bench.models.classifiers import OfClasses
from bench.shifts import load_shift
from bench.shifts.corruption_sets import LAION
from bench.shifts.data_root import Reading
from bench.shifts.image_shift import ImageShift
from bench.shifts.imagenet import SUPERCLASSES, synsets
from bench.shifts.shift import pick_conditions, pick_corruptions

from .conftest import picture, save, write_tree

FOG = Condition("fog", 3)
THREE = ["n01443537", "n01440764", "n02979186"]  # goldfish 1, tench 0, cassette player 482
PLACES = [1, 0, 482]
SORTED = [f"{THREE[place]}/ILSVRC2012_val_{number:08d}.JPEG" for place, number in [
    (1, 3), (1, 4), (0, 1), (0, 2), (2, 5), (2, 6)
]]  # fmt: skip


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def by_torchvision(path: Path) -> np.ndarray:
    """The usual evaluation: shorter side to 256, the middle 224 x 224."""
    steps = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    found: np.ndarray = steps(Image.open(path).convert("RGB")).numpy()
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """ImageNet val and train of three classes, two pictures each, larger than the crop."""
    for part, start in (("val", 0), ("train", 500)):
        for number, name in enumerate(THREE):
            for image in range(2):
                file = f"ILSVRC2012_val_{number * 2 + image + 1:08d}.JPEG" if part == "val" else f"{name}_{image}.JPEG"
                save(tmp_path / "imagenet" / part / name / file, picture(start + number * 2 + image, (300, 260)))
    return tmp_path


def write_c(root: Path, name: str = "imagenet-c", **how: int) -> Path:
    write_tree(root / name, THREE, ["fog/3", "fog/5", "contrast/3"], **how)
    return root / name


def test_synsets_are_timms() -> None:
    info = ImageNetInfo()
    assert [info.index_to_label_name(index) for index in range(1000)] == list(synsets())
    assert [synsets().index(name) for name in THREE] == PLACES


def test_imagenet_c_is_read_as_it_was_published(root: Path) -> None:
    tree = write_c(root)
    shift = load_shift("imagenet-c", root)
    ids = shift.ids("test")
    assert shift.labels(ids).tolist() == [0, 0, 1, 1, 482, 482]
    assert (shift.storage, shift.profile, shift.classes) == ("jpeg85", "imagenet224", 1000)
    for condition in (FOG, Condition("fog", 5), Condition("contrast", 3)):
        files = [tree / str(condition.corruption) / str(condition.severity) / file for file in SORTED]
        assert np.array_equal(shift.images(ids, condition).numpy(), np.stack([pixels_of(file) for file in files]))
    clean = shift.images(ids[2:3], CLEAN)[0].numpy()
    assert np.array_equal(clean, by_torchvision(root / "imagenet/val/n01443537/ILSVRC2012_val_00000001.JPEG"))
    assert shift.labels(shift.ids("dev")).tolist() == [0]
    assert len(shift.ids("train")) == 5


def test_a_shift_in_another_process_is_the_same(root: Path) -> None:
    """What is sent is how to load it, once for all that is sent."""
    write_c(root)
    for name in ("imagenet-c", "imagenet-c-gen", f"folder:{root / 'imagenet'}"):
        shift: Any = load_shift(name, root)
        sent = pickle.dumps(shift)
        assert len(sent) < 4096
        again, twice = pickle.loads(sent), pickle.loads(sent)
        assert again is twice
        assert again is not shift
        ids = shift.ids("test")
        condition = FOG if name.startswith("imagenet") else Condition("natural", 1)
        assert again.digest(ids, condition) == shift.digest(ids, condition)
        assert torch.equal(again.images(ids, condition), shift.images(ids, condition))
    unnamed = ImageShift(shift.facts, shift.open_test, None, None, shift._stores)
    with pytest.raises(TypeError, match="was not loaded by its name"):
        pickle.dumps(unnamed)


def test_imagenet_c_alone_has_no_clean_images_and_says_so(root: Path) -> None:
    write_c(root)
    shutil.rmtree(root / "imagenet")
    shift = load_shift("imagenet-c", root)
    assert not shift.has_clean
    assert pick_conditions(shift, [CLEAN, FOG]) == (FOG,)
    with pytest.raises(MissingDataError, match="imagenet-c has no clean images of its own"):
        shift.images(shift.ids("test"), CLEAN)
    with pytest.raises(MissingDataError, match="imagenet-c has no train images"):
        shift.ids("train")


def test_groups_as_the_archives_unpack_are_found(root: Path) -> None:
    tree = write_c(root)
    (tree / "weather").mkdir()
    (tree / "fog").rename(tree / "weather" / "fog")
    shift = load_shift("imagenet-c", root)
    assert shift.images(shift.ids("test"), FOG).shape == (6, 3, 224, 224)


WRONG = {
    "missing severity": (lambda t: shutil.rmtree(t / "fog/3"), r"fog/3 is missing \(fog has 5\); unpack .* again"),
    "missing corruption": (lambda t: shutil.rmtree(t / "fog"), r"fog/3 is missing \(there is no .*fog\); unpack"),
    "an image less": (
        lambda t: (t / "fog/3" / THREE[0] / "ILSVRC2012_val_00000001.JPEG").unlink(),
        r"fog@3 has 5 images \(.*fog/3/n01440764/.*, …\) but there should be 6 .*; fetch what is incomplete again",
    ),
    "another class": (
        lambda t: shutil.move(t / "fog/3" / THREE[0] / "ILSVRC2012_val_00000001.JPEG", t / "fog/3" / THREE[1]),
        r"fog/3/.* has another class than .*imagenet/val/.*; fetch both from one release",
    ),
    "another name": (
        lambda t: (t / "fog/3" / THREE[0] / "ILSVRC2012_val_00000001.JPEG").rename(t / "fog/3" / THREE[0] / "x.JPEG"),
        r"fog/3/n01443537/.* is not named like .*imagenet/val/.*; fetch both",
    ),
    "a class too many": (
        lambda t: save(t / "fog/3/n99999999/1.JPEG", picture(0)),
        r"n99999999 is not one of the 1000 classes .*; move that folder elsewhere",
    ),
    "resized by somebody": (
        lambda t: save(t / "fog/3" / THREE[0] / "ILSVRC2012_val_00000001.JPEG", picture(0, (256, 256))),
        r"fog/3/n01443537/.* is 256 x 256 px but the model takes 224 x 224, and published files are never resized",
    ),
    "truncated": (
        lambda t: (t / "fog/3" / THREE[0] / "ILSVRC2012_val_00000001.JPEG").write_bytes(
            (t / "fog/5" / THREE[0] / "ILSVRC2012_val_00000001.JPEG").read_bytes()[:3000]
        ),
        r"ILSVRC2012_val_00000001.JPEG is damaged .* or list it in .*imagenet-c/skipped\.txt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tree_is_one_sentence(case: str, root: Path) -> None:
    tree = write_c(root)
    change, sentence = WRONG[case]
    change(tree)
    shift = load_shift("imagenet-c", root)
    with pytest.raises((UsageError, MissingDataError), match=sentence) as caught:
        shift.images(shift.ids("test"), FOG)
    assert "\n" not in str(caught.value)


def test_one_skip_list_holds_for_the_whole_tree(root: Path) -> None:
    tree = write_c(root)
    shutil.rmtree(root / "imagenet")
    left_out = f"{THREE[0]}/ILSVRC2012_val_00000001.JPEG"
    (tree / "fog/3" / left_out).write_bytes(b"")
    (tree / "skipped.txt").write_text(left_out + "\n")
    shift = load_shift("imagenet-c", root)
    assert shift.skipped == 1
    assert shift.images(shift.ids("test"), Condition("contrast", 3)).shape[0] == 5


def test_severities_between_the_published_ones_do_not_exist(root: Path) -> None:
    write_c(root)
    shift = load_shift("imagenet-c", root)
    with pytest.raises(UsageError, match=r"severities 1 to 5, not 2\.5"):
        shift.images(shift.ids("test"), Condition("fog", 2.5))


def test_the_subset_takes_a_given_list_or_a_seeded_draw(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_c(root)
    monkeypatch.setattr("bench.shifts.imagenet._SUBSET", 4)
    whole = load_shift("imagenet-c", root)
    drawn = load_shift("imagenet-c-5k", root)
    assert len(drawn.ids("test")) == 4
    assert drawn.digest(drawn.ids("test"), FOG) == load_shift("imagenet-c-5k", root).digest(drawn.ids("test"), FOG)
    (root / "imagenet-c-5k.txt").write_text(f"{THREE[2]}/ILSVRC2012_val_00000005.JPEG\nILSVRC2012_val_00000003.JPEG\n")
    listed = load_shift("imagenet-c-5k", root)
    assert listed.name == "imagenet-c-5k"
    assert listed.labels(listed.ids("test")).tolist() == [0, 482]
    assert torch.equal(listed.images(listed.ids("test"), FOG), whole.images(np.array([0, 4]), FOG))
    (root / "imagenet-c-5k.txt").write_text("ILSVRC2012_val_00000009.JPEG\n")
    with pytest.raises(UsageError, match=r"imagenet-c-5k\.txt lists ILSVRC2012_val_00000009"):
        load_shift("imagenet-c-5k", root).ids("test")


def test_generated_images_are_our_corruptions_of_what_torchvision_would_give(root: Path) -> None:
    shift = load_shift("imagenet-c-gen", root)
    assert shift.name == "imagenet-c-gen"
    assert shift.storage == "uint8"
    ids = shift.ids("test")
    files = [root / "imagenet/val" / file for file in SORTED]
    clean = np.stack([by_torchvision(file) for file in files])
    assert np.array_equal(shift.images(ids, CLEAN).numpy(), clean)
    made = corruptions.corrupt(torch.from_numpy(clean), "fog", 3, seed=0, ids=[0, 1, 2, 3, 4, 5])
    assert torch.equal(shift.images(ids, FOG), made)
    assert torch.equal(shift.images(ids[::-1].copy(), FOG).flip(0), made)


def test_workers_change_no_id_label_or_pixel(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_c(root)
    seen = []
    for workers in (0, 1, 4):
        monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / f"cache{workers}"))
        for name in ("imagenet-c", "imagenet-c-gen"):
            shift = load_shift(name, reading=Reading(root, workers=workers))
            ids = shift.ids("test")
            pixels = torch.cat([shift.images(ids, condition) for condition in (CLEAN, FOG)])
            seen.append((name, ids.tolist(), shift.labels(ids).tolist(), pixels, shift.digest(ids, FOG)))
    for number in (2, 4):
        for first, other in zip(seen[:2], seen[number : number + 2], strict=True):
            assert first[:3] == other[:3]
            assert torch.equal(first[3], other[3])
            assert first[4] == other[4]


def test_imagenet_c_bar(root: Path) -> None:
    write_tree(root / "imagenet-c-bar", THREE, ["sparkles/2"])
    shift = load_shift("imagenet-c-bar", root)
    assert len(shift.corruptions) == 10
    tree = root / "imagenet-c-bar/sparkles/2"
    assert np.array_equal(shift.images(np.array([3]), Condition("sparkles", 2))[0].numpy(),
                          pixels_of(tree / THREE[0] / "ILSVRC2012_val_00000002.JPEG"))  # fmt: skip


def test_tiny_imagenet_c_with_its_own_clean_and_train_images(tmp_path: Path) -> None:
    names = ["n02124075", "n01443537"]
    write_tree(tmp_path / "tiny-imagenet-c", names, ["fog/1", "fog/3"], side=64)
    shift = load_shift("tiny-imagenet-c", tmp_path)
    assert shift.classes == 2
    assert shift.labels(shift.ids("test")).tolist() == [0, 0, 1, 1]
    assert not shift.has_clean
    tiny = tmp_path / "tiny-imagenet-200"
    lines = []
    for number, name in enumerate(names):
        for image in range(2):
            file = f"ILSVRC2012_val_{number * 2 + image + 1:08d}.JPEG"
            save(tiny / "val/images" / file, picture(700 + number * 2 + image, (64, 64)))
            lines.append(f"{file}\t{name}\t0\t0\t9\t9\n")
            save(tiny / "train" / name / "images" / f"{name}_{image}.JPEG", picture(800 + number, (64, 64)))
        (tiny / "train" / name / f"{name}_boxes.txt").write_text("x")
    (tiny / "val/val_annotations.txt").write_text("".join(reversed(lines)))
    shift = load_shift("tiny-imagenet-c", tmp_path)
    ids = shift.ids("test")
    assert shift.labels(ids).tolist() == [0, 0, 1, 1]
    clean = np.stack([pixels_of(tiny / f"val/images/ILSVRC2012_val_{number:08d}.JPEG") for number in (3, 4, 1, 2)])
    assert np.array_equal(shift.images(ids, CLEAN).numpy(), clean)
    file = tmp_path / "tiny-imagenet-c/fog/3/n02124075/ILSVRC2012_val_00000001.JPEG"
    assert np.array_equal(shift.images(ids, FOG)[2].numpy(), pixels_of(file))
    train = np.concatenate([shift.ids("dev"), shift.ids("train")])
    assert sorted(shift.labels(train).tolist()) == [0, 0, 1, 1]


KEPT = {
    "imagenet-r":
        "1 2 4 6 8 9 11 13 22 23 26 29 31 39 47 63 71 76 79 84 90 94 96 97 99 100 105 107 113 122 125 130 132 144 145 "
        "147 148 150 151 155 160 161 162 163 171 172 178 187 195 199 203 207 208 219 231 232 234 235 242 245 247 250 "
        "251 254 259 260 263 265 267 269 276 277 281 288 289 291 292 293 296 299 301 308 309 310 311 314 315 319 323 "
        "327 330 334 335 337 338 340 341 344 347 353 355 361 362 365 366 367 368 372 388 390 393 397 401 407 413 414 "
        "425 428 430 435 437 441 447 448 457 462 463 469 470 471 472 476 483 487 515 546 555 558 570 579 583 587 593 "
        "594 596 609 613 617 621 629 637 657 658 701 717 724 763 768 774 776 779 780 787 805 812 815 820 824 833 847 "
        "852 866 875 883 889 895 907 928 931 932 933 934 936 937 943 945 947 948 949 951 953 954 957 963 965 967 "
        "980 981 983 988 ",
    "imagenet-a":
        "6 11 13 15 17 22 23 27 30 37 39 42 47 50 57 70 71 76 79 89 90 94 96 97 99 105 107 108 110 113 124 125 130 "
        "132 143 144 150 151 207 234 235 254 277 283 287 291 295 298 301 306 307 308 309 310 311 313 314 315 317 319 "
        "323 324 326 327 330 334 335 336 347 361 363 372 378 386 397 400 401 402 404 407 411 416 417 420 425 428 430 "
        "437 438 445 456 457 461 462 470 472 483 486 488 492 496 514 516 528 530 539 542 543 549 552 557 561 562 569 "
        "572 573 575 579 589 606 607 609 614 626 627 640 641 642 643 658 668 677 682 684 687 701 704 719 736 746 749 "
        "752 758 763 765 768 773 774 776 779 780 786 792 797 802 803 804 813 815 820 823 831 833 835 839 845 847 850 "
        "859 862 870 879 880 888 890 897 900 907 913 924 932 933 934 937 943 945 947 951 954 956 957 959 971 972 980 "
        "981 984 986 987 988 ",
}  # fmt: skip
"""The indices of the classes as the evaluation code of both papers lists them."""


@pytest.mark.parametrize("name", KEPT)
def test_masks_keep_the_200_classes_and_their_places(name: str, tmp_path: Path) -> None:
    kept = [synsets()[int(index)] for index in KEPT[name].split()]
    assert len(kept) == 200
    for number in (7, 150):
        save(tmp_path / name / kept[number] / "1.jpg", picture(number, (300, 240)))
    shift = load_shift(name, tmp_path)
    assert shift.corruptions == ("natural",)
    assert pick_conditions(shift, [CLEAN, Condition("natural", 5)]) == (Condition("natural", 1),)
    ids = shift.ids("test")
    assert shift.labels(ids).tolist() == [7, 150]
    assert shift.members == tuple((synsets().index(synset),) for synset in kept)
    assert np.array_equal(shift.images(ids, Condition("natural", 1))[1].numpy(),
                          by_torchvision(tmp_path / name / kept[150] / "1.jpg"))  # fmt: skip
    scores = torch.randn(4, 1000)
    masked = OfClasses(nn.Identity(), shift.members, 1000)(scores)
    assert torch.equal(masked, scores[:, [synsets().index(synset) for synset in kept]])
    save(tmp_path / name / "n01440764" / "1.jpg", picture(0))
    if "n01440764" not in kept:
        with pytest.raises(UsageError, match="n01440764 is not one of the 200 classes"):
            load_shift(name, tmp_path).ids("test")


def test_imagenet_v2_has_folders_with_numbers(tmp_path: Path) -> None:
    for number in (2, 10, 999):
        save(tmp_path / "imagenetv2-matched-frequency-format-val" / str(number) / "a.jpeg", picture(number, (260, 300)))
    shift = load_shift("imagenet-v2", tmp_path)
    assert shift.labels(shift.ids("test")).tolist() == [2, 10, 999]


@pytest.mark.parametrize("name", ["imagenet-sketch", "imagenet-hr"])
def test_collected_sets_of_all_classes(name: str, tmp_path: Path) -> None:
    for synset in THREE:
        save(tmp_path / name / synset / "a.JPEG", picture(1, (400, 300)))
    shift = load_shift(name, tmp_path)
    assert shift.labels(shift.ids("test")).tolist() == sorted(PLACES)
    assert shift.members is None


def test_reassessed_labels_are_timms(root: Path) -> None:
    shift = load_shift("imagenet-real", root)
    files = sorted((root / "imagenet/val").glob("*/*"), key=lambda path: (synsets().index(path.parent.name), path.name))
    oracle = RealLabelsImagenet([f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)])
    expected = [set(oracle.real_labels[path.name]) for path in files]
    scored = [labels for labels in expected if labels]
    ids = shift.ids("test")
    answers = shift.answers(ids)
    assert answers is not None
    assert [set(np.flatnonzero(row)) for row in answers] == scored
    assert all(label in labels for label, labels in zip(shift.labels(ids), scored, strict=True))
    save(root / "imagenet/val" / THREE[0] / "renamed.JPEG", picture(1))
    with pytest.raises(UsageError, match=r"renamed\.JPEG is not named like ILSVRC2012_val"):
        load_shift("imagenet-real", root).ids("test")


def test_laion_c_scores_superclasses_by_mean_member_probability(tmp_path: Path) -> None:
    write_tree(tmp_path / "laion-c", ["bird", "tools"], ["mosaic/intensity_level_2", "stickers/intensity_level_2"])
    shift = load_shift("laion-c", tmp_path)
    assert shift.corruptions == LAION
    ids = shift.ids("test")
    assert [sorted(SUPERCLASSES)[label] for label in shift.labels(ids)] == ["bird", "bird", "tools", "tools"]
    file = tmp_path / "laion-c/mosaic/intensity_level_2/tools/ILSVRC2012_val_00000004.JPEG"
    assert np.array_equal(shift.images(ids, Condition("mosaic", 2))[3].numpy(), pixels_of(file))
    scores = torch.randn(5, 1000, dtype=torch.float64)
    found = OfClasses(nn.Identity(), shift.members, 1000).double()(scores)
    exponentials = np.exp(scores.numpy())
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    slow = np.stack([probabilities[:, list(SUPERCLASSES[name])].mean(axis=1) for name in sorted(SUPERCLASSES)], axis=1)
    assert np.allclose(np.exp(found.numpy()), slow, rtol=1e-9)


def test_superclasses_are_the_285_published_ones() -> None:
    counts = {"fruit": 6, "fish": 12, "tools": 7, "instruments": 13, "ball": 6, "primate": 18, "snakes": 16,
              "timekeeping": 6, "chair": 6, "butterfly": 6, "boat": 7, "cat": 6, "bottle": 7, "car_truck": 11,
              "bird": 49, "dog": 109}  # fmt: skip
    assert {name: len(members) for name, members in SUPERCLASSES.items()} == counts
    everything = [member for members in SUPERCLASSES.values() for member in members]
    assert len(everything) == len(set(everything)) == 285


@pytest.mark.skipif("mosaic" not in corruptions.names(), reason="this version has no corruptions of LAION-C")
def test_laion_c_gen_keeps_the_images_of_superclasses(root: Path) -> None:
    shift = load_shift("laion-c-gen", root)
    ids = shift.ids("test")
    fish = sorted(SUPERCLASSES).index("fish")
    assert shift.labels(ids).tolist() == [fish] * 4  # the cassette players are in none
    assert set(shift.labels(shift.ids("train")).tolist()) == {fish}
    assert shift.images(ids, Condition("luminance_checkerboard", 3)).shape == (4, 3, 224, 224)


def test_what_is_missing_ends_with_what_brings_it(tmp_path: Path) -> None:
    for name in ("laion-c", "tiny-imagenet-c", "imagenet-c-5k", "cifar10-c"):
        with pytest.raises(MissingDataError, match=r"bench data fetch (laion-c|tiny|imagenet-c|cifar10-c)"):
            load_shift(name, tmp_path)
    for name in ("imagenet-c-gen", "imagenet-real", "ccc", "laion-c-gen"):
        with pytest.raises(MissingDataError, match=r"get it from image-net\.org .*--data-root"):
            load_shift(name, tmp_path).ids("test")
    with pytest.raises(MissingDataError, match="augmentation-corruption"):
        load_shift("imagenet-c-bar", tmp_path)


def test_ones_own_photographs_may_be_scored_as_they_are(root: Path) -> None:
    shift = load_shift(f"folder:{root}/imagenet/val")
    assert shift.name == "folder:imagenet"
    assert shift.labels(shift.ids("test")).tolist() == [0, 0, 1, 1, 482, 482]
    asked = [Condition(name, 5) for name in pick_corruptions(shift, ["natural"], "disjoint")]
    assert pick_conditions(shift, [CLEAN, *asked]) == (Condition("natural", 1),)
    ids = shift.ids("test")
    assert torch.equal(shift.images(ids, Condition("natural", 1)), shift.images(ids, CLEAN))
    assert torch.equal(shift.images(ids, FOG), load_shift("imagenet-c-gen", root).images(ids, FOG))
    with pytest.raises(UsageError, match="unknown corruption of imagenet-c-gen 'natural'"):
        pick_corruptions(load_shift("imagenet-c-gen", root), ["natural"], "disjoint")
    both = load_shift("folder:imagenet", root)
    assert len(both.ids("train")) == 5
    assert both.digest(ids, FOG) == shift.digest(ids, FOG)
