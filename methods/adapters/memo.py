"""MEMO: test-time robustness by adapting to one image through the marginal entropy of its views (Zhang et al. 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.base import Adapter, Options, Source
from methods.limits import Count, FiniteNotNegative
from methods.losses import at_least_float32, gradients, marginal_entropy, recordable
from methods.norms import blend_statistics
from methods.state import load_module, same, save_module
from methods.views.augmix import Crop, augmix, draw

# Bounds on what one pass holds: values of the views that go through the model together (its activations are some tens
# of times as many), and values of the parameters that images have of their own.
VIEW_VALUES = 2**22
PARAMETER_VALUES = 2**26

ADAM_EPSILON = 1e-8


class Memo(Adapter):
    """For each image alone: one step on all parameters to lower the entropy of the mean prediction over AugMix views.

    Zhang et al. 2022, arXiv:2110.09506, algorithm 1. The image itself is then predicted with the updated parameters;
    the next image starts from the source again, optimiser included (the release carries AdamW's moments from image to
    image). BatchNorm normalises with N/(N+1) of the source statistics and 1/(N+1) of the current ones: those of the
    views while adapting, of the single image while predicting.

    The source parameters are never changed: each image has its own copy of them. Images pass through the model
    together, each with its own gradient, if the model has no blended BatchNorm; else one by one. Views depend on the
    generator and on an image's position in the stream, never on the batch size; so predictions for different batch
    sizes differ only by floating-point rounding (AdamW, whose first step is the gradient's sign, turns rounding of a
    gradient near zero into a step of lr).
    """

    tested_against = "golden"
    search = {"lr": (3e-5, 1e-4, 3e-4, 1e-3), "optimizer": ("sgd", "adamw"), "crop": ("resized", "padded", "none")}
    checked_with = {"views": 4, "lr": 0.01, "crop": "padded"}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4, "views": 64},
        "imagenet-ln": {"lr": 1e-5, "optimizer": "adamw", "weight_decay": 0.01, "views": 64},
        "cifar-bn": {"lr": 5e-3, "views": 32, "crop": "padded"},
        "cifar-gn": {"lr": 5e-3, "views": 32, "crop": "padded"},
    }

    @dataclass(frozen=True)
    class Config(Options):
        """Defaults of the paper for ImageNet and ResNet-50.

        lr: step size; 2.5e-4 with SGD (ResNet-50), 1e-5 with AdamW (transformers), 5e-3 with SGD for CIFAR.
        optimizer: "sgd" (without momentum) or "adamw"; with a single step its betas do not matter.
        weight_decay: 0 with SGD, 0.01 with AdamW in the paper.
        views: augmented views of each image; 64, or 32 for CIFAR.
        prior: N, the weight of the source statistics of BatchNorm in images; a negative value uses them alone.
        crop: before the chains, "resized" (ImageNet), "padded" (CIFAR) or "none".
        flip: mirror views with probability one half; switch it off where mirrored classes differ, as digits do.
        """

        lr: FiniteNotNegative = 2.5e-4
        optimizer: Literal["sgd", "adamw"] = "sgd"
        weight_decay: FiniteNotNegative = 0.0
        views: Count = 64
        prior: int = 16
        crop: Crop = "resized"
        flip: bool = True

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a BatchNorm without source statistics, unless `prior` is negative.

        A model inside nn.DataParallel is taken out, since torch.func refuses it; so one device does all the work.
        """
        if isinstance(self.model, nn.DataParallel):
            self.model = self.model.module
        self.model.requires_grad_(True)
        # Eval mode already uses the source statistics alone.
        blended = (
            0 if self.config.prior < 0 else blend_statistics(self.model, self.config.prior / (self.config.prior + 1))
        )
        # Blended statistics belong to one image's views, and setting them is a side effect that vmap cannot see.
        self.together = blended == 0
        # A CPU generator gives an image the same numbers whatever its batch; GPU generators do not.
        on_cpu = self.generator.device.type == "cpu"
        self.draws = self.generator if on_cpu else torch.Generator().manual_seed(self.generator.initial_seed())

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to logits [n, classes], each image with its own parameters."""
        images = recordable(images)
        with gradients():
            parts = torch.split(images, self._images_per_pass(images))
            return torch.cat([self._adapt_and_predict(part) for part in parts])

    def _images_per_pass(self, images: Tensor) -> int:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        views: int = self.config.views
        return max(1, min(VIEW_VALUES // (views * images[0].numel()), PARAMETER_VALUES // max(parameters, 1)))

    def _adapt_and_predict(self, images: Tensor) -> Tensor:
        views = augmix(
            images,
            draw(len(images), self.config.views, self.draws),
            crop=self.config.crop,
            flip=self.config.flip,
        ).to(images.dtype)
        if self.together and len(images) > 1:
            before = save_module(self.model, weights=False)
            try:
                logits = self._all_at_once(images, views)
                if same(save_module(self.model, weights=False, copied=False), before):
                    return logits
                why = "a forward pass of the model changes what it keeps"
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                why = f"vmap refuses the model: {error}"
            load_module(self.model, before)
            warnings.warn(f"memo adapts to one image at a time, since {why}", stacklevel=5)
            self.together = False
        return torch.stack([self._one(image, own) for image, own in zip(images, views, strict=True)])

    def _one(self, image: Tensor, views: Tensor) -> Tensor:
        parameters = dict(self.model.named_parameters())
        loss = marginal_entropy(self.model(views))
        slopes = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            stepped = {
                name: self.step(parameter, slope)
                for (name, parameter), slope in zip(parameters.items(), slopes, strict=True)
            }
            logits = self._call(stepped, image[None])
        return logits[0]

    def _all_at_once(self, images: Tensor, views: Tensor) -> Tensor:
        parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}

        def loss(parameters: dict[str, Tensor], views: Tensor) -> Tensor:
            return marginal_entropy(self._call(parameters, views))

        def clean(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return self._call(parameters, image[None])[0]

        # vmap supports the plain formula of attention; it would run the fused kernels in a slow loop.
        with sdpa_kernel(SDPBackend.MATH):
            slopes = vmap(grad(loss), in_dims=(None, 0))(parameters, views)
            with torch.no_grad():
                stepped = {name: self.step(parameter, slopes[name]) for name, parameter in parameters.items()}
                logits: Tensor = vmap(clean)(stepped, images)
        return logits

    def _call(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Run the model with other parameters by name, each in every module that uses it."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        # Module by module: torch's own way to tie parameters gives a module that is used twice wrong values.
        placed = {
            f"{prefix}.{key}" if prefix else key: parameters[names[id(parameter)]]
            for prefix, module in self.model.named_modules()
            for key, parameter in module._parameters.items()
            if parameter is not None
        }
        logits: Tensor = functional_call(self.model, placed, (images,), tie_weights=False)
        return logits

    def step(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return the parameter after the first step of a new optimiser; a leading dimension of the gradient is kept.

        The first bias-corrected step of AdamW is g / (|g| + epsilon), whatever its betas.
        """
        lr: float = self.config.lr
        decay: float = self.config.weight_decay
        if self.config.optimizer == "adamw":
            exact = at_least_float32(gradient)  # float16 rounds the addend to 0
            change = lr * exact / (exact.abs() + ADAM_EPSILON)
            return parameter * (1 - lr * decay) - change.to(parameter.dtype)
        return parameter - lr * (gradient + decay * parameter)
