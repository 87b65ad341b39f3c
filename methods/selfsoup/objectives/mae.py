"""Masked autoencoding (He et al. 2022, arXiv:2111.06377): predict the pixels of hidden patches from visible ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from methods.identity import component
from methods.nets import flops
from methods.nets.vit import encode_visible, pick
from methods.nets.weights import AnyArchitecture, Weights, sine_cosine_positions
from methods.selfsoup.objectives import base
from methods.training.loop import reset


@component("methods.selfsoup.objectives.mae.Config")
@dataclass(frozen=True)
class Config:
    """Options of masked autoencoding.

    mask_ratio: fraction of patches that are hidden, in (0, 1); L - round(L * mask_ratio) of L patches stay visible.
    norm_pix: predict each patch normalised by its own mean and deviation instead of raw (normalised) pixels.
    decoder_depth: number of blocks of the stock's decoder to use, counted from the first, before its norm and its last
        layer; all of them if None. The paper's runs on clean train images take 1, with a mask_ratio of 0.9.
    """

    mask_ratio: float = 0.75
    norm_pix: bool = False
    decoder_depth: int | None = None

    def __post_init__(self) -> None:
        if self.decoder_depth is not None and self.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, not {self.decoder_depth}")

    def depth(self, shape: AnyArchitecture) -> int:
        """Return the number of trained decoder blocks. Raises ValueError if the stock's decoder has fewer."""
        depth = shape.decoder_depth if self.decoder_depth is None else self.decoder_depth
        if depth > shape.decoder_depth:
            raise ValueError(f"the stock's decoder has {shape.decoder_depth} blocks; decoder_depth cannot be {depth}")
        return depth

    @property
    def cost(self) -> float:
        return (1.5 - self.mask_ratio) / 0.75

    def flops(self, shape: AnyArchitecture) -> float:
        need_patches(shape)
        visible = visible_patches(shape.tokens, self.mask_ratio)
        seen, hidden = shape.prefix + visible, shape.tokens - visible
        width, pixels = shape.decoder_dim, 3 * shape.patch_size**2
        decoder = seen * flops.layers((shape.dim, width)) + flops.blocks(width, self.depth(shape), seen + hidden)
        return flops.training(shape, visible=visible) + 3 * (decoder + hidden * flops.layers((width, pixels)))

    def build(self, stock: Weights, generator: torch.Generator) -> MaskedAutoencoding:
        return MaskedAutoencoding(stock, self, generator)


def need_patches(shape: AnyArchitecture) -> None:
    """Raise ValueError for a network from which patches cannot be left out."""
    if not shape.tokens:
        raise ValueError(
            f"masked autoencoding (mae) hides patches, and this network ({shape.description}) has no tokens of "
            "single patches; take the objectives mocov3, mmcr or lejepa, or their official forms"
        )


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


class MaskedAutoencoding(base.Objective):
    """MAE loss with the decoder of the stock, or a fresh one if the stock has none."""

    views = 1

    def __init__(self, stock: Weights, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        need_patches(stock.architecture)
        self.config = config
        self.patch_size = stock.architecture.patch_size
        self.visible = visible_patches(stock.architecture.tokens, config.mask_ratio)
        self.decoder = Decoder(stock.architecture, config.depth(stock.architecture)).to(generator.device)
        pretrained = stock.part("decoder")
        if pretrained:
            self.decoder.load_state_dict({name: pretrained[name] for name in self.decoder.state_dict()})
        else:
            reset(self.decoder, generator)

    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        patches = patchify(views[0], self.patch_size)
        order = self.share.own(random_order(self.share.whole(patches.shape[0]), patches.shape[1], generator))
        prediction = self.decoder(encode_visible(encoder, patches, order[:, : self.visible]), order)
        target = pixel_targets(pick(patches, order[:, self.visible :]), norm_pix=self.config.norm_pix)
        return self.share.weighed(reconstruction_loss(prediction, target))
