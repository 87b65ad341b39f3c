"""Small copies of published data sets, in their layouts, with tiny pictures, and a stock for these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.models.weights_io import save_weights
from bench.shifts.catalog import TASKS
from bench.shifts.imagenet import BAR, COMMON, LAION
from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.objectives import mae
from methods.training.loop import reset

FISH = {"n01440764": "fish", "n01443537": "fish", "n01484850": "fish"}
"""Tench, goldfish and great white shark with their superclass; the last two are in ImageNet-R, none in ImageNet-A."""

DRAGONFLY = "n02268443"
"""A class of ImageNet-R and of ImageNet-A."""

SIDE = 32


def picture(code: int, side: int) -> Image.Image:
    """A smooth picture of its own for each number."""
    small = np.random.default_rng(code).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR)


def imagenet(root: Path, side: int = SIDE, train: int = 12) -> None:
    """Train and val of four classes, and every shift of ImageNet at severity 5, two pictures of each class."""
    classes = [*FISH, DRAGONFLY]
    code = 0

    def put(place: str) -> None:
        nonlocal code
        code += 1
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(code, side).save(path, quality=85)

    for number, name in enumerate(classes):
        val = [f"{name}/ILSVRC2012_val_{2 * number + image + 1:08d}.JPEG" for image in range(2)]
        for image in range(train):
            put(f"imagenet/train/{name}/{name}_{image}.JPEG")
        for file in val:
            put(f"imagenet/val/{file}")
            for corruption in COMMON:
                put(f"imagenet-c/{corruption}/5/{file}")
            for corruption in BAR:
                put(f"imagenet-c-bar/{corruption}/5/{file}")
            for shift in ("imagenet-v2", "imagenet-sketch", "imagenet-hr"):
                put(f"{shift}/{file}")
            if name != "n01440764":
                put(f"imagenet-r/{file}")
            if name == DRAGONFLY:  # four, so that its even half has two
                put(f"imagenet-a/{file}")
                put(f"imagenet-a/{name}/more_{Path(file).name}")
            if name in FISH:
                for corruption in LAION:
                    put(f"laion-c/{corruption}/intensity_level_5/fish/{Path(file).name}")


def mini_vtab(root: Path, side: int = SIDE, train: int = 20, test: int = 8) -> None:
    """Every task with two classes."""
    for place, task in enumerate(TASKS):
        for part, count in (("train", train), ("test", test)):
            for number in range(count):
                path = root / "mini-vtab" / task / part / f"{number % 2}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(1000 * place + number + 500 * (part == "test"), side).save(path)


def stock(path: Path, side: int = SIDE, patch: int = 8) -> Path:
    """Write a random stock with 16 channels, one block and a decoder of two blocks."""
    shape = Architecture(
        side, patch, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=2, decoder_heads=2, pool="token"
    )
    generator = torch.Generator().manual_seed(0)
    encoder = build_encoder(shape)
    reset(encoder, generator)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    decoder = mae.Config().build(Weights(shape, tensors), generator).decoder
    tensors |= {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    save_weights(path, Weights(shape, tensors), {})
    return path
