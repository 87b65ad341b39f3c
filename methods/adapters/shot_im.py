"""SHOT-IM: adapts the features to a fixed head by information maximisation, online (Liang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.base import Adapter, Options, Source, Unsupported
from methods.identity import component
from methods.limits import Count, FiniteNotNegative
from methods.losses import at_least_float32, entropy, gradients, recordable
from methods.nets.feature_head_split import split
from methods.online import adam


class ShotIM(Adapter):
    """Lowers the entropy of each prediction and raises the entropy of their mean, over all parameters but the head's.

    Liang et al. 2020, arXiv:2002.08546, equations 2-3 (information maximisation; its pseudo-labels need the whole test
    set), run online as in the release of T3A (Iwasawa and Matsuo 2021). BatchNorm keeps its source statistics, dropout
    and stochastic depth stay off. The mean prediction carries little information in batches that are small relative to
    the number of classes; on a single image the two terms nearly cancel.
    """

    tested_against = "golden"
    search = {"lr": (5e-6, 5e-5, 5e-4), "steps": (1, 3)}
    checked_with = {"lr": 1e-3}

    @component("methods.shot_im.ShotIM.Config")
    @dataclass(frozen=True)
    class Config(Options):
        """Grid of the T3A release: a tenth, once and ten times the rate of the source (there 5e-5), and 1 or 3 steps.

        lr: step size of Adam, without weight decay.
        steps: updates on each batch; the prediction comes from the last forward pass, before its update.
        """

        lr: FiniteNotNegative = 5e-5
        steps: Count = 1

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a classifier that does not end in one linear layer, is only that, or is in float16."""
        head = {id(parameter) for parameter in split(self.model).head.parameters()}
        self.parameters = [parameter for parameter in self.model.parameters() if id(parameter) not in head]
        if not self.parameters:
            raise Unsupported(
                "shot_im adapts what comes before the last linear layer and this model has no parameters there; "
                "choose a deeper classifier, or a method that changes the head, such as t3a"
            )
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = adam(self.parameters, self.config.lr)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the (last) update."""
        images = recordable(images)
        with gradients():
            for _ in range(self.config.steps):
                logits: Tensor = self.model(images)
                information(logits).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        return logits.detach()


def information(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions minus the entropy of their mean, in nats: [n, classes] -> scalar.

    1e-5 is added to the mean prediction inside its logarithm, as in the releases.
    """
    mean = at_least_float32(logits).softmax(dim=1).mean(dim=0)
    return entropy(logits).mean() + (mean * (mean + 1e-5).log()).sum()
