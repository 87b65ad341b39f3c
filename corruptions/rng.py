"""Random numbers that belong to an image, not to a batch, a worker or a device.

A counter-based generator (Philox-4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in integer
tensor arithmetic. Its key is a hash of (generator version, data seed, corruption, image id); its counter says which
number of which draw. The same integers come out on every device, in every batch and order. Severity is left out of the
key on purpose: all severities of an image share their random numbers, which makes severity curves smooth.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

VERSION = 1
"""Part of every key: raised whenever the numbers an image gets would change."""

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def image_keys(corruption: str, ids: Iterable[int | str], seed: int) -> Tensor:
    """One 64-bit key per image as two 32-bit words: int64 [n, 2] on the CPU.

    An id is an int or a string; 5 and "5" are different images. Raises TypeError for any other id or seed.
    """
    seed = _whole(seed, "the seed is an int")
    words = [_key(corruption, image_id, seed) for image_id in ids]
    return torch.tensor(words, dtype=torch.int64).view(-1, 2)


def _key(corruption: str, image_id: int | str, seed: int) -> tuple[int, int]:
    if not isinstance(image_id, str):
        image_id = _whole(image_id, "an image id is an int or a string")
    digest = hashlib.blake2b(repr((VERSION, seed, corruption, image_id)).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _whole(value: Any, rule: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{rule}, not {value!r} ({type(value).__name__}); use a number like the index in the data set")
    return operator.index(value)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 of four counter words under two key words: int64 tensors that hold 32-bit values and broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for step in range(_ROUNDS):
        # The low words keep dirty upper halves until they are multiplied: half of the masking is saved.
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (odd >> 32).bitwise_xor_(c1).bitwise_xor_((k0 + step * _KEY_STEPS[0]) & _LOW).bitwise_and_(_LOW)
        c2 = (even >> 32).bitwise_xor_(c3).bitwise_xor_((k1 + step * _KEY_STEPS[1]) & _LOW).bitwise_and_(_LOW)
        c1, c3 = odd, even
    return c0, c1.bitwise_and_(_LOW), c2, c3.bitwise_and_(_LOW)


class Stream:
    """The random numbers of n images. Every call is a new draw; earlier draws never depend on later ones.

    `keys` is int64 [n, 2] from `image_keys`; numbers are made on its device.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self._draws = 0

    def __len__(self) -> int:
        return len(self.keys)

    def words(self, count: int) -> Tensor:
        """The next `count` 32-bit words of every image: int64 [n, count]."""
        blocks = -(-count // 4)
        k0, k1 = self.keys[:, :1], self.keys[:, 1:]
        index = torch.arange(blocks, device=self.keys.device).expand(len(self), -1)
        draw, zero = torch.full_like(k0, self._draws), torch.zeros_like(k0)
        out = torch.stack(philox((index, draw, zero.expand_as(index), zero), (k0, k1)), dim=1)
        self._draws += 1
        return out.flatten(1)[:, :count]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), multiples of 2^-24: float32 [n, *shape]."""
        words = self.words(math.prod(shape))
        return (words >> 8).float().mul_(2.0**-24).view(len(self), *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal by Box-Muller: float32 [n, *shape]. Devices may differ in the last bit."""
        count = math.prod(shape)
        half = -(-count // 2)
        u = self.uniform(2, half)
        radius = u[:, 0].neg().log1p_().mul_(-2.0).sqrt_()
        angle = u[:, 1].mul(2.0 * math.pi)
        pair = torch.stack([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=1)
        return pair.flatten(1)[:, :count].reshape(len(self), *shape)
