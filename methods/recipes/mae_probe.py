"""`mae_probe`: a linear probe of a masked autoencoder that keeps its decoder, for training at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from methods.base import Job, Labelled, Options, Recipe, Unlabelled, Unsupported
from methods.identity import component
from methods.limits import FinitePositive
from methods.nets.weights import Weights
from methods.training.finetune import FineTune, probe_of


class MaeProbe(Recipe):
    """The stock with a linear head fitted to clean images; encoder and decoder stay as pre-training left them.

    The classifier on which Gandelsman et al. 2022, arXiv:2209.07522 train at test time (`ttt_mae`): an encoder that is
    fine-tuned to classes no longer makes what the decoder reads. As their linear head, it is fitted to standardised
    features. Costs one forward pass of the labelled images.
    """

    search = {"probe_l2": (1e-3, 1e-2, 1e-1)}

    @dataclass(frozen=True)
    class Config(Options):
        """Options. probe_l2: factor of half the squared norm of the head's weights, added to the mean loss."""

        probe_l2: FinitePositive = 1e-2

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        """Raises Unsupported for a stock without a decoder."""
        if not stock.part("decoder"):
            raise Unsupported(
                "the stock has no decoder, which this method keeps for training at test time; give a masked "
                "autoencoder with its decoder, such as a file of `bench stock`"
            )
        head = probe_of(stock, source, FineTune(probe_l2=self.config.probe_l2))
        label = "linear probe with the decoder of the stock"
        return {"": Job(with_decoder, None, (head, stock), None, label, keeps=("decoder",))}


@component("methods.mae_probe.with_decoder")
def with_decoder(
    inputs: Sequence[Weights], data: None = None, config: None = None, generator: torch.Generator | None = None
) -> Weights:
    """Return the classifier `inputs[0]` beside the decoder of `inputs[1]`; a job function."""
    decoder = {name: tensor for name, tensor in inputs[1].tensors.items() if name.startswith("decoder.")}
    return Weights(inputs[0].architecture, {**inputs[0].tensors, **decoder})
