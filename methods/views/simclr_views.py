"""The random views of SimCLR for small images, made for a whole batch at once on its own device."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.data_parallel import Share
from methods.views.moco_views import JITTER, RATIO, SCALE, recolour
from methods.views.ssl_views import crop_boxes, resample, resampling

_ATTEMPTS = 10
_WHOLE = Share()


@torch.no_grad()
def simclr_view(
    images: Tensor,
    generator: torch.Generator,
    *,
    area: float = SCALE[0],
    flip: bool = True,
    colours: bool = True,
    jitter: float = JITTER,
    share: Share = _WHOLE,
) -> Tensor:
    """Make one view of each image, with its own draws: float [n, 3, h, w] in [0, 1] to equal shape, dtype and device.

    As Chen et al. 2020, arXiv:2002.05709, for CIFAR, and the release of TTT++ (Liu et al. 2021). A crop of a share
    `area` of the image or more, whose ratio is between 3/4 and 4/3, is resized back (bilinear) and mirrored with
    probability one half. With `colours`, brightness, contrast and saturation (by up to `jitter`) and hue (by up to a
    quarter of it, in circles) change with probability 0.8, in this order (the releases draw the order), and the view
    turns gray with probability 0.2. Unlike MoCo v2, it does not blur.

    The generator is on the images' device. With a `share` of a batch, `images` are those of this process; they get the
    views that they have in the whole batch.
    """
    n, _, height, width = images.shape
    draws = torch.rand(7 + 4 * _ATTEMPTS, share.whole(n), generator=generator, device=generator.device)
    mirrored, jittered, grayed, *factors = share.own(draws, 1)[:7]
    top, left, tall, wide = crop_boxes(share.own(draws, 1)[7:], height, width, (area, 1.0), RATIO)
    columns = resampling(left, wide, width, kernel="linear")
    if flip:
        columns = torch.where((mirrored < 0.5)[:, None, None], columns.flip(1), columns)
    pixels = resample(images.float(), resampling(top, tall, height, kernel="linear"), columns).clamp_(0, 1)
    return (recolour(pixels, jittered, grayed, factors, jitter) if colours else pixels).to(images.dtype)
