"""Nets of one family: all hidden widths times a factor."""

from __future__ import annotations


def scaled(width: int, factor: float) -> int:
    """A hidden width times ``factor``, rounded, at least 1."""
    return max(1, round(width * factor))
