"""The six distortions of LAION-C (Li et al. 2025, arXiv:2506.16950).

The paper is "LAION-C: an out-of-distribution benchmark for web-scale vision models". They are defined at 224 pixels. At
other sizes lengths are in 224ths of the shorter side, at least a pixel, and counts grow with the area, so that an image
looks alike at every size.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from corruptions.kernels import BICUBIC, edge, resized
from corruptions.noise import Draws, Size
from corruptions.rng import Stream
from corruptions.tables import IMAGENET224, Parameters
from corruptions.tiles import TilePool

DEFINED_AT = 224
# The number of draws is the same at every severity, which uses the first ones: higher severities add to lower ones.
_MOST_STICKERS, _MOST_SHAPES = 1200, 1000
_STICKER, _LUMINANCE_TILE = 16, 14
_LEAST_SHAPE, _LARGEST_SHAPE = 6, 15
_KINDS = 4
_TURNS = 360


def whole_pixels(length: float, size: Size) -> int:
    """Return a length of the definition for an image of a size (h, w), in whole pixels."""
    return max(1, round(length * min(size) / DEFINED_AT))


def _number(count: float, size: Size) -> int:
    """Scale a count for a square of the shorter side to the whole image."""
    return round(count * max(size) / min(size))


def whole_levels(images: Tensor) -> Tensor:
    """Images in [0, 1] as whole levels of 0 .. 255."""
    return (images * 255).round_()


def draw_luminance_checkerboard(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms, one per tile."""
    side = whole_pixels(_LUMINANCE_TILE, size)
    return {"uniform": stream.uniform(*(-(-length // side) for length in size))}


def luminance_checkerboard(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Tiles of 14 pixels, alternately lighter and darker, each by a random shift in the range of the severity.

    The published code draws the shifts once for a batch; here every image has its own.
    """
    low, high = parameters
    height, width = images.shape[-2:]
    side = whole_pixels(_LUMINANCE_TILE, (height, width))
    row = torch.arange(height, device=images.device) // side
    column = torch.arange(width, device=images.device) // side
    shift = (low + (high - low) * draws["uniform"]) / 255
    shift[:, ::2, 1::2] *= -1
    shift[:, 1::2, ::2] *= -1
    return (images + shift[:, None].index_select(2, row).index_select(3, column)).clamp_(0, 1)


def draw_stickers(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms (row, column, tile) of every sticker, in the order of pasting."""
    return {"uniform": stream.uniform(3, max(_number(_MOST_STICKERS, size), _number(parameters[0], size)))}


def stickers(images: Tensor, draws: Draws, parameters: Parameters, pool: TilePool) -> Tensor:
    """Tiles of 16 px at random positions, later ones over earlier ones; as published, never in the last row or column.

    Only the last sticker on a pixel shows: marks at the corners grow to the stickers' size, and the larger number wins.
    """
    n, _, height, width = images.shape
    side, count = whole_pixels(_STICKER, (height, width)), _number(parameters[0], (height, width))
    tiles = pool.tiles(side, images.device)
    row, column, which = draws["uniform"][:, :, :count].unbind(1)
    top = (row * max(height - side, 1)).long()
    left = (column * max(width - side, 1)).long()
    tile = (which * len(tiles)).long()
    number = torch.arange(1, count + 1, device=images.device).expand(n, -1)
    marks = torch.zeros(n, height * width, dtype=torch.int64, device=images.device)
    marks.scatter_reduce_(1, top * width + left, number, "amax")
    last = _grown(marks.view(n, height, width), side).flatten(1)
    # What a pixel of the image adds to its sticker's offset is its place in the row-major order of tiles.
    offset = F.pad((tile * side - top) * side - left, (1, 0)).gather(1, last)
    row_of, column_of = (torch.arange(length, device=images.device) for length in (height, width))
    covered = last > 0
    source = (offset + (row_of[:, None] * side + column_of).flatten()).where(covered, 0)
    flat = tiles.transpose(0, 1).flatten(1)
    pasted = flat.index_select(1, source.flatten()).view(3, n, height, width).transpose(0, 1).float().div_(255)
    return pasted.where(covered.view(n, 1, height, width), images)


def _grown(marks: Tensor, side: int) -> Tensor:
    """The largest of the `side` x `side` marks above and to the left of each pixel of int [n, h, w]."""
    for dim in (-2, -1):
        size, done = marks.shape[dim], 1
        while done < side:
            step = min(done, side - done)
            before = marks.narrow(dim, 0, size - step)
            marks = torch.cat(
                [marks.narrow(dim, 0, step), torch.maximum(before, marks.narrow(dim, step, size - step))], dim
            )
            done += step
    return marks


def draw_geometric_shapes(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms (kind, row, column, size, red, green, blue, turn) of every shape, in the order of drawing."""
    return {"uniform": stream.uniform(8, max(_number(_MOST_SHAPES, size), _number(parameters[0], size)))}


def geometric_shapes(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Triangles, squares, stars and circles of 6 to 15 pixels in plain colours, later ones over earlier ones.

    The shapes are stamps that Pillow draws. Only the stars are rotated.
    """
    n, _, height, width = images.shape
    count = _number(parameters[0], (height, width))
    if count == 0:
        return images.clone()
    sizes = tuple(whole_pixels(size, (height, width)) for size in range(_LEAST_SHAPE, _LARGEST_SHAPE + 1))
    reach = max(sizes) + 1
    stamps = _stamps(sizes, width + 2 * reach, images.device)
    kind, row, column, size, red, green, blue, turn = draws["uniform"][:, :, :count].unbind(1)
    kind, size = (kind * _KINDS).long(), (size * len(sizes)).long()
    turn = torch.where(kind == _KINDS - 1, (turn * _TURNS).long(), 0)
    stamp = (kind * len(sizes) + size) + turn * len(sizes)
    place = ((row * height).long() + reach) * (width + 2 * reach) + (column * width).long() + reach
    pixels = stamps.index_select(0, stamp.flatten()).view(n, count, -1).add_(place[:, :, None])
    number = torch.arange(1, count + 1, dtype=torch.int32, device=images.device)[None, :, None].expand_as(pixels)
    last = torch.zeros(n, (height + 2 * reach) * (width + 2 * reach), dtype=torch.int32, device=images.device)
    last.scatter_reduce_(1, pixels.flatten(1), number.flatten(1), "amax")
    last = last.view(n, height + 2 * reach, -1)[:, reach:-reach, reach:-reach].flatten(1).long()
    colours = (torch.stack([red, green, blue], 1) * 256).floor_().div_(255)
    colours = F.pad(colours, (1, 0))
    painted = colours.gather(2, last[:, None].expand(-1, 3, -1)).view_as(images)
    return painted.where(last.view(n, 1, height, width) > 0, images)


@lru_cache(maxsize=16)
def _stamps(sizes: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """The pixels of every shape as flat places from its position, in rows of `width`: int64 [stamps, pixels].

    Triangles, squares and circles of each size, then stars of each size for every turn. Shorter rows repeat a pixel.
    """
    middle = max(sizes) + 1
    stamps = []
    for kind in range(_KINDS - 1 + _TURNS):
        for size in sizes:
            canvas = Image.new("1", (2 * middle, 2 * middle))
            _draw_shape(ImageDraw.Draw(canvas), min(kind, _KINDS - 1), middle, size, max(kind - _KINDS + 1, 0))
            rows, columns = (
                torch.frombuffer(bytearray(canvas.convert("L").tobytes()), dtype=torch.uint8)
                .view(2 * middle, -1)
                .nonzero()
                .unbind(1)
            )
            stamps.append((rows - middle) * width + columns - middle)
    longest = max(map(len, stamps))
    return torch.stack([torch.cat([one, one[:1].expand(longest - len(one))]) for one in stamps]).to(device)


def _draw_shape(draw: ImageDraw.ImageDraw, kind: int, at: int, size: int, turn: int) -> None:
    box = (at, at, at + size, at + size)
    if kind == 0:
        draw.polygon([(at, at), (at + size, at), (at + size / 2, at + size)], fill=1)
    elif kind == 1:
        draw.rectangle(box, fill=1)
    elif kind == 2:
        draw.ellipse(box, fill=1)
    else:
        points = []
        for corner in range(10):
            radius = size / 1.2 * (0.5 if corner % 2 else 1.0)
            angle = math.radians(36 * corner + turn)
            points.append((at + radius * math.sin(angle), at + radius * math.cos(angle)))
        draw.polygon(points, fill=1)


def glitched(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Chunks of rows rolled sideways, one channel moved, every other row black, as the package glitch_this does it.

    It is always seeded with 1, as published, so all images of a size are glitched alike.
    """
    return glitched_bytes(images, parameters)


def glitched_bytes(images: Tensor, parameters: Parameters) -> Tensor:
    """`glitched` of images of any type."""
    (amount,) = parameters
    n, _, height, width = images.shape
    source = _glitch(amount, height, width, images.device).expand(n, -1, -1)
    out = torch.zeros_like(images, memory_format=torch.contiguous_format)
    out[:, :, 1::2] = images.flatten(2).gather(2, source).view(n, 3, -1, width)
    return out


@lru_cache(maxsize=32)
def _glitch(amount: float, height: int, width: int, device: torch.device) -> Tensor:
    """Where the odd rows come from: flat places int64 [3, height // 2 * width]; even rows are black."""
    reach, chunks = int(amount**2 / 100 * width), int(2 * amount)
    roll = [0] * height
    for chunk in range(chunks):
        # A separate generator gives the same numbers as the global one, which stays untouched.
        rng = random.Random(1 + chunk)
        offset = rng.randint(-reach, reach)
        if offset:
            start = rng.randint(0, height)
            stop = min(start + rng.randint(1, max(height // 4, 1)), height)
            roll[start:stop] = [offset] * (stop - start)
    rng = random.Random(1)
    channel = rng.randint(0, 2)
    across, down = rng.randint(-chunks, chunks), rng.randint(-chunks, chunks) % height
    row, column = torch.arange(height)[:, None], torch.arange(width)
    places = (row * width + (column - torch.tensor(roll)[:, None]) % width).repeat(3, 1, 1)
    places[channel] = (row - down) % height * width + column
    places[channel, down] = (column - across) % width
    return places[:, 1::2].flatten(1).to(device)


def mosaic(images: Tensor, draws: Draws, parameters: Parameters, pool: TilePool) -> Tensor:
    """The image composed of tiles: each cell becomes the tile whose mean colour is nearest to the cell's.

    Cells are the pixels of the image after Pillow's bicubic downsampling. If tiles do not fit (6 pixels in 224), the
    grid is centred and edge pixels are repeated to its border; see `published_mosaic` for the published frame.
    """
    side = whole_pixels(parameters[0], (images.shape[-2], images.shape[-1]))
    return _laid(whole_levels(images), side, pool).float().div_(255)


def mosaic_frame(severity: int) -> tuple[int, int]:
    """Of the published mosaic at a whole severity: the shorter side to resize a picture to, and the square to cut.

    Pillow's or torchvision's `Resize` and `CenterCrop`: 256 and 224 for all distortions, but tiles of 6 and 28 pixels
    start from 252, and those of 6 are laid over all 252, of which 224 are kept.
    """
    side = IMAGENET224["mosaic"][severity - 1]
    assert isinstance(side, int)
    resized_to = 256 - 256 % side
    return resized_to, DEFINED_AT if DEFINED_AT % side == 0 else resized_to


def published_mosaic(images: Tensor, severity: int, pool: TilePool) -> Tensor:
    """The mosaic of pictures uint8 [n, 3, s, s] cut as `mosaic_frame` says, as published: uint8 [n, 3, 224, 224].

    Raises ValueError for pictures of another size.
    """
    square = mosaic_frame(severity)[1]
    if images.dtype != torch.uint8 or images.shape[1:] != (3, square, square):
        raise ValueError(
            f"the mosaic of severity {severity} is made of uint8 [n, 3, {square}, {square}], not "
            f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}; cut pictures as mosaic_frame says"
        )
    side = IMAGENET224["mosaic"][severity - 1]
    assert isinstance(side, int)
    edge_of = (square - DEFINED_AT) // 2
    kept = slice(edge_of, edge_of + DEFINED_AT)
    return _laid(images.float(), side, pool)[:, :, kept, kept].contiguous()


def _laid(levels: Tensor, side: int, pool: TilePool) -> Tensor:
    """Whole levels float [n, 3, h, w] laid out of tiles of a side in pixels: uint8 [n, 3, h, w]."""
    n, _, height, width = levels.shape
    rows, columns = -(-height // side), -(-width // side)
    top, left = (rows * side - height) // 2, (columns * side - width) // 2
    for dim, length, count, before in ((-1, width, columns, left), (-2, height, rows, top)):
        if count * side > length:
            place = torch.arange(count * side, device=levels.device) - before
            levels = levels.index_select(dim, edge(place, length))
    small = resized(levels, rows, columns, BICUBIC)
    tiles = pool.tiles(side, levels.device)
    nearest = pool.nearest(small.permute(0, 2, 3, 1).reshape(-1, 3), side)
    laid = tiles.index_select(0, nearest).view(n, rows, columns, 3, side, side).permute(0, 3, 1, 4, 2, 5)
    return laid.reshape(n, 3, rows * side, columns * side)[:, :, top : top + height, left : left + width]
