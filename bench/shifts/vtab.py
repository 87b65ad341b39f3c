"""mini-vtab:TASK and mini-vtab-c:TASK: 21 small transfer tasks of 1,000 train and 1,000 test images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from bench.core.errors import MissingDataError, nearest
from bench.data.decode import Preprocessing
from bench.data.hf_tables import read_hub
from bench.data.imageset import ImageSet
from bench.shifts.catalog import TASKS, ShiftRow
from bench.shifts.corruption_sets import COMMON, EXTRA
from bench.shifts.data_root import Reading
from bench.shifts.folder_or_hub import Sources, sources_of
from bench.shifts.image_shift import Facts, ImageShift, OurCorruptions, Part, PublishedFiles, stores_at
from bench.shifts.shift import NATURAL, stream_rng

_IMAGES = 1000


def load(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load mini-vtab:TASK with uncorrupted test images."""
    return _task(row, reading, corrupted=False)


def corrupted(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load mini-vtab-c:TASK, its test images under this project's 15 corruptions."""
    return _task(row, reading, corrupted=True)


def _task(row: ShiftRow, reading: Reading, *, corrupted: bool) -> ImageShift:
    """Load a task from `mini-vtab/TASK` below the data root (train and test), else from the hub.

    Each part is a fixed subset of 1,000 images, drawn with seed 0.
    """
    task = nearest(row.name.partition(":")[2], TASKS, "task")
    root = reading.find([f"{place}/{task}" for place in row.places])
    stores = stores_at(reading.preprocessing or Preprocessing(224, 224, "bicubic"), reading.workers)

    @cache
    def local() -> Sources:
        assert root is not None
        return sources_of(root, reading, as_published=True)

    @cache
    def images(split: str) -> ImageSet:
        if root is None:
            return read_hub(
                TASKS[task],
                None,
                split,
                offline=reading.offline,
                label_column=reading.label or "cls",
                as_published=True,
            )
        if split == "test":
            return local().test
        opened = local().train
        if opened is None:
            raise MissingDataError(
                f"{root} has no train images; fetch the task again with: bench data fetch {row.name}"
            )
        return opened()

    def part(split: str) -> Callable[[], Part]:
        def opened() -> Part:
            whole = Part.whole(images(split))
            order = stream_rng(0, "subset", f"mini-vtab:{task}", split).permutation(len(whole.rows))
            return whole.keep(np.sort(order[:_IMAGES]))

        return opened

    facts = Facts.of(
        row,
        len(images("test").classes),
        COMMON if corrupted else (NATURAL,),
        EXTRA if corrupted else (),
        severities=None if corrupted else (1,),
        has_clean=corrupted,
    )
    if corrupted:
        shifted: OurCorruptions | PublishedFiles = OurCorruptions(stores, row.profile, row.storage)
    else:
        shifted = PublishedFiles(stores, lambda condition: images("test"))
    return ImageShift(facts, part("test"), part("train"), shifted, stores)
