"""Normalisation layers: find them, collect their affine parameters, and choose which statistics BatchNorm uses.

Layers are recognised by type, never by name, so a wrapped, renamed or third-party model gives the same selection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, cast

import timm.layers
import torch
from torch import Tensor, nn

from methods.base import Unsupported
from methods.private_apis import _BatchNorm, _InstanceNorm

# timm derives its RMS norms from nn.Module, and which of them exist depends on timm's version.
_TIMM_NAMES = ("RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d")
_TIMM_LAYERS: tuple[type[nn.Module], ...] = tuple(
    getattr(timm.layers, name) for name in _TIMM_NAMES if hasattr(timm.layers, name)
)
_LAYERS: tuple[type[nn.Module], ...] = (
    _BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    _InstanceNorm,
    *_TIMM_LAYERS,
)


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the normalisation layers by name, in the order of `named_modules`, each once even if it is reused.

    BatchNorm (1d, 2d, 3d, synchronised), LayerNorm, GroupNorm, InstanceNorm, RMSNorm, and every subclass (including
    timm's BatchNormAct2d and LayerNorm2d). Frozen BatchNorm, which keeps its affine values in buffers, does not count.
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the affine parameters (weight, bias) of all normalisation layers; a shared one once, by its first name.

    Empty for a model without normalisation layers or with `affine=False` throughout. Parameters of an activation inside
    a layer do not count.
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for layer_name, layer in norm_layers(model).items():
        for name, parameter in layer.named_parameters(recurse=False):
            if name in ("weight", "bias") and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{layer_name}.{name}" if layer_name else name] = parameter
    return found


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers of a model, each once."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def norm_family(model: nn.Module) -> Literal["bn", "gn", "ln", "none"]:
    """Return the most frequent kind of normalisation: bn, gn (includes instance norm), ln (includes RMS norm)."""
    layers = list(norm_layers(model).values())
    counts = {
        "bn": sum(isinstance(layer, _BatchNorm) for layer in layers),
        "gn": sum(isinstance(layer, nn.GroupNorm | _InstanceNorm) for layer in layers),
    }
    counts["ln"] = len(layers) - counts["bn"] - counts["gn"]
    return cast(Any, max(counts, key=lambda kind: counts[kind])) if layers else "none"


def use_batch_statistics(model: nn.Module) -> int:
    """Make every BatchNorm normalise with the statistics of the current batch; return the number of such layers.

    Holds in train and in eval mode of the model, so dropout and stochastic depth can stay off. The source statistics
    are never updated. If a layer gets one value per channel (one image, 1x1 map), there is no variance, so it uses the
    source statistics for that batch; a last batch of one image therefore does not fail. Raises ValueError in that case
    if the layer was built without source statistics.
    """
    layers = batch_norm_layers(model)
    for layer in layers:
        layer.track_running_stats = False
        layer.register_forward_pre_hook(_choose_statistics)
    return len(layers)


def _choose_statistics(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    norm = cast(_BatchNorm, layer)
    has_batch_statistics = _values_per_channel(inputs[0]) > 1
    if not has_batch_statistics and norm.running_mean is None:
        raise ValueError(
            "a BatchNorm layer without source statistics got one value per channel, which has no variance; "
            "use batches of at least two images"
        )
    # Set the flag of this module only: its children (the dropout of a fused layer) keep their mode.
    norm.training = has_batch_statistics


def blend_statistics(model: nn.Module, source_share: float) -> int:
    """Make every BatchNorm normalise with share * source + (1 - share) * batch statistics; return the number of layers.

    `source_share` is in [0, 1]. The variance of the current batch is the unbiased one, and no gradient flows through
    the statistics (Schneider et al. 2020, arXiv:2006.16971, as released with MEMO). If the current input has one value
    per channel, the source statistics are used alone. The layers hold their source statistics again after each forward
    pass. Raises ValueError for a share out of range, Unsupported for a layer without source statistics.
    """
    if not 0.0 <= source_share <= 1.0:
        raise ValueError(f"source_share must lie in [0, 1], not {source_share}")
    layers = batch_norm_layers(model)
    for layer in layers:
        mean, variance = layer.running_mean, layer.running_var
        if mean is None or variance is None:
            raise Unsupported(
                "a BatchNorm layer has no source statistics to blend with; use a model trained with track_running_stats"
            )
        layer.register_forward_pre_hook(partial(_blend, source=(mean, variance), source_share=source_share))
        layer.register_forward_hook(partial(_restore, source=(mean, variance)), always_call=True)
    return len(layers)


def _blend(layer: nn.Module, inputs: tuple[Any, ...], *, source: tuple[Tensor, Tensor], source_share: float) -> None:
    values: Tensor = inputs[0]
    if _values_per_channel(values) < 2:
        return
    norm = cast(_BatchNorm, layer)
    with torch.no_grad():
        dims = [dim for dim in range(values.ndim) if dim != 1]
        variance, mean = torch.var_mean(values.to(source[0].dtype), dim=dims, correction=1)
        # New tensors: autograd may still hold those of an earlier pass through the same layer.
        norm.running_mean = source_share * source[0] + (1 - source_share) * mean
        norm.running_var = source_share * source[1] + (1 - source_share) * variance


def _restore(layer: nn.Module, inputs: tuple[Any, ...], output: Any, *, source: tuple[Tensor, Tensor]) -> None:
    norm = cast(_BatchNorm, layer)
    norm.running_mean, norm.running_var = source


@contextmanager
def training_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the context, every BatchNorm normalises with the batch and updates its running averages, as in training.

    A layer that gets one value per channel, which has no variance, keeps its averages and uses them. Everything else
    stays in its mode, including children of a layer (the dropout of a fused one).
    """
    layers = batch_norm_layers(model)
    try:
        with ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.register_forward_pre_hook(_train_where_possible))
            yield
    finally:
        for layer in layers:
            layer.training = False


def _train_where_possible(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    layer.training = _values_per_channel(inputs[0]) > 1


def input_normalised_by(layer: _BatchNorm, values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the input for which a BatchNorm in eval mode gives what it would give for `values` with other statistics.

    `values` is [n, channels, ...]; `mean` and `variance` broadcast with it, and gradients flow through all three. The
    layer's own statistics and affine parameters stay, so any subclass is served.
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = [1, -1, *[1] * (values.ndim - 2)]
    ratio = ((layer.running_var.view(shape) + layer.eps) / (variance + layer.eps)).sqrt()
    return (values - mean) * ratio + layer.running_mean.view(shape)


def need_batch_norm(model: nn.Module, told: str, instead: str = "tent") -> list[_BatchNorm]:
    """Return the BatchNorm layers of a model. Raises Unsupported if it has none.

    told: what the method does with such layers. instead: a method for other models.
    """
    layers = batch_norm_layers(model)
    if not layers:
        raise Unsupported(
            f"{told} and this model has none; "
            f"choose a model with BatchNorm, or a method such as {instead} that adapts any normalisation layer"
        )
    return layers


def require_source_statistics(model: nn.Module) -> None:
    """Raise Unsupported for a BatchNorm layer without running averages."""
    if any(layer.running_mean is None for layer in batch_norm_layers(model)):
        raise Unsupported(
            "a BatchNorm layer has no source statistics for the averages to start from; "
            "use a model trained with track_running_stats"
        )


def _values_per_channel(values: Tensor) -> int:
    return values.numel() // max(values.shape[1], 1)
