"""Images are read while the step before runs: the same batches and random numbers, and no wait for fast reading."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods.base import Unlabelled
from methods.training.loading import InOrder, KnownBatches, loaded
from methods.training.loop import Batches

CPU = torch.device("cpu")


class Slow:
    """Images whose rows take time to read, as those on a disk, and that note the thread that reads them."""

    dtype = torch.uint8
    ndim = 4
    device = CPU

    def __init__(self, count: int, seconds: float) -> None:
        self._pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        self.shape, self._seconds = self._pixels.shape, seconds
        self.threads: list[str] = []

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        self.threads.append(threading.current_thread().name)
        time.sleep(self._seconds)
        if len(self._pixels[rows]) == 0:
            raise IndexError("no rows")
        return self._pixels[rows]


def order(count: int, size: int, seed: int = 0) -> Batches:
    return Batches(count, size, torch.Generator().manual_seed(seed), CPU, drop_last=True)


def test_an_order_can_be_seen_in_advance_up_to_the_end_of_an_epoch() -> None:
    seen, plain = order(10, 4), order(10, 4)
    assert seen.following() is None
    for step in range(6):
        batch = next(seen)
        assert torch.equal(batch, next(plain))
        state = seen.state_dict()
        following = seen.following()
        assert (following is None) == (step % 2 == 1)
        assert torch.equal(state["order"], seen.state_dict()["order"])
        assert state["place"] == seen.state_dict()["place"]
    batches = InOrder(5, 2, CPU)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches.following() is None


@pytest.mark.parametrize("overlap", [False, True])
def test_batches_are_those_of_reading_one_by_one(overlap: bool) -> None:
    """Over several epochs, with draws between the batches as a training makes them."""
    images, generator = Slow(10, 0), torch.Generator().manual_seed(5)
    plain = torch.Generator().manual_seed(5)
    expected = Batches(10, 4, plain, CPU, drop_last=True)
    stream = loaded(images, Batches(10, 4, generator, CPU, drop_last=True), CPU, lambda i: i[1:], overlap=overlap)
    for _, (indices, found) in zip(range(7), stream, strict=False):
        wanted = next(expected)
        assert torch.equal(indices, wanted)
        assert torch.equal(found[:, 0, 0, 0].long(), wanted[1:])
        assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=plain))
    stream.close()
    elsewhere = {name for name in images.threads if name != threading.main_thread().name}
    assert bool(elsewhere) == overlap


def seconds_of(make: Callable[[], object]) -> float:
    start = time.perf_counter()
    make()
    return time.perf_counter() - start


def test_a_step_does_not_wait_where_reading_is_faster() -> None:
    """Steps and readings that sleep, as a GPU and a disk do for this process."""

    def epoch(overlap: bool) -> None:
        images = Slow(40, 0.01)
        for _ in loaded(images, InOrder(40, 4, CPU), CPU, overlap=overlap):
            time.sleep(0.02)

    assert seconds_of(lambda: epoch(True)) < 0.25 < 0.29 < seconds_of(lambda: epoch(False))


def test_an_error_of_the_reader_reaches_the_caller_and_the_thread_ends() -> None:
    stream = loaded(
        Slow(4, 0), KnownBatches([torch.tensor([0]), torch.tensor([], dtype=torch.int64)]), CPU, overlap=True
    )
    next(stream)
    with pytest.raises(IndexError, match="no rows"):
        next(stream)
    stopped = loaded(Slow(8, 0), InOrder(8, 2, CPU), CPU, overlap=True)
    next(stopped)
    stopped.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_images_count_as_a_pool() -> None:
    assert len(Unlabelled(Slow(3, 0), "slow")) == 3
