"""The two sentences under the demo's board: what was compared, and what the numbers do and do not show."""

from __future__ import annotations

from typing import Any


def tell(board: Any, outcome: Any) -> str:
    return ""
