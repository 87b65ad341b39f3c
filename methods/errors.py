"""Errors that methods raise."""

from __future__ import annotations


class Unsupported(ValueError):
    """Raised where a method cannot work on this model or data; the message says why and what to do."""
