"""Multinomial logistic regression on the features of a frozen encoder, for few images in memory, for many from a file.

A first pass writes the features, float32, to a temporary file; every pass of the solver reads it chunk by chunk, so
that memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.training.loading import upload

IN_MEMORY = 1 << 24
"""Features and logits together, as numbers, up to which `linear_probe` holds all of them in float64 (128 MiB)."""
_CHUNK = 1 << 22  # features and logits of a chunk, as numbers
_SMALLEST_DEVIATION = 1e-5


def linear_probe(features: Tensor, labels: Tensor, classes: int, *, l2: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression on standardised features, folded for raw ones: weight [classes, d], bias.

    Minimises mean cross-entropy + l2 / 2 |W|^2 (bias free) over z = (f - mean) / (deviation + 1e-5) by L-BFGS in
    float64, from zero; then W' = W / (deviation + 1e-5) and b' = b - W' mean, so that logits of f and z are equal.
    features: [n, d]; labels: int64 [n]. Raises ValueError unless l2 is positive (else the optimum may be infinite).
    """
    _need_penalty(l2)
    raw = features.detach().double()
    labels = labels.to(raw.device)
    mean, deviation = raw.mean(0), raw.std(0, unbiased=False) + _SMALLEST_DEVIATION
    standard = (raw - mean) / deviation
    weight = torch.zeros(classes, raw.shape[1], dtype=raw.dtype, device=raw.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=raw.dtype, device=raw.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=500,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(standard, weight, bias), labels) + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return _folded(weight.detach(), bias.detach(), mean, deviation)


def streamed_probe(
    batches: Iterable[Tensor], labels: Tensor, classes: int, device: torch.device, *, l2: float = 1e-2
) -> tuple[Tensor, Tensor]:
    """Fit what `linear_probe` fits, with memory that does not depend on the number of images.

    batches: features, float [*, d], of images in the order of `labels` (int64 [n]), read once. They lie on disk for as
    long as the call takes: 4 n d bytes in the folder of temporary files, which the environment variable TMPDIR names;
    3.9 GB for 1.28 million images of width 768. The file has no name, so a killed process leaves nothing. Each of some
    50 to 100 passes of L-BFGS reads it once.

    Sums and products are in float64: with products in float32 the loss is known to 1e-9, where its last decrease is
    smaller, and the weights to 2e-4. The variables are those in which the Hessian at zero weights is the identity
    (Boehning 1992 bounds the Hessian everywhere by a multiple of it): a third of the passes of plain L-BFGS.

    Raises ValueError unless l2 is positive and there are as many features as labels, OSError where the disk is full.
    """
    _need_penalty(l2)
    with _Features(batches, len(labels), classes, device) as rows:
        mean, deviation, correlation = rows.moments()
        count, share = len(labels), 1 / classes
        values, vectors = torch.linalg.eigh(share * (1 - share) * correlation)
        scale = (vectors / (values.clamp_min(0) + l2).sqrt()) @ vectors.T
        weight = torch.zeros(classes, len(mean), dtype=torch.float64, device=device)
        bias = torch.zeros(classes, dtype=torch.float64, device=device)
        optimiser = torch.optim.LBFGS(
            [weight, bias],
            max_iter=300,
            tolerance_grad=2e-7,
            tolerance_change=1e-12,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            own, free = (weight @ scale).requires_grad_(), (bias * math.sqrt(classes)).requires_grad_()
            total: Tensor = l2 / 2 * own.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            for start, raw in rows:
                standard = (raw.double() - mean) / deviation
                of = upload(labels[start : start + len(raw)], device)
                loss = F.cross_entropy(F.linear(standard, own, free), of, reduction="sum") / count
                loss.backward()  # type: ignore[no-untyped-call]
                total = total.detach() + loss.detach()
            assert own.grad is not None
            assert free.grad is not None
            weight.grad, bias.grad = own.grad @ scale, free.grad * math.sqrt(classes)
            return total

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return _folded(weight @ scale, bias * math.sqrt(classes), mean, deviation)


def _need_penalty(l2: float) -> None:
    if l2 <= 0:
        raise ValueError(f"l2 must be positive, not {l2}")


def _folded(weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    folded = weight / deviation
    return folded.float(), (bias - folded @ mean).float()


class _Features:
    """Features, float32 [n, d], in a file without a name, and their moments; iteration yields (first row, rows)."""

    def __init__(self, batches: Iterable[Tensor], count: int, classes: int, device: torch.device) -> None:
        self._count, self._classes, self._device = count, classes, device
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        try:
            self._write(batches)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Features:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _write(self, batches: Iterable[Tensor]) -> None:
        written = 0
        for batch in batches:
            rows = batch.detach().float().contiguous()
            if written == 0:
                self._width = rows.shape[1]
                self._need_room()
                self._origin = rows.double().mean(0)
                self._sum = torch.zeros_like(self._origin)
                self._products = torch.zeros(self._width, self._width, dtype=torch.float64, device=rows.device)
            # About a point among them, so that the subtraction in `moments` cancels nothing.
            apart = rows.double() - self._origin
            self._sum += apart.sum(0)
            self._products.addmm_(apart.T, apart)
            self._file.write(rows.cpu().numpy().tobytes())
            written += len(rows)
        if written != self._count:
            raise ValueError(f"there are {written} features for {self._count} labels; give one for each")

    def _need_room(self) -> None:
        needed, folder = 4 * self._count * self._width, tempfile.gettempdir()
        if needed > (free := shutil.disk_usage(folder).free):
            raise OSError(
                f"the linear probe keeps {needed / 1e9:.1f} GB of features in {folder}, where {free / 1e9:.1f} GB are "
                "free; set TMPDIR to a folder with more room"
            )

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean [d], deviation + 1e-5 [d] and the second moments of standardised features [d, d], float64."""
        shift = self._sum / self._count
        covariance = self._products / self._count - torch.outer(shift, shift)
        deviation = covariance.diagonal().clamp_min(0).sqrt() + _SMALLEST_DEVIATION
        return self._origin + shift, deviation, covariance / torch.outer(deviation, deviation)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        size = max(64, _CHUNK // (self._width + self._classes))
        starts = range(0, self._count, size)
        # The next chunk is read while the caller works on this one.
        with contextlib.closing(_ahead(lambda start: self._read(start, size), starts)) as chunks:
            for start, chunk in zip(starts, chunks, strict=True):
                yield start, upload(chunk, self._device)

    def _read(self, start: int, size: int) -> Tensor:
        count = min(size, self._count - start)
        self._file.seek(4 * start * self._width)
        values = np.fromfile(self._file, np.float32, count * self._width)
        if len(values) != count * self._width:
            raise OSError("the temporary file of features is cut short; run the same command again")
        return torch.from_numpy(values).view(count, self._width)


def _ahead(read: Callable[[int], Tensor], starts: Iterable[int]) -> Generator[Tensor]:
    with ThreadPoolExecutor(1, thread_name_prefix="features") as reader:
        pending = None
        for start in starts:
            pending, done = reader.submit(read, start), pending
            if done is not None:
                yield done.result()
        if pending is not None:
            yield pending.result()
