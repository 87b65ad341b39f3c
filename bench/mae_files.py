"""Stocks from files of masked autoencoders: the official layout with encoder and decoder, and timm's encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor

from bench.checkpoints import read_tensors
from bench.classifiers import refuse_misfits, timm_network
from bench.errors import UsageError
from methods.selfsoup.objectives.mae import Decoder
from methods.stock import Architecture, Weights, build_encoder, sine_cosine_positions

# Of the release; a file does not say them. Other widths are taken to have 64 channels a head, in decoders 32.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}

_DECODER = {
    "decoder_embed": "embed",
    "decoder_norm": "norm",
    "decoder_pred": "pred",
    "decoder_blocks": "blocks",
}


def read_mae(path: Path) -> Weights:
    """A stock from one file in the layout of the MAE release (He et al. 2022): LayerNorm eps 1e-6, class token pooled.

    Files of the visualisation demo have a decoder of raw pixels, those of the pre-training one of pixels normalised
    by patch; both load alike, and the objective's `norm_pix` says which it is. Files of the encoder alone load too.
    Raises UsageError where the file is no such model, or was made for another position embedding.
    """
    tensors = read_tensors(path)
    named = from_official(tensors, str(path))
    return whole(Weights(architecture_of(tensors, str(path)), named), str(path))


def architecture_of(tensors: Mapping[str, Tensor], where: str) -> Architecture:
    """The architecture that the shapes of tensors in the official layout tell."""
    for name, dimensions in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if name not in tensors or tensors[name].ndim != dimensions:
            raise UsageError(
                f"{where} lacks {name}: it is neither a file of `bench stock` nor a vision transformer in the layout "
                "of MAE's release; give one of these, or a stock timm:NAME"
            )
    dim, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    decoder_dim = len(tensors["decoder_embed.bias"]) if "decoder_embed.bias" in tensors else 512
    try:
        return Architecture(
            image_size=side * patch,
            patch_size=patch,
            dim=dim,
            depth=_depth(tensors, "blocks"),
            heads=_HEADS.get(dim, max(1, dim // 64)),
            decoder_dim=decoder_dim,
            decoder_depth=_depth(tensors, "decoder_blocks") or 8,
            decoder_heads=_DECODER_HEADS.get(decoder_dim, max(1, decoder_dim // 32)),
            pool="token",
            layer_norm_eps=1e-6,
        )
    except ValueError as error:
        raise UsageError(f"{where}: {error}; it is not a vision transformer of MAE's release") from None


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{prefix}.")})


def from_official(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under the names of a stock."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first == "decoder_pos_embed":
            _need_fixed_positions(tensor, where)
        elif first == "mask_token":
            named["decoder.mask_token"] = tensor
        elif first in _DECODER:
            named[f"decoder.{_DECODER[first]}.{rest}"] = tensor
        elif first not in ("head", "fc_norm"):
            named[f"encoder.{name}"] = tensor
    return named


def _need_fixed_positions(positions: Tensor, where: str) -> None:
    side = round((positions.shape[1] - 1) ** 0.5) if positions.ndim == 3 else 0
    fixed = sine_cosine_positions(positions.shape[2], side) if side else positions.new_empty(0)
    if positions.shape != fixed.shape or not torch.allclose(positions.float(), fixed, atol=1e-4):
        raise UsageError(f"{where} has learned decoder positions, not the fixed ones; give another file")


def timm_stock(name: str) -> Weights:
    """The encoder of a timm vision transformer, as "vit_base_patch16_224.mae" or "NAME@FILE"; it brings no decoder.

    An objective that needs a decoder then starts a fresh one, so results differ from those of a whole MAE file.
    Raises UsageError for a model that is not a plain vision transformer, MissingDataError where its weights are not.
    """
    architecture, _, file = name.partition("@")
    network: Any = timm_network(architecture, file, classes=0)
    config = network.pretrained_cfg
    if type(network) is not timm.models.VisionTransformer or config["input_size"][0] != 3:
        raise UsageError(f"timm:{architecture} is not a plain vision transformer; take one, as {_EXAMPLE}")
    tensors = {f"encoder.{key}": tensor.clone() for key, tensor in network.state_dict().items()}
    return whole(Weights(_architecture(network, architecture), tensors), f"timm:{name}")


_EXAMPLE = "timm:vit_base_patch16_224.mae"


def _architecture(network: Any, name: str) -> Architecture:
    config = network.pretrained_cfg
    pool: Literal["token", "avg"] = "token" if network.global_pool == "token" else "avg"
    height, width = network.patch_embed.img_size
    if height != width:
        raise UsageError(f"timm:{name} takes {height} x {width} px; take a model of square images, as {_EXAMPLE}")
    return Architecture(
        image_size=height,
        patch_size=network.patch_embed.patch_size[0],
        dim=network.embed_dim,
        depth=len(network.blocks),
        heads=network.blocks[0].attn.num_heads,
        decoder_dim=512,
        decoder_depth=8,
        decoder_heads=16,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        pool=pool,
        layer_norm_eps=getattr(network.norm, "eps", 1e-6),
    )


def whole(weights: Weights, where: str) -> Weights:
    """The same weights, once encoder and decoder (if there is one) are known to fit the architecture.

    Raises UsageError naming the first tensor that is missing, too much, of another shape or not finite.
    """
    with torch.device("meta"):
        parts = {"encoder": build_encoder(weights.architecture), "decoder": Decoder(weights.architecture)}
    for prefix, module in parts.items():
        tensors = weights.part(prefix)
        if tensors or prefix == "encoder":
            refuse_misfits(module.state_dict(), tensors, f"{where} ({prefix})")
    return weights
