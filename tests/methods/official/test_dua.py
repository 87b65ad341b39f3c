"""DUA, held against jmiemirza/DUA."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from methods.adapters.dua import Dua

VIEWS = 64


class Standardized(nn.Module):
    """Pixels in [0, 1] to what the release's transform of CIFAR-10 gives."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.5


def model(golden: Golden) -> nn.Module:
    return nn.Sequential(Standardized(), golden.model("test_resnet"))


def pictures(golden: Golden) -> Tensor:
    """Batches of four with pixels on the grid of 8-bit values, as the release reads them."""
    stream = golden.stream[:, :4]
    stream = stream - stream.amin((2, 3, 4), keepdim=True)
    return (stream / stream.amax((2, 3, 4), keepdim=True)).mul(255).round() / 255


class OurDraws:
    """The random numbers of our adapter, handed to the release one by one."""

    def __init__(self, images: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.corners: list[tuple[int, int]] = []
        self.coins: list[float] = []
        self.turns: list[Tensor] = []
        for _ in range(images):
            top, left = torch.randint(9, (2, VIEWS), generator=generator).tolist()
            self.corners += zip(top, left, strict=True)
            self.coins += torch.rand(VIEWS, generator=generator).tolist()
            self.turns.append(torch.randint(4, (VIEWS,), generator=generator))

    def corner(self, image: Any, output_size: tuple[int, int]) -> tuple[int, int, int, int]:
        return (*self.corners.pop(0), *output_size)

    def coin(self, size: int) -> Tensor:
        return torch.tensor([self.coins.pop(0)])

    def turn(self, high: int, size: tuple[int], dtype: torch.dtype) -> Tensor:
        return self.turns.pop(0)


class Pictures:
    """The release's test set: 8-bit pictures by number, and batches of the stream with labels that nothing needs."""

    def __init__(self, stream: Tensor) -> None:
        self.stream, self.dataset = stream, self

    def get_image_from_idx(self, number: int) -> Image.Image:
        picture: Image.Image = transforms.functional.to_pil_image(self.stream.flatten(0, 1)[number])
        return picture

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        standardized = (self.stream - 0.5) / 0.5
        return iter((batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in standardized)


def official(images: int, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    dua = release(
        "DUA",
        "methods.dua",
        stand_ins={
            "utils.testing_yolov3": {"test": None},
            "utils.torch_utils": {"select_device": lambda *_, **__: "cpu", "torch_distributed_zero_first": None},
            "utils.datasets": {"CIFAR": None, "ImgNet": None, "LoadImagesAndLabels": None},
            "utils.general": {"check_img_size": None, "increment_path": None},
            "utils.results_manager": {"ResultsManager": mock.MagicMock},
            "init": {"init_net": None},
        },
    )
    net = model[1]  # type: ignore[index]
    logits, size = torch.zeros(*stream.shape[:2], 10), stream.shape[1]
    momenta: list[float] = []
    test = dua.test
    steps = iter(range(images + 1))

    def noted(loader: Pictures, net: nn.Module) -> Any:
        """What the release does after each image; batches that it has adapted to whole, and all later ones, count."""
        step = next(steps)
        momenta.append(next(m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)))
        if not step or (step % size and step != images):
            return (0.5,)
        found: list[Tensor] = []
        handle = net.register_forward_hook(lambda module, inputs, output: found.append(output))
        result = test(loader, net)
        handle.remove()
        first = (step - 1) // size
        logits[first:] = torch.stack(found)[first:]
        return result

    dua.test, dua.tqdm = noted, iter
    dua.get_loader = lambda *_, **__: Pictures(stream)
    dua.globals.TASKS = ["fog"]
    net.bn_stats = {}
    args = Namespace(
        model="wrn", dataset="cifar10", ckpt_path="", decay_factor=0.94, min_mom=0.005, device="cpu", batch_size=8,
        severity_idx=0, robustness_severities=["5"], severity=None, num_samples=images,
    )  # fmt: skip
    draws = OurDraws(images)
    turns = torch.cat(draws.turns).unique()
    with (
        mock.patch.object(torch, "load", return_value={k: v.clone() for k, v in net.state_dict().items()}),
        mock.patch.object(transforms.RandomCrop, "get_params", draws.corner),
        mock.patch.object(torch, "rand", draws.coin),
        mock.patch.object(torch, "randint", draws.turn),
    ):
        dua.dua(args, net)
    assert len(turns) == 4
    assert draws.corners == draws.coins == draws.turns == []
    assert momenta[1] == 0.1 * 0.94 + 0.005
    assert all(later < earlier for earlier, later in pairwise(momenta))
    return logits


RUNS = [
    OfficialRun(
        f"dua-{images}",
        Dua,
        {"images": images},
        model,
        "jmiemirza/DUA/methods/dua.py",
        ("decaying momentum", "crops, mirrors and all four turns", why),
        partial(official, images),
        pictures,
    )
    for images, why in ((24, "adapting along the whole stream"), (10, "statistics that stay after 10 images"))
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
