"""Load stocks from timm: any network without its classifier, with weights from the hub, a folder or a file."""

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
from bench.core.private_apis import model_arguments
from bench.models.classifiers import load_strictly, need_known, read_fitting, timm_data, timm_network
from bench.models.mae_files import computes_the_same, plain_architecture, whole
from methods.nets.timm_encoders import OPTIONS, TimmArchitecture, outline, takes_one_size
from methods.nets.weights import AnyArchitecture, Weights

_WHOLE = 128
"""Smallest image side for which images are enlarged before the crop."""


def timm_stock(name: str) -> Weights:
    """Load a timm encoder without a decoder: "vit_small_patch16_224.dino", "NAME@FILE" or "hf-hub:REPO".

    A suffix ":PIXELS" selects the image size: positions of a transformer are resampled, convolutions take any size.
    The default size is the one of the file's positions, else the one of timm's weights. An objective that needs a
    decoder starts with an untrained one, so results differ from those of a whole MAE file.
    Raises UsageError for a network that cannot be a stock, MissingDataError for unavailable weights.
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
    """Return the architecture of a timm name (of `network`, if given) for an image size (None: that of its weights).

    Raises ValueError or UsageError for a network that no architecture describes.
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
    """Return the architecture with the options that a network of a folder or repository has beside its name.

    Raises UsageError if the options do not reproduce the network.
    """
    given = {key: value for key, value in model_arguments(network).items() if key in OPTIONS}
    pool = getattr(network, "global_pool", None)
    if isinstance(pool, str) and pool != getattr(outline(shape), "global_pool", pool):
        given["global_pool"] = pool
    found = replace(shape, options=tuple(sorted(given.items())))
    if not computes_the_same(found, network):
        raise UsageError(
            f"it differs from timm's {shape.name} in more than {', '.join(sorted(OPTIONS))}, which a stock cannot "
            "store; choose a network that timm has a name for"
        )
    return found


def _without_head(tensors: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Return the tensors of an encoder, without classifier and without a masked autoencoder's decoder and mask."""
    names = network.pretrained_cfg.get("classifier") or ()
    heads = [f"{name}." for name in ((names,) if isinstance(names, str) else names)]
    own = network.state_dict()
    aside = (*heads, "decoder_", "mask_token")
    return {name: tensor for name, tensor in tensors.items() if name in own or not name.startswith(aside)}


def _side_of(tensors: Mapping[str, Tensor], network: Any) -> int | None:
    """Return the image side of the position embeddings; None if it is the network's default or unknown."""
    found = _positions(tensors, network)
    if found is None or found[0] ** 2 == network.patch_embed.num_patches:
        return None
    return int(found[0] * network.patch_embed.patch_size[0])


def _resampled(tensors: Mapping[str, Tensor], network: Any) -> Mapping[str, Tensor]:
    """Return the tensors with position embeddings resampled to the network's image size."""
    found = _positions(tensors, network)
    if found is None or found[0] ** 2 == network.patch_embed.num_patches:
        return tensors
    grid = list(network.patch_embed.grid_size)
    positions = resample_abs_pos_embed(tensors["pos_embed"].float(), new_size=grid, num_prefix_tokens=found[1])
    return {**tensors, "pos_embed": positions}


def _positions(tensors: Mapping[str, Tensor], network: Any) -> tuple[int, int] | None:
    """Return the patches along a side and the number of prefix embeddings of given position embeddings.

    None if the network has no position embeddings or the given ones are not for a square of patches.
    """
    given, own = tensors.get("pos_embed"), getattr(network, "pos_embed", None)
    patches = getattr(getattr(network, "patch_embed", None), "num_patches", 0)
    if given is None or not isinstance(own, Tensor) or not patches or given.ndim != 3 or own.ndim != 3:
        return None
    prefix = own.shape[1] - patches
    side = math.isqrt(max(given.shape[1] - prefix, 0))
    return (side, prefix) if side**2 == given.shape[1] - prefix else None
