"""Random views are cut from photographs, as Pillow and torchvision cut them, and not from what a model sees of them."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from bench.data import pixel_cache
from bench.data.decode import Preprocessing
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from bench.shifts.photographs import LazyPhotographs, stretched
from bench.shifts.shift import clean_pool, labelled_source
from methods.base import Images, Labelled, Unlabelled
from methods.nets.weights import Architecture, Classifier, Weights
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.joint_training import Together, inter_train_together
from methods.selfsoup.objectives import mae
from methods.selfsoup.pretraining import Pretraining, pretrain
from methods.training.finetune import FineTune, fine_tune
from methods.views.ssl_views import Stretched, Views, crop_boxes, resample, resampling

from .conftest import picture, save

DATA = Path(os.environ.get("SOUPBENCH_TEST_DATA", "")) / "imagenet-mini" / "val"
SIZES = [(40, 30), (30, 40), (36, 36), (90, 30), (28, 84), (64, 48)]
ONLY_CROP = Views(flip=False, three_augment=False, jitter=0.0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Train and test photographs of two classes in six sizes (width, height)."""
    for part in ("train", "test"):
        for number in range(24):
            save(tmp_path / "mine" / part / "ab"[number % 2] / f"{number:02d}.png", photograph(number))
    return tmp_path / "mine"


def photograph(number: int) -> np.ndarray:
    return picture(number, SIZES[number % len(SIZES)])


def load(folder: Path, size: int = 24, resize: int | None = 28, workers: int = 0) -> Any:
    reading = Reading(preprocessing=Preprocessing(size, resize), workers=workers)
    return load_shift(f"folder:{folder}", reading=reading)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (640, 240)])
def test_crops_of_stretched_photographs_are_drawn_as_torchvision_draws_them(width: int, height: int) -> None:
    side, count, scale, ratio = 384, 3000, (0.08, 1.0), (3 / 4, 4 / 3)
    aspects = torch.full((count,), width / height)
    boxes = torch.stack(crop_boxes(torch.rand(40, count, generator=seeded()), side, side, scale, ratio, aspects))
    top, left, tall, wide = boxes.double().numpy() * np.array([[height], [width], [height], [width]]) / side
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = torch.zeros(3, height, width)
        theirs = np.array([RandomResizedCrop.get_params(whole, list(scale), list(ratio)) for _ in range(count)]).T
    assert ((top >= 0) & (left >= 0) & (top + tall <= height) & (left + wide <= width)).all()
    assert ks_2samp(tall * wide, theirs[2] * theirs[3]).pvalue > 1e-3
    assert ks_2samp(wide / tall, theirs[3] / theirs[2]).pvalue > 1e-3
    assert ks_2samp(top + tall / 2, theirs[0] + theirs[2] / 2).pvalue > 1e-3
    assert ks_2samp(left + wide / 2, theirs[1] + theirs[3] / 2).pvalue > 1e-3


@pytest.mark.parametrize(("width", "height"), [(800, 200), (200, 800)])
def test_photographs_that_no_crop_fits_fall_back_to_the_centre(width: int, height: int) -> None:
    aspects = torch.full((4,), width / height)
    ours = crop_boxes(torch.rand(40, 4, generator=seeded()), 400, 400, (1.0, 1.0), (3 / 4, 4 / 3), aspects)
    theirs = RandomResizedCrop.get_params(torch.zeros(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    scales = (400 / height, 400 / width, 400 / height, 400 / width)
    for mine, theirs_, scale in zip(ours, theirs, scales, strict=True):
        assert (mine - theirs_ * scale).abs().max() <= 1


def test_a_view_is_that_crop_of_the_photograph() -> None:
    """Against torchvision on the photograph as taken; of smooth pictures, whose crops no resampling changes much."""
    form = Preprocessing(384, 384, "bicubic", squash=True)
    taken = [picture(number, size) for number, size in enumerate([(500, 375), (375, 500), (600, 300)])]
    squares = torch.stack([torch.from_numpy(form(Image.fromarray(pixels), "it")) for pixels in taken])
    aspects = torch.tensor([pixels.shape[1] / pixels.shape[0] for pixels in taken])
    views = ONLY_CROP(squares, seeded(), stretched=Stretched(aspects, 224))
    assert views.shape == (3, 3, 224, 224)
    draws = torch.rand(46, 3, generator=seeded())[6:]
    boxes = torch.stack(crop_boxes(draws, 384, 384, ONLY_CROP.scale, ONLY_CROP.ratio, aspects), 1).double()
    for view, pixels, box in zip(views, taken, boxes, strict=True):
        height, width = pixels.shape[:2]
        real = [round(float(part) * of / 384) for part, of in zip(box, (height, width, height, width), strict=True)]
        theirs = tv.resized_crop(
            torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, *real, [224, 224],
            InterpolationMode.BICUBIC, antialias=True,
        )  # fmt: skip
        assert (view - theirs).abs().mean() < 0.005


def test_size_of_the_views_goes_before_that_of_the_model() -> None:
    squares = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    views = Views(size=10)(squares, seeded(), stretched=Stretched(torch.ones(2), 24))
    assert views.shape == (2, 3, 10, 10)


def test_photographs_are_what_pillow_reads(folder: Path) -> None:
    source = labelled_source(load(folder), None, 0)
    photographs = source.photographs
    assert photographs is not None
    assert tuple(photographs.shape) == (len(source), 3, 41, 41)  # 24 * 12 / 7
    by_class = [number for letter in (0, 1) for number in range(letter, 24, 2)]
    dev = set(range(0, 24, 10))  # every tenth in the order of folders is kept for choices
    kept = [number for place, number in enumerate(by_class) if place not in dev]
    assert len(kept) == len(source)
    rows = torch.tensor([5, 0, len(kept) - 1, 5])
    form = Preprocessing(41, 41, "bicubic", squash=True)
    for _ in range(2):  # decoded, then from the cache
        found = photographs[rows]
        for pixels, row in zip(found, rows.tolist(), strict=True):
            wanted = form(Image.fromarray(photograph(kept[row])), "it")
            assert np.array_equal(pixels.numpy(), wanted)
        aspects = [SIZES[kept[row] % len(SIZES)][0] / SIZES[kept[row] % len(SIZES)][1] for row in rows.tolist()]
        assert torch.equal(photographs.aspects(rows), torch.tensor(aspects))


def test_photographs_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = labelled_source(load(folder), None, 0).photographs
    assert isinstance(first, LazyPhotographs)
    whole = first[:]
    assert [kept.lacking for kept in first.kept] == [0]
    again = labelled_source(load(folder), None, 0).photographs
    assert isinstance(again, LazyPhotographs)
    monkeypatch.setattr("bench.data.folders.FolderSet.read", forbidden)
    assert torch.equal(again[:], whole)


def forbidden(*_: Any) -> Any:
    raise AssertionError("decoded again")


def test_aspects_of_rows_that_were_not_read_yet(folder: Path) -> None:
    photographs = labelled_source(load(folder), None, 0).photographs
    assert photographs is not None
    rows = torch.tensor([3, 1])
    asked = photographs.aspects(rows)
    photographs[:]
    assert torch.equal(asked, photographs.aspects(rows))


def test_without_room_photographs_are_decoded_for_each_draw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = labelled_source(load(folder), None, 0).photographs
    assert isinstance(kept, LazyPhotographs)
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    unkept = labelled_source(load(folder), None, 0).photographs
    assert isinstance(unkept, LazyPhotographs)
    assert unkept.kept == ()
    monkeypatch.undo()
    assert torch.equal(kept[:], unkept[:])
    assert torch.equal(kept.aspects(torch.arange(4)), unkept.aspects(torch.arange(4)))


@pytest.mark.parametrize("workers", [0, 3])
def test_another_process_and_threads_read_the_same(folder: Path, workers: int) -> None:
    one = labelled_source(load(folder, workers=workers), None, 0).photographs
    assert one is not None
    sent = pickle.loads(pickle.dumps(one))
    assert torch.equal(sent[:], one[:])
    assert torch.equal(sent.aspects(torch.arange(5)), one.aspects(torch.arange(5)))


@pytest.mark.parametrize(
    ("preprocessing", "side"),
    [
        (Preprocessing(224, 256), 384),
        (Preprocessing(224, 500), 500),
        (Preprocessing(224, 224), 384),
        (Preprocessing(128, 128), 219),
        (Preprocessing(64, 64), None),
        (Preprocessing(32, 36), 55),
        (Preprocessing(224), None),
        (Preprocessing(224, 256, squash=True), None),
    ],
)
def test_where_a_model_sees_all_of_an_image_there_is_nothing_to_cut(
    preprocessing: Preprocessing, side: int | None
) -> None:
    form = stretched(preprocessing)
    assert (None if form is None else form.size) == side


def test_bundled_digits_have_no_photographs() -> None:
    source = labelled_source(load_shift("digits-c"), 2, 0)
    assert source.photographs is None
    assert not source.digest.startswith("photographs:")


def test_a_digest_tells_what_is_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [labelled_source(load(folder, *how), None, 0).digest for how in ((24, 28), (24, 24), (22, 28))]
    assert len(set(digests)) == 3
    assert digests[0].startswith("photographs:")
    assert not digests[1].startswith("photographs:")
    assert clean_pool(load(folder)).digest == f"clean:{digests[0]}"
    monkeypatch.setattr("bench.shifts.photographs._FINER", 2)
    assert labelled_source(load(folder), None, 0).digest not in digests


def test_rows_and_labels_stay_together(folder: Path) -> None:
    source = labelled_source(load(folder), None, 0)
    for part in source.split(0.25):
        assert part.photographs is not None
        assert len(part.photographs) == len(part)
        whole = [row for row in range(len(source)) if torch.equal(source.images[row][None], part.images[:1])]
        assert torch.equal(part.photographs[torch.tensor([0])], source.photographs[torch.tensor(whole)])  # type: ignore[index]
        aspects = part.photographs.aspects(torch.tensor([0]))
        assert torch.equal(aspects, source.photographs.aspects(torch.tensor(whole)))  # type: ignore[union-attr]
    assert source.without_labels().photographs is source.photographs


def test_one_photograph_for_each_image() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="3 images and 2 photographs; give one of each"):
        Unlabelled(images, "them", photographs=Noted(2))


class Noted:
    """Photographs that note which rows are read, one for each seed, all of one aspect."""

    dtype, ndim, device = torch.uint8, 4, torch.device("cpu")

    def __init__(self, count: int, side: int = 14, aspect: float = 1.5) -> None:
        self.pixels = torch.randint(0, 256, (count, 3, side, side), generator=seeded(), dtype=torch.uint8)
        self.shape = self.pixels.shape
        self.read: list[int] = []
        self.aspect = aspect

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        self.read += torch.arange(len(self))[rows].tolist()
        return self.pixels[rows]

    def aspects(self, rows: Tensor) -> Tensor:
        return torch.full((len(rows),), self.aspect)


SMALL = Architecture(image_size=8, patch_size=4, dim=8, depth=1, heads=2, decoder_dim=8, decoder_depth=1)


def stock() -> Weights:
    return pretrain([], Unlabelled(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "none"),
                    Pretraining(SMALL, steps=1, batch_size=4), seeded())  # fmt: skip


class Unread:
    """Images that no training may read."""

    dtype, ndim, device, shape = torch.uint8, 4, torch.device("cpu"), torch.Size((6, 3, 8, 8))

    def __len__(self) -> int:
        return 6

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        raise AssertionError("read the cut image")


def trained(how: str, images: Images, photographs: Any) -> Weights:
    pool = Unlabelled(images, "pool", photographs=photographs)
    ingredient = Ingredient(objective=mae.Config(), steps=4, batch_size=3, lr=1e-2)
    if how == "fine-tuning":
        labelled = Labelled(images, "them", torch.arange(6) % 2, 2, photographs=photographs)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = Classifier(SMALL, 2).weights()
        return fine_tune([stock(), head], labelled, FineTune(epochs=2, batch_size=3, lr=1e-2), seeded())
    if how == "pre-training":
        return pretrain([], pool, Pretraining(SMALL, steps=4, batch_size=3), seeded())
    if how == "ingredient":
        return inter_train([stock()], pool, ingredient, seeded())
    together = Together((ingredient, ingredient))
    return inter_train_together([stock()], pool, together, seeded())


@pytest.mark.parametrize("how", ["fine-tuning", "pre-training", "ingredient", "together"])
def test_every_training_cuts_its_views_from_photographs(how: str) -> None:
    photographs = Noted(6)
    one = trained(how, Unread(), photographs)
    assert set(photographs.read) == set(range(6))
    wide = trained(how, Unread(), Noted(6, aspect=3.0))
    assert wide.digest != one.digest
    # A square photograph of the model's size is the image that the model sees.
    square = Noted(6, side=8, aspect=1.0)
    assert trained(how, Unread(), square).digest == trained(how, square.pixels, None).digest


@pytest.mark.skipif(not DATA.is_dir(), reason="set SOUPBENCH_TEST_DATA to a folder with imagenet-mini/val")
def test_views_of_real_photographs_are_those_of_torchvision(tmp_path: Path) -> None:
    """Mean difference of 64 views from crops of the same boxes out of the JPEG files' pixels, in grey levels.

    The crops are those of `resampling`, which test_ssl_views.py holds against torchvision; boxes may cut pixels here.
    """
    for part in ("train", "test"):
        for folder in sorted(DATA.iterdir())[:64]:
            file = next(folder.glob("*.JPEG"))
            (tmp_path / "real" / part / folder.name).mkdir(parents=True)
            for copy in range(2 if part == "train" else 1):
                shutil.copy(file, tmp_path / "real" / part / folder.name / f"{copy}{file.name}")
    source = labelled_source(load(tmp_path / "real", 224, 256), None, 0)
    photographs = source.photographs
    assert photographs is not None
    rows = torch.arange(64)
    pixels = photographs[rows]
    aspects = photographs.aspects(rows)
    views = ONLY_CROP(pixels, seeded(), stretched=Stretched(aspects, 224)) * 255
    boxes = torch.stack(
        crop_boxes(torch.rand(46, 64, generator=seeded())[6:], 384, 384, (0.08, 1.0), (3 / 4, 4 / 3), aspects), 1
    )
    images, at, _ = photographs._source  # type: ignore[attr-defined]
    differences = []
    for row, box, view in zip(at[:64].tolist(), boxes, views, strict=True):
        taken = tv.pil_to_tensor(images.read(row))[None]
        height, width = taken.shape[2:]
        top, left, tall, wide = (part[None] * of / 384 for part, of in zip(box, (height, width) * 2, strict=True))
        crop = resample(taken, resampling(top, tall, height, 224), resampling(left, wide, width, 224))[0].clamp(0, 255)
        differences.append((view - crop).abs().mean())
    assert torch.stack(differences).mean() < 1.2
    assert torch.stack(differences).max() < 4
