"""Seeds as people write them."""

from __future__ import annotations

import re

from tombola.errors import InputError

MOST_SEEDS = 1000


def seed_list(text: str) -> list[int]:
    """``"0"``, ``"0,3,5"`` or ``"0-4"`` as a list of seeds, each once. ``InputError`` for anything else."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,4000})(?:\s*-\s*(\d{1,4000}))?\s*", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if last < first:
            raise InputError(f"must be whole numbers of 0 or more, like 0 or 0,1,2 or 0-4, but got {text!r}")
        if len(found) + last - first >= MOST_SEEDS:
            raise InputError(f"must be at most {MOST_SEEDS} seeds, but {text!r} has more")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))
