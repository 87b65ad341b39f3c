"""RDumb: ETA that resets itself at a fixed interval (Press et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.adapters.eta import Eta, EtaOptions
from methods.base import Source
from methods.limits import Count


class Rdumb(Eta):
    """ETA that returns to the source after every `interval` batches, so that a long stream cannot make it collapse.

    Press et al. 2023, arXiv:2306.05401, section 5. Parameters, optimiser and the running mean are reset; every batch
    counts, including batches from which no image was learnt.
    """

    search = {"lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "epsilon": (0.05, 0.1, 0.2, 0.4), "interval": (125, 250, 500, 1000)}
    checked_with = {**Eta.checked_with, "interval": 3}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4, "epsilon": 0.05, "interval": 1000},
        "imagenet-gn": {"lr": 2.5e-4, "epsilon": 0.05, "interval": 1000},
        "imagenet-ln": {"lr": 1e-3, "epsilon": 0.05, "interval": 1000},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam", "epsilon": 0.4, "interval": 1000},
    }

    @dataclass(frozen=True)
    class Config(EtaOptions):
        """Defaults of the paper for ImageNet.

        interval: number of batches between two returns to the source.
        """

        interval: Count = 1000

    def configure(self, source: Source | None) -> None:
        super().configure(source)
        self.batches = 0

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the update."""
        if self.batches == self.config.interval:
            self.reset()
        self.batches += 1
        return super().predict(images)
