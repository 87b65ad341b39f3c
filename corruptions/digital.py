"""The digital group: contrast, elastic transform, pixelate, JPEG (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from corruptions.kernels import blur, box_windows, half_mirror
from corruptions.native import compiled, into_planes, jpeg_by_opencv, opencv_for_jpeg
from corruptions.noise import Draws, Size
from corruptions.rng import Stream
from corruptions.tables import Parameters

# From so many pixels on Pillow makes an image small and large again in less time than tensors in batches do.
_PIXELS_FOR_PILLOW = 1 << 14


def contrast(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """(x - mean) c + mean, with the mean of each channel of each image."""
    (factor,) = parameters
    # Sums of 8-bit levels are exact in float64, so the mean does not depend on the order of summation.
    mean = images.mean((2, 3), keepdim=True, dtype=torch.float64).float()
    return torch.add(mean * (1 - factor), images, alpha=factor).clamp_(0, 1)


def draw_elastic_transform(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms in [-1, 1): moves of three points (point, x or y), then the fields of x and of y."""
    return {"corners": stream.uniform(3, 2) * 2 - 1, "field": stream.uniform(2, *size) * 2 - 1}


def elastic_transform(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """A random affine map, then a random smooth displacement: two bilinear resamplings, as defined.

    The definition puts the centre of the affine map at (h // 2, w // 2) as (x, y); we put it at (w // 2, h // 2),
    which is the same for the square images it was made for.
    """
    strength, sigma, reach = parameters
    height, width = images.shape[-2:]
    grid = _bent(draws["corners"], reach, height, width)
    images = _resample(images, grid, whole_pixels=True)
    if strength:
        shift = blur(draws["field"], sigma, truncate=3.0, border=half_mirror)
        images = _resample(images, _displaced(shift, strength, grid), whole_pixels=False)
    return images.clamp_(0, 1)


def _bent(corners: Tensor, reach: float, height: int, width: int) -> Tensor:
    """The affine map: where pixels are read, [n, h, w, 2] (x, y), from the moves of three points [n, 3, 2]."""
    # The three points lie at centre + (s, s), (s, -s) and (-s, -s): two legs of length 2 s at a right angle.
    third = float(max(min(height, width) // 3, 1))
    if corners.device.type == "cpu" and corners.dtype == torch.float32 and (loops := compiled()) is not None:
        made = corners.new_empty(len(corners), height, width, 2)
        loops.bent(corners.numpy(), np.float32(reach), third, made.numpy())
        return made
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], device=corners.device)
    centre = torch.tensor([width // 2, height // 2], device=corners.device)
    moved = (centre + third * signs + reach * corners).double()
    leg_x, leg_y = (moved[:, 1] - moved[:, 2]) / (2 * third), (moved[:, 0] - moved[:, 1]) / (2 * third)
    (a, c), (b, d) = leg_x.unbind(1), leg_y.unbind(1)
    inverse = torch.stack([d, -b, -c, a], 1) / (a * d - b * c)[:, None]
    corner = moved[:, 2]

    # Positions run from -1 to 1 between the centres of the outer pixels here, between their outer edges below.
    x = torch.arange(width, device=corners.device, dtype=torch.float64) - corner[:, :1]
    y = torch.arange(height, device=corners.device, dtype=torch.float64) - corner[:, 1:]
    grid = corners.new_empty(len(corners), height, width, 2)
    for axis, side in ((0, width), (1, height)):
        by_x, by_y = inverse[:, 2 * axis, None] * x, inverse[:, 2 * axis + 1, None] * y + (side // 2 - third)
        scale = 2 / max(side - 1, 1)
        grid[..., axis] = (by_x * scale - 1).float()[:, None, :] + (by_y * scale).float()[:, :, None]
    return grid


def _displaced(shift: Tensor, strength: float, grid: Tensor) -> Tensor:
    """Positions [n, h, w, 2] (x, y) of all pixels moved by a field [n, 2, h, w] of pixels, into `grid`."""
    height, width = shift.shape[-2:]
    y, x = (
        (2 * torch.arange(side, device=shift.device, dtype=torch.float32) + 1) / side - 1 for side in (height, width)
    )
    by_x, by_y = 2 * strength / width, 2 * strength / height
    loops = compiled() if grid.device.type == "cpu" else None
    if loops is None:
        grid[..., 0] = torch.add(x, shift[:, 0], alpha=by_x)
        grid[..., 1] = torch.add(y[:, None], shift[:, 1], alpha=by_y)
        return grid
    for own, one in zip(shift, grid, strict=True):
        loops.displaced(x.numpy(), y.numpy(), own.numpy(), np.float32(by_x), np.float32(by_y), one.numpy())
    return grid


def _resample(images: Tensor, grid: Tensor, *, whole_pixels: bool) -> Tensor:
    """Bilinear values of [n, c, h, w] at positions [n, h, w, 2] (x, y); mirrored at edge pixels or between pixels."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=whole_pixels)


def pixelate(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Pillow's BOX filter down to int(side * share) and up again, rounded to 8 bits after each pass, bit for bit."""
    return _enlarged(_shrunk((images * 255).round_(), *parameters), images).div_(255)


def pixelate_bytes(images: Tensor, parameters: Parameters) -> Tensor:
    """`pixelate` of uint8 images, as whole levels in an integer type."""
    large = images.shape[-2] * images.shape[-1] >= _PIXELS_FOR_PILLOW
    if images.device.type == "cpu" and (large or len(images) == 1):
        return _pixelated_by_pillow(images, *parameters)
    return _enlarged(_shrunk(images.float(), *parameters).to(torch.int16), images)


def _pixelated_by_pillow(images: Tensor, share: float) -> Tensor:
    """One by one, which is quicker than in tensors for few and for large images."""
    height, width = images.shape[-2:]
    size = max(int(width * share), 1), max(int(height * share), 1)
    (rows,), _, _ = _box_places(size[1], height, images.device)
    (columns,), _, _ = _box_places(size[0], width, images.device)
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    small = np.empty((3, size[1], size[0]), np.uint8)
    for image, target in zip(images, out.numpy(), strict=True):
        into_planes(np.asarray(_picture(image).resize(size, Image.Resampling.BOX)), small)
        for plane, large in zip(small, target, strict=True):
            np.take(plane.take(columns.numpy(), axis=1), rows.numpy(), axis=0, out=large, mode="clip")
    return out


def _picture(image: Tensor) -> Image.Image:
    """An image uint8 [3, h, w] as a picture of Pillow."""
    last = image.permute(1, 2, 0)
    if last.is_contiguous():
        return Image.fromarray(last.numpy())
    # Plane by plane, as Pillow interleaves channels faster than arrays do.
    return Image.merge("RGB", [Image.fromarray(plane) for plane in image.contiguous().numpy()])


def _shrunk(levels: Tensor, share: float) -> Tensor:
    height, width = levels.shape[-2:]
    # Whole rows are copied and added, which is quick, so the planes lie on their side to be filtered across.
    small = _box_rows(levels.mT.contiguous(), max(int(width * share), 1))
    return _box_rows(small.mT.contiguous(), max(int(height * share), 1))


def _enlarged(small: Tensor, images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return _nearest_rows(_nearest_rows(small.mT.contiguous(), width).mT.contiguous(), height)


def _nearest_rows(levels: Tensor, target: int) -> Tensor:
    """Pillow's BOX filter to at least as many rows, which copies the nearest one."""
    (nearest,), _, _ = _box_places(levels.shape[-2], target, levels.device)
    return levels.index_select(-2, nearest)


def _box_rows(levels: Tensor, target: int) -> Tensor:
    """Pillow's BOX filter of whole levels [..., h, w] to `target` rows, rounded half up to whole levels."""
    places, inside, shares = _box_places(levels.shape[-2], target, levels.device)
    total = levels.index_select(-2, places[0])
    for place, weight in zip(places[1:], inside[1:], strict=True):
        total.addcmul_(levels.index_select(-2, place), weight)
    # Pillow's arithmetic: a share is a whole multiple of 2^-22, and those of ten pixels or more may miss a half.
    return total.int().mul_(shares).add_(1 << 21).bitwise_right_shift_(22).float()


@lru_cache(maxsize=64)
def box_ends(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of Pillow's BOX filter of one axis, int64 [target] each: first pixel, the one after the last, and the
    share of one times 2^22."""
    windows = box_windows(size, target)
    shares = [int((1 << 22) / len(window) + 0.5) for window in windows]
    ends = [[window[0] for window in windows], [window[-1] + 1 for window in windows], shares]
    first, last, share = np.array(ends, dtype=np.int64)
    return first, last, share


@lru_cache(maxsize=64)
def _box_places(size: int, target: int, device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """Windows of Pillow's BOX filter of one axis: places [target] of their pixels, first to last, whether each is
    inside (float [target, 1]; shorter windows repeat their last pixel), and the share of one times 2^22 (int32
    [target, 1])."""
    windows = box_windows(size, target)
    longest = max(map(len, windows))
    places = torch.tensor([[window[min(i, len(window) - 1)] for window in windows] for i in range(longest)])
    inside = torch.tensor([[float(i < len(window)) for window in windows] for i in range(longest)])
    shares = torch.tensor([[int((1 << 22) / len(window) + 0.5)] for window in windows], dtype=torch.int32)
    return tuple(places.to(device)), tuple(inside[:, :, None].to(device)), shares.to(device)


def jpeg_compression(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Saved as JPEG of a quality (4:2:0, standard tables) and read again, by Pillow."""
    (quality,) = parameters
    return jpeg_round_trip((images * 255).round_(), round(quality)).float().div_(255)


def jpeg_compression_bytes(images: Tensor, parameters: Parameters) -> Tensor:
    """`jpeg_compression` of uint8 images, uint8."""
    (quality,) = parameters
    return jpeg_round_trip(images, round(quality))


def jpeg_round_trip(levels: Tensor, quality: int) -> Tensor:
    """Levels 0 .. 255 [n, 3, h, w], truncated to bytes, through Pillow's JPEG, uint8.

    The codec runs on the CPU whatever the device: the one corruption that leaves it. Where OpenCV is installed and its
    codec gives the same pixels as Pillow's, it is taken, which needs less time.
    """
    # By way of 16 bits, as casting floats to bytes is slow on CPUs.
    images = (levels.to(torch.int16) if levels.is_floating_point() else levels).to("cpu", torch.uint8)
    stored = torch.empty_like(images, memory_format=torch.contiguous_format)
    cv2 = opencv_for_jpeg()
    for image, target in zip(images, stored.numpy(), strict=True):
        if cv2 is not None:
            jpeg_by_opencv(cv2, image.contiguous().numpy(), target, quality)
            continue
        file = io.BytesIO()
        _picture(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as read:
            into_planes(np.asarray(read), target)
    return stored.to(levels.device)
