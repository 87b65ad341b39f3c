"""The six distortions of LAION-C (Li et al. 2025, "LAION-C: an out-of-distribution benchmark for web-scale vision
models", arXiv:2506.16950).

They are defined at 224 pixels. At other sizes lengths are so many 224ths of the shorter side, a pixel at least, and
counts grow with the area, so that an image looks alike at every size.
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
from corruptions.tables import Parameters
from corruptions.tiles import TilePool

_DEFINED_AT = 224
# As many are drawn at every severity, which takes the first of them: a stronger one adds to a weaker one.
_MOST_STICKERS, _MOST_SHAPES = 1200, 1000
_STICKER, _LUMINANCE_TILE = 16, 14
# Dark places pull lines this far to the left.
_PULL = 40
_LEAST_SHAPE, _LARGEST_SHAPE = 6, 15
_KINDS = 4
_TURNS = 360


def _pixels(length: float, size: Size) -> int:
    return max(1, round(length * min(size) / _DEFINED_AT))


def _number(count: float, size: Size) -> int:
    """So many things on a square of the shorter side, on the whole image."""
    return round(count * max(size) / min(size))


def _levels(images: Tensor) -> Tensor:
    return (images * 255).round_()


def draw_luminance_checkerboard(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms, one per tile."""
    side = _pixels(_LUMINANCE_TILE, size)
    return {"uniform": stream.uniform(*(-(-length // side) for length in size))}


def luminance_checkerboard(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Tiles of 14 pixels in turn lighter and darker by a shift that each draws from the severity's range.

    The published code draws the shifts once for a batch; here every image has its own.
    """
    low, high = parameters
    height, width = images.shape[-2:]
    side = _pixels(_LUMINANCE_TILE, (height, width))
    row = torch.arange(height, device=images.device) // side
    column = torch.arange(width, device=images.device) // side
    shift = (low + (high - low) * draws["uniform"]) / 255
    shift[:, ::2, 1::2] *= -1
    shift[:, 1::2, ::2] *= -1
    return (images + shift[:, None].index_select(2, row).index_select(3, column)).clamp_(0, 1)


def draw_stickers(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms (row, column, tile) of every sticker, in the order in which they are stuck on."""
    return {"uniform": stream.uniform(3, max(_number(_MOST_STICKERS, size), _number(parameters[0], size)))}


def stickers(images: Tensor, draws: Draws, parameters: Parameters, pool: TilePool) -> Tensor:
    """Tiles of 16 pixels anywhere, later ones over earlier ones; as published they never reach the last row or column.

    Only the last sticker on a pixel shows: marks at the corners grow to the stickers' size, the larger number winning.
    """
    n, _, height, width = images.shape
    side, count = _pixels(_STICKER, (height, width)), _number(parameters[0], (height, width))
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

    Stamped with what Pillow draws. The stars alone are turned.
    """
    n, _, height, width = images.shape
    count = _number(parameters[0], (height, width))
    if count == 0:
        return images.clone()
    sizes = tuple(_pixels(size, (height, width)) for size in range(_LEAST_SHAPE, _LARGEST_SHAPE + 1))
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
        # A generator of our own gives the same numbers as the global one, which is left alone.
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


def vertical_lines(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """The image told by lines on black: one for each column of cells, in their mean colours, pulled left where dark.

    A line joins the points of its cells by one-pixel segments as Pillow draws them (Bresenham's), later ones over
    earlier ones.
    """
    return vertical_lines_bytes(_levels(images), parameters).div_(255)


def vertical_lines_bytes(images: Tensor, parameters: Parameters) -> Tensor:
    """`vertical_lines` of levels of any type, as whole levels in float32."""
    n, _, height, width = images.shape
    lines = max(min(round(parameters[0] * width / min(height, width)), width), 1)
    step = _pixels(parameters[1], (height, width))
    device = images.device
    colours, luma = _cells(images.float(), lines, step)
    ends = torch.tensor([line * width / lines for line in range(lines)], dtype=torch.float64, device=device)
    # Pillow cuts positions to whole pixels, towards zero.
    tips = (ends - _PULL * min(height, width) / _DEFINED_AT * (1 - luma / 255)).trunc()
    tips = torch.cat([ends.trunc().expand(n, 1, -1), tips], 1).float()
    start, stop = tips[:, :-1, None], tips[:, 1:, None]

    # Segments [n, cell, step + 1, line] in the rows they pass; the first segment of a line lies in one row.
    length = (stop - start).abs()
    passed = torch.arange(step + 1, dtype=torch.float32, device=device)[:, None]
    slope = length / (2 * step)
    flat = length > step
    first = torch.where(flat, ((2 * passed - 1) * slope).ceil_().clamp_(min=0), (2 * passed * slope + 0.5).floor_())
    last = torch.where(flat, torch.minimum(((2 * passed + 1) * slope).ceil_() - 1, length), first)
    first[:, 0], last[:, 0] = 0, length[:, 0]
    direction = (stop - start).sign_()
    one, other = start + direction * first, start + direction * last
    rows = tips.shape[1] - 1
    row = torch.arange(-step, (rows - 1) * step, step, device=device)[:, None, None] + passed.long()
    row[0] = 0
    # In a row a line has at most two segments: one that ends there, drawn first, and one that goes on.
    goes_on = (passed < step).expand(rows, -1, -1).clone()
    goes_on[0] = False
    number = (1 + 2 * torch.arange(lines, device=device) + goes_on).to(torch.int16)
    latest = _runs(torch.minimum(one, other), torch.maximum(one, other), row, number, (height, width)).long()

    line, on = (latest - 1).clamp_(min=0) >> 1, (latest - 1) & 1
    cell = (torch.arange(height, device=device)[:, None] // step + on).clamp_(max=rows - 1)
    painted = colours.flatten(2).gather(2, (cell * lines + line).view(n, 1, -1).expand(-1, 3, -1))
    return painted.view(images.shape).mul_((latest > 0)[:, None])


def _cells(levels: Tensor, lines: int, step: int) -> tuple[Tensor, Tensor]:
    """Mean colour [n, 3, rows, lines] and mean luma [n, rows, lines] of cells, whole numbers as whole division gives.

    Cell i of a row reaches from int(i w / lines) to int(i w / lines + w / lines); the last row may be lower.
    """
    height, width = levels.shape[-2:]
    red, green, blue = levels.unbind(1)
    # Pillow's weights; the sums stay below 2^24, so they are exact.
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768).mul_(2.0**-16).floor_()
    planes = torch.cat([levels, luma[:, None]], 1)
    rows = -(-height // step)
    planes = F.pad(planes, (0, 0, 0, rows * step - height)).view(-1, 4, rows, step, width).sum(3)
    sums = F.pad(planes.double().cumsum(-1), (1, 0))
    starts = [int(line * width / lines) for line in range(lines)]
    stops = [int(line * width / lines + width / lines) for line in range(lines)]
    low, high = (torch.tensor(ends, device=levels.device) for ends in (starts, stops))
    high = high.clamp_(max=width)
    heights = torch.full((rows, 1), step, device=levels.device)
    heights[-1] = height - (rows - 1) * step
    means = ((sums.index_select(-1, high) - sums.index_select(-1, low)) / (heights * (high - low))).floor_()
    return means[:, :3].float(), means[:, 3]


def _runs(left: Tensor, right: Tensor, row: Tensor, number: Tensor, size: Size) -> Tensor:
    """The largest number of the runs over each pixel, 0 where there is none: int16 [n, h, w].

    Runs of whole columns left .. right [n, cell, step, line] in the rows [cell, step, 1]; what is outside is cut off. A
    run is two overlapping ones whose length is a power of two: marks for these are pushed down level by level.
    """
    height, width = size
    n, device = len(left), left.device
    seen = (right >= 0) & (left < width) & (row < height)
    left, right = left.clamp_(0, width - 1), right.clamp_(0, width - 1)
    # The exponent of a float tells the largest power of two within.
    level = torch.frexp(right - left + 1).exponent.long() - 1
    levels = min(width, math.ceil(_PULL * min(size) / _DEFINED_AT) + 2).bit_length()
    marks = torch.zeros(n, levels, height, width, dtype=torch.int16, device=device)
    base = (level * height + row.clamp(max=height - 1)) * width
    number = (number * seen).flatten(1)
    for place in (left.long(), right.long() + 1 - (1 << level)):
        marks.view(n, -1).scatter_reduce_(1, (base + place).flatten(1), number, "amax")
    for upper in range(levels - 1, 0, -1):
        half = 1 << (upper - 1)
        below, above = marks[:, upper - 1], marks[:, upper]
        torch.maximum(below, above, out=below)
        torch.maximum(below[..., half:], above[..., :-half], out=below[..., half:])
    return marks[:, 0]


def mosaic(images: Tensor, draws: Draws, parameters: Parameters, pool: TilePool) -> Tensor:
    """The image laid out of tiles: each cell becomes the tile whose mean colour is nearest to the cell's.

    Cells are pixels of the image as Pillow's bicubic filter makes it small. Where tiles do not fit (6 pixels in 224),
    the grid is centred and edge pixels are repeated to its border, as the published crop of a larger picture cuts it.
    """
    n, _, height, width = images.shape
    side = _pixels(parameters[0], (height, width))
    rows, columns = -(-height // side), -(-width // side)
    top, left = (rows * side - height) // 2, (columns * side - width) // 2
    levels = _levels(images)
    for dim, length, count, before in ((-1, width, columns, left), (-2, height, rows, top)):
        place = torch.arange(count * side, device=images.device) - before
        levels = levels.index_select(dim, edge(place, length))
    small = resized(levels, rows, columns, BICUBIC)
    tiles = pool.tiles(side, images.device)
    nearest = pool.nearest(small.permute(0, 2, 3, 1).reshape(-1, 3), side)
    laid = tiles.index_select(0, nearest).view(n, rows, columns, 3, side, side).permute(0, 3, 1, 4, 2, 5)
    laid = laid.reshape(n, 3, rows * side, columns * side)[:, :, top : top + height, left : left + width]
    return laid.float().div_(255)
