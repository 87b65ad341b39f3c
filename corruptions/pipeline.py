"""The pipeline from images and a name to corrupted images: check, draw, apply, store."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from corruptions.catalog import Row, check_profile, check_severity, describe, parameters
from corruptions.digital import jpeg_round_trip
from corruptions.kernels import to_the_bit
from corruptions.loops import Loop, loop_for
from corruptions.native import compiled
from corruptions.noise import Draws, Size
from corruptions.rng import Stream, image_keys
from corruptions.tables import Parameters
from corruptions.tiles import TilePool, procedural_pool

Ids = Iterable[int | str]
Draw = Callable[[Stream, Size, Parameters], Draws]
Apply = Callable[..., Tensor]
ApplyToBytes = Callable[[Tensor, Parameters], Tensor]

# Pixels processed at once: on a CPU as many as fit its cache, elsewhere as many as fill the device.
_PIXELS_AT_ONCE = 1 << 21
_CACHED_PIXELS = 1 << 17

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Storage(NamedTuple):
    """How corrupted images in [0, 1] are stored: as values in [0, 1], or as levels whose whole part is the byte.

    `of_levels` makes such levels from levels, `of_bytes` from bytes, for which levels were rounded if `rounds`, else
    truncated. All functions may overwrite their input. `lossless` says that whole levels stay unchanged.
    """

    values: Callable[[Tensor], Tensor]
    levels: Callable[[Tensor], Tensor]
    of_levels: Callable[[Tensor], Tensor]
    of_bytes: Callable[[Tensor], Tensor]
    rounds: bool
    lossless: bool


def _kept(images: Tensor) -> Tensor:
    return images


def _rounded(images: Tensor) -> Tensor:
    return images.mul_(255).round_()


def _truncated(images: Tensor) -> Tensor:
    return images.mul_(255).floor_().div_(255)


def _scaled(images: Tensor) -> Tensor:
    return images.mul_(255)


def _jpeg85(images: Tensor) -> Tensor:
    return _jpeg85_levels(images).float().div_(255)


_of_jpeg85 = partial(jpeg_round_trip, quality=85)


def _jpeg85_levels(images: Tensor) -> Tensor:
    return jpeg_round_trip(images.mul_(255), 85)


STORAGES: Mapping[str, Storage] = MappingProxyType(
    {
        "none": Storage(_kept, _rounded, torch.Tensor.round_, _kept, True, True),
        "uint8": Storage(_truncated, _scaled, _kept, _kept, False, True),
        "jpeg85": Storage(_jpeg85, _jpeg85_levels, _of_jpeg85, _of_jpeg85, False, False),
    }
)
"""How a corrupted image is kept: exactly, truncated to 8 bits (CIFAR-10-C), or as JPEG of quality 85 (ImageNet-C)."""


def corrupt(
    images: Tensor,
    name: str,
    severity: float | Sequence[float] | Tensor,
    *,
    seed: int = 0,
    ids: Ids | None = None,
    profile: str = "auto",
    storage: str = "uint8",
    pool: TilePool | None = None,
) -> Tensor:
    """Corrupt images; a new tensor of the same shape, dtype, device and memory layout, without gradient.

    images: uint8 [n, c, h, w] or [c, h, w] in 0 .. 255, or float in [0, 1]; c is 3, or 1 for grey images, which are
        corrupted as three equal channels of which the first is returned.
    name: a corruption or an alias, see `names()`.
    severity: 0 .. 5, or one for each image (a sequence or a tensor [n], which is read on the CPU). 0 returns an exact
        copy; a fraction interpolates the parameters of its neighbours.
    seed: of the random corruptions, together with name and id; severities share their random numbers.
    ids: one int or string per image (any iterable) that names it in its data set, so that it is corrupted alike in
        every batch.
        None: an image is named by its own 8-bit content (equal images then get equal noise; costs a copy to the CPU).
    profile: a table of parameters, see `catalog.PROFILES`; "auto" goes by the shorter side, see `profile_for`.
    storage: "none", "uint8" (truncated, as in CIFAR-10-C) or "jpeg85" (truncated, then JPEG of quality 85, 4:2:0, as in
        ImageNet-C). With "none", uint8 images are rounded to the nearest level.
    pool: the pictures that mosaic and stickers are made of; None: `tiles.procedural_pool`. Results depend on it, so
        report its name with them.

    JPEG (the corruption and the storage) passes through the CPU; all else stays on the device of the images.
    Raises TypeError or ValueError for input outside of this. Source: Hendrycks and Dietterich 2019, arXiv:1903.12261.
    """
    row = describe(name)
    check_storage(storage)
    pool = check_pool(row, pool)
    _check_images(images)
    images = images.detach()
    batch = images if images.ndim == 4 else images[None]
    profile = check_profile(profile, *batch.shape[-2:])
    level = _severities(severity, len(batch))
    work = _Work(row, seed, profile, storage, pool)
    if isinstance(level, list):
        made = _by_severity(work, batch, level, None if ids is None else _checked(ids, len(batch)))
    else:
        made = _of_severity(work, batch, level, ids)
    return made if images.ndim == 4 else made[0]


class _Work(NamedTuple):
    """What is the same for all images of a call."""

    row: Row
    seed: int
    profile: str
    storage: str
    pool: TilePool | None


def _by_severity(work: _Work, batch: Tensor, levels: list[float], ids: Sequence[int | str] | None) -> Tensor:
    out = torch.empty_like(batch)
    for level in sorted(set(levels)):
        rows = [i for i, own in enumerate(levels) if own == level]
        out[rows] = _of_severity(work, batch[rows], level, None if ids is None else [ids[i] for i in rows])
    return out


def _of_severity(work: _Work, batch: Tensor, severity: float, ids: Ids | None) -> Tensor:
    """A batch [n, c, h, w] at one severity."""
    n, channels, height, width = batch.shape
    if severity == 0 or n == 0:
        return torch.empty_like(batch).copy_(batch)
    settings = parameters(work.row.name, severity, work.profile)
    keys = None
    if work.row.random:
        named = _content_ids(batch) if ids is None else _checked(ids, n)
        keys = image_keys(work.row.name, named, work.seed)
    elif ids is not None:
        _checked(ids, n)
    on_cpu = batch.device.type == "cpu"
    step = max(1, (_CACHED_PIXELS if on_cpu else _PIXELS_AT_ONCE) // (height * width))
    loop = loop_for(work.row.name, batch)
    make = partial(_looped, loop) if loop is not None else _computed
    if n <= step and loop is not None and channels == 3 and batch.is_contiguous():
        return make(work, batch, keys, settings)
    keys = keys if keys is None or on_cpu else keys.to(batch.device)
    out = torch.empty_like(batch)
    with torch.no_grad():
        for part in (slice(i, i + step) for i in range(0, n, step)):
            out[part] = make(work, batch[part], None if keys is None else keys[part], settings)
    return out


def _looped(loop: Loop, work: _Work, batch: Tensor, keys: Tensor | None, settings: Parameters) -> Tensor:
    """Bytes [n, c, h, w] by a compiled loop, uint8."""
    draw, *_ = _functions(work.row.name)
    draws = draw(Stream(keys), _size(batch), settings) if draw and keys is not None else {}
    colour = batch if batch.shape[1] == 3 else batch.expand(-1, 3, -1, -1)
    storage = STORAGES[work.storage]
    made = loop.function(compiled(), colour.contiguous(), draws, settings, storage.rounds)
    return storage.of_bytes(made)[:, : batch.shape[1]]


def _computed(work: _Work, batch: Tensor, keys: Tensor | None, settings: Parameters) -> Tensor:
    """Images [n, c, h, w] by torch, of any type."""
    draw, function, in_bytes, in_levels = _functions(work.row.name)
    channels, storage = batch.shape[1], STORAGES[work.storage]
    is_bytes = batch.dtype == torch.uint8
    if in_bytes is not None and is_bytes and storage.lossless:
        return in_bytes(batch.expand(-1, 3, -1, -1), settings)[:, :channels]
    draws = draw(Stream(keys), _size(batch), settings) if draw and keys is not None else {}
    if in_levels is not None and is_bytes and to_the_bit(batch):
        return storage.of_levels(in_levels(batch.expand(-1, 3, -1, -1), draws, settings))[:, :channels].to(torch.int16)
    colour = _to_unit(batch).expand(-1, 3, -1, -1).contiguous()
    made = function(colour, draws, settings, **({} if work.pool is None else {"pool": work.pool}))
    if is_bytes:
        # By way of 16 bits, as casting floats to bytes is slow on CPUs.
        return storage.levels(made)[:, :channels].to(torch.int16)
    return storage.values(made)[:, :channels]


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]


def sample(
    name: str,
    severity: float,
    size: Size,
    *,
    ids: Ids,
    seed: int = 0,
    profile: str = "auto",
    device: torch.device | str = "cpu",
) -> Draws:
    """Return the random draws of a corruption for images of a size (h, w), first dimension len(ids); {} if it has none.

    They can be inspected, replaced and passed to `apply`. Raises as `corrupt` does, and ValueError for severity 0.
    """
    settings = parameters(name, severity, check_profile(profile, *size))
    draw, *_ = _functions(describe(name).name)
    if draw is None:
        return {}
    keys = image_keys(describe(name).name, _checked(ids, None), seed)
    with torch.no_grad():
        return draw(Stream(keys.to(device)), size, settings)


def apply(
    name: str,
    images: Tensor,
    draws: Draws,
    severity: float,
    *,
    profile: str = "auto",
    pool: TilePool | None = None,
) -> Tensor:
    """Apply a corruption with given draws: deterministic, float32 [n, 3, h, w] in [0, 1] to the same, before storage.

    `draws` come from `sample` with the same severity and profile; `pool` is as in `corrupt`. Raises TypeError or
    ValueError for other images and ValueError for draws of another number of images or severity 0.
    """
    _check_images(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
        raise ValueError(f"apply needs float32 [n, 3, h, w], not {_told(images)}; corrupt() takes other images")
    size = images.shape[-2:]
    settings = parameters(name, severity, check_profile(profile, *size))
    for key, value in draws.items():
        if len(value) != len(images):
            raise ValueError(f"draw {key!r} is for {len(value)} images, not {len(images)}; sample one id per image")
    row = describe(name)
    pool = check_pool(row, pool)
    _, function, *_ = _functions(row.name)
    function = function if pool is None else partial(function, pool=pool)
    with torch.no_grad():
        return function(images.detach(), draws, settings)


def check_pool(row: Row, pool: TilePool | None) -> TilePool | None:
    """Return the pool for a corruption: None, or the procedural one by default.

    Raises ValueError if a corruption takes none.
    """
    if row.pool:
        return procedural_pool() if pool is None else pool
    if pool is not None:
        raise ValueError(f"{row.name} is not made of tiles; leave the pool out")
    return None


@cache
def _functions(name: str) -> tuple[Draw | None, Apply, ApplyToBytes | None, Apply | None]:
    """Return four functions of a corruption: draw, apply, apply to uint8 images, and give exact levels.

    The third exists if uint8 images need no other numbers, the fourth for images that are computed bit for bit.
    """
    row = describe(name)
    module = importlib.import_module(f"corruptions.{row.module}")
    draw = getattr(module, f"draw_{row.name}") if row.random else None
    in_bytes, in_levels = (getattr(module, f"{row.name}_{kind}", None) for kind in ("bytes", "levels"))
    return draw, getattr(module, row.name), in_bytes, in_levels


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch tensor, not {type(images).__name__}; convert with torch.as_tensor")
    if images.dtype != torch.uint8 and images.dtype not in _FLOATS:
        raise TypeError(f"images must be uint8 in 0 .. 255 or float in [0, 1], not {images.dtype}; convert them first")
    if images.ndim not in (3, 4) or images.shape[-3] not in (1, 3):
        last = images.ndim in (3, 4) and images.shape[-1] in (1, 3)
        alpha = images.ndim in (3, 4) and images.shape[-3] in (2, 4)
        fix = "permute them" if last or not alpha else "leave out the last channel, which is alpha"
        raise ValueError(f"images must be [n, c, h, w] or [c, h, w] with 1 or 3 channels, not {_told(images)}; {fix}")
    if 0 in images.shape[-2:]:
        raise ValueError(f"images must have at least one pixel, not {_told(images)}; drop the empty ones")
    if images.is_floating_point() and images.numel():
        low, high = (float(bound) for bound in torch.aminmax(images.detach()))
        if not (low >= 0 and high <= 1 + 1e-6):
            raise ValueError(f"float images must lie in [0, 1], not {low:g} .. {high:g}; scale or clean them first")


def _severities(severity: float | Sequence[float] | Tensor, n: int) -> float | list[float]:
    """One severity for all n images, or a list with one for each."""
    given: Any = severity.tolist() if isinstance(severity, Tensor | np.ndarray) else severity
    if isinstance(given, str) or not isinstance(given, Sequence):
        return check_severity(given)
    if len(given) != n:
        raise ValueError(f"{n} images need one severity or {n}, not {len(given)}; give one per image")
    return [check_severity(one) for one in given]


def check_storage(storage: str) -> str:
    """Return the name of a storage itself. Raises ValueError for an unknown one."""
    if storage not in STORAGES:
        raise ValueError(f"unknown storage {storage!r}; choose from {', '.join(STORAGES)}")
    return storage


def _told(images: Tensor) -> str:
    return f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"


def _to_unit(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float().clamp(max=1)


def _checked(ids: Ids, n: int | None) -> Sequence[int | str]:
    """Return the ids as a sequence of n, or of any length if n is None."""
    if isinstance(ids, str):
        raise TypeError("ids must be a sequence with one int or string per image, not a string; wrap it in a list")
    known: Sequence[int | str] = ids if isinstance(ids, Sequence) else list(ids)
    if n is not None and len(known) != n:
        raise ValueError(f"{n} images need {n} ids, not {len(known)}; give one id per image")
    return known


def _content_ids(images: Tensor) -> list[str]:
    levels = (_to_unit(images) * 255).round_().to("cpu", torch.uint8)
    return [
        hashlib.blake2b(bytes(image.numpy()) + repr(image.shape).encode(), digest_size=16).hexdigest()
        for image in levels
    ]
