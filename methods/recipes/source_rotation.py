"""`source_rotation`: the stock fine-tuned on labels and rotations together, the source of test-time training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import Checkpointer, Job, Labelled, Recipe, Unlabelled
from methods.data_parallel import ALONE, DataParallelGroup, Share
from methods.identity import component
from methods.limits import FiniteNotNegative
from methods.nets import flops
from methods.nets.weights import Classifier, Weights
from methods.training.finetune import FineTune, classification, fit, joint_training
from methods.views.rotations import TURNS, all_rotations, rotate

SIDE_HEAD = "rotation"


@component("methods.source_rotation.Jointly")
@dataclass(frozen=True)
class Jointly(FineTune):
    """Options of fine-tuning on labels and rotations together; see `SourceRotation.Config`."""

    rotations: Literal["expand", "rand"] = "expand"
    rotation_weight: FiniteNotNegative = 1.0


@component("methods.source_rotation.fine_tune_jointly")
def fine_tune_jointly(
    inputs: Sequence[Weights],
    data: Labelled,
    config: Jointly,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
    parallel: DataParallelGroup = ALONE,
) -> Weights:
    """Train a classifier with a rotation head (`rotation.*`, from zero); a job function, resumable and shared.

    Inputs, steps and errors are those of `methods.training.finetune.fine_tune`.
    """

    def loss(model: Classifier, images: Tensor, labels: Tensor, share: Share) -> Tensor:
        of_labels = classification(share.everyone(model(images)), labels, config)
        if config.rotations == "expand":
            rotated, _ = all_rotations(images)
            turns = torch.arange(TURNS, device=labels.device).repeat_interleave(len(labels))
            scores = share.everyone(model.rotation_logits(rotated), TURNS)
        else:
            turns = torch.randint(TURNS, (len(labels),), generator=generator, device=generator.device)
            scores = share.everyone(model.rotation_logits(rotate(images, share.own(turns))))
        return of_labels + config.rotation_weight * F.cross_entropy(scores.float(), turns)

    return fit(inputs, data, config, generator, loss, keep, parallel, side_head=SIDE_HEAD)


class SourceRotation(Recipe):
    """Linear probe, then fine-tuning of the stock on labels and on telling rotations, as test-time training needs.

    Sun et al. 2020, arXiv:1909.13231: each step adds the cross-entropy of a second head that tells by which of four
    quarter turns a view was rotated. Both heads are linear on the features of one encoder (in the release this is
    `--shared layer3`; its main results split the network one stage earlier). Predictions do not use the second head. A
    step passes 5 views of each image ("expand") or 2 ("rand") forward and backward.
    """

    search = {"lr": (1e-3, 2e-3, 3e-3, 4e-3), "epochs": (15, 30, 60), "rotation_weight": (0.3, 1.0)}

    @dataclass(frozen=True)
    class Config(Jointly):
        """Options of fine-tuning (see methods.training.finetune.FineTune) and of the second task.

        rotations: of each view, all four ("expand", as in the release's script) or a random one ("rand").
        rotation_weight: of the cross-entropy of the rotations, which is added to that of the labels; at least 0.
        """

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        """Raises Unsupported where batches cannot be cut into equal parts."""
        config = Jointly(**{field.name: getattr(self.config, field.name) for field in fields(Jointly)})
        views = 1 + (TURNS if config.rotations == "expand" else 1)
        image = views * flops.training(stock.architecture) + 3 * flops.layers((stock.architecture.dim, source.classes))
        return {"": joint_training(fine_tune_jointly, config, stock, source, image, SIDE_HEAD, "rotations")}
