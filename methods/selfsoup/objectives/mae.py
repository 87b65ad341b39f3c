"""Masked autoencoding (He et al. 2022, arXiv:2111.06377): predict the pixels of hidden patches from visible ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.base import Options
from methods.identity import component
from methods.limits import Count
from methods.nets import flops
from methods.nets.masked_autoencoder import Decoder as Decoder
from methods.nets.masked_autoencoder import patchify as patchify
from methods.nets.masked_autoencoder import pixel_targets as pixel_targets
from methods.nets.masked_autoencoder import random_order as random_order
from methods.nets.masked_autoencoder import reconstruction_loss as reconstruction_loss
from methods.nets.masked_autoencoder import visible_patches as visible_patches
from methods.nets.vit import encode_visible
from methods.nets.vit import pick as pick
from methods.nets.weights import AnyArchitecture, Weights
from methods.selfsoup.objectives import base
from methods.training.loop import reset


@component("methods.selfsoup.objectives.mae.Config")
@dataclass(frozen=True)
class Config(Options):
    """Options of masked autoencoding.

    mask_ratio: fraction of patches that are hidden, in (0, 1); L - round(L * mask_ratio) of L patches stay visible.
    norm_pix: predict each patch normalised by its own mean and deviation instead of raw (normalised) pixels.
    decoder_depth: number of blocks of the stock's decoder to use, counted from the first, before its norm and its last
        layer; all of them if None. The paper's runs on clean train images take 1, with a mask_ratio of 0.9.
    """

    mask_ratio: float = 0.75
    norm_pix: bool = False
    decoder_depth: Count | None = None

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
