"""Read stocks from masked-autoencoder files in the official layout, and check that tensors fit an architecture."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.core.errors import UsageError
from bench.models.classifiers import Channels, refuse_misfits
from bench.models.tensor_files import read_tensors, renamed_for
from methods.nets.vit import is_plain
from methods.nets.weights import AnyArchitecture, Architecture, Weights, sine_cosine_positions
from methods.selfsoup.objectives.mae import Decoder, need_patches

log = logging.getLogger(__name__)

# Head counts by width in the release; files do not store them. Other widths get 64 channels a head, decoders 32.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}

_HEAD = ("head", "fc_norm")
"""The classification head of a fine-tuned file and the norm before it."""

_DECODER = {
    "decoder_embed": "embed",
    "decoder_norm": "norm",
    "decoder_pred": "pred",
    "decoder_blocks": "blocks",
}


def read_mae(path: Path) -> Weights:
    """Read a stock from a file in the MAE release's layout (He et al. 2022): LayerNorm eps 1e-6, class token pooled.

    Decoders of the visualisation demo predict raw pixels, those of the pre-training files predict pixels normalised
    by patch. Both load alike; the objective's `norm_pix` selects between them. Files with the encoder alone load too.
    Raises UsageError if the file is not such a model or uses another position embedding.
    """
    found = read_tensors(path)
    tensors = _of_encoder(found)
    named = from_official(tensors, str(path))
    _say_left_out(path, [name for name in found if not any(map(name.endswith, tensors))], tensors)
    return whole(Weights(architecture_of(tensors, str(path)), named), str(path))


def _say_left_out(path: Path, others: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Name what a stock does not take from a file: other networks beside the encoder, and a classification head."""
    left = [*others, *(name for name in tensors if name.partition(".")[0] in _HEAD)]
    if left:
        shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        log.warning("%s: %d tensors are no part of a stock and are left out (%s)", path, len(left), shown)


def _of_encoder(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a vision transformer without the prefix that other training code adds to their names."""
    names, _ = renamed_for(("patch_embed.proj.weight", "pos_embed"), list(tensors))
    return {here: tensors[there] for there, here in names.items()}


def architecture_of(tensors: Mapping[str, Tensor], where: str) -> Architecture:
    """Return the architecture implied by the shapes of tensors in the official layout. Raises UsageError."""
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
    """Return the tensors under the names that a stock uses."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first == "decoder_pos_embed":
            _need_fixed_positions(tensor, where)
        elif first == "mask_token":
            named["decoder.mask_token"] = tensor
        elif first in _DECODER:
            named[f"decoder.{_DECODER[first]}.{rest}"] = tensor
        elif first not in _HEAD:
            named[f"encoder.{name}"] = tensor
    return named


def _need_fixed_positions(positions: Tensor, where: str) -> None:
    side = round((positions.shape[1] - 1) ** 0.5) if positions.ndim == 3 else 0
    fixed = sine_cosine_positions(positions.shape[2], side) if side else positions.new_empty(0)
    if positions.shape != fixed.shape or not torch.allclose(positions.float(), fixed, atol=1e-4):
        raise UsageError(f"{where} has learned decoder positions, not the fixed ones; give another file")


def plain_architecture(network: Any, mean: Channels, std: Channels) -> Architecture | None:
    """Return the architecture of a timm network if MAE's release could hold it, else None.

    It must be a plain vision transformer with fixed positions.
    """
    if not is_plain(network) or network.pos_embed is None or network.num_prefix_tokens != 1 or network.embed_dim % 4:
        return None
    side = network.patch_embed.grid_size[0]
    fixed = sine_cosine_positions(network.embed_dim, side)
    if network.pos_embed.shape != fixed.shape or not torch.allclose(network.pos_embed, fixed, atol=1e-4):
        return None
    pool: Literal["token", "avg"] = "token" if network.global_pool == "token" else "avg"
    shape = Architecture(
        image_size=network.patch_embed.img_size[0],
        patch_size=network.patch_embed.patch_size[0],
        dim=network.embed_dim,
        depth=len(network.blocks),
        heads=network.blocks[0].attn.num_heads,
        decoder_dim=512,
        decoder_depth=8,
        decoder_heads=16,
        mean=mean,
        std=std,
        pool=pool,
        layer_norm_eps=getattr(network.norm, "eps", 1e-6),
    )
    return shape if computes_the_same(shape, network) else None


def computes_the_same(shape: AnyArchitecture, network: nn.Module) -> bool:
    """Return whether an architecture takes all tensors of a network and computes the same features of one image."""
    rebuilt = shape.build().eval()
    tensors = network.state_dict()
    own = {name: tensor.shape for name, tensor in rebuilt.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in tensors.items()}:
        return False
    rebuilt.load_state_dict(tensors)
    side = shape.image_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.allclose(rebuilt(image), network.eval()(image), rtol=1e-4, atol=1e-4)


def whole(weights: Weights, where: str) -> Weights:
    """Return the weights unchanged after checking that encoder and decoder (if any) fit the architecture.

    Raises UsageError naming the first tensor that is missing, unexpected, of another shape or not finite.
    """
    shape = weights.architecture
    decoder = weights.part("decoder")
    try:
        with torch.device("meta"):
            refuse_misfits(shape.build().state_dict(), weights.part("encoder"), f"{where} (encoder)")
            if decoder:
                need_patches(shape)
                refuse_misfits(Decoder(shape).state_dict(), decoder, f"{where} (decoder)")
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return weights
