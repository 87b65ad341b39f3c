"""Stocks from files of masked autoencoders: the official layout with encoder and decoder, and timm's encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor

from bench.classifiers import read_tensors
from bench.errors import MissingDataError, UsageError
from methods.stock import Architecture, Weights, sine_cosine_positions

_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER = {
    "decoder_embed": "embed",
    "decoder_norm": "norm",
    "decoder_pred": "pred",
    "decoder_blocks": "blocks",
}


def read_mae(path: Path) -> Weights:
    """A stock from one file in the layout of the MAE release (He et al. 2022): encoder, decoder, LayerNorm eps 1e-6.

    Files of the visualisation demo have a decoder of raw pixels, those of the pre-training one of pixels normalised
    by patch; both load alike, and the objective's `norm_pix` says which it is. Raises UsageError where the file lacks
    the decoder, or was made for another position embedding.
    """
    tensors = read_tensors(path)
    if "decoder_pred.weight" not in tensors:
        raise UsageError(f"{path} has no decoder; give the file with encoder and decoder, or a stock timm:NAME")
    return Weights(architecture_of(tensors, str(path)), from_official(tensors, str(path)))


def architecture_of(tensors: Mapping[str, Tensor], where: str) -> Architecture:
    """The architecture that the shapes of tensors in the official layout tell. 64 channels a head where unknown."""
    try:
        dim, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        tokens = tensors["pos_embed"].shape[1] - 1
    except KeyError as error:
        raise UsageError(f"{where} lacks {error.args[0]}; it is not a vision transformer of MAE") from None
    side = round(tokens**0.5)
    decoder_dim = len(tensors["decoder_embed.bias"]) if "decoder_embed.bias" in tensors else 512
    return Architecture(
        image_size=side * patch,
        patch_size=patch,
        dim=dim,
        depth=_depth(tensors, "blocks"),
        heads=_HEADS.get(dim, max(1, dim // 64)),
        decoder_dim=decoder_dim,
        decoder_depth=_depth(tensors, "decoder_blocks") or 8,
        decoder_heads=16 if decoder_dim % 16 == 0 and decoder_dim >= 512 else max(1, decoder_dim // 32),
        layer_norm_eps=1e-6,
    )


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{prefix}.")})


def from_official(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under the names of a stock."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first == "decoder_pos_embed":
            side = round((tensor.shape[1] - 1) ** 0.5)
            if not torch.allclose(tensor, sine_cosine_positions(tensor.shape[2], side), atol=1e-4):
                raise UsageError(f"{where} has learned decoder positions, not the fixed ones; give another file")
        elif first == "mask_token":
            named["decoder.mask_token"] = tensor.clone()
        elif first in _DECODER:
            named[f"decoder.{_DECODER[first]}.{rest}"] = tensor.clone()
        elif first not in ("head", "fc_norm"):
            named[f"encoder.{name}"] = tensor.clone()
    return named


def timm_mae(name: str) -> Weights:
    """The encoder of a timm model trained by MAE, as "vit_base_patch16_224.mae"; it brings no decoder.

    An objective that needs a decoder then starts a fresh one, so results differ from those of a whole MAE file.
    """
    architecture, _, file = name.partition("@")
    if file:
        tensors = read_tensors(Path(file).expanduser())
    else:
        try:
            tensors = timm.create_model(architecture, pretrained=True, num_classes=0).state_dict()
        except (OSError, RuntimeError) as error:
            raise MissingDataError(
                f"no weights of timm:{architecture} here ({str(error).splitlines()[0][:160]}); connect once to "
                f"download them, or give a local file as --stock timm:{architecture}@FILE"
            ) from None
    encoder = {key: value for key, value in tensors.items() if not key.startswith(("decoder_", "mask_token"))}
    return Weights(architecture_of(encoder, name), from_official(encoder, name))
