"""One picture, and the transform in the pipelines, workers and modules of others."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from corruptions import Corruption, corrupt, corrupt_image
from corruptions.tiles import tensor_pool

Pictures = Callable[[int, int, int], Tensor]
NAMES = ("fog", "glass_blur", "jpeg_compression", "contrast", "spatter")


def of(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", NAMES)
def test_one_picture_gets_the_pixels_of_a_batch(name: str, pictures: Pictures) -> None:
    planes = pictures(1, 40, 56)
    picture = of(planes[0])
    array = np.asarray(picture)
    for identity in (None, 7, "a"):
        ids = None if identity is None else [identity]
        expected = corrupt(planes, name, 3, seed=5, ids=ids)[0].permute(1, 2, 0).numpy()
        found = corrupt_image(picture, name, 3, seed=5, id=identity)
        assert isinstance(found, Image.Image)
        assert (np.asarray(found) == expected).all()
        assert (corrupt_image(array, name, 3, seed=5, id=identity) == expected).all()
    floats = corrupt_image((array / 255).astype(np.float32), name, 3, storage="none", id=7)
    assert floats.dtype == np.float32
    exact = corrupt(planes / 255, name, 3, storage="none", ids=[7])[0].permute(1, 2, 0).numpy()
    assert (floats == exact).all()


def test_grey_read_only_and_reversed_arrays(pictures: Pictures) -> None:
    array = pictures(1, 32, 48)[0].permute(1, 2, 0).numpy().copy()
    expected = corrupt_image(array, "snow", 2, id=1)
    array.flags.writeable = False
    before = array.copy()
    assert (corrupt_image(array, "snow", 2, id=1) == expected).all()
    assert (array == before).all()
    turned = np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    assert (corrupt_image(turned, "snow", 2, id=1) == expected).all()
    grey = array[..., 0]
    threefold = corrupt_image(np.repeat(grey[..., None], 3, 2), "snow", 2, id=1)[..., 0]
    assert (corrupt_image(grey, "snow", 2, id=1) == threefold).all()
    assert (np.asarray(corrupt_image(Image.fromarray(grey), "snow", 2, id=1)) == threefold).all()
    same = corrupt_image(array, "snow", 0)
    assert (same == array).all()
    assert not np.shares_memory(same, array)


@pytest.mark.parametrize(("mode", "becomes"), [("P", "RGB"), ("CMYK", "RGB"), ("1", "L"), ("LA", "L")])
def test_other_modes_of_data_sets_are_converted(mode: str, becomes: str, pictures: Pictures) -> None:
    picture = Image.fromarray(pictures(1, 32, 40)[0].permute(1, 2, 0).numpy()).convert(mode)
    found = corrupt_image(picture, "snow", 3, id=4)
    assert found.mode == becomes
    assert (np.asarray(found) == np.asarray(corrupt_image(picture.convert(becomes), "snow", 3, id=4))).all()


def test_grey_arrays_may_have_a_channel(pictures: Pictures) -> None:
    grey = pictures(1, 32, 40)[0, 0].numpy()
    found = corrupt_image(grey[..., None], "fog", 3, id="a")
    assert found.shape == (32, 40, 1)
    assert (found[..., 0] == corrupt_image(grey, "fog", 3, id="a")).all()


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (Image.new("RGBA", (9, 9)), ValueError, r"mode RGBA, not RGB or L; convert it: image.convert\('RGB'\)"),
        (Image.new("PA", (9, 9)), ValueError, "mode PA"),
        (np.zeros((9, 9, 4), np.uint8), ValueError, "drop an alpha channel"),
        (np.zeros(9, np.uint8), ValueError, r"not \[9\]"),
        (np.zeros((9, 9, 3), np.int64), TypeError, "not int64"),
        (np.full((9, 9, 3), 2.0), ValueError, r"must lie in \[0, 1\]"),
        (np.zeros((0, 9, 3), np.uint8), ValueError, "at least one pixel"),
        (torch.zeros(3, 9, 9), TypeError, r"not Tensor; corrupt\(\) takes tensors"),
        ("cat.png", TypeError, "not str"),
    ],
)
def test_other_pictures_are_refused(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        corrupt_image(image, "fog", 3)


def test_the_transform_keeps_the_kind_of_image(pictures: Pictures) -> None:
    planes = pictures(2, 32, 40)
    transform = Corruption("elastic", 4, seed=1)
    expected = corrupt(planes, "elastic_transform", 4, seed=1)
    assert torch.equal(transform(planes), expected)
    assert torch.equal(transform(planes[0]), expected[0])
    wrapped = transform(tv_tensors.Image(planes[0]))
    assert type(wrapped) is tv_tensors.Image
    assert torch.equal(wrapped.as_subclass(Tensor), expected[0])
    assert (np.asarray(transform(of(planes[0]))) == expected[0].permute(1, 2, 0).numpy()).all()


def test_only_the_image_of_a_sample_is_transformed(pictures: Pictures) -> None:
    image = tv_tensors.Image(pictures(1, 32, 32)[0])
    mask = tv_tensors.Mask(torch.ones(32, 32, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 3, 4]]), format="XYXY", canvas_size=(32, 32))
    sample = {"image": image, "mask": mask, "boxes": boxes, "label": 3, "extra": torch.ones(5)}
    out = Corruption("zoom_blur", 5)(sample)
    assert not torch.equal(out["image"], image)
    assert out["mask"] is mask
    assert out["boxes"] is boxes
    assert out["label"] == 3
    assert torch.equal(out["extra"], torch.ones(5))


def test_it_takes_its_place_between_other_transforms(pictures: Pictures) -> None:
    crop = v2.Compose([v2.Resize(36), v2.CenterCrop(32)])
    pipeline = v2.Compose(
        [crop, Corruption("frost_procedural", 3), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )
    picture = of(pictures(1, 50, 60)[0])
    expected = corrupt(v2.functional.pil_to_tensor(crop(picture)), "frost_procedural", 3)
    assert torch.allclose(pipeline(picture), expected / 255, atol=1e-6)


def test_tiles_of_a_pool(pictures: Pictures) -> None:
    planes = pictures(1, 64, 64)
    pool = tensor_pool(pictures(40, 32, 32), "mine")
    expected = corrupt(planes, "stickers", 3, ids=[1], pool=pool)[0].permute(1, 2, 0).numpy()
    assert (np.asarray(corrupt_image(of(planes[0]), "stickers", 3, id=1, pool=pool)) == expected).all()
    assert torch.equal(Corruption("mosaic", 3, pool=pool)(planes), corrupt(planes, "mosaic", 3, pool=pool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fogg"}, "did you mean 'fog'"),
        ({"severity": 6}, "between 0 and 5"),
        ({"storage": "gif"}, "unknown storage"),
        ({"profile": "cifar"}, "did you mean 'cifar32'"),
    ],
)
def test_bad_options_are_refused_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corruption(**({"name": "fog", "severity": 3} | options))


def test_copies_and_pickles_do_the_same(pictures: Pictures) -> None:
    planes = pictures(2, 32, 32)
    transform = Corruption("gaussian_noise", 3)
    expected = transform(planes)
    assert "name=gaussian_noise" in repr(transform)
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(twin(planes), expected)


def test_compiled_modules_do_the_same(pictures: Pictures) -> None:
    planes = pictures(2, 32, 32)
    transform = Corruption("gaussian_noise", 3)
    expected = transform(planes)
    model = torch.nn.Sequential(transform, torch.nn.Flatten())
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(planes), expected.flatten(1))


class Corrupted(Dataset[Tensor]):
    def __init__(self, images: Tensor, name: str) -> None:
        self.images = images
        self.transform = Corruption(name, 5)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        found: Tensor = self.transform(self.images[index])
        return found


@pytest.mark.slow
@pytest.mark.parametrize("start", sorted(set(multiprocessing.get_all_start_methods()) & {"fork", "spawn"}))
@pytest.mark.parametrize("name", ["glass_blur", "jpeg_compression"])
def test_workers_make_the_same_pixels(start: str, name: str, pictures: Pictures) -> None:
    images = pictures(9, 32, 32)
    expected = corrupt(images, name, 5)
    for workers in (0, 1, 2):
        context = start if workers else None
        loader = DataLoader(Corrupted(images, name), batch_size=4, num_workers=workers, multiprocessing_context=context)
        assert torch.equal(torch.cat(list(loader)), expected)
