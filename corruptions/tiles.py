"""Pools of pictures for the corruptions that paste tiles over an image: mosaic and stickers of LAION-C.

The published tiles come from a million pictures that cannot be redistributed. Your own pool (a folder or a tensor) or
`procedural_pool` replaces them. Results depend on the pool, so its name belongs in every record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor
from torchvision.transforms import v2

from corruptions.kernels import BILINEAR, plasma, resized
from corruptions.rng import Stream, image_keys

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"))
# Of the procedural pool: mean colours along each axis of the colour cube, and the side of its pictures.
_SHADES, _SIDE = 16, 32
_AT_ONCE = 256
# Distances held at once if there is no tree.
_DISTANCES_AT_ONCE = 1 << 25


class TilePool:
    """Pictures that become square tiles of any side.

    name: says what the pictures are, their content included; it goes into records.
    pictures: uint8 [n, 3, h, w], or the files of n pictures. A tensor's centre is made a tile at once; a file is made
        256 pixels on its shorter side and cut to 224 before, as published (Li et al. 2025, arXiv:2506.16950).

    Tiles are made when a side is first asked for and kept: 3 n side^2 bytes.
    """

    def __init__(self, name: str, pictures: Tensor | tuple[Path, ...]) -> None:
        self.name = name
        self._pictures = pictures
        self._tiles: dict[tuple[int, torch.device], Tensor] = {}
        self._means: dict[tuple[int, torch.device], Tensor] = {}
        self._trees: dict[int, cKDTree] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    def tiles(self, side: int, device: torch.device) -> Tensor:
        """The pictures as tiles of a side in pixels, uint8 [n, 3, side, side] on a device.

        Raises ValueError naming a file that is no picture.
        """
        key = (side, device)
        if key not in self._tiles:
            parts = [_square(part, side) for part in self._parts()]
            self._tiles[key] = torch.cat(parts).to(device)
        return self._tiles[key]

    def nearest(self, colours: Tensor, side: int) -> Tensor:
        """Return the tile of a side whose mean is exactly nearest to each colour (levels, float [m, 3]): int64 [m]."""
        key = (side, colours.device)
        if key not in self._means:
            self._means[key] = self.tiles(*key).double().mean((2, 3))
        if colours.device.type == "cpu":
            if side not in self._trees:
                self._trees[side] = cKDTree(self._means[key].numpy())
            return torch.from_numpy(self._trees[side].query(colours.numpy())[1])
        return _nearest(colours, self._means[key])

    def _parts(self) -> Iterator[Tensor]:
        if isinstance(self._pictures, Tensor):
            yield from torch.split(self._pictures, _AT_ONCE)
            return
        for path in self._pictures:
            yield _read(path)


def _nearest(colours: Tensor, means: Tensor) -> Tensor:
    """The row of `means` [n, 3] that is nearest to each of `colours` [m, 3], by all distances: int64 [m]."""
    parts = torch.split(colours.to(means.dtype), max(1, _DISTANCES_AT_ONCE // len(means)))
    return torch.cat([torch.cdist(part, means).argmin(1) for part in parts])


def _square(pictures: Tensor, side: int) -> Tensor:
    """Return the centres of uint8 [n, 3, h, w] as tiles, filtered as in Pillow."""
    shorter = min(pictures.shape[-2:])
    centre = v2.functional.center_crop(pictures, [shorter, shorter])
    return resized(centre, side, side, BILINEAR).to(torch.uint8)


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            picture = v2.functional.resize(image.convert("RGB"), 256, antialias=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error}); take it out of the pool") from None
    cut: Tensor = v2.functional.pil_to_tensor(v2.functional.center_crop(picture, 224))[None]
    return cut


def folder_pool(folder: Path | str) -> TilePool:
    """Return all pictures in a folder and its subfolders, in the order of their paths; named by the folder and a hash.

    Raises ValueError if there are none.
    """
    folder = Path(folder)
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    paths = sorted(found, key=lambda path: path.parts)
    if not paths:
        raise ValueError(f"{folder} has no pictures ({', '.join(sorted(_SUFFIXES))}); put some there for tiles")
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return TilePool(f"{folder.name}-{len(paths)}-{digest.hexdigest()[:12]}", tuple(paths))


def tensor_pool(pictures: Tensor, name: str) -> TilePool:
    """Return pictures uint8 [n, 3, h, w] as a pool, named by `name` and a hash. Raises ValueError for other tensors."""
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        kind = f"{str(pictures.dtype).removeprefix('torch.')} {list(pictures.shape)}"
        raise ValueError(f"a pool of tiles is made of uint8 [n, 3, h, w], not {kind}; convert the pictures")
    pictures = pictures.detach().cpu().contiguous()
    digest = hashlib.sha256(repr(tuple(pictures.shape)).encode() + pictures.numpy().tobytes()).hexdigest()
    return TilePool(f"{name}-{len(pictures)}-{digest[:12]}", pictures)


@cache
def procedural_pool() -> TilePool:
    """Return the default pool, "plasma-4096": coloured plasma whose means cover the colour cube, always the same.

    A picture's contrast fades towards black and white, so that nothing is clipped and the means are exact to a level.
    """
    shades = (torch.arange(_SHADES, dtype=torch.float64) + 0.5) * (255 / _SHADES)
    means = torch.cartesian_prod(shades, shades, shades)
    pictures = []
    for start in range(0, len(means), _AT_ONCE):
        mean = means[start : start + _AT_ONCE, :, None, None]
        stream = Stream(image_keys("procedural_pool", range(start, start + len(mean)), 0))
        # In float64, so that the rounding of a machine never changes the levels.
        fields = plasma(stream.uniform(4, _SIDE * _SIDE - 1).flatten(0, 1).double(), 2.0).view(-1, 4, _SIDE, _SIDE)
        pattern = 0.6 * fields[:, :1] + 0.4 * fields[:, 1:]
        pattern -= pattern.mean((2, 3), keepdim=True)
        pattern /= pattern.abs().amax((2, 3), keepdim=True).clamp_min(1e-6)
        reach = torch.minimum(mean, 255 - mean).clamp_max(80)
        pictures.append((mean + reach * pattern).round_().to(torch.uint8))
    return TilePool(f"plasma-{len(means)}", torch.cat(pictures))
