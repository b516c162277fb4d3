"""Where the intermediate results of a program lie in memory.

They lie in one array, most of which the system can then back with large pages. Gradients of images that are never
needed at the same time take the same place: what is written there is in the caches still, and needn't come from memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from tombola.engines.sparse.parts import Call, Floats, aligned

Span = tuple[int, int]
_LINE = 16
"""Floats in a cache line."""


def room(sizes: Sequence[int]) -> list[Floats]:
    """Arrays of zeros, one after the other in one piece of memory, each from a cache line on.

    A line is left free between them, lest arrays of a power of two all begin at the same sets of the caches.
    """
    starts = np.cumsum([0] + [-(-size // _LINE) * _LINE + _LINE for size in sizes])
    whole = aligned(int(starts[-1]))
    return [whole[start : start + size] for start, size in zip(starts.tolist(), sizes, strict=False)]


def spans(times: Sequence[Sequence[Call]], arrays: Sequence[Floats], least: Sequence[int]) -> list[Span]:
    """For each of some separate arrays the first and the last time at which a call touches it, and at least one."""
    order = np.argsort([a.ctypes.data for a in arrays])
    starts = [arrays[i].ctypes.data for i in order]
    found = [(time, time) for time in least]
    for time, calls in enumerate(times):
        for x in (arg for c in calls for arg in c.args if isinstance(arg, np.ndarray) and arg.size):
            at = int(np.searchsorted(starts, x.ctypes.data, "right")) - 1
            if at >= 0 and x.ctypes.data < starts[at] + arrays[order[at]].nbytes:
                first, last = found[order[at]]
                found[order[at]] = min(first, time), max(last, time)
    return found


def share(needed: Sequence[Span], kinds: Sequence[Hashable]) -> list[int]:
    """For each array the number of its place. Those of one kind share places, but none while another needs it.

    Of the free places it is the one that was used last.
    """
    place, free_from, made = [0] * len(needed), list[int](), list[Hashable]()
    for i in sorted(range(len(needed)), key=lambda i: needed[i]):
        first, last = needed[i]
        free = [p for p, kind in enumerate(made) if kind == kinds[i] and free_from[p] < first]
        if not free:
            free = [len(made)]
            made.append(kinds[i])
            free_from.append(-1)
        place[i] = max(free, key=lambda p: free_from[p])
        free_from[place[i]] = last
    return place
