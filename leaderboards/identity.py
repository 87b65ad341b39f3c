"""The key of a record: a digest of exactly those fields that can change its number.

`identifying_fields` lists those fields. A plan makes keys from them before anything runs; the same key follows from a
record alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from leaderboards.record import Record


def digest_of(value: Any) -> str:
    """A short content key of plain values: 32 hexadecimal digits of the SHA-256 of their canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identifying_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record's content from which its key is made.

    Place and time of the run, cost and results are left out; so are `access` and `track`, which follow from the method.
    A field of `data` that is None or empty is left out, so that a new field with this default changes no key.
    """
    found = {name: content[name] for name in _FIELDS} | {"severity": float(content["severity"])}
    found["weights"] = {"ready": False, **content["weights"]}
    empty: tuple[Any, ...] = (None, [], ())
    # The digests identify by content what these fields name in words.
    named_only = ("skipped", "history", "classes", "label", "part")
    found["data"] = {
        name: value for name, value in content["data"].items() if name not in named_only and value not in empty
    }
    return found


_FIELDS = (
    *("method", "part", "components", "options", "shift", "corruption", "model"),
    *("protocol", "split", "seed", "batch_size", "precision", "limit"),
)


def key_of(content: Mapping[str, Any]) -> str:
    """Return the key of a record with this content: plain values by field name, as in JSON."""
    return digest_of(identifying_fields(content))


def key_of_record(record: Record) -> str:
    """Return the key that a record must have."""
    return key_of(record.model_dump(mode="json"))


def labels_digest(ids: NDArray[np.int64], labels: NDArray[np.int64]) -> str:
    """Return a digest of the label of each image, independent of order and repetition.

    ids, labels: int64 [n]; an image that occurs several times counts once, with its first label.
    """
    once, first = np.unique(ids, return_index=True)
    return hashlib.sha256(once.astype("<i8").tobytes() + labels[first].astype("<i8").tobytes()).hexdigest()[:32]
