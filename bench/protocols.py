"""The order of the stream and where an adapter is reset: a protocol turns conditions into segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import nearest
from bench.shifts.base import stream_rng
from bench.trial import Condition


@dataclass(frozen=True)
class Segment:
    """A stretch of the stream after which records can be made.

    `reset`: the adapter returns to its state after `prepare` first. `episodic`: it also does so before every batch.
    `conditions[order[i]]` and `ids[i]` say what the i-th image is.
    """

    reset: bool
    episodic: bool
    conditions: tuple[Condition, ...]
    which: np.ndarray
    ids: np.ndarray


Planner = Callable[[Sequence[Condition], np.ndarray, int], list[Segment]]


def _one(condition: Condition, ids: np.ndarray, seed: int, *, reset: bool, episodic: bool = False) -> Segment:
    order = stream_rng(seed, "order", str(condition)).permutation(len(ids))
    return Segment(reset, episodic, (condition,), np.zeros(len(ids), dtype=np.int64), ids[order])


def _reset_each_shift(conditions: Sequence[Condition], ids: np.ndarray, seed: int) -> list[Segment]:
    return [_one(condition, ids, seed, reset=True) for condition in conditions]


def _episodic(conditions: Sequence[Condition], ids: np.ndarray, seed: int) -> list[Segment]:
    return [_one(condition, ids, seed, reset=True, episodic=True) for condition in conditions]


def _continual(conditions: Sequence[Condition], ids: np.ndarray, seed: int) -> list[Segment]:
    clean = [_one(c, ids, seed, reset=True) for c in conditions if c.corruption is None]
    shifted = [c for c in conditions if c.corruption is not None]
    return clean + [_one(c, ids, seed, reset=i == 0) for i, c in enumerate(shifted)]


def _mixed_domains(conditions: Sequence[Condition], ids: np.ndarray, seed: int) -> list[Segment]:
    clean = [_one(c, ids, seed, reset=True) for c in conditions if c.corruption is None]
    shifted = tuple(c for c in conditions if c.corruption is not None)
    if not shifted:
        return clean
    order = stream_rng(seed, "order", "mixed").permutation(len(shifted) * len(ids))
    which, place = np.divmod(order, len(ids))
    return [*clean, Segment(True, False, shifted, which, ids[place])]


PROTOCOLS: dict[str, tuple[Planner, str]] = {
    "reset_each_shift": (_reset_each_shift, "each condition is a stream of its own; the adapter is reset before it"),
    "episodic": (_episodic, "as reset_each_shift, and the adapter is reset before every batch"),
    "continual": (_continual, "one stream, conditions one after another in the shift's order, no reset between them"),
    "mixed_domains": (_mixed_domains, "one stream, images of all conditions interleaved at random"),
}


def plan_stream(protocol: str, conditions: Sequence[Condition], ids: np.ndarray, seed: int) -> list[Segment]:
    """The segments of a protocol. Clean is always a stream of its own, so it never adapts to shift."""
    planner, _ = PROTOCOLS[nearest(protocol, PROTOCOLS, "protocol")]
    return planner(conditions, ids, seed)
