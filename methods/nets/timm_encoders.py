"""Any timm network without its classifier as the encoder of a stock: its input, output and cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import timm
import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.identity import component
from methods.nets.flops import Operations, counted
from methods.nets.vit import encode, encode_visible, is_plain
from methods.private_apis import _DropoutNd

Option = bool | int | float | str

OPTIONS = frozenset(
    {
        "class_token",
        "fc_norm",
        "final_norm",
        "global_pool",
        "init_values",
        "no_embed_class",
        "pool_include_prefix",
        "pre_norm",
        "qk_norm",
        "qkv_bias",
        "reg_tokens",
    }
)
"""Arguments that may modify a network beside its name: they choose tokens, norms and pooling."""

_LARGEST_SIDE = 2048
_LARGEST_OPTION = 64
_DECODERS = ((64, (32, 1, 4)), (96, (64, 2, 4)), (192, (128, 4, 4)), (384, (256, 8, 8)))
_LARGE_DECODER = (512, 8, 16)


@component("methods.timm_encoders.TimmArchitecture")
@dataclass(frozen=True)
class TimmArchitecture:
    """A network by its timm name; its pooled features, the input of timm's classifier, are the representation.

    name: as timm.create_model takes it, with or without the tag of weights (tags differ in sizes and options).
    image_size, mean, std: as in methods.nets.weights.Architecture. resize, interpolation, squash: see its `cut`.
    options: arguments from OPTIONS that differ from the name's own.

    Dropout and stochastic depth are off, so that training draws only from its own generator. Networks that can drop
    patches (see methods.nets.vit.is_plain) get a decoder by their width, as in MAE and its smaller successors.

    Raises ValueError for a name that timm does not know, and for an invalid size, mean, std or option.
    """

    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int
    interpolation: str = "bicubic"
    squash: bool = False
    options: tuple[tuple[str, Option], ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+(\.\w+)?", self.name, re.ASCII) or not timm.is_model(self.name.partition(".")[0]):
            raise ValueError(f"timm has no network '{self.name}'; use a name from timm.list_models()")
        if not 1 <= self.image_size <= self.resize <= 2 * _LARGEST_SIDE or self.image_size > _LARGEST_SIDE:
            raise ValueError(
                f"image_size {self.image_size} must lie in 1 .. {_LARGEST_SIDE} and resize {self.resize} at or above it"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("mean must be finite and std positive")
        for key, value in self.options:
            if key not in OPTIONS:
                raise ValueError(f"'{key}' is no option of a stock; use one of {', '.join(sorted(OPTIONS))}")
            if not isinstance(value, str) and not 0 <= value <= _LARGEST_OPTION:
                raise ValueError(f"{key} is {value}, which must lie in 0 .. {_LARGEST_OPTION}")

    @property
    def cut(self) -> tuple[int, str, bool]:
        return self.resize, self.interpolation, self.squash

    @property
    def description(self) -> str:
        return f"{self.name}, width {self.dim}"

    @property
    def dim(self) -> int:
        """Width of the representation. Raises ValueError if images of this size give none."""
        return _width(self)

    @property
    def tokens(self) -> int:
        return int(self._vit.patch_embed.num_patches) if self._vit is not None else 0

    @property
    def patch_size(self) -> int:
        return int(self._vit.patch_embed.patch_size[0]) if self._vit is not None else 1

    @property
    def prefix(self) -> int:
        return int(self._vit.num_prefix_tokens) if self._vit is not None else 0

    @property
    def decoder_dim(self) -> int:
        return self._decoder[0]

    @property
    def decoder_depth(self) -> int:
        return self._decoder[1]

    @property
    def decoder_heads(self) -> int:
        return self._decoder[2]

    @property
    def layer_norm_eps(self) -> float:
        """Epsilon of the decoder's layer norms; the encoder has its own."""
        return 1e-6

    def build(self) -> nn.Module:
        """Return the network as timm initialises it, from the global generator of PyTorch."""
        arguments: dict[str, Any] = dict(self.options)
        if takes_one_size(self.name):
            arguments["img_size"] = self.image_size
        try:
            network: nn.Module = timm.create_model(self.name, pretrained=False, num_classes=0, **arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
            raise ValueError(
                f"timm cannot build {self.name} for {self.image_size} px with {arguments} ({error})"
            ) from None
        side = getattr(getattr(network, "patch_embed", None), "patch_size", (1,))[0]
        if type(network) is VisionTransformer and self.image_size % side:
            raise ValueError(f"{self.name} cuts images into patches of {side} px, and {self.image_size} is no multiple")
        return without_chance(network)

    def initial(self, generator: torch.Generator) -> nn.Module:
        """Return the network as timm initialises it, from a seed that the generator draws."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.build().to(generator.device)

    def operations(self, *, visible: int | None = None, side: int | None = None) -> Operations:
        return _operations(self, visible, side or self.image_size)

    def smaller(self, fraction: float) -> int:
        if self._vit is not None:
            return max(1, round(self.image_size * fraction / self.patch_size)) * self.patch_size
        if takes_one_size(self.name):
            raise ValueError(
                f"{self.name} takes only images of {self.image_size} px and no smaller views; use an "
                "objective whose views have one size: mocov3, mmcr or lejepa"
            )
        side = max(1, round(self.image_size * fraction))
        _width(replace(self, image_size=side))  # raises if the images are too small for the network
        return side

    @property
    def _vit(self) -> Any:
        network = outline(self)
        return network if is_plain(network) else None

    @property
    def _decoder(self) -> tuple[int, int, int]:
        return next((shape for width, shape in _DECODERS if self.dim <= width), _LARGE_DECODER)


def takes_one_size(name: str) -> bool:
    """Return whether a network is built for one image size, as vision transformers are and convolutions are not."""
    config = timm.get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)


def without_chance(network: nn.Module) -> nn.Module:
    """Return the network with all dropout and stochastic depth off."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    return network


@cache
def outline(architecture: TimmArchitecture) -> nn.Module:
    """Return the network on the meta device, for its names and shapes only; it must not be changed."""
    with torch.device("meta"):
        return architecture.build()


@cache
def _width(architecture: TimmArchitecture) -> int:
    side = architecture.image_size
    try:
        with torch.no_grad():
            features: Tensor = outline(architecture)(torch.empty(2, 3, side, side, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{architecture.name} takes no images of {side} px ({error})") from None
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(
            f"{architecture.name} gives no vector of features for an image; choose a network whose features timm pools"
        )
    return features.shape[1]


@cache
def _operations(architecture: TimmArchitecture, visible: int | None, side: int) -> Operations:
    """Return the cost, counted on two images on the meta device, as BatchNorm has no statistics of one image."""
    network = outline(architecture)

    def run() -> Tensor:
        if visible is not None:
            size = architecture.patch_size
            patches = torch.empty(2, architecture.tokens, 3 * size**2, device="meta")
            return encode_visible(network, patches, torch.empty(2, visible, dtype=torch.int64, device="meta"))
        images = torch.empty(2, 3, side, side, device="meta")
        return encode(network, images) if side != architecture.image_size else cast(Tensor, network(images))

    def count(*, backward: bool) -> float:
        with counted() as counter, torch.set_grad_enabled(backward):
            out = run()
            if backward:
                out.sum().backward()  # type: ignore[no-untyped-call]
        network.zero_grad(set_to_none=True)
        return float(counter.get_total_flops()) / 2

    forward, training = count(backward=False), count(backward=True)
    embedding = getattr(network, "patch_embed", None)
    if not isinstance(embedding, nn.Module):
        return Operations(forward, training, training)
    embedding.requires_grad_(False)
    frozen = count(backward=True)
    embedding.requires_grad_(True)
    return Operations(forward, training, frozen)
