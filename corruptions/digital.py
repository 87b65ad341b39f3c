"""The digital group: contrast, elastic transform, pixelate, JPEG (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from corruptions.catalog import Parameters
from corruptions.kernels import blur, box_matrix, half_mirror
from corruptions.noise import Draws, Size
from corruptions.rng import Stream


def contrast(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """(x - mean) c + mean, with the mean of each channel of each image."""
    (factor,) = parameters
    # Sums of 8-bit levels are exact in float64, so the mean does not depend on the order of summation.
    mean = images.mean((2, 3), keepdim=True, dtype=torch.float64).float()
    return ((images - mean) * factor + mean).clamp_(0, 1)


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
    x = torch.arange(width, device=images.device, dtype=torch.float32)
    y = torch.arange(height, device=images.device, dtype=torch.float32)[:, None]

    # The three points lie at centre + (s, s), (s, -s) and (-s, -s): two legs of length 2 s at a right angle.
    third = float(max(min(height, width) // 3, 1))
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], device=images.device)
    centre = torch.tensor([width // 2, height // 2], device=images.device)
    moved = (centre + third * signs + reach * draws["corners"]).double()
    leg_x, leg_y = (moved[:, 1] - moved[:, 2]) / (2 * third), (moved[:, 0] - moved[:, 1]) / (2 * third)
    (a, c), (b, d) = leg_x.unbind(1), leg_y.unbind(1)
    inverse = (torch.stack([d, -b, -c, a], 1) / (a * d - b * c)[:, None]).float()[:, :, None, None]
    origin = moved[:, 2].float()
    right, down = x - origin[:, 0, None, None], y - origin[:, 1, None, None]
    source_x = inverse[:, 0] * right + inverse[:, 1] * down + (float(width // 2) - third)
    source_y = inverse[:, 2] * right + inverse[:, 3] * down + (float(height // 2) - third)
    images = _resample(images, source_x, source_y, whole_pixels=True)

    if strength:
        shift = blur(draws["field"], sigma, truncate=3.0, border=half_mirror) * strength
        images = _resample(images, x + shift[:, 0], y + shift[:, 1], whole_pixels=False)
    return images.clamp_(0, 1)


def _resample(images: Tensor, x: Tensor, y: Tensor, *, whole_pixels: bool) -> Tensor:
    """Bilinear values of [n, c, h, w] at pixel positions [n, h, w]; mirrored at edge pixels or between pixels."""
    height, width = images.shape[-2:]
    if whole_pixels:
        grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    else:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=whole_pixels)


def pixelate(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Pillow's BOX filter down to int(side * share) and up again, rounded to 8 bits after each pass, bit for bit."""
    (share,) = parameters
    levels = (images * 255).round_().flatten(0, 1)
    height, width = levels.shape[1:]
    down = box_matrix(height, max(int(height * share), 1)).to(levels.device)
    across = box_matrix(width, max(int(width * share), 1)).to(levels.device)
    small = _round_half_up(torch.bmm(levels, across.T.expand(len(levels), -1, -1)))
    small = _round_half_up(torch.bmm(down.expand(len(levels), -1, -1), small))
    rows, columns = (box_matrix(len(m), m.shape[1]).argmax(1).to(levels.device) for m in (down, across))
    return small.index_select(1, rows).index_select(2, columns).view_as(images).div_(255)


def _round_half_up(levels: Tensor) -> Tensor:
    # A mean that ends in one half must go up whatever the last bit of the product.
    return levels.add_(0.5 + 1e-4).floor_()


def jpeg_compression(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Saved as JPEG of a quality (4:2:0, standard tables) and read again by Pillow."""
    (quality,) = parameters
    return jpeg_round_trip((images * 255).round_(), round(quality)).div_(255)


def jpeg_round_trip(levels: Tensor, quality: int) -> Tensor:
    """Whole levels 0 .. 255 [n, 3, h, w] through libjpeg, float32. The codec runs on the CPU whatever the device."""
    stored = []
    for image in levels.to("cpu", torch.uint8):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        stored.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(stored).to(levels.device, torch.float32)
