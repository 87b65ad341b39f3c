"""Bring images to the training device; while a GPU computes one batch, a second thread reads the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from methods.base import Images, Unlabelled
from methods.views.ssl_views import Stretched


class Order(Protocol):
    """Index batches (int64), one after another, of which the next one can be seen in advance."""

    def __iter__(self) -> Iterator[Tensor]: ...

    def following(self) -> Tensor | None:
        """Return what the next call of `next` will return, and change nothing; None where that is not known yet."""


class KnownBatches:
    """Index batches that are all known in advance."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = batches
        self._next = 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        batch = self.following()
        if batch is None:
            raise StopIteration
        self._next += 1
        return batch

    def following(self) -> Tensor | None:
        return self._batches[self._next] if self._next < len(self._batches) else None


class InOrder(KnownBatches):
    """The rows 0 to count - 1 once, in batches of `size` and a smaller last one, on `device`."""

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        super().__init__(torch.split(torch.arange(count, device=device), size))


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; from the host to a GPU through pinned memory, for which the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def take(images: Images, indices: Tensor, device: torch.device) -> Tensor:
    """Return the chosen images on the training device; the pool itself stays where it is."""
    return upload(images[indices], device)


def loaded_for_views(
    data: Unlabelled,
    side: int | None,
    order: Order,
    device: torch.device,
    own: Callable[[Tensor], Tensor] = lambda indices: indices,
) -> Iterator[tuple[Tensor, Tensor, Stretched | None]]:
    """Yield what `loaded` yields, of the photographs where there are some, and how these were stretched.

    side: of the views to make, in pixels; None where these cannot be cut from photographs.
    """
    photographs = data.photographs if side is not None else None
    for indices, images in loaded(data.images if photographs is None else photographs, order, device, own):
        stretched = None
        if photographs is not None and side is not None:
            stretched = Stretched(upload(photographs.aspects(own(indices)), device), side)
        yield indices, images, stretched


def loaded(
    images: Images,
    order: Order,
    device: torch.device,
    own: Callable[[Tensor], Tensor] = lambda indices: indices,
    *,
    overlap: bool | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each index batch with its images, uint8 [n, 3, h, w] on the device; `own` chooses among the indices.

    overlap: read the next batch in a second thread while the caller works on this one, so that nobody waits where
    reading is the faster; by default only for a device other than the pool's, since on a CPU both need the same cores.
    The order is only looked at in advance and never advanced, so its state and all random numbers are those of reading
    one by one. The first batch of an epoch cannot be known in advance.
    """
    if overlap is None:
        overlap = device.type != images.device.type
    if not overlap:
        for indices in order:
            yield indices, take(images, own(indices), device)
        return

    def read(indices: Tensor) -> Tensor:
        return images[own(indices)]

    with ThreadPoolExecutor(1, thread_name_prefix="images") as reader:
        pending: Future[Tensor] | None = None
        for indices in order:
            pixels = pending.result() if pending is not None else read(indices)
            following = order.following()
            pending = reader.submit(read, following) if following is not None else None
            yield indices, upload(pixels, device)
