"""mCE and relative mCE of ImageNet-C, which need all corruptions at all severities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from leaderboards.record import Record
from leaderboards.reference.alexnet import ALEXNET_50K, ALEXNET_CLEAN_ERROR

_SEVERITIES = frozenset({1.0, 2.0, 3.0, 4.0, 5.0})
_SHIFT = "imagenet-c"


def mean_corruption_error(records: Sequence[Record], alexnet: Mapping[str, float] = ALEXNET_50K) -> float | None:
    """mCE in percent of AlexNet: 100 mean_c [sum_s E(c, s) / sum_s E_AlexNet(c, s)]; 100 is as robust as AlexNet.

    Hendrycks and Dietterich 2019, arXiv:1903.12261, section 4.1. `records` are those of one method (seeds are averaged
    first); `alexnet` holds AlexNet's error by corruption, mean over severities. None ("n/a") unless they are of
    imagenet-c, all done, and hold every corruption of `alexnet` at each of the severities 1 to 5.
    """
    errors = _errors(records, alexnet)
    if errors is None:
        return None
    return 100 * float(np.mean([error / alexnet[name] for name, error in errors.items()]))


def relative_mean_corruption_error(records: Sequence[Record]) -> float | None:
    """Relative mCE in percent: as mCE, of the errors beyond those on clean images (same source and conditions).

    None also where there is no clean record. AlexNet's clean error is known for the 50 000 images only.
    """
    errors = _errors(records, ALEXNET_50K)
    clean = [record.error_rate for record in records if record.clean]
    if errors is None or not clean or None in clean:
        return None
    base = float(np.mean([error for error in clean if error is not None]))
    ratios = [(error - base) / (ALEXNET_50K[name] - ALEXNET_CLEAN_ERROR) for name, error in errors.items()]
    return 100 * float(np.mean(ratios))


def _errors(records: Sequence[Record], alexnet: Mapping[str, float]) -> dict[str, float] | None:
    """Return the error by corruption, mean over seeds and the five severities; None if anything is missing."""
    cells: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.shift != _SHIFT or record.error_rate is None:
            return None
        if record.corruption is not None and record.corruption in alexnet:
            cells[record.corruption][record.severity].append(record.error_rate)
    if any(not cells[name].keys() >= _SEVERITIES for name in alexnet):
        return None
    return {name: float(np.mean([np.mean(cells[name][level]) for level in sorted(_SEVERITIES)])) for name in alexnet}
