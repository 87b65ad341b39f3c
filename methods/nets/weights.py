"""Weights and their architecture: the stock from which everything starts, and the classifiers made from it.

The encoder is timm's VisionTransformer, so its tensors have timm's names under `encoder.`; the decoder of a masked
autoencoder (He et al. 2022, arXiv:2111.06377) is under `decoder.`, a classifier's last layer under `head.`, and what
it learnt another task with under the name of a side head (see SIDE_HEADS). Labelled images that vote instead of a last
layer are under `neighbours.`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, Protocol

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.identity import component
from methods.nets import flops


class AnyArchitecture(Protocol):
    """The interface of the network to which weights belong: a frozen value, compared by content.

    mean, std: of images in [0, 1]. dim: width of a representation. tokens: number of patches of an image that may be
    left out one by one (masked autoencoding needs them), 0 if none may; patch_size is their side, prefix the number of
    tokens before them, decoder_… the shape of a decoder that predicts them. cut: how a picture becomes a square of
    image_size pixels: the length to which its shorter side is first resized, the filter, and whether both sides get
    that length.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def image_size(self) -> int: ...

    @property
    def mean(self) -> tuple[float, float, float]: ...

    @property
    def std(self) -> tuple[float, float, float]: ...

    @property
    def dim(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def patch_size(self) -> int: ...

    @property
    def prefix(self) -> int: ...

    @property
    def decoder_dim(self) -> int: ...

    @property
    def decoder_depth(self) -> int: ...

    @property
    def decoder_heads(self) -> int: ...

    @property
    def layer_norm_eps(self) -> float: ...

    @property
    def cut(self) -> tuple[int, str, bool]: ...

    @property
    def description(self) -> str:
        """The network in a few words."""

    def build(self) -> nn.Module:
        """Return the encoder, normalised images [n, 3, h, w] to [n, dim], with arbitrary values."""

    def initial(self, generator: torch.Generator) -> nn.Module:
        """Return the untrained encoder, with random values from the generator and on its device."""

    def operations(self, *, visible: int | None = None, side: int | None = None) -> flops.Operations:
        """Return the cost of one image: whole, by this many of its patches, or with sides of this many pixels."""

    def smaller(self, fraction: float) -> int:
        """Return the side of smaller images that the network also accepts, about this fraction of image_size.

        Raises ValueError if the network accepts one size only.
        """


# Above any vision transformer: the largest published one has a width of 6144 (24576 inside a block) and 48 blocks.
_LARGEST_WIDTH = 16384
_LARGEST_DEPTH = 256
_MOST_TOKENS = 1 << 16


@component("methods.stock.Architecture")
@dataclass(frozen=True)
class Architecture:
    """The shape of a stock. `mean` and `std` normalise images in [0, 1]; `pool` makes an image's representation.

    Raises ValueError for sizes that do not fit together, and for those beyond any vision transformer: a file may state
    them, and a network is built from them before its tensors are compared.
    """

    image_size: int = 32
    patch_size: int = 8
    dim: int = 64
    depth: int = 4
    heads: int = 4
    decoder_dim: int = 32
    decoder_depth: int = 1
    decoder_heads: int = 4
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pool: Literal["token", "avg"] = "avg"
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = (self.image_size, self.patch_size, self.dim, self.heads, self.decoder_dim, self.decoder_heads)
        if min(sizes) < 1 or min(self.depth, self.decoder_depth) < 0:
            raise ValueError("sizes, widths and heads must be at least 1, depths at least 0")
        if max(sizes) > _LARGEST_WIDTH or max(self.depth, self.decoder_depth) > _LARGEST_DEPTH:
            raise ValueError(f"sizes and widths end at {_LARGEST_WIDTH}, depths at {_LARGEST_DEPTH}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("mean must be finite and std positive")
        if self.dim % 4 or self.decoder_dim % 4:
            raise ValueError(
                "sine-cosine positions need widths that are multiples of 4, in the encoder and in the decoder"
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.tokens > _MOST_TOKENS:
            raise ValueError(f"an image of {self.tokens} patches is too large; at most {_MOST_TOKENS} are supported")
        if self.dim % self.heads or self.decoder_dim % self.decoder_heads:
            raise ValueError("dim must be a multiple of heads, in the encoder and in the decoder")

    @property
    def tokens(self) -> int:
        """Patches of an image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def prefix(self) -> int:
        return 1

    @property
    def cut(self) -> tuple[int, str, bool]:
        # The paper's evaluation resizes to 8/7 of the side before the crop; small images are taken whole.
        return (round(self.image_size * 8 / 7) if self.image_size >= 128 else self.image_size), "bicubic", False

    @property
    def description(self) -> str:
        return f"patches of {self.patch_size}, width {self.dim}, {self.depth} blocks"

    def build(self) -> nn.Module:
        return build_encoder(self)

    def initial(self, generator: torch.Generator) -> nn.Module:
        encoder = build_encoder(self).to(generator.device)
        reset(encoder, generator)
        return encoder

    def operations(self, *, visible: int | None = None, side: int | None = None) -> flops.Operations:
        patches = ((side or self.image_size) // self.patch_size) ** 2 if visible is None else visible
        return flops.vision_transformer(self.patch_size, self.dim, self.depth, patches)

    def smaller(self, fraction: float) -> int:
        return max(1, round(self.image_size * fraction / self.patch_size)) * self.patch_size


@dataclass(frozen=True)
class Weights:
    """Named tensors on the CPU and the architecture they fit; `digest` identifies both."""

    architecture: AnyArchitecture
    tensors: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> str:
        sha = hashlib.sha256(repr(self.architecture).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            sha.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        return f"sha256:{sha.hexdigest()}"

    @property
    def batch_norm(self) -> bool:
        """Whether there are running statistics of BatchNorm, which are valid for one model and one training process."""
        return any(name.endswith(".running_mean") for name in self.tensors)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix ("encoder", "decoder", "head"), without the prefix."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}


def build_encoder(architecture: Architecture) -> nn.Module:
    """Return a timm VisionTransformer without head, with fixed two-dimensional sine-cosine positions."""
    encoder: nn.Module = timm.models.VisionTransformer(
        img_size=architecture.image_size,
        patch_size=architecture.patch_size,
        embed_dim=architecture.dim,
        depth=architecture.depth,
        num_heads=architecture.heads,
        num_classes=0,
        global_pool=architecture.pool,
        fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=architecture.layer_norm_eps),
    )
    side = architecture.image_size // architecture.patch_size
    encoder.pos_embed = nn.Parameter(sine_cosine_positions(architecture.dim, side), requires_grad=False)
    return encoder


def sine_cosine_positions(dim: int, side: int) -> Tensor:
    """Return fixed positions [1, 1 + side * side, dim], zero for the class token: half the channels for each axis."""
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {dim}")
    omega = torch.exp(-math.log(10000.0) * torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    steps = torch.arange(side, dtype=torch.float64)
    angles = steps[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis[None, :, :].expand(side, side, -1)
    rows = axis[:, None, :].expand(side, side, -1)
    grid = torch.cat([columns, rows], dim=2).reshape(1, side * side, dim)
    return torch.cat([torch.zeros(1, 1, dim, dtype=torch.float64), grid], dim=1).float()


def reset(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise a transformer from the generator, as the masked autoencoder does (He et al. 2022, appendix A.1).

    Linear and convolution weights: uniform Glorot, a convolution counted as one linear map of its patch; biases zero;
    layer norms one and zero; trainable tokens: normal with deviation 0.02.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.data.flatten(1), generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2].endswith("token"):
            nn.init.normal_(parameter, std=0.02, generator=generator)


class Normalise(nn.Module):
    """Images in [0, 1] to zero mean and unit deviation per channel, with the constants of the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def rotation_head(dim: int) -> nn.Module:
    """Return the linear layer that tells by how many quarter turns an image was rotated: [n, dim] to [n, 4]."""
    return nn.Linear(dim, 4)


def projection_head(dim: int) -> nn.Module:
    """Return the two layers behind which views are compared, as in SimCLR (arXiv:2002.05709): [n, dim] to [n, 128]."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 128))


SIDE_HEADS: Mapping[str, Callable[[int], nn.Module]] = {"rotation": rotation_head, "projection": projection_head}
"""What a classifier may learn another task with, on the features of its encoder; predictions do not use it.

By the name of the module, the function that builds it for features of a width.
"""


class Classifier(nn.Module):
    """Images in [0, 1] (float [n, 3, h, w]) to logits [n, classes]: normalisation, encoder, linear head.

    `side_heads` names what it has beside them (see SIDE_HEADS); attributes of the others are None.
    """

    rotation: nn.Module | None
    projection: nn.Module | None

    def __init__(self, architecture: AnyArchitecture, classes: int, side_heads: Collection[str] = ()) -> None:
        super().__init__()
        self.architecture = architecture
        self.normalise = Normalise(architecture.mean, architecture.std)
        self.encoder = architecture.build()
        self.head = nn.Linear(architecture.dim, classes)
        for name, build in SIDE_HEADS.items():
            setattr(self, name, build(architecture.dim) if name in side_heads else None)

    @staticmethod
    def of(weights: Weights) -> Classifier:
        """Return the classifier with a copy of these weights: encoder, head and side heads."""
        side_heads = [name for name in SIDE_HEADS if weights.part(name)]
        model = Classifier(weights.architecture, len(weights.tensors["head.bias"]), side_heads)
        model.load_state_dict(dict(weights.tensors))
        return model

    passes = 1
    """Forward passes of the network for one prediction."""

    def weights(self) -> Weights:
        return Weights(self.architecture, {name: t.detach().cpu().clone() for name, t in self.state_dict().items()})

    def features(self, images: Tensor) -> Tensor:
        """Return the representation of images in [0, 1], before the head: [n, dim]."""
        out: Tensor = self.encoder(self.normalise(images))
        return out

    def rotation_logits(self, images: Tensor) -> Tensor:
        """Return scores of 0 to 3 quarter turns of images in [0, 1]: [n, 4]. Raises ValueError without this head."""
        if self.rotation is None:
            raise ValueError("this classifier has no rotation head; train it with the recipe source_rotation")
        out: Tensor = self.rotation(self.features(images))
        return out

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(images))
        return out


class AutoencoderClassifier(Classifier):
    """A classifier that keeps the decoder with which its encoder learnt to reconstruct hidden patches.

    `decoder` holds tensors by name, which are no part of the network: methods that look for its layers or parameters
    never meet them. They stay on the CPU.
    """

    def __init__(self, architecture: AnyArchitecture, classes: int, decoder: Mapping[str, Tensor]) -> None:
        super().__init__(architecture, classes)
        self.decoder = dict(decoder)

    @staticmethod
    def of(weights: Weights) -> AutoencoderClassifier:
        """Return the classifier with a copy of these weights (encoder, head and decoder)."""
        decoder = {name: tensor.clone() for name, tensor in weights.part("decoder").items()}
        model = AutoencoderClassifier(weights.architecture, len(weights.tensors["head.bias"]), decoder)
        network = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("decoder.")}
        model.load_state_dict(network)
        return model

    def weights(self) -> Weights:
        decoder = {f"decoder.{name}": tensor.clone() for name, tensor in self.decoder.items()}
        return Weights(self.architecture, {**super().weights().tensors, **decoder})


class Ensemble(nn.Module):
    """Images in [0, 1] to the logarithm of the mean probability of several classifiers, [n, classes]."""

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.passes = len(members)

    @staticmethod
    def of(weights: Weights) -> Ensemble:
        """Return the ensemble with copies of the classifiers under `members.0`, `members.1`, ..."""
        count = len({name.split(".")[1] for name in weights.tensors})
        parts = (weights.part(f"members.{number}") for number in range(count))
        return Ensemble([Classifier.of(Weights(weights.architecture, part)) for part in parts])

    def forward(self, images: Tensor) -> Tensor:
        logs = torch.stack([member(images).log_softmax(1) for member in self.members])
        return logs.logsumexp(0) - math.log(len(self.members))


class NeighbourClassifier(nn.Module):
    """Images in [0, 1] to the logarithm of the share of votes of their nearest labelled neighbours, [n, classes].

    `bank` holds the representations of labelled images at unit length, float32 [m, dim]; an image's `neighbours`
    nearest by cosine vote for their class with weight exp(cosine / temperature) (Wu et al. 2018, arXiv:1805.01978). A
    class without a vote has the share `LEAST`, so that its log-likelihood is finite.
    """

    LEAST = 1e-6
    passes = 1

    def __init__(
        self,
        architecture: AnyArchitecture,
        bank: Tensor,
        labels: Tensor,
        classes: int,
        neighbours: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.normalise = Normalise(architecture.mean, architecture.std)
        self.encoder = architecture.build()
        self.classes, self.neighbours, self.temperature = classes, neighbours, temperature
        self.register_buffer("bank", bank)
        self.register_buffer("labels", labels)

    @staticmethod
    def of(weights: Weights) -> NeighbourClassifier:
        """Return the classifier with a copy of these weights: the encoder, and the bank with its settings."""
        part = weights.part("neighbours")
        classes, neighbours, temperature = part["settings"].tolist()
        bank, labels = part["bank"].clone(), part["labels"].clone()
        model = NeighbourClassifier(weights.architecture, bank, labels, int(classes), int(neighbours), temperature)
        model.encoder.load_state_dict(weights.part("encoder"))
        return model

    def forward(self, images: Tensor) -> Tensor:
        features = functional.normalize(self.encoder(self.normalise(images)).float(), dim=1)
        best, index = (features @ self.get_buffer("bank").T).topk(min(self.neighbours, len(self.get_buffer("bank"))), 1)
        votes = features.new_zeros(len(features), self.classes)
        votes.scatter_add_(1, self.get_buffer("labels")[index], (best / self.temperature).softmax(1))
        return votes.clamp(min=self.LEAST).log()


def ready(weights: Weights) -> Classifier | Ensemble | NeighbourClassifier:
    """Return the classifier, or ensemble of classifiers, that these weights hold, in eval mode."""
    if weights.part("neighbours"):
        return NeighbourClassifier.of(weights).eval()
    if weights.part("decoder"):
        return AutoencoderClassifier.of(weights).eval()
    several = any(name.startswith("members.") for name in weights.tensors)
    return (Ensemble if several else Classifier).of(weights).eval()
