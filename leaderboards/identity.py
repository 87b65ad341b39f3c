"""What a record is, as a key: a digest of every field that can change its number, and of nothing else.

`identifying_fields` lists those fields. A plan makes keys of them before anything runs, and whoever holds a record
makes the same key again from the record alone.
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
    """The fields of a record's content that its key is made of.

    Where and when it was made, what it cost and what came out are left out; so are `access` and `track`, which follow
    from the method. A field of `data` that is None or empty is left out, so that one that is added with this default
    changes no key.
    """
    found = {name: content[name] for name in _FIELDS} | {"severity": float(content["severity"])}
    found["weights"] = {"ready": False, **content["weights"]}
    empty: tuple[Any, ...] = (None, [], ())
    # The digests say by content what these say in words.
    told = ("skipped", "history", "classes", "label", "part")
    found["data"] = {name: value for name, value in content["data"].items() if name not in told and value not in empty}
    return found


_FIELDS = (
    *("method", "part", "components", "options", "shift", "corruption", "model"),
    *("protocol", "split", "seed", "batch_size", "precision", "limit"),
)


def key_of(content: Mapping[str, Any]) -> str:
    """The key of a record with this content: plain values by field name, as JSON has them."""
    return digest_of(identifying_fields(content))


def key_of_record(record: Record) -> str:
    """The key that a record ought to have."""
    return key_of(record.model_dump(mode="json"))


def labels_digest(ids: NDArray[np.int64], labels: NDArray[np.int64]) -> str:
    """A digest of which label each image has, whatever the order and however often an image is shown.

    ids, labels: int64 [n]; an image that occurs several times counts once, with the label that it has first.
    """
    once, first = np.unique(ids, return_index=True)
    return hashlib.sha256(once.astype("<i8").tobytes() + labels[first].astype("<i8").tobytes()).hexdigest()[:32]
