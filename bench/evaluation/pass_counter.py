"""Count forward and backward passes with hooks and measure peak memory, so that costs are not self-reported."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.private_apis import in_transform, unwrapped


class Passes:
    """The number of samples that went forward and backward through the modules of an adapter.

    A pass is an image batch [n, 3, h, w] that enters a module with parameters from outside all watched modules: the
    whole model, a teacher or anchor, or the first part of a model that a method runs part by part. It goes backward
    when a gradient reaches the first output with a gradient that it computed, so a loss of inner activations counts.
    Batch dimensions added by torch.func count too. The attribute `passes` of a module is the number of networks that it
    runs.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0
        self._inside = 0
        self._images = 0
        self._hooked = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Passes:
        # A copy of a watched model belongs to the same adapter, so its passes are counted here too.
        return self

    def watch(self, value: Any) -> None:
        """Watch every module in `value`: a module, or lists, tuples and dicts of modules at any depth."""
        for module in {id(part): part for root in _modules(value) for part in root.modules()}.values():
            if next(module.parameters(), None) is not None:
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self._inside:
            images = bool(inputs) and _is_images(inputs[0])
            self._images = _samples(inputs[0]) * int(getattr(module, "passes", 1)) if images else 0
            self._hooked = False
        self._inside += 1

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._inside -= 1
        if not self._images:
            return
        if not self._inside:
            self.forwards += self._images
        if self._hooked or (self._inside and torch.compiler.is_compiling()):
            return
        traced = next((part for part in _tensors(output) if part.requires_grad), None)
        if traced is None:
            return
        if in_transform(traced):
            if not self._inside:
                self.backwards += self._images  # torch.func takes the gradient of what it traces
        elif not traced.is_leaf:  # a parameter would keep the hook
            samples, self._hooked = self._images, True
            traced.register_hook(lambda _: self._count_backward(samples))  # type: ignore[no-untyped-call]

    def _count_backward(self, samples: int) -> None:
        self.backwards += samples


def _modules(value: Any) -> list[nn.Module]:
    match value:
        case nn.Module():
            return [value]
        case list() | tuple():
            return [module for item in value for module in _modules(item)]
        case dict():
            return [module for item in value.values() for module in _modules(item)]
    return []


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [part for part in output if isinstance(part, Tensor)] if isinstance(output, list | tuple) else []


def _is_images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == 3


def _samples(images: Tensor) -> int:
    """Return the number of images in a batch, including the batch dimensions of torch.func."""
    samples = len(images)
    while in_transform(images):
        inner = unwrapped(images)
        samples = samples * (inner.numel() // max(images.numel(), 1))
        images = inner
    return samples


def forget_peak(device: str) -> None:
    """Reset the peak memory, where the platform allows it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: str) -> float | None:
    """Return the peak since `forget_peak` in MiB: of tensors on a GPU, of the process on a CPU; None if unknown.

    On macOS it is the peak since the process started (ru_maxrss); Windows does not tell it.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) / 2**10
    peak: float | None = None
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return peak
