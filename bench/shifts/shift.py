"""The interface of a shift: clean source data, test images by id and condition, and digests of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bench.core.conditions import CLEAN, Condition, digest_of
from bench.core.conditions import NATURAL as NATURAL
from bench.core.conditions import stream_rng as stream_rng
from bench.core.errors import UsageError, nearest
from bench.shifts.catalog import Family
from bench.shifts.lazy_images import pooled
from corruptions.catalog import group
from methods.base import Labelled, Photographs, Unlabelled

SPLITS = ("disjoint", "joint", "transductive", "dev")


class Shift(Protocol):
    """Shifted test data and the matching clean source data.

    `corruptions` are reported; `tuning_corruptions` are for choosing hyper-parameters only. `profile`, `storage` and
    `data_seed` determine the pixels of every image. `family` selects the published options of methods.

    `members` lists for each class the outputs it covers of a model with `source_classes` outputs (one output: the
    model's other classes are masked; several: their mean probability); None if shift and model have the same classes.
    `severities` are the available ones (None: any); `has_clean` says whether unshifted test images exist, `natural`
    whether these may be scored as a shift of their own (corruption "natural", severity 1); `skipped` counts test images
    that the user left out; `tiles` names the pictures that pasted tiles are cut from (None: no tiles). `bundled`: the
    images come with a package that this project requires, so nobody's copy differs.
    """

    name: str
    classes: int
    corruptions: tuple[str, ...]
    tuning_corruptions: tuple[str, ...]
    profile: str
    storage: str
    data_seed: int
    default_labels: int | None
    family: Family
    members: tuple[tuple[int, ...], ...] | None
    source_classes: int | None
    severities: tuple[float, ...] | None
    has_clean: bool
    natural: bool
    bundled: bool

    @property
    def made_here(self) -> bool:
        """Whether this project generates the shifted images from the clean ones."""

    @property
    def skipped(self) -> int: ...

    @property
    def tiles(self) -> str | None: ...

    def ids(self, part: str) -> np.ndarray:
        """Return the sorted ids of the clean images of a part ("train", "dev" or "test"), int64 [n]."""

    def images(self, ids: np.ndarray, condition: Condition, device: str = "cpu") -> Tensor:
        """Return pixels uint8 [n, 3, h, w] of images of one part under a condition, computed on a device."""

    def labels(self, ids: np.ndarray) -> np.ndarray:
        """Return the labels of images, int64 [n]. Only the harness calls this."""

    def answers(self, ids: np.ndarray) -> np.ndarray | None:
        """Return which classes are correct for each image, bool [n, classes]; None if only the label is."""

    def digest(self, ids: np.ndarray, condition: Condition) -> str:
        """Return a content hash of `images` and `labels`, computed from decoded pixels and parameters."""

    def listing(self, ids: np.ndarray) -> str:
        """Return a hash of the labels and names of clean images, for sets too large to decode for a digest."""


def split_ids(ids: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (adapt, score): the ids a recipe may see unlabelled under shift, and the ids streamed and scored.

    `disjoint` (and `dev`, on dev images): even and odd positions of the sorted list of clean images, so no scored
    image is ever seen under another corruption. `joint`: even, even. `transductive`: all, all.
    """
    nearest(split, SPLITS, "split")
    even, odd = ids[0::2], ids[1::2]
    return {"disjoint": (even, odd), "dev": (even, odd), "joint": (even, even), "transductive": (ids, ids)}[split]


def limit_ids(ids: np.ndarray, limit: int | None) -> np.ndarray:
    """Return at most `limit` ids, evenly spread over the sorted list so that class-sorted sets stay balanced."""
    if limit is None or limit >= len(ids):
        return ids
    return ids[np.linspace(0, len(ids) - 1, limit).round().astype(np.int64)]


def pick_corruptions(shift: Shift, wanted: Sequence[str] | None, split: str) -> tuple[str, ...]:
    """Return a run's corruptions in the shift's order; by default the reported ones, or the tuning ones for "dev".

    The name of a group ("noise") stands for its members among these. Raises UsageError for a corruption that the shift
    lacks.
    """
    usual = shift.tuning_corruptions if split == "dev" else shift.corruptions
    if wanted is None:
        return usual
    known = (*shift.corruptions, *shift.tuning_corruptions, *((NATURAL,) if shift.natural else ()))
    members = {name: [each for each in group(name) if each in usual] for name in wanted if name not in known}
    asked = [each for name in wanted for each in members.get(name) or [name if name in known else _canonical(name)]]
    for name in asked:
        nearest(name, known, f"corruption of {shift.name}")
    return tuple(name for name in known if name in asked)


def _canonical(name: str) -> str:
    """Return the canonical name of a corruption, or the name itself if it is not one of this project's."""
    from corruptions import canonical

    if name.rpartition(":")[0].endswith(".py"):
        return Path(name).name
    try:
        return canonical(name)
    except ValueError:
        return name


def pick_conditions(shift: Shift, asked: Sequence[Condition]) -> tuple[Condition, ...]:
    """Return the conditions of a run: the requested ones, after "clean" if the shift has clean images.

    A shift with fixed severities uses these instead of the requested ones. A run of "natural" alone has no clean
    condition.
    """
    shifted = list(
        dict.fromkeys(
            Condition(NATURAL, 1) if condition.corruption == NATURAL else condition
            for condition in asked
            if condition.corruption is not None
        )
    )
    if shift.severities is not None:
        names = dict.fromkeys(condition.corruption for condition in shifted)
        shifted = [Condition(name, level) for level in shift.severities for name in names]
    only_natural = bool(shifted) and all(condition.corruption == NATURAL for condition in shifted)
    return (*([CLEAN] if shift.has_clean and not only_natural else []), *shifted)


def trained_on(shift: Shift) -> Shift:
    """Return the shift whose train images recipes learn from: the shift itself, or all classes of which it has some."""
    whole = getattr(shift, "whole_source", None)
    return whole() if whole is not None else shift


def labelled_source(shift: Shift, per_class: int | None, seed: int) -> Labelled:
    """Return clean labelled images: all train images, or `per_class` of each class, drawn for this seed.

    Raises UsageError if a class has fewer; classes without any image are left out.
    """
    ids = shift.ids("train")
    labels = shift.labels(ids)
    if per_class is not None:
        order = stream_rng(seed, "labelled", shift.name).permutation(len(ids))
        chosen = [order[labels[order] == label][:per_class] for label in range(shift.classes)]
        short = [str(label) for label, rows in enumerate(chosen) if 0 < len(rows) < per_class]
        if short:
            raise UsageError(
                f"{shift.name} has fewer than {per_class} labelled images of class {', '.join(short)}; lower --labels"
            )
        ids = np.sort(ids[np.concatenate(chosen)])
    photographs, digest = to_train_on(shift, ids)
    return Labelled(
        images=pooled(shift, ids, [CLEAN]),
        labels=torch.from_numpy(shift.labels(ids)),
        classes=shift.classes,
        digest=digest,
        photographs=photographs,
    )


def to_train_on(shift: Shift, ids: np.ndarray) -> tuple[Photographs | None, str]:
    """Return the photographs behind clean train images, if there are some, and a digest of what a training reads."""
    digest = shift.digest(ids, CLEAN)
    find = getattr(shift, "photographs", None)
    photographs: Photographs | None = find(ids) if find is not None else None
    if photographs is None:
        return None, digest
    # The decoded centres identify the files, so that these need not be decoded a second time before a training.
    return photographs, "photographs:" + digest_of([digest, *photographs.shape[1:]])


def adapt_pool(shift: Shift, ids: np.ndarray, conditions: Sequence[Condition]) -> Unlabelled:
    """Return all images of the adapt half under each of these conditions in one pool.

    Raises UsageError without conditions.
    """
    if not conditions:
        raise UsageError("a recipe that adapts needs at least one corruption; leave --corruption out for all of them")
    digest = "pool:" + digest_of([shift.digest(ids, condition) for condition in conditions])
    return Unlabelled(pooled(shift, ids, conditions), digest)


def clean_labelled(shift: Shift, ids: np.ndarray) -> Labelled:
    """Return clean test or dev images with labels, for the model selection of papers that used them."""
    labels = torch.from_numpy(shift.labels(ids))
    return Labelled(pooled(shift, ids, [CLEAN]), "val:" + shift.digest(ids, CLEAN), labels, shift.classes)


def clean_pool(shift: Shift) -> Unlabelled:
    """Return all clean train images without labels, for recipes that train on them instead of shifted ones."""
    ids = shift.ids("train")
    photographs, digest = to_train_on(shift, ids)
    return Unlabelled(pooled(shift, ids, [CLEAN]), "clean:" + digest, photographs=photographs)


MOST_DECODED = 100_000


def source_digest(shift: Shift, ids: np.ndarray) -> str | None:
    """Return a digest of the clean images that an adapter is given; None if they are bundled.

    It covers pixels and labels up to 100,000 images, labels and names beyond: decoding the whole of ImageNet would take
    longer than the run.
    """
    if shift.bundled:
        return None
    return shift.digest(ids, CLEAN) if len(ids) <= MOST_DECODED else shift.listing(ids)


def blended(shift: Shift, ids: np.ndarray, steps: Sequence[Condition], device: str = "cpu") -> Tensor:
    """Return clean images under several corruptions in turn, uint8 [n, 3, h, w], rounded to 8 bits after each."""
    from corruptions import corrupt

    images = shift.images(ids, CLEAN, device)
    for number, step in enumerate(steps, start=1):
        assert step.corruption is not None
        images = corrupt(
            images,
            step.corruption,
            step.severity,
            seed=shift.data_seed,
            ids=ids.tolist(),
            profile=shift.profile,
            storage=shift.storage if number == len(steps) else "uint8",
        )
    return images
