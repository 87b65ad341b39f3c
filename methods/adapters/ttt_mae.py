"""TTT-MAE: test-time training on the reconstruction of each image's hidden patches (Gandelsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Adapter, Options, Source, Unsupported
from methods.limits import Count, FiniteNotNegative, FractionBelowOne, ProperFraction
from methods.losses import gradients, recordable
from methods.nets.masked_autoencoder import (
    Decoder,
    patchify,
    pixel_targets,
    random_order,
    reconstruction_loss,
    visible_patches,
)
from methods.nets.vit import encode_visible, pick
from methods.nets.weights import AutoencoderClassifier


class TttMae(Adapter):
    """For each image alone: SGD on the masked reconstruction of the image, then its prediction by the same encoder.

    Gandelsman et al. 2022, arXiv:2209.07522, section 4. Each step hides other random patches in each of `views` copies
    of the image. Trained are the encoder and the token in place of hidden patches; decoder, head and positions stay as
    they are (`finetune_mode` encoder of the release), and the next image starts from the source again, momentum
    included. It needs a classifier that kept the decoder of its stock (the recipe mae_probe).

    Costs steps * views forward and backward passes on the visible patches of an image, and one whole forward pass.
    """

    tested_against = "golden"
    search = {"lr": (1e-3, 5e-3, 2e-2), "steps": (10, 20)}
    checked_with = {"lr": 0.02, "steps": 3, "views": 4}
    needs = "mae_probe"

    @dataclass(frozen=True)
    class Config(Options):
        """Defaults of the release's command for ImageNet-C (a rate of 0.01 for 256 views).

        lr: step size of SGD, without weight decay.
        momentum: of SGD; in [0, 1).
        steps: updates on each image.
        views: copies of the image in a batch, each with other hidden patches.
        mask_ratio: fraction of patches that are hidden, in (0, 1).
        norm_pix: reconstruct each patch normalised by its own mean and deviation. It must be what the decoder was
            trained for: yes for the release's checkpoints, no for stocks of `bench stock` without --norm-pix and for
            MAE's visualisation files.
        """

        lr: FiniteNotNegative = 5e-3
        momentum: FractionBelowOne = 0.9
        steps: Count = 20
        views: Count = 128
        mask_ratio: ProperFraction = 0.75
        norm_pix: bool = False

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a classifier without a decoder, ValueError for a mask_ratio that hides no patch."""
        classifier = self.classifier
        shape = classifier.architecture
        visible = visible_patches(shape.tokens, self.config.mask_ratio)
        decoder = Decoder(shape).requires_grad_(False)
        decoder.load_state_dict({name: classifier.decoder[name] for name in decoder.state_dict()})
        decoder.to(next(classifier.encoder.parameters()))
        self.reconstruction = Reconstruction(decoder, shape.patch_size, visible, norm_pix=self.config.norm_pix).eval()
        trained = [value for name, value in classifier.encoder.named_parameters() if name != "pos_embed"]
        self.parameters = [*trained, decoder.mask_token]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.source = [parameter.detach().clone() for parameter in self.parameters]

    @property
    def classifier(self) -> AutoencoderClassifier:
        """The classifier with a decoder, inside the model. Raises Unsupported where there is none."""
        for module in self.model.modules():
            if isinstance(module, AutoencoderClassifier):
                return module
        raise Unsupported(
            "this method reconstructs hidden patches and this classifier has no decoder of a masked autoencoder; use "
            "the recipe mae_probe, on which it runs unless another is named"
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimiser."""
        return torch.optim.SGD(self.parameters, lr=self.config.lr, momentum=self.config.momentum)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to logits [n, classes], each image with its own parameters."""
        images = recordable(images)
        with gradients():
            return torch.cat([self.adapt_and_predict(image[None]) for image in images])

    def adapt_and_predict(self, image: Tensor) -> Tensor:
        """Return the logits [1, classes] of an image [1, 3, h, w], and restore the source."""
        try:
            return self.learn_and_predict(image, self.build_optimizer())
        finally:
            with torch.no_grad():
                for parameter, before in zip(self.parameters, self.source, strict=True):
                    parameter.copy_(before)
                    parameter.grad = None

    def learn_and_predict(self, image: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Take all steps on one image, [1, 3, h, w], and return its logits, [1, classes]."""
        classifier = self.classifier
        views = classifier.normalise(image).expand(self.config.views, -1, -1, -1)
        for _ in range(self.config.steps):
            order = random_order(len(views), classifier.architecture.tokens, self.generator).to(image.device)
            self.reconstruction(views, classifier.encoder, order).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            logits: Tensor = self.model(image)
        return logits


class TttMaeOnline(TttMae):
    """The same training along the stream: each image starts from the parameters and the momentum of the one before.

    As the online version of test-time training (Sun et al. 2020, arXiv:1909.13231); Gandelsman et al. 2022 start anew
    at each image.
    """

    search = {"lr": (1e-4, 1e-3, 5e-3), "steps": (1, 5, 20)}

    def configure(self, source: Source | None) -> None:
        """Raises as `TttMae` does."""
        super().configure(source)
        self.optimizer = self.build_optimizer()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load as any adapter does, and discard the gradients of an interrupted step."""
        super().load_state_dict(state)
        self.optimizer.zero_grad(set_to_none=True)

    def adapt_and_predict(self, image: Tensor) -> Tensor:
        """Return the logits [1, classes] of an image [1, 3, h, w]."""
        return self.learn_and_predict(image, self.optimizer)


class Reconstruction(nn.Module):
    """The mean squared error of hidden patches that a decoder predicts from an encoder's tokens of the visible ones."""

    def __init__(self, decoder: Decoder, patch_size: int, visible: int, *, norm_pix: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.patch_size, self.visible, self.norm_pix = patch_size, visible, norm_pix

    def forward(self, images: Tensor, encoder: nn.Module, order: Tensor) -> Tensor:
        """Return the loss of normalised images [n, 3, h, w] whose patches lie in `order`, int64 [n, L], visible first.

        The encoder is an argument, for it belongs to the classifier.
        """
        patches = patchify(images, self.patch_size)
        predicted = self.decoder(encode_visible(encoder, patches, order[:, : self.visible]), order)
        return reconstruction_loss(
            predicted, pixel_targets(pick(patches, order[:, self.visible :]), norm_pix=self.norm_pix)
        )
