"""Split any classifier into its features and its last linear layer, by behaviour and never by names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.errors import Unsupported

# Sides in pixels to try if no layer states its image size.
_SIDES = (32, 224, 64, 96, 28)


@dataclass(frozen=True, eq=False)
class Split:
    """A classifier as features and head. A call returns both outputs of one forward pass.

    `head` is the linear layer that makes the logits; it belongs to `model`. `columns` (int64 [classes]) gives, for each
    class in order, the index of its output in the head (all outputs, or those of a subset of classes). It is None if
    the model mixes the outputs further, as for classes that each combine several outputs. Adapters may keep a Split on
    self: it has no state of its own. A deep copy is split in the same way.
    """

    model: nn.Module
    head: nn.Linear
    columns: Tensor | None

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n, 3, h, w] in [0, 1] to features [n, dim] and logits [n, classes], with gradients if recorded."""
        seen: list[Tensor] = []

        def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(inputs[0])

        with self.head.register_forward_pre_hook(note):
            logits: Tensor = self.model(images)
        return seen[-1], logits

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the head's rows and biases in the order of the classes, detached: [classes, dim] and [classes].

        Raises Unsupported if the model mixes the outputs of the head.
        """
        if self.columns is None:
            raise Unsupported(
                "each class of this model is a mixture of several outputs of its last linear layer, so it has no row "
                "of weights of its own; choose a shift whose classes are outputs of the model, or another method"
            )
        weight = self.head.weight.detach()[self.columns]
        bias = weight.new_zeros(len(weight)) if self.head.bias is None else self.head.bias.detach()[self.columns]
        return weight, bias


def split(model: nn.Module) -> Split:
    """Find the linear layer that makes the logits of a classifier in eval mode, by two forward passes on noise.

    It is the last `nn.Linear` that runs. When its output is replaced by fixed numbers, these alone must determine the
    model's output; otherwise the classifier has two heads or another kind of head. Works for a classifier inside others
    (normalisation, selection of classes, DataParallel). Raises Unsupported if no such layer is found.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled module, on which torch does not call hooks
    images = _noise(model)
    calls = _linear_calls(model, images)
    if not calls:
        raise Unsupported(
            "this method needs the features before a last linear layer and the model runs none; "
            "choose a classifier that ends in nn.Linear, or a method that needs no features, such as tent or memo"
        )
    head, inputs = calls[-1]
    if inputs.ndim != 2 or sum(layer is head for layer, _ in calls) > 1:
        raise Unsupported(
            f"the last linear layer of this model runs on {list(inputs.shape[1:])} for each image or several times, "
            "so an image has no single vector of features; choose a classifier that pools before its head"
        )
    return Split(model, head, _columns(model, head, images))


def _linear_calls(model: nn.Module, images: Tensor) -> list[tuple[nn.Linear, Tensor]]:
    calls: list[tuple[nn.Linear, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        calls.append((layer, inputs[0]))

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                hooks.enter_context(module.register_forward_pre_hook(note))
        model(images)
    return calls


def _columns(model: nn.Module, head: nn.Linear, images: Tensor) -> Tensor | None:
    numbers = torch.arange(head.out_features, device=images.device, dtype=torch.float32)
    # Equal numbers for two images and other numbers for the third: a selection of columns must return all of them.
    given = torch.stack([numbers, numbers, numbers.sin()])
    with head.register_forward_hook(lambda layer, inputs, output: given), torch.no_grad():
        out: Tensor = model(images)
    if out.ndim != 2 or not torch.equal(out[0], out[1]):
        raise Unsupported(
            "the output of this model depends on more than its last linear layer, as with two heads or a head that is "
            "a convolution; choose a classifier with one linear head, or a method that needs no features, such as tent"
        )
    columns = out[0].round().long().clamp(0, head.out_features - 1)
    return columns if torch.equal(given[:, columns], out) else None


def _noise(model: nn.Module) -> Tensor:
    """Return three noise images of a size that the model accepts: one that a layer states, or a common one."""
    parameter = next(model.parameters(), torch.empty(0))
    first: RuntimeError | ValueError | AssertionError | None = None
    for height, width in dict.fromkeys([*_stated_sizes(model), *((side, side) for side in _SIDES)]):
        images = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0)).to(parameter)
        try:
            with torch.no_grad():
                model(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            first = first or error
            continue
        return images
    raise Unsupported(
        f"this model accepts none of the tried image sizes ({', '.join(map(str, _SIDES))} px), so its head cannot be "
        f"found; give it an attribute image_size with the side in pixels. The first error was: {first}"
    )


def _stated_sizes(model: nn.Module) -> Iterator[tuple[int, int]]:
    for module in model.modules():
        holders = [module, *(getattr(module, name, None) for name in ("preprocessing", "architecture"))]
        for holder in holders:
            for name in ("image_size", "img_size", "size"):
                match getattr(holder, name, None):
                    case int(side) if side > 0:
                        yield side, side
                    case (int(height), int(width)) if min(height, width) > 0:
                        yield height, width
