"""One row of a plan: a classifier, the adapter that runs on it, and the records that come of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.core.conditions import Condition, Trial
from bench.evaluation.protocols import Segment
from bench.shifts.adaptation_pools import CleanImages
from methods.base import Job
from methods.table import Access, MethodRow


@dataclass(frozen=True)
class BoardEntry:
    """One row of a board: a classifier (trained by `job`, or the user's own) and the adapter that runs on it.

    `report` is the job that measures how the ingredients connect (`methods.soups.soup.connectivity`). `identities`
    holds, per condition, the fields of its record that the key is made of; `digests`, per condition, the digest of its
    images; `scored`, the ids of the scored images; `given`, the clean images that the adapter gets besides the stream.
    """

    trial: Trial
    part: str | None
    job: Job | None
    report: Job | None
    adapter: MethodRow
    config: Any
    access: Access
    segments: tuple[Segment, ...]
    keys: Mapping[Condition, str]
    identities: Mapping[Condition, Mapping[str, Any]]
    digests: Mapping[Condition, str]
    scored: np.ndarray
    base_digest: str
    history: tuple[str, ...]
    given: CleanImages
