"""CMF: continual momentum filtering on parameter space, ROID with a Kalman filter (Lee and Chang 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapters.common.teachers import move_towards
from methods.adapters.roid import Roid, RoidOptions
from methods.base import Source
from methods.limits import Fraction, NotNegative

# Number of adapted parameters for which the release defines its noise, and bounds of its gain.
REFERENCE_PARAMETERS = 38400
LEAST_GAIN = 0.89
CERTAIN_GAIN = 0.9999


class Cmf(Roid):
    """ROID whose parameters follow a hidden state, which a Kalman filter infers from source and adapted parameters.

    Lee and Chang 2024 (ICLR), algorithm 1. After each step the hidden state moves to the source by 1 - alpha and then
    to the adapted parameters by 1 - beta, the gain of the filter, and the parameters move to the hidden state by 1 -
    gamma. Its variance v <- beta (alpha^2 v + q') does not depend on the data; q' = q * (adapted parameters / 38400),
    beta = (1 - q') / (alpha^2 v + 1), limited to [0.89, 1] as in the release.
    """

    search = {"lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "optimizer": ("sgd", "adam"), "q": (0.0005, 0.005, 0.05)}

    @dataclass(frozen=True)
    class Config(RoidOptions):
        """Defaults of the paper for ImageNet.

        alpha: share of the hidden state that stays when it moves to the source, in [0, 1].
        gamma: share of the parameters that stays when they move to the hidden state, in [0, 1].
        q: variance of the noise of the transition, at least 0.
        """

        alpha: Fraction = 0.99
        gamma: Fraction = 0.99
        q: NotNegative = 0.005

    def configure(self, source: Source | None) -> None:
        super().configure(source)
        self.hidden = [value.clone() for value in self.anchor]
        self.variance = 0.0

    def settle(self) -> None:
        """Predict and correct the filter once, then move the parameters to the hidden state by 1 - gamma."""
        noise = self.config.q * sum(value.numel() for value in self.parameters) / REFERENCE_PARAMETERS
        move_towards(self.hidden, self.anchor, 1 - self.config.alpha)
        predicted = self.config.alpha**2 * self.variance + noise
        gain = max(LEAST_GAIN, (1 - noise) / (predicted + 1 - noise))
        gain = 1.0 if gain >= CERTAIN_GAIN else gain
        self.variance = gain * predicted
        move_towards(self.hidden, self.parameters, 1 - gain)
        move_towards(self.parameters, self.hidden, 1 - self.config.gamma)
