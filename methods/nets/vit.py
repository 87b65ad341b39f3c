"""The internals of timm's plain vision transformers: encode only some patches, or images of another size.

Class and register tokens, positions (learnt, fixed or none), norms before the blocks, and the blocks themselves are
those of the network.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


def is_plain(network: nn.Module) -> bool:
    """Return whether patches of an image can be left out of a network.

    Patches must be square, tile the image and be embedded one by one, and positions must be added before the first
    block.
    """
    if type(network) is not VisionTransformer or type(network.patch_embed) is not PatchEmbed:
        return False
    vit = cast(Any, network)
    high, wide = vit.patch_embed.patch_size
    sides = vit.patch_embed.img_size or (1, 1)
    return high == wide and not any(side % high for side in sides) and isinstance(vit.patch_drop, nn.Identity)


def pick(tokens: Tensor, ids: Tensor) -> Tensor:
    """Return tokens[i, ids[i, j]]: [n, L, d] and [n, m] to [n, m, d]."""
    count, length, _ = tokens.shape
    starts = torch.arange(0, count * length, length, device=ids.device)[:, None]
    return tokens.flatten(0, 1)[ids + starts]


def encode_visible(encoder: nn.Module, patches: Tensor, ids: Tensor) -> Tensor:
    """Encode class tokens, register tokens and visible patches only, through the final norm: [n, prefix + m, dim].

    The encoder must be plain. patches: [n, L, 3 p^2], pixels before channels; ids: [n, m], the visible patches. The
    convolution of the patch embedding is applied as the linear map it is, so hidden patches are never read.
    """
    vit = cast(Any, encoder)
    kernel = vit.patch_embed.proj.weight
    linear = kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)
    tokens = vit.patch_embed.norm(F.linear(pick(patches, ids), linear, vit.patch_embed.proj.bias))
    prefix, places = _prefix_and_places(vit, vit.pos_embed)
    if places is not None:
        tokens = tokens + places[0][ids]
    return _through_blocks(vit, prefix, tokens)


def encode(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return the representation [n, dim] of images of another size, for a plain encoder a multiple of the patch size.

    The positions of a plain encoder are resampled; another encoder must accept the images as they are.
    """
    if not is_plain(encoder):
        return cast(Tensor, encoder(images))
    vit = cast(Any, encoder)
    grid = vit.patch_embed.proj(images)
    positions = vit.pos_embed
    if positions is not None:
        count = 0 if vit.no_embed_class else vit.num_prefix_tokens
        positions = resample_abs_pos_embed(positions, new_size=list(grid.shape[2:]), num_prefix_tokens=count)
    tokens = vit.patch_embed.norm(grid.flatten(2).mT)
    prefix, places = _prefix_and_places(vit, positions)
    if places is not None:
        tokens = tokens + places
    return cast(Tensor, vit.forward_head(_through_blocks(vit, prefix, tokens), pre_logits=True))


def _prefix_and_places(vit: Any, positions: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return class and register tokens [1, prefix, dim] with positions, and the patches' positions [1, L, dim]."""
    parts = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    prefix = torch.cat(parts, dim=1) if parts else None
    if positions is None or vit.no_embed_class or prefix is None:
        return prefix, positions
    return prefix + positions[:, : prefix.shape[1]], positions[:, prefix.shape[1] :]


def _through_blocks(vit: Any, prefix: Tensor | None, tokens: Tensor) -> Tensor:
    if prefix is not None:
        tokens = torch.cat([prefix.expand(len(tokens), -1, -1), tokens], dim=1)
    return cast(Tensor, vit.norm(vit.blocks(vit.norm_pre(tokens))))
