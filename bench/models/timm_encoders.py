"""Stocks from timm: any network without its classifier, with weights of the hub, of a folder or of a file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from bench.core.errors import UsageError
from bench.models.classifiers import load_strictly, need_known, read_fitting, timm_data, timm_network
from bench.models.mae_files import computes_the_same, plain_architecture, whole
from methods.nets.timm_encoders import OPTIONS, TimmArchitecture, outline, takes_one_size
from methods.nets.weights import AnyArchitecture, Weights

_WHOLE = 128
"""Images of fewer pixels are not enlarged to be cropped."""


def timm_stock(name: str) -> Weights:
    """The encoder of a timm network, as "vit_small_patch16_224.dino", "NAME@FILE" or "hf-hub:REPO", without a decoder.

    ":PIXELS" at the end asks for images of that size: positions of a transformer are resampled, convolutions take
    what they are given. Without it, it is the size that the file's positions are for, else that of timm's weights.
    An objective that needs a decoder starts a fresh one, so results differ from those of a whole MAE file.
    Raises UsageError for what cannot be a stock, MissingDataError where its weights are not here.
    """
    match = re.fullmatch(r"(.+):(\d+)", name)
    given, side = (match[1], int(match[2])) if match else (name, None)
    architecture, _, file = given.partition("@")
    try:
        if file:
            shape, tensors = _of_file(architecture, Path(file).expanduser(), side)
        else:
            shape, tensors = _with_own_weights(architecture, side)
        _ = shape.dim
    except ValueError as error:
        raise UsageError(f"timm:{name}: {error}") from None
    return whole(Weights(shape, {f"encoder.{key}": tensor.clone() for key, tensor in tensors.items()}), f"timm:{name}")


def timm_architecture(name: str, side: int | None = None, network: Any = None) -> TimmArchitecture:
    """The architecture of a timm name (of `network`, if given) for images of a size (None: what its weights take).

    Raises ValueError or UsageError where there is none.
    """
    mean, std, usual = timm_data(network if network is not None else _any_size(name), f"timm:{name}")
    size = side or usual.size
    resize = usual.resize or usual.size
    if size != usual.size:
        resize = size if size < _WHOLE else max(size, size * resize // usual.size)
    return TimmArchitecture(name, size, mean, std, resize, usual.interpolation, usual.squash)


def _any_size(name: str) -> Any:
    need_known(name, with_weights=False)
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=0)


def _of_file(name: str, file: Path, side: int | None) -> tuple[AnyArchitecture, Mapping[str, Tensor]]:
    if name.startswith(("hf-hub:", "local-dir:")):
        raise UsageError(f"timm:{name} brings its own weights; leave @{file} out")
    network = _any_size(name)
    tensors = _without_head(read_fitting(file, network)[0], network)
    shape = timm_architecture(name, side or _side_of(tensors, network), network)
    built: Any = shape.build()
    load_strictly(built, _resampled(tensors, built), str(file))
    return plain_architecture(built, shape.mean, shape.std) or shape, built.state_dict()


def _with_own_weights(name: str, side: int | None) -> tuple[AnyArchitecture, Mapping[str, Tensor]]:
    hub = name.startswith(("hf-hub:", "local-dir:"))
    sized = {"img_size": side} if side is not None and not hub and takes_one_size(name) else {}
    network = timm_network(name, "", num_classes=0, **sized)
    known = str(network.pretrained_cfg["architecture"]) if hub else name
    if hub and side is not None and takes_one_size(known):
        network = timm_network(name, "", num_classes=0, img_size=side)
    shape = timm_architecture(known, side or _side_of(network.state_dict(), _any_size(known)), network)
    found = plain_architecture(network, shape.mean, shape.std) or (_with_options(shape, network) if hub else shape)
    return found, network.state_dict()


def _with_options(shape: TimmArchitecture, network: Any) -> TimmArchitecture:
    """The architecture with what the network of a folder or repository has beside its name. Raises UsageError where
    that cannot be said.
    """
    given = {key: value for key, value in getattr(network, "_model_args", {}).items() if key in OPTIONS}
    pool = getattr(network, "global_pool", None)
    if isinstance(pool, str) and pool != getattr(outline(shape), "global_pool", pool):
        given["global_pool"] = pool
    found = replace(shape, options=tuple(sorted(given.items())))
    if not computes_the_same(found, network):
        raise UsageError(
            f"it differs from timm's {shape.name} in more than {', '.join(sorted(OPTIONS))}, which a stock cannot "
            "remember; take a network by the name that timm has for it"
        )
    return found


def _without_head(tensors: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    """The tensors of an encoder: without a classifier, and without the decoder and mask of a masked autoencoder."""
    names = network.pretrained_cfg.get("classifier") or ()
    heads = [f"{name}." for name in ((names,) if isinstance(names, str) else names)]
    own = network.state_dict()
    aside = (*heads, "decoder_", "mask_token")
    return {name: tensor for name, tensor in tensors.items() if name in own or not name.startswith(aside)}


def _side_of(tensors: Mapping[str, Tensor], network: Any) -> int | None:
    """The size of images that position embeddings are for; None where it is the network's usual one or not said."""
    found = _positions(tensors, network)
    if found is None or found[0] ** 2 == network.patch_embed.num_patches:
        return None
    return int(found[0] * network.patch_embed.patch_size[0])


def _resampled(tensors: Mapping[str, Tensor], network: Any) -> Mapping[str, Tensor]:
    """The tensors with position embeddings for the images of the network."""
    found = _positions(tensors, network)
    if found is None or found[0] ** 2 == network.patch_embed.num_patches:
        return tensors
    grid = list(network.patch_embed.grid_size)
    positions = resample_abs_pos_embed(tensors["pos_embed"].float(), new_size=grid, num_prefix_tokens=found[1])
    return {**tensors, "pos_embed": positions}


def _positions(tensors: Mapping[str, Tensor], network: Any) -> tuple[int, int] | None:
    """Patches along a side, and embeddings before theirs, of position embeddings in the layout of a network;
    None where it has none or they are for no square of patches.
    """
    given, own = tensors.get("pos_embed"), getattr(network, "pos_embed", None)
    patches = getattr(getattr(network, "patch_embed", None), "num_patches", 0)
    if given is None or not isinstance(own, Tensor) or not patches or given.ndim != 3 or own.ndim != 3:
        return None
    prefix = own.shape[1] - patches
    side = math.isqrt(max(given.shape[1] - prefix, 0))
    return (side, prefix) if side**2 == given.shape[1] - prefix else None
