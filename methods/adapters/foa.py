"""FOA: forward-only adaptation of a vision transformer's prompts by CMA-ES (Niu et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import cma
import numpy as np
import torch
from cma.utilities.utils import ElapsedWCTime
from timm.models import VisionTransformer as TimmTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionTransformer

from methods.base import Adapter, Options, Source, Unsupported
from methods.limits import FiniteNotNegative, FinitePositive, at_least
from methods.losses import entropy
from methods.nets.feature_head_split import Split, split

# The trade-off is stated for batches of this size.
BATCH = 64
HISTORY = 0.9
# Loss of a candidate whose loss is not finite, since a strategy needs an order.
WORST = 1e30
# Arrays that the strategy shares with its sampler under the same names.
_SHARED = ("B", "C", "D")


class FOA(Adapter):
    """Searches prompts that make predictions certain and features like the source's, by forward passes alone.

    Niu et al. 2024, arXiv:2404.01650. Prompts are tokens inserted after the class token. On each batch CMA-ES proposes
    a population of them, and the best of the last batch is tried again (at first, uniform random prompts). Each
    candidate's loss is the sum of entropies plus the distance between the means and deviations of the features after
    each block and those of the source (equation 5); the prediction is that of the best candidate. Activation shifting
    (equations 7 to 9) moves the last features by the source mean minus a moving average along the stream, from the
    second batch on; the losses are those from before the shift. As in the release, the distances are squared and the
    average is that of the batches before. A block's feature is that of the class token (the mean over patches in models
    that classify by it), after the next normalisation. Costs `population` + 1 forward passes.

    For a single image there is no deviation, so only the means are compared. The covariance in CMA-ES has as many rows
    as the prompts have values.
    """

    tested_against = "golden"
    search = {"trade_off": (0.1, 0.2, 0.4, 0.8), "prompts": (0, 1, 3)}
    checked_with = {"prompts": 1, "population": 4, "source_images": 8}
    presets = {"imagenet-ln": {"trade_off": 0.4}, "imagenet-r-ln": {"trade_off": 0.2}}

    @dataclass(frozen=True)
    class Config(Options):
        """Defaults of the paper for ViT-B/16 on ImageNet-C.

        prompts: number of learnt tokens; 0 leaves only activation shifting, in one forward pass.
        population: candidates for each batch, at least 3; one more pass tries the best so far.
        deviation: of the first candidates around zero, the initial step size of CMA-ES.
        trade_off: weight of the distance to the source, for batches of 64; 0.4, or 0.2 for ImageNet-R.
        shift: whether the last features are moved towards the source.
        source_images: number of clean images for the statistics; the paper finds that 32 are enough.
        """

        prompts: int = 3
        population: Annotated[int, at_least(3)] = 27
        deviation: FinitePositive = 1.0
        trade_off: FiniteNotNegative = 0.4
        shift: bool = True
        source_images: Annotated[int, at_least(2)] = 512

        def __post_init__(self) -> None:
            super().__post_init__()
            least = 0 if self.shift else 1
            self.check(self.prompts >= least, "prompts", "at least 0, and at least 1 without shift")

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a model that is not a vision transformer, ValueError without source images."""
        self.prompted = find_transformer(self.model)
        if source is None:
            raise ValueError("foa compares features with the source's; give prepare() a source of clean images")
        features = self._source_features(source)
        self.source_deviation, self.source_mean = torch.std_mean(features, dim=0)
        self.history: Tensor | None = None
        # A CPU generator gives the same numbers on every device.
        on_cpu = self.generator.device.type == "cpu"
        self.draws = self.generator if on_cpu else torch.Generator().manual_seed(self.generator.initial_seed())
        size = self.config.prompts * self.prompted.dim
        self.search_state = Search(size, self.config.population, self.config.deviation, self.draws) if size else None
        bound = self.prompted.prompt_bound
        # In single precision, as the release keeps it.
        self.best = (torch.rand(size, generator=self.draws, dtype=torch.float64) * 2 * bound - bound).float()

    @torch.no_grad()
    def _source_features(self, source: Source) -> Tensor:
        found: list[Tensor] = []
        missing: int = self.config.source_images
        for batch in source:
            found.append(self.prompted(batch.images[:missing], None, None)[0])
            missing -= len(found[-1])
            if missing <= 0:
                break
        features = torch.cat(found) if found else torch.empty(0)
        if len(features) < 2:
            raise ValueError(f"foa needs at least two source images, not {len(features)}; give a larger source")
        return features

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] of the best prompts."""
        shift = self._shift()
        if self.search_state is None:
            features, _, shifted = self.prompted(images, None, shift)
            self._remember(features.mean(dim=0))
            return shifted
        candidates = [*self.search_state.ask(), self.best.double().numpy()]
        outputs, losses, means = [], [], []
        for candidate in candidates:
            prompts = torch.from_numpy(candidate).to(images).view(-1, self.prompted.dim)
            features, logits, shifted = self.prompted(images, prompts, shift)
            outputs.append(shifted)
            losses.append(self.loss(features, logits))
            means.append(features.mean(dim=0))
        self._remember(torch.stack(means).mean(dim=0))
        judged = torch.stack(losses).double().nan_to_num(nan=WORST, posinf=WORST).tolist()
        chosen = min(range(len(judged)), key=judged.__getitem__)
        self.best = torch.from_numpy(candidates[chosen]).float()
        self.search_state.tell(candidates, judged)
        return outputs[chosen]

    def loss(self, features: Tensor, logits: Tensor) -> Tensor:
        """Sum of entropies plus the weighted distance to the source: [n, layers * dim], [n, classes] -> scalar.

        Both as they are before the shift.
        """
        distance = (features.mean(dim=0) - self.source_mean).square().sum()
        if len(features) > 1:
            distance = distance + (features.std(dim=0) - self.source_deviation).square().sum()
        weight: float = self.config.trade_off * len(features) / BATCH
        return entropy(logits).sum() + weight * distance

    def _shift(self) -> Tensor | None:
        if self.history is None or not self.config.shift:
            return None
        return self.source_mean[-len(self.history) :] - self.history

    def _remember(self, mean: Tensor) -> None:
        last = mean[-self.prompted.last :]
        self.history = last if self.history is None else HISTORY * self.history + (1 - HISTORY) * last


class Search(nn.Module):
    """CMA-ES (Hansen 2016, arXiv:1604.00772) over `size` values around zero, from the package cma.

    It is a module without parameters, so that its state is saved and reset with the adapter. It draws only from the
    given generator.
    """

    def __init__(self, size: int, population: int, deviation: float, draws: torch.Generator) -> None:
        super().__init__()
        self.size, self.population, self.deviation, self.draws = size, population, deviation, draws
        self.strategy = self._fresh()

    def _fresh(self) -> Any:
        options = {
            "popsize": self.population,
            "randn": self._normals,
            "seed": math.nan,  # keeps cma from seeding numpy's global generator
            "CMA_mirrors": 0,  # so that only numbers and arrays persist between populations
            "maxiter": math.inf,
            "verbose": -9,
        }
        return cma.CMAEvolutionStrategy(self.size * [0.0], self.deviation, options)

    def _normals(self, *shape: int) -> np.ndarray:
        drawn: np.ndarray = torch.randn(shape, generator=self.draws, dtype=torch.float64).numpy()
        return drawn

    def ask(self) -> list[np.ndarray]:
        """Return the candidates of the next population, float64 [size] each."""
        asked: list[np.ndarray] = self.strategy.ask()
        return asked

    def tell(self, candidates: list[np.ndarray], losses: list[float]) -> None:
        """Update the strategy with candidates, from `ask` or not, and their finite losses."""
        self.strategy.tell(candidates, losses)

    def get_extra_state(self) -> dict[str, dict[str, Any]]:
        """Return numbers and arrays of strategy, sampler and step-size rule, as plain values and tensors."""
        return {name: _plain(part, _SHARED if part is self.strategy else ()) for name, part in self._parts().items()}

    def set_extra_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Continue from a state of `get_extra_state`."""
        self.strategy = self._fresh()
        self.strategy.timer = ElapsedWCTime()  # normally made by the first ask
        for name, part in self._parts().items():
            for key, value in state[name].items():
                setattr(part, key, value.clone().numpy() if isinstance(value, Tensor) else value)
        for key in _SHARED:
            setattr(self.strategy, key, getattr(self.strategy.sm, key))

    def _parts(self) -> dict[str, Any]:
        return {"strategy": self.strategy, "sampler": self.strategy.sm, "step_size": self.strategy.adapt_sigma}


def _plain(part: Any, skipped: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(part).items():
        match value:
            case _ if name in skipped:
                continue
            case np.ndarray() if value.dtype.kind == "f":
                # In its own memory layout, on which the rounding of products depends.
                found[name] = torch.from_numpy(value.copy(order="K"))
            case float():
                found[name] = float(value)
            case bool() | int():
                found[name] = value
            case np.integer():
                found[name] = int(value)
    return found


@dataclass(frozen=True, eq=False)
class Prompted:
    """A vision transformer whose blocks accept prompts and return their features; see `find_transformer`.

    `norms` are the normalisations after each block but the last. `token` says that the class token is classified, not
    the mean over patches; `prefix` is the number of tokens before the patches. `dim` is the width of a token, `patch`
    the number of pixels of a patch and `last` the width of the head's input.
    """

    parts: Split
    blocks: nn.Sequential
    norms: tuple[nn.Module, ...]
    token: bool
    prefix: int
    dim: int
    patch: int

    @property
    def last(self) -> int:
        return self.parts.head.in_features

    @property
    def prompt_bound(self) -> float:
        """Largest absolute value of a new prompt: Glorot's, from a patch to a token (Jia et al. 2022, VPT)."""
        return math.sqrt(6 / (3 * self.patch + self.dim))

    def __call__(self, images: Tensor, prompts: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Features [n, (blocks - 1) * dim + last], logits [n, classes], and logits after the shift, if there is one.

        `prompts`: [p, dim], inserted after the class token of all images. `shift`: [last], added to the last features.
        """
        number = 0 if prompts is None else len(prompts)
        place = min(self.prefix, 1)
        features: list[Tensor] = []

        def insert(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if prompts is None:
                return None
            tokens: Tensor = inputs[0]
            own = prompts.to(tokens.dtype).expand(len(tokens), -1, -1)
            return (torch.cat([tokens[:, :place], own, tokens[:, place:]], dim=1), *inputs[1:])

        def remove(layer: nn.Module, inputs: tuple[Any, ...], tokens: Tensor) -> Tensor | None:
            return torch.cat([tokens[:, :place], tokens[:, place + number :]], dim=1) if number else None

        def note(layer: nn.Module, inputs: tuple[Any, ...], tokens: Tensor) -> None:
            chosen = tokens[:, 0] if self.token else tokens[:, self.prefix + number :].mean(dim=1)
            features.append(chosen.float())

        def finish(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            features.append(inputs[0].float())
            # Both through the model, which may select classes after its head.
            return None if shift is None else (torch.cat([inputs[0], inputs[0] + shift.to(inputs[0].dtype)]),)

        with ExitStack() as hooks:
            hooks.enter_context(self.blocks[0].register_forward_pre_hook(insert))
            hooks.enter_context(self.blocks[-1].register_forward_hook(remove))
            for norm in self.norms:
                hooks.enter_context(norm.register_forward_hook(note))
            hooks.enter_context(self.parts.head.register_forward_pre_hook(finish))
            logits: Tensor = self.parts.model(images)
        return torch.cat(features, dim=1), logits[: len(images)], logits[-len(images) :]


def find_transformer(model: nn.Module) -> Prompted:
    """Find the vision transformer (timm's or torchvision's) inside a classifier and prepare it for prompts.

    Raises Unsupported if there is none whose blocks start with a normalisation.
    """
    parts = split(model)
    for module in model.modules():
        if isinstance(module, TimmTransformer):
            blocks, name = module.blocks, "norm1"
            token, prefix, dim = module.global_pool == "token", int(module.num_prefix_tokens), int(module.embed_dim)
            patch = math.prod(module.patch_embed.patch_size)
        elif isinstance(module, TorchvisionTransformer):
            blocks, name = module.encoder.layers, "ln_1"
            token, prefix, dim = True, 1, module.hidden_dim
            patch = module.patch_size**2
        else:
            continue
        norms = tuple(getattr(block, name, None) for block in list(blocks)[1:])
        if isinstance(blocks, nn.Sequential) and all(isinstance(norm, nn.Module) for norm in norms):
            return Prompted(parts, blocks, tuple(norm for norm in norms if norm is not None), token, prefix, dim, patch)
    raise Unsupported(
        "foa learns prompts of a vision transformer of timm or torchvision, and this model contains none; "
        "choose a ViT, or a method without gradients for any model, such as lame or t3a"
    )
