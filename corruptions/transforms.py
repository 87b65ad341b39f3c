"""Corruptions for data loading: a torchvision transform, and a function for one Pillow or numpy picture."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from corruptions.catalog import check_profile, check_severity, describe
from corruptions.pipeline import check_pool, check_storage, corrupt
from corruptions.tiles import TilePool

Picture = TypeVar("Picture", Image.Image, NDArray[Any])

# Pillow modes in data sets, and the modes to which they are converted.
_CONVERTED = {"P": "RGB", "CMYK": "RGB", "1": "L", "LA": "L"}


class Corruption(v2.Transform):  # type: ignore[misc]
    """A corruption in a pipeline of `torchvision.transforms.v2`, or as a module.

    It takes what its neighbours take: a Pillow image, a tensor or `tv_tensors.Image` ([c, h, w] or a batch, uint8 or
    float in [0, 1]), or a sample of them and of labels, boxes and masks, which pass through unchanged. The kind of
    image that goes in comes out. A transform is not told which image it gets, so an image is named by its own content:
    it looks alike in every epoch and worker. Place it after resizing and cropping, before normalisation.

    name, severity, seed, profile, storage, pool: as in `corrupt`.
    Raises ValueError or TypeError as `corrupt` does, for bad options when it is made.
    """

    def __init__(
        self,
        name: str,
        severity: float,
        *,
        seed: int = 0,
        profile: str = "auto",
        storage: str = "uint8",
        pool: TilePool | None = None,
    ) -> None:
        super().__init__()
        self.name = describe(name).name
        self.severity = check_severity(severity)
        self.seed = seed
        self.profile = check_profile(profile) if profile != "auto" else profile
        self.storage = check_storage(storage)
        self.pool = check_pool(describe(name), pool) if pool is not None else None

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image or batch; torchvision calls this for every input that is one."""
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, tv_tensors.Image):
            return inpt
        options: dict[str, Any] = {key: getattr(self, key) for key in ("seed", "profile", "storage", "pool")}
        if isinstance(inpt, Image.Image):
            return corrupt_image(inpt, self.name, self.severity, **options)
        # Images are named by hashes, which a compiler cannot trace; the wrapper is slow to load.
        disable: Any = torch.compiler.disable
        work = disable(corrupt) if torch.compiler.is_compiling() else corrupt
        out = work(inpt.as_subclass(Tensor), self.name, self.severity, **options)
        return tv_tensors.wrap(out, like=inpt)


def corrupt_image(
    image: Picture,
    name: str,
    severity: float,
    *,
    seed: int = 0,
    id: int | str | None = None,
    profile: str = "auto",
    storage: str = "uint8",
    pool: TilePool | None = None,
) -> Picture:
    """Corrupt one picture; a new one of the same kind, never the same object.

    image: a Pillow image of mode RGB or L, or an array [h, w, 3], [h, w, 1] or [h, w], uint8 in 0 .. 255 or float in
        [0, 1]. Pillow's other modes are converted as by its `convert`, and the result has the new mode: a palette (P)
        and CMYK become RGB, 1 bit becomes L, and LA becomes L without its alpha channel.
    id: names the picture in its data set; None: it is named by its content. The others are as in `corrupt`, and so are
        the pixels.
    Raises TypeError or ValueError for other pictures (colours with an alpha channel, say) and as `corrupt` does.
    """
    if isinstance(image, Image.Image) and image.mode not in ("RGB", "L"):
        if image.mode not in _CONVERTED:
            raise ValueError(f"the image has mode {image.mode}, not RGB or L; convert it: image.convert('RGB')")
        image = image.convert(_CONVERTED[image.mode])
    pixels = np.asarray(image) if isinstance(image, Image.Image) else image
    if not isinstance(image, Image.Image | np.ndarray):
        raise TypeError(
            f"the image must be a Pillow image or a numpy array, not {type(image).__name__}; corrupt() takes tensors"
        )
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        shape = list(pixels.shape)
        raise ValueError(f"the image must be [h, w, 3], [h, w, 1] or [h, w], not {shape}; drop an alpha channel")
    if pixels.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise TypeError(f"the image must be uint8 in 0 .. 255 or float in [0, 1], not {pixels.dtype}; convert it first")
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    # A copy, as torch shares no memory with arrays that are read-only or run backwards.
    planes = torch.from_numpy(pixels.copy()).view(*pixels.shape[:2], channels).permute(2, 0, 1)
    ids = None if id is None else [id]
    planes = corrupt(planes, name, severity, seed=seed, ids=ids, profile=profile, storage=storage, pool=pool)
    result = planes.permute(1, 2, 0).reshape(pixels.shape).numpy()
    return Image.fromarray(result) if isinstance(image, Image.Image) else result
