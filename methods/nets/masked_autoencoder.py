"""The parts of a masked autoencoder beside its encoder: patches, their random order, the decoder and the loss.

He et al. 2022, arXiv:2111.06377. The encoder is `methods.nets.vit.encode_visible`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from methods.nets.weights import AnyArchitecture, sine_cosine_positions


def visible_patches(patches: int, mask_ratio: float) -> int:
    """Return how many of `patches` stay visible. Raises ValueError if none or all would."""
    visible = patches - round(patches * mask_ratio)
    if not 0 < visible < patches:
        raise ValueError(f"mask_ratio {mask_ratio} leaves {visible} of {patches} patches visible; choose another")
    return visible


def patchify(images: Tensor, size: int) -> Tensor:
    """Cut images [n, 3, h, w] into patches [n, (h / size)(w / size), 3 size^2], pixels before channels, rows first.

    Raises ValueError if the sides are not multiples of `size`.
    """
    count, channels, height, width = images.shape
    if height % size or width % size:
        raise ValueError(
            f"images of {height} x {width} cannot be cut into patches of {size} x {size}; resize them first"
        )
    grid = images.view(count, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, size * size * channels)


def random_order(count: int, patches: int, generator: torch.Generator) -> Tensor:
    """Return a random permutation of each image's patches, int64 [count, patches]; the first ones are visible."""
    return torch.rand(count, patches, generator=generator, device=generator.device).argsort(1)


def pixel_targets(patches: Tensor, *, norm_pix: bool) -> Tensor:
    """Return the targets: the patches, or (x - mean) / sqrt(var + 1e-6) of each patch with its unbiased variance."""
    if not norm_pix:
        return patches
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) * torch.rsqrt(variance + 1e-6)


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over the pixels of the hidden patches, [n, hidden, 3 p^2] each, in float32.

    Equal to sum(mask * mean_p (prediction - target)^2) / sum(mask) over all patches, since both inputs hold only hidden
    patches.
    """
    return F.mse_loss(prediction.float(), target.float())


class Decoder(nn.Module):
    """Transformer decoder: predicts the pixels of the hidden patches from all tokens of the encoder.

    depth: number of blocks, None for that of the architecture.
    """

    positions: Tensor

    def __init__(self, architecture: AnyArchitecture, depth: int | None = None) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=architecture.layer_norm_eps)
        width = architecture.decoder_dim
        self.prefix = architecture.prefix
        self.embed = nn.Linear(architecture.dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(
            *(
                Block(width, architecture.decoder_heads, qkv_bias=True, norm_layer=norm)
                for _ in range(architecture.decoder_depth if depth is None else depth)
            )
        )
        self.norm = norm(width)
        self.pred = nn.Linear(width, 3 * architecture.patch_size**2)
        side = architecture.image_size // architecture.patch_size
        self.register_buffer("positions", sine_cosine_positions(width, side), persistent=False)

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Predict the pixels of the hidden patches, [n, hidden, 3 p^2], in the order that `order` gives.

        tokens: [n, prefix + visible, dim], class and register tokens first; order: [n, L], visible patches first.
        """
        tokens = self.embed(tokens)
        prefix = self.prefix
        visible = tokens.shape[1] - prefix
        ids, hidden = order[:, :visible], order[:, visible:]
        places = self.positions[0, 1:]
        # Attention ignores the order of tokens, so they stay shuffled and only their positions follow `order`.
        seen = torch.cat([tokens[:, :prefix] + self.positions[:, :1], tokens[:, prefix:] + places[ids]], dim=1)
        everything = torch.cat([seen, self.mask_token + places[hidden]], dim=1)
        decoded = self.blocks(everything)[:, prefix + visible :]
        return cast(Tensor, self.pred(self.norm(decoded)))
