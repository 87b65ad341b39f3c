"""SHOT: information maximisation and pseudo-labels over the pool, under a frozen head (Liang et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import Checkpointer, Job, Labelled, Recipe, Unlabelled, Work
from methods.identity import component
from methods.limits import FiniteNotNegative, Whole
from methods.losses import at_least_float32
from methods.nets import flops
from methods.nets.weights import Classifier, Weights
from methods.norms import training_statistics
from methods.recipes.pool_adaptation import PoolOptions, need_pool
from methods.recipes.source import source_classifier
from methods.training.loading import InOrder, loaded, upload
from methods.training.loop import Batches, check_size

_EPSILON = 1e-5
_FEATURE_BATCH = 192


class PoolShot(Recipe):
    """Lowers the entropy of each prediction, raises that of their mean, and learns labels from centroids of features.

    Liang et al. 2020, arXiv:2002.08546, equations 2-7, on all parameters before the head. Before each pass over the
    pool every image gets the label of the nearest centroid (`pseudo_labels`). SGD with Nesterov momentum 0.9, weight
    decay 1e-3 and the rate (1 + 10 p)^-0.75 for the share p of steps taken; BatchNorm normalises with each batch and
    updates its averages, as in training. Costs one forward and one backward pass over the pool for each pass, and one
    forward pass for its labels.

    As in the release for networks without a bottleneck of their own (object/image_pretrained.py), all layers have a
    tenth of its rate of 0.01. It keeps the ragged last batch of a pass, crops and mirrors images; here the batch is
    dropped and images are taken whole, as in every method on the pool.
    """

    search = {"rate": (1e-4, 3e-4, 1e-3, 3e-3), "passes": (5, 15), "pseudo": (0.1, 0.3)}
    pool = "shifted"

    @dataclass(frozen=True)
    class Config(PoolOptions):
        """Options of the source classifier and of the adaptation, with the release's defaults.

        pseudo: weight of the cross-entropy with pseudo-labels (cls_par); 0 leaves information maximisation.
        information: weight of the entropies (ent_par).
        threshold: a class is a pseudo-label only if more images of the pool than this are predicted to be of it.
        """

        rate: float = 1e-3
        passes: int = 15
        pseudo: FiniteNotNegative = 0.3
        information: FiniteNotNegative = 1.0
        threshold: Whole = 0

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        pool = need_pool(pool)
        options = self.config
        config = Shot(
            options.rate, options.passes, options.batch, options.pseudo, options.information, options.threshold
        )
        steps = config.passes * config.steps_of_a_pass(len(pool))
        head = 3 * flops.layers((stock.architecture.dim, source.classes))
        images = steps * min(config.batch_size, len(pool))
        labelling = config.passes * len(pool) * flops.forward(stock.architecture) * (config.pseudo > 0)
        work = Work(images * (flops.training(stock.architecture) + head) + labelling, steps)
        tuned = source_classifier(stock, source, options)
        label = f"{type(self).__name__} at rate {config.rate:g}"
        return {"": Job(shot, config, (tuned,), pool, label, resumable=True, work=work)}


@component("methods.shot_pool.Shot")
@dataclass(frozen=True)
class Shot:
    """How to adapt on a pool: rate, passes over it, images in a batch, and the options of PoolShot."""

    rate: float = 1e-3
    passes: int = 15
    batch_size: int = 64
    pseudo: float = 0.3
    information: float = 1.0
    threshold: int = 0

    def steps_of_a_pass(self, count: int) -> int:
        """Return the number of batches of a pass over this many images, without a ragged last one."""
        return max(1, count // self.batch_size)


@component("methods.shot_pool.shot")
def shot(
    inputs: Sequence[Weights],
    data: Unlabelled,
    config: Shot,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
) -> Weights:
    """Return the classifier `inputs[0]` after SHOT on a pool in random order; a resumable job function.

    Raises TypeError for labelled images, ValueError for images of another size or a threshold that no class passes,
    FloatingPointError if the training diverges.
    """
    if isinstance(data, Labelled):
        raise TypeError("adaptation never sees labels; pass data.without_labels()")
    check_size(data, inputs[0].architecture)
    model = Classifier.of(inputs[0]).to(generator.device).eval()
    model.head.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=config.rate, momentum=0.9, nesterov=True, weight_decay=1e-3)
    order = Batches(len(data), config.batch_size, generator, data.images.device, drop_last=True)
    a_pass = config.steps_of_a_pass(len(data))
    steps = config.passes * a_pass
    labels = torch.zeros(len(data), dtype=torch.int64, device=generator.device)
    done = 0
    if (state := keep.load() if keep is not None else None) is not None:
        done, labels = state["step"], state["labels"].to(generator.device)
        for part, name in ((model, "model"), (optimiser, "optimiser"), (order, "order")):
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
    for step, (rows, images) in zip(range(done, steps), loaded(data.images, order, generator.device), strict=False):
        if config.pseudo and step % a_pass == 0:
            labels = pseudo_labels(*answers(model, data, generator.device), config.threshold)
        for group in optimiser.param_groups:
            group["lr"] = config.rate * (1 + 10 * (step + 1) / steps) ** -0.75
        with training_statistics(model):
            logits = model(images.float() / 255)
        objective(logits, labels[upload(rows, generator.device)], config).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if keep is not None and step + 1 < steps and keep.due():
            keep.save(
                {
                    "step": step + 1,
                    "labels": labels,
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "order": order.state_dict(),
                    "generator": generator.get_state(),
                }
            )
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise FloatingPointError("SHOT diverged on the pool; lower its rate")
    return model.weights()


def objective(logits: Tensor, labels: Tensor, config: Shot) -> Tensor:
    """Return the loss of a batch: [n, classes] and pseudo-labels int64 [n] -> scalar; 1e-5 is added in logarithms."""
    logits = at_least_float32(logits)
    p = logits.softmax(1)
    mean = p.mean(0)
    unsure = -(p * (p + _EPSILON).log()).sum(1).mean()
    diverse = -(mean * (mean + _EPSILON).log()).sum()
    loss = config.information * (unsure - diverse)
    return loss + config.pseudo * F.cross_entropy(logits, labels) if config.pseudo else loss


@torch.no_grad()
def answers(model: Classifier, data: Unlabelled, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the features [n, dim] and logits [n, classes] of all images, in eval mode."""
    features = torch.cat(
        [
            model.features(images.float() / 255)
            for _, images in loaded(data.images, InOrder(len(data), _FEATURE_BATCH, data.images.device), device)
        ]
    )
    return features, model.head(features)


@torch.no_grad()
def pseudo_labels(features: Tensor, logits: Tensor, threshold: int = 0) -> Tensor:
    """Return the class of the nearest centroid by cosine, int64 [n], of features [n, dim] and logits [n, classes].

    The centroids are means of features, extended by 1 and scaled to length 1: first weighted by the predictions, then
    of the images that got each label, which decides anew (Liang et al. 2020, equations 4-6). Only classes with more
    than `threshold` labels count, of the predictions first and of the first labels then. Raises ValueError if no class
    has so many.
    """
    # In float64, for centroids of features near one another have cosines near 1.
    features = F.normalize(torch.cat([features, features.new_ones(len(features), 1)], dim=1).double(), dim=1)
    weights = logits.double().softmax(1)
    labels = logits.argmax(1)
    for _ in range(2):
        centroids = (weights.T @ features) / (1e-8 + weights.sum(0)[:, None])
        few = labels.bincount(minlength=logits.shape[1]) <= threshold
        if bool(few.all()):
            raise ValueError(
                f"no class has more than {threshold} images of the pool, so there are no pseudo-labels; "
                "lower shot_pool.threshold"
            )
        nearness = features @ F.normalize(centroids, dim=1).T
        labels = nearness.masked_fill(few, -torch.inf).argmax(1)
        weights = F.one_hot(labels, logits.shape[1]).to(features.dtype)
    return labels
