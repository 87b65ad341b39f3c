"""The base of methods that learn along the stream from the uncertainty of their own predictions.

They adapt the affine parameters of normalisation layers, predict with the logits from before the update, and differ in
which images they learn from and how they weight them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.base import Adapter, Options, Source, Unsupported
from methods.limits import FiniteNotNegative, FractionBelowOne
from methods.losses import entropy
from methods.norms import norm_layers, norm_parameters, use_batch_statistics
from methods.table import Access

_OFFICIAL_TOP = re.compile(r"(^|\.)layer4\.|(^|\.)blocks\.(9|10|11)\.|^norm\.")


@dataclass(frozen=True)
class NormOptions(Options):
    """Options of a method that adapts normalisation layers.

    optimizer: "sgd" or "adam" (betas `momentum` and 0.999); without weight decay and Nesterov unless an option adds it.
    momentum: of SGD, or the first beta of Adam; in [0, 1).
    """

    lr: FiniteNotNegative = 2.5e-4
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: FractionBelowOne = 0.9


class NormAdapter(Adapter):
    """Adapts the affine parameters of normalisation layers by an optimiser; a subclass defines the loss in `predict`.

    BatchNorm uses the statistics of the batch (or those of the source in a layer that sees one value per channel, see
    `use_batch_statistics`). Dropout and stochastic depth stay off.
    """

    access: ClassVar[Access] = Access(test="stream", state="online", backprop="norm")

    @dataclass(frozen=True)
    class Config(NormOptions):
        """lr: step size."""

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a model without affine parameters to adapt."""
        self.choose_statistics()
        self.parameters = list(self.chosen().values())
        if not self.parameters:
            raise Unsupported(
                f"{type(self).__name__} adapts the affine parameters of normalisation layers and this model has none; "
                "choose a model with BatchNorm, LayerNorm or GroupNorm, or a method that needs none, such as memo"
            )
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = self.build_optimizer()

    def choose_statistics(self) -> None:
        """Make BatchNorm use the statistics of the batch, unless overridden."""
        use_batch_statistics(self.model)

    def chosen(self) -> dict[str, nn.Parameter]:
        """Return the parameters to adapt, by name."""
        return norm_parameters(self.model)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of `self.parameters` that the options name."""
        if self.config.optimizer == "adam":
            return adam(self.parameters, self.config.lr, self.config.momentum)
        return torch.optim.SGD(self.parameters, lr=self.config.lr, momentum=self.config.momentum)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load as any adapter does, and discard the gradients of an interrupted batch."""
        super().load_state_dict(state)
        self.optimizer.zero_grad(set_to_none=True)

    def uncertainty(self, logits: Tensor) -> Tensor:
        """Return how unsure the model is of each image, in nats: [n, classes] -> [n]; the entropy unless overridden."""
        return entropy(logits)

    def regularise(self) -> None:
        """Add the gradient of a penalty on the parameters to their gradients."""

    def descend(self, loss: Tensor) -> None:
        """Take one optimiser step down the gradient of a scalar loss and of the penalty from `regularise`."""
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.regularise()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def refuse_float16(parameters: Sequence[nn.Parameter], why: str, instead: str = "") -> None:
    """Raise Unsupported for parameters in float16, which holds neither small nor large gradients."""
    if any(parameter.dtype == torch.float16 for parameter in parameters):
        raise Unsupported(f"{why}; use the model in float32 or bfloat16{instead}")


def adam(
    parameters: Sequence[nn.Parameter], lr: float, beta: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Return Adam with betas `beta` and 0.999. Raises Unsupported for parameters in float16.

    Its averages have the precision of the parameters, and in float16 the squares of most gradients and its addend of
    1e-8 are 0.
    """
    refuse_float16(
        parameters, "Adam divides by squared gradients, which are 0 in float16", ", or SGD where it is offered"
    )
    return torch.optim.Adam(parameters, lr=lr, betas=(beta, 0.999), weight_decay=weight_decay)


def rows_where(mask: Tensor) -> Tensor:
    """Return the indices, int64 [k], at which a mask, bool [n], is true."""
    return mask.nonzero()[:, 0]


def margin(logits: Tensor, fraction: float) -> float:
    """Return a threshold on the entropy in nats, as a fraction of ln C, the largest entropy of C classes.

    Raises ValueError for a single class, whose entropy is always 0.
    """
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError("the entropy of a single class is always 0; use a model with at least two classes")
    return fraction * math.log(classes)


def below_the_top(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the affine parameters of normalisation layers, by name, without those of the top quarter of the model.

    The top is found by structure, so wrapping, compiling or renaming a model changes nothing. It is the last quarter,
    at least one, of the stages (children made of blocks with normalisation), or of the blocks if there are no stages;
    in both cases with everything registered after them. A ResNet loses its fourth stage, a transformer of twelve blocks
    the last three and the final norm, as in Niu et al. 2023, arXiv:2302.12400, appendix C.2. A model whose
    normalisation layers cannot be divided keeps all.
    """
    left_out = {id(parameter) for module in _top(model) for parameter in module.parameters()}
    return {name: parameter for name, parameter in norm_parameters(model).items() if id(parameter) not in left_out}


def below_the_official_top(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the same as `below_the_top`, but with the top found by the names in the releases of SAR and DeYO.

    Leaves out `layer4`, `blocks.9` to `blocks.11` and `norm`, which are timm's names for ResNet-50 and ViT-B/16; any
    other model keeps all.
    """
    return {name: value for name, value in norm_parameters(model).items() if not _OFFICIAL_TOP.search(name)}


def _top(module: nn.Module) -> list[nn.Module]:
    children = list(module.children())
    with_norms = [place for place, child in enumerate(children) if norm_layers(child)]
    stages = [place for place in with_norms if _has_blocks(children[place])]
    if len(stages) >= 3:
        first = stages[-_quarter(len(stages))]
    elif stages:
        # One container of blocks, or an encoder beside a small second part: the top is inside the larger one.
        first = max(stages, key=lambda place: len(norm_layers(children[place])))
        return _top(children[first]) + children[first + 1 :]
    elif len(with_norms) > 1:
        first = with_norms[-_quarter(len(with_norms))]
    else:
        return [inner for place in with_norms for inner in _top(children[place])]
    return children[first:]


def _has_blocks(module: nn.Module) -> bool:
    """Return whether a child contains normalisation layers without being one."""
    return any(layers and "" not in layers for layers in map(norm_layers, module.children()))


def _quarter(count: int) -> int:
    return max(1, round(count / 4))
