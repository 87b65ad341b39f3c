"""What holds for every corruption: shapes, types, refusals, and the same pixels for an image in every batch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import corruptions
from corruptions import corrupt
from corruptions.weather import frost_folder

Pictures = Callable[[int, int, int], Tensor]
ALL = corruptions.names()
RANDOM = [name for name in ALL if corruptions.describe(name).random]
HERE = [name for name in ALL if name != "frost" or frost_folder()]
_no_frost = pytest.mark.skipif(frost_folder() is None, reason="needs the data of corrupt-tta or imagecorruptions")


def cases(names: Iterable[str]) -> list[object]:
    return [pytest.param(name, marks=[_no_frost] if name == "frost" else []) for name in names]


every = pytest.mark.parametrize("name", cases(ALL))
every_random = pytest.mark.parametrize("name", cases(RANDOM))


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@every
def test_a_batch_in_a_batch_out(name: str, pictures: Pictures) -> None:
    images = pictures(3, 32, 32)
    before = images.clone()
    out = corrupt(images, name, 3, ids=range(3))
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert torch.equal(images, before)
    assert not torch.equal(out, images)


SIZES = [(37, 53), (53, 37), (1, 1), (2, 9), (32, 33), (70, 130)]
LARGE = [(160, 224), (224, 160), (256, 257), (257, 256), (512, 512), (600, 900)]


@every
@pytest.mark.parametrize("sizes", [SIZES, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["small", "large"])
def test_any_size(name: str, sizes: list[tuple[int, int]], pictures: Pictures) -> None:
    for size, severity in itertools.product(sizes, (1, 2, 3, 4, 5)):
        images = pictures(2, *size)
        out = corrupt(images.float() / 255, name, severity, ids=range(2), storage="none")
        assert out.shape == images.shape
        assert out.isfinite().all(), (size, severity)
        assert out.min() >= 0, (size, severity)
        assert out.max() <= 1, (size, severity)


@every
def test_constant_images_at_every_severity(name: str) -> None:
    images = torch.tensor([0, 128, 255]).div(255).reshape(3, 1, 1, 1).repeat(1, 3, 32, 32)
    for profile, severity in itertools.product(("cifar32", "digits32", "imagenet224"), (0.1, 1, 2, 2.5, 3, 3.5, 4, 5)):
        out = corrupt(images, name, severity, ids=range(3), profile=profile, storage="none")
        assert out.isfinite().all(), (profile, severity)


@every
def test_an_image_does_not_depend_on_its_batch(name: str, pictures: Pictures) -> None:
    images = pictures(80, 32, 32)
    ids = [f"image {i}" for i in range(80)]
    for severity in (2, 5):
        whole = corrupt(images, name, severity, ids=ids)
        for split in ([1, 79], [8, 72], [40, 40]):
            parts = zip(torch.split(images, split), [ids[: split[0]], ids[split[0] :]], strict=True)
            assert torch.equal(torch.cat([corrupt(part, name, severity, ids=keys) for part, keys in parts]), whole)
        order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
        shuffled = corrupt(images[order], name, severity, ids=[ids[i] for i in order])
        assert torch.equal(shuffled, whole[order])


@every
def test_a_large_image_does_not_depend_on_its_batch_or_threads(
    name: str, pictures: Pictures, four_threads: None
) -> None:
    images = pictures(2, 120, 150)
    whole = corrupt(images, name, 5, ids=["a", "b"])
    torch.set_num_threads(1)
    assert torch.equal(corrupt(images[1:], name, 5, ids=["b"]), whole[1:])
    assert torch.equal(corrupt(images[1], name, 5, ids=["b"]), whole[1])


@every_random
def test_ids_and_seeds_choose_the_noise(name: str, pictures: Pictures) -> None:
    images = pictures(1, 32, 32).expand(3, -1, -1, -1)
    out = corrupt(images, name, 5, ids=[0, 1, "0"])
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    assert torch.equal(corrupt(images[:1], name, 5, ids=[0])[0], out[0])
    assert not torch.equal(corrupt(images[:1], name, 5, ids=[0], seed=1)[0], out[0])


@every_random
def test_without_ids_the_content_names_an_image(name: str, pictures: Pictures) -> None:
    images = pictures(2, 32, 32)
    out = corrupt(images, name, 5)
    assert torch.equal(corrupt(images.flip(0), name, 5).flip(0), out)
    floats = corrupt(images.float() / 255, name, 5)
    assert torch.equal((floats * 255).round().to(torch.uint8), out)
    assert not torch.equal(corrupt(torch.roll(images, 1, 1), name, 5), torch.roll(out, 1, 1))


@every
def test_no_global_state_is_touched(name: str, pictures: Pictures) -> None:
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    first = corrupt(pictures(2, 32, 32), name, 3, ids=[0, 1])
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]  # noqa: NPY002
    assert random.getstate() == before[2]
    torch.rand(5)
    assert torch.equal(corrupt(pictures(2, 32, 32), name, 3, ids=[0, 1]), first)


@every
def test_severity_zero_is_the_image_itself(name: str, pictures: Pictures) -> None:
    images = pictures(2, 32, 32)
    for given in (images, images / 255, (images / 255).half(), images[:, :1], images[0]):
        out = corrupt(given, name, 0, storage="jpeg85")
        assert torch.equal(out, given)
        assert out.dtype == given.dtype
        assert out.data_ptr() != given.data_ptr()


@every
def test_bytes_are_the_truncated_floats(name: str, pictures: Pictures) -> None:
    images = pictures(2, 40, 32)
    stored = corrupt(images, name, 4, ids=range(2))
    exact = corrupt(images.float() / 255, name, 4, ids=range(2), storage="none")
    assert torch.equal(stored, (exact * 255).floor().to(torch.uint8))
    assert torch.equal(corrupt(images.float() / 255, name, 4, ids=range(2)), stored.float() / 255)
    rounded = corrupt(images, name, 4, ids=range(2), storage="none")
    assert torch.equal(rounded, (exact * 255).round().to(torch.uint8))


@every
def test_memory_layout_gradients_and_types_are_kept(name: str, pictures: Pictures) -> None:
    images = pictures(2, 32, 40)
    expected = corrupt(images, name, 3, ids=range(2))
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    out = corrupt(strided, name, 3, ids=range(2))
    assert torch.equal(out, expected)
    assert out.stride() == strided.stride()
    wide = torch.cat([images, images], dim=3)
    assert torch.equal(corrupt(wide[..., :40], name, 3, ids=range(2)), expected)
    needs_grad = (images.float() / 255).requires_grad_()
    assert not corrupt(needs_grad, name, 3, ids=range(2)).requires_grad
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert corrupt(images.to(dtype) / 255, name, 3, ids=range(2)).dtype == dtype


@every
def test_half_precision_is_the_same_picture(name: str, pictures: Pictures) -> None:
    images = pictures(2, 32, 40)
    for dtype in (torch.float16, torch.bfloat16):
        halves = (images / 255).to(dtype)
        out = corrupt(halves, name, 3, ids=range(2), storage="none")
        assert out.min() >= 0
        assert out.max() <= 1
        # What was lost by rounding the input is lost for its float copy too.
        expected = corrupt(halves.float(), name, 3, ids=range(2), storage="none")
        assert (out.float() - expected).abs().max() <= torch.finfo(dtype).eps, dtype


def test_images_without_content_keep_what_the_definitions_leave() -> None:
    black, white, grey = (torch.full((1, 3, 32, 32), level) for level in (0.0, 1.0, 0.5))

    def made(image: Tensor, name: str, severity: float = 5) -> Tensor:
        return corrupt(image, name, severity, ids=[0], storage="none")

    assert torch.equal(made(black, "fog"), black)  # fog is as bright as the image's brightest value
    for image in (black, white, grey):
        for name in ("contrast", "gaussian_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):
            assert torch.allclose(made(image, name), image, atol=3e-3)
    assert torch.equal(made(black, "shot_noise"), black)
    assert torch.equal(made(black, "speckle_noise"), black)
    assert torch.allclose(made(black, "brightness"), torch.tensor(0.3))
    # Grey has the hue 0, which is red: it reddens where saturation is added, at severities 4 and 5.
    assert torch.equal(made(grey, "saturate", 3), grey)
    assert torch.allclose(made(grey, "saturate", 4)[:, 0], torch.tensor(0.5))
    assert torch.allclose(made(grey, "saturate", 4)[:, 1:], torch.tensor(0.45))


def test_borders_repeat_mirror_or_wrap_as_defined() -> None:
    # One bright column beside the edge: repeating the edge, mirroring at it and mirroring before it differ.
    image = torch.zeros(1, 3, 32, 32)
    image[..., 1] = 1
    repeated = corrupt(image, "gaussian_blur", 1, profile="tiny64", storage="none")[0, 0, 16]
    taps = torch.tensor([torch.exp(torch.tensor(-0.5 * (i / 0.5) ** 2)) for i in range(-2, 3)])
    taps /= taps.sum()
    assert torch.allclose(repeated[:3], torch.stack([taps[3], taps[2], taps[1]]), atol=1e-6)
    # A plus of five pixels, mirrored at the edge pixel: the bright column is seen on both sides of the first.
    mirrored = corrupt(image, "defocus_blur", 2, profile="tiny64", storage="none")[0, 0, 16]
    assert torch.allclose(mirrored[:3], torch.tensor([0.4, 0.6, 0.2]), atol=1e-3)


@every
def test_grey_images_are_the_first_of_three_equal_channels(name: str, pictures: Pictures) -> None:
    grey = pictures(2, 32, 32)[:, :1]
    out = corrupt(grey, name, 3, ids=range(2))
    assert torch.equal(out, corrupt(grey.expand(-1, 3, -1, -1), name, 3, ids=range(2))[:, :1])
    assert torch.equal(corrupt(grey[1], name, 3, ids=[1]), out[1])


@every
def test_an_empty_batch_stays_empty(name: str) -> None:
    assert corrupt(torch.zeros(0, 3, 8, 8), name, 3).shape == (0, 3, 8, 8)


@every
def test_the_two_stages_are_the_whole(name: str, pictures: Pictures) -> None:
    images = pictures(2, 32, 48).float() / 255
    before = images.clone()
    draws = corruptions.sample(name, 4, (32, 48), ids=["a", 2], seed=3)
    out = corruptions.apply(name, images, draws, 4)
    assert torch.equal(out, corrupt(images, name, 4, ids=["a", 2], seed=3, storage="none"))
    assert torch.equal(images, before)
    assert bool(draws) == (name in RANDOM)
    if draws:
        with pytest.raises(ValueError, match="sample one id per image"):
            corruptions.apply(name, images[:1], draws, 4)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "contrast", "brightness", "fog"])
def test_severity_grows_smoothly(name: str, pictures: Pictures) -> None:
    images = pictures(4, 32, 32).float() / 255
    distances = [
        float((corrupt(images, name, s, ids=range(4), storage="none") - images).square().mean())
        for s in (0, 0.25, 0.5, 1, 1.5, 2, 2.75, 3, 3.5, 4, 4.5, 5)
    ]
    assert distances == sorted(distances)
    assert len(set(distances)) == len(distances)


def test_jpeg_storage_is_truncation_and_quality_85(pictures: Pictures) -> None:
    import io

    image = pytest.importorskip("PIL.Image")
    images = pictures(2, 33, 48)
    truncated = corrupt(images, "gaussian_noise", 3, ids=range(2))
    stored = corrupt(images, "gaussian_noise", 3, ids=range(2), storage="jpeg85")
    for picture, ours in zip(truncated, stored, strict=True):
        file = io.BytesIO()
        image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=85, optimize=True)
        assert (np.asarray(image.open(file)) == ours.permute(1, 2, 0).numpy()).all()


@every
def test_each_image_may_have_its_own_severity(name: str, pictures: Pictures) -> None:
    images = pictures(6, 32, 40)
    levels = [5, 0, 2.5, 5, 0.25, 1]
    for ids in (["a", "b", "c", "d", "e", "f"], None):
        each = [corrupt(images[i], name, s, ids=ids and [ids[i]], seed=2) for i, s in enumerate(levels)]
        for given in (levels, tuple(levels), np.array(levels), torch.tensor(levels)):
            assert torch.equal(corrupt(images, name, given, ids=ids, seed=2), torch.stack(each))
    assert torch.equal(corrupt(images[3], name, [2], ids=[7]), corrupt(images[3], name, 2, ids=[7]))
    assert corrupt(images[:0], name, []).shape == (0, 3, 32, 40)


IMAGES = torch.full((2, 3, 16, 16), 0.5)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"severity": 6}, ValueError, "between 0 and 5, not 6"),
        ({"severity": -1}, ValueError, "between 0 and 5, not -1"),
        ({"severity": float("nan")}, ValueError, "between 0 and 5, not nan"),
        ({"severity": True}, ValueError, "from 0 to 5, not True"),
        ({"severity": "3"}, ValueError, "from 0 to 5, not '3'"),
        ({"severity": [3, 3, 3]}, ValueError, "2 images need one severity or 2, not 3"),
        ({"severity": [3, 7]}, ValueError, "between 0 and 5, not 7"),
        ({"severity": [3, None]}, ValueError, "from 0 to 5, not None"),
        ({"severity": torch.tensor([True, True])}, ValueError, "from 0 to 5, not True"),
        ({"name": "fgo"}, ValueError, "did you mean 'fog'"),
        ({"profile": "imagenet"}, ValueError, "unknown profile 'imagenet'"),
        ({"storage": "png"}, ValueError, "choose from none, uint8, jpeg85"),
        ({"ids": [1]}, ValueError, "2 images need 2 ids, not 1"),
        ({"ids": "ab"}, TypeError, "wrap it in a list"),
        ({"ids": [1.5, 2]}, TypeError, "an image id is an int or a string"),
        ({"seed": 0.5}, TypeError, "the seed is an int"),
        ({"images": IMAGES * 3}, ValueError, r"must lie in \[0, 1\]"),
        ({"images": IMAGES - 1}, ValueError, r"must lie in \[0, 1\]"),
        ({"images": IMAGES * float("nan")}, ValueError, "not nan"),
        ({"images": IMAGES.long()}, TypeError, "not torch.int64"),
        ({"images": IMAGES.numpy()}, TypeError, "torch.as_tensor"),
        ({"images": IMAGES[:, :2]}, ValueError, "1 or 3 channels"),
        (
            {"images": torch.zeros(2, 4, 8, 8)},
            ValueError,
            "1 or 3 channels.*leave out the last channel, which is alpha",
        ),
        ({"images": torch.zeros(4, 8, 8)}, ValueError, "leave out the last channel, which is alpha"),
        ({"images": torch.zeros(2, 8, 8, 3)}, ValueError, "permute them"),
        ({"images": torch.zeros(8, 8)}, ValueError, "permute"),
        ({"images": IMAGES[..., :0]}, ValueError, "at least one pixel"),
    ],
)
def test_other_input_is_refused(changed: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"images": IMAGES, "name": "fog", "severity": 3, "ids": [0, 1]} | changed
    with pytest.raises(error, match=message):
        corrupt(**arguments)  # type: ignore[arg-type]


def test_one_image_does_not_change_its_neighbour() -> None:
    dark, bright = torch.full((1, 3, 32, 32), 0.1), torch.ones(1, 3, 32, 32)
    for name in HERE:
        alone = corrupt(dark, name, 5, ids=["dark"])
        assert torch.equal(corrupt(torch.cat([dark, bright]), name, 5, ids=["dark", "bright"])[:1], alone)


def test_ids_may_be_any_iterable(pictures: Pictures) -> None:
    images = pictures(3, 32, 32)
    expected = corruptions.corrupt(images, "fog", 3, ids=[4, 5, 6])
    for ids in ((i for i in (4, 5, 6)), iter([4, 5, 6]), torch.tensor([4, 5, 6]).numpy(), {4: 0, 5: 0, 6: 0}):
        assert torch.equal(corruptions.corrupt(images, "fog", 3, ids=ids), expected)
    each = corruptions.corrupt(images, "fog", [3, 3, 3], ids=(i for i in (4, 5, 6)))
    assert torch.equal(each, expected)
    drawn = corruptions.sample("fog", 3, (32, 32), ids=(i for i in (4, 5)))["uniform"]
    assert torch.equal(drawn, corruptions.sample("fog", 3, (32, 32), ids=[4, 5])["uniform"])
    with pytest.raises(ValueError, match="3 images need 3 ids, not 2"):
        corruptions.corrupt(images, "fog", 3, ids=(i for i in (4, 5)))
