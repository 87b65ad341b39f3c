"""The tiles of mosaic and stickers in laion-c-gen, and their part in digests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from PIL import Image

from bench.core.conditions import Condition
from bench.core.errors import UsageError
from bench.shifts import load_shift
from bench.shifts.corruption_sets import LAION
from bench.shifts.imagenet import SUPERCLASSES, synsets
from corruptions.laion import published_mosaic
from corruptions.tiles import procedural_pool


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for group in ("ball", "boat"):
        folder = tmp_path / "imagenet" / "val" / synsets()[SUPERCLASSES[group][0]]
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = np.kron(rng.integers(0, 256, (20, 22, 3)), np.ones((12, 12, 1))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_0000000{i + 1}.JPEG")
    return tmp_path


def test_every_distortion_and_the_named_procedural_pool(root: Path) -> None:
    shift = load_shift("laion-c-gen", root)
    ids = shift.ids("test")
    clean = shift.images(ids, Condition(None, 0))
    assert shift.corruptions == LAION
    assert shift.tiles == "plasma-4096"
    for name in LAION:
        images = shift.images(ids, Condition(name, 3))
        assert images.shape == clean.shape == (4, 3, 224, 224)
        assert not torch.equal(images, clean)
    assert load_shift("imagenet-c-bar-gen", root).tiles is None


def test_a_folder_in_the_data_root_takes_its_place(root: Path) -> None:
    before = load_shift("laion-c-gen", root)
    ids = before.ids("test")
    digests = {name: before.digest(ids, Condition(name, 5)) for name in LAION}
    tiles = root / "laion-c-tiles"
    tiles.mkdir()
    with pytest.raises(UsageError, match="laion-c-tiles has no pictures"):
        load_shift("laion-c-gen", root).images(ids, Condition("mosaic", 5))
    for level in (0, 128, 255):
        Image.new("RGB", (300, 260), (level,) * 3).save(tiles / f"{level}.png")
    after = load_shift("laion-c-gen", root)
    assert after.tiles is not None
    assert after.tiles.startswith("laion-c-tiles-3-")
    assert set(after.images(ids, Condition("mosaic", 5)).unique().tolist()) <= {0, 128, 255}
    changed = {name for name in LAION if after.digest(ids, Condition(name, 5)) != digests[name]}
    assert changed == {"mosaic", "stickers"}


@pytest.mark.parametrize(("severity", "resize", "square"), [(2, 252, 252), (3, 256, 224), (5, 252, 224)])
def test_mosaic_starts_from_the_published_frame(severity: int, resize: int, square: int, root: Path) -> None:
    shift = load_shift("laion-c-gen", root)
    ids = shift.ids("test")
    found = shift.images(ids, Condition("mosaic", severity))
    files = sorted((root / "imagenet" / "val").rglob("*.JPEG"), key=lambda file: (file.parent.name, file.name))
    cut = v2.Compose([v2.Resize(resize), v2.CenterCrop(square), v2.PILToTensor()])
    framed = torch.stack([cut(Image.open(file).convert("RGB")) for file in files])
    assert torch.equal(found, published_mosaic(framed, severity, procedural_pool()))
    assert shift.digest(ids, Condition("mosaic", severity)) != shift.digest(ids, Condition("mosaic", 4))
    with pytest.raises(ValueError, match=r"is made of uint8 .* cut pictures as mosaic_frame says"):
        published_mosaic(framed[:, :, 1:], severity, procedural_pool())
