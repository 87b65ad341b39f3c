"""Random numbers that belong to an image, not to a batch, a worker or a device.

A counter-based generator (Philox-4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in integer
tensor arithmetic. Its key is a hash of (generator version, data seed, corruption, image id); its counter names the
number and the draw. The integers are the same on every device, in every batch and order. The key leaves out severity on
purpose: all severities of an image share their random numbers, which makes severity curves smooth.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from corruptions.native import compiled

VERSION = 1
"""Part of every key: raised whenever the numbers an image gets would change."""

Word = TypeVar("Word", int, Tensor)

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
# Up to this many blocks are faster one by one than in arrays.
_FEW_BLOCKS = 8
# Blocks per round of the generator on a CPU: three buffers of them stay in its cache.
_CACHED_BLOCKS = 1 << 14
# A tensor on the CPU, as a number costs a few thousand values' time to convert.
_MINUS_TWO = torch.tensor(-2.0)


def image_keys(corruption: str, ids: Iterable[int | str], seed: int) -> Tensor:
    """One 64-bit key per image as two 32-bit words: int64 [n, 2] on the CPU.

    An id is an int or a string; 5 and "5" are different images. Raises TypeError for any other id or seed.
    """
    seed = _whole(seed, "the seed is an int")
    words = [_key(corruption, image_id, seed) for image_id in ids]
    return torch.from_numpy(np.array(words, np.int64).reshape(-1, 2))


def _key(corruption: str, image_id: int | str, seed: int) -> tuple[int, int]:
    if not isinstance(image_id, str):
        image_id = _whole(image_id, "an image id is an int or a string")
    digest = hashlib.blake2b(repr((VERSION, seed, corruption, image_id)).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _whole(value: Any, rule: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{rule}, not {value!r} ({type(value).__name__}); use a number like the index in the data set")
    return operator.index(value)


def philox(counter: Sequence[Word], key: Sequence[Word]) -> tuple[Word, Word, Word, Word]:
    """Philox-4x32-10 of four counter words under two key words: ints, or int64 tensors that broadcast, of 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for step in range(_ROUNDS):
        # The low words keep dirty upper halves until they are multiplied: half of the masking is saved.
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((odd >> 32) ^ c1 ^ (k0 + step * _KEY_STEPS[0])) & _LOW
        c2 = ((even >> 32) ^ c3 ^ (k1 + step * _KEY_STEPS[1])) & _LOW
        c1, c3 = odd, even
    return c0, c1 & _LOW, c2, c3 & _LOW


def philox_on_cpu(keys: Tensor, draw: int, blocks: int) -> Tensor:
    """The words of `philox` for the counters (block, draw, 0, 0) under n keys int64 [n, 2] on the CPU: int32 bits.

    uint32 words as int32 [n, 4, blocks]. The same integers as `philox`, in numpy, whose unsigned arithmetic and small
    overhead take half the time there. The four counter words lie in two arrays of two lanes: the words to multiply
    (the upper halves of their 64 bits are zero) and the last products, of which only the lower halves count. The lanes
    change places in every round.
    """
    n = len(keys)
    words = keys.numpy().astype(np.uint64)
    low, half = np.uint64(_LOW), np.uint64(32)
    rounds = np.arange(_ROUNDS, dtype=np.uint64)[:, None]
    # Key words [round, lane, n, 1], the lanes as they lie after that round.
    all_keys = np.stack([(words[:, i] + rounds * np.uint64(_KEY_STEPS[i])) & low for i in (0, 1)], axis=1)[..., None]
    all_keys[::2] = all_keys[::2, ::-1]
    round_keys = list(all_keys)
    factors = np.array(_MULTIPLIERS, dtype=np.uint64)
    turned = (factors[:, None], factors[::-1, None])
    out = np.empty((n, 4, blocks), dtype=np.uint32)
    step = min(max(1, _CACHED_BLOCKS // max(n, 1)), blocks)
    buffers = np.empty((3, 2, n * step + 1), dtype=np.uint64)
    for start in range(0, blocks, step):
        width = min(step, blocks - start)
        count = n * width
        state, *products = buffers[:, :, :count]
        # Upper halves are read as if the row began half a word later: whole rows of halves are several times faster
        # than every second one. The mask removes the rest.
        halves = buffers[:, :, : count + 1].view(np.uint32)
        # For few numbers, slicing takes most of the time, so each slice is made once.
        mixed, upper, others = halves[0, :, :-2], list(halves[1:, :, 1:-1]), list(halves[1:, ::-1, :-2])
        by_image = state.reshape(2, n, width)
        # The first round is simple, as two of the counter words are zero and one is the same in all blocks.
        product = np.arange(start, start + width, dtype=np.uint64) * factors[0]
        np.bitwise_xor(product >> half, round_keys[0][0], out=by_image[0])
        by_image[1] = round_keys[0][1] ^ np.uint64(draw)
        products[0].reshape(2, n, width)[0], products[0][1] = product, 0
        for i in range(1, _ROUNDS):
            now = i % 2
            np.multiply(state, turned[now], out=products[now])
            np.bitwise_xor(upper[now], others[1 - now], out=mixed)
            np.bitwise_and(state, low, out=state)
            np.bitwise_xor(by_image, round_keys[i], out=by_image)
        pairs = out.reshape(n, 2, 2, blocks)[..., start : start + width]
        for place, words in ((0, state), (1, products[1])):
            np.copyto(pairs[:, :, place], words.reshape(2, n, width).swapaxes(0, 1), casting="unsafe")
    return torch.from_numpy(out.view(np.int32))


class Stream:
    """The random numbers of n images. Every call is a new draw; earlier draws never depend on later ones.

    `keys` is int64 [n, 2] from `image_keys`; numbers are made on its device.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self._length = len(keys)
        self._draws = 0

    def __len__(self) -> int:
        return self._length

    def words(self, count: int) -> Tensor:
        """Return the next `count` 32-bit words of every image: int64 [n, count]."""
        words = self._blocks(count).long() & _LOW
        return words.flatten(1)[:, :count]

    def _blocks(self, count: int) -> Tensor:
        """The bits of the next words, at least `count`, [n, 4, blocks]: int32 or int64."""
        blocks, draw = -(-count // 4), self._draws
        self._draws += 1
        if self.keys.device.type == "cpu":
            if len(self) * blocks <= _FEW_BLOCKS:
                words = [[philox((i, draw, 0, 0), key) for i in range(blocks)] for key in self.keys.tolist()]
                return torch.tensor(words, dtype=torch.int64).view(len(self), blocks, 4).mT
            return philox_on_cpu(self.keys, draw, blocks)
        k0, k1 = self.keys[:, :1], self.keys[:, 1:]
        index = torch.arange(blocks, device=self.keys.device).expand(len(self), -1)
        number, zero = torch.full_like(k0, draw), torch.zeros_like(k0)
        return torch.stack(philox((index, number, zero.expand_as(index), zero), (k0, k1)), dim=1)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), multiples of 2^-24: float32 [n, *shape]."""
        count = math.prod(shape)
        on_cpu = self.keys.device.type == "cpu"
        if on_cpu and (loops := compiled()) is not None:
            found = np.empty((len(self), 4, -(-count // 4)), np.float32)
            loops.uniforms(self.keys.numpy(), self._draws, found)
            self._draws += 1
            return torch.from_numpy(found.reshape(len(self), -1)[:, :count]).reshape(len(self), *shape)
        if on_cpu and len(self) * count > 4 * _FEW_BLOCKS:
            words = self._blocks(count).numpy().view(np.uint32).reshape(len(self), -1)[:, :count]
            # As signed numbers of 24 bits, which are converted faster.
            found = (words >> np.uint32(8)).view(np.int32).astype(np.float32)
            return torch.from_numpy(np.multiply(found, np.float32(2.0**-24), out=found)).view(len(self), *shape)
        # The mask removes the copies of the sign that shift into 32-bit words.
        unit = self._blocks(count).bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).float().mul_(2.0**-24)
        return unit.flatten(1)[:, :count].reshape(len(self), *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal by Box-Muller: float32 [n, *shape]. Devices may differ in the last bit."""
        count = math.prod(shape)
        half = -(-count // 2)
        u = self.uniform(2, half)
        if self.keys.device.type == "cpu" and (loops := compiled()) is not None:
            found, parts = u.numpy(), np.empty((3, len(self), half), np.float32)
            loops.half_normal(found, parts)
            # Torch's own functions of contiguous numbers, as below; others round some values otherwise.
            radius, angle, sine = torch.from_numpy(parts).unbind()
            radius.log_().mul_(_MINUS_TWO).sqrt_()
            torch.sin(angle, out=sine)
            angle.cos_()
            loops.paired(parts, found)
            return u.flatten(1)[:, :count].reshape(len(self), *shape)
        # 1 - u is exact, and log is many times faster than log1p on CPUs.
        radius = (1 - u[:, :1]).log_().mul_(-2.0).sqrt_()
        angle = u[:, 1].mul_(2.0 * math.pi)
        pair = torch.empty_like(u)
        torch.cos(angle, out=pair[:, 0])
        torch.sin(angle, out=pair[:, 1])
        return pair.mul_(radius).flatten(1)[:, :count].reshape(len(self), *shape)
