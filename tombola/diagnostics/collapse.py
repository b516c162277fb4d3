"""At which compression a method empties a layer (Tanaka et al. 2020, section 3).

A compression ratio is all prunable weights / those kept. The maximal one leaves one weight a layer. The critical one of
a method is the largest at which it still empties no layer; "maximal critical compression" is when the two are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tombola.errors import InputError
from tombola.mask import Mask

Row = dict[str, Any]
Find = Callable[[float], Mask]
"""The mask of a density."""


def maximal_compression(whole: Mask) -> float:
    """All weights / layers: what leaves one weight in each. ``InputError`` for a mask that covers nothing."""
    sizes = [layer.total for layer in whole.layers() if layer.total]
    if not sizes:
        raise InputError("there is nothing to compress: the mask covers no weights")
    return sum(sizes) / len(sizes)


def compressions(whole: Mask, points: int) -> list[float]:
    """Compression ratios from 1 to the maximal one, ``points`` of them (2 or more), evenly on a log axis; and one step
    beyond, where every method must empty a layer (left out where fewer than one weight would be left)."""
    if points < 2:
        raise InputError(f"a grid of compressions has 2 points or more, but got {points!r}")
    most = maximal_compression(whole)
    # The maximal one itself, not a power that comes close to it: at that many weights one weight decides.
    inside = [most ** (k / (points - 1)) for k in range(points - 1)] + [most]
    beyond = most ** (points / (points - 1))
    return inside + ([beyond] if most < beyond <= whole.total else [])


def collapse_row(mask: Mask, compression: float) -> Row:
    """What a mask at a compression leaves: ``compression``, ``kept``, ``fewest`` (weights left in the layer with the
    fewest), ``fewest_in`` (its name), ``emptied`` (how many layers), ``emptied_layers`` (their names)."""
    layers = [layer for layer in mask.layers() if layer.total]
    poorest = min(layers, key=lambda layer: layer.kept)
    gone = [layer.name for layer in layers if not layer.kept]
    return {
        "compression": compression,
        "kept": mask.kept,
        "fewest": poorest.kept,
        "fewest_in": poorest.name,
        "emptied": len(gone),
        "emptied_layers": " ".join(gone),
    }


def collapse_rows(find: Find, whole: Mask, grid: Sequence[float], bisections: int = 4) -> Iterator[Row]:
    """The row of each compression of the grid, as it is found, then those of a bisection for the critical one.

    Parameters
    ----------
    find
        The mask of a density below 1.
    whole
        The mask of the dense net: the weights that count.
    grid
        Compression ratios, 1 or more.
    bisections
        How many times the stretch from the critical compression of the grid to the next point, where a layer is
        empty, is halved (on a log axis). It ends early where nothing lies between.
    """
    rows = []
    for compression in grid:
        rows.append(_row(find, whole, compression))
        yield rows[-1]
    low = critical_compression(rows)
    high = min((row["compression"] for row in rows if row["compression"] > low and row["emptied"]), default=None)
    for _ in range(bisections):
        if high is None or round(whole.total / low) - round(whole.total / high) <= 1:
            return
        row = _row(find, whole, math.sqrt(low * high))
        low, high = (low, row["compression"]) if row["emptied"] else (row["compression"], high)
        yield row


def critical_compression(rows: Iterable[Mapping[str, Any]]) -> float:
    """The largest compression of the rows at which no layer is empty; 1, the dense net, where there is none."""
    return max((row["compression"] for row in rows if not row["emptied"]), default=1.0)


def _row(find: Find, whole: Mask, compression: float) -> Row:
    if compression < 1:
        raise InputError(f"a compression ratio is 1 or more, but got {compression!r}")
    return collapse_row(whole if compression == 1 else find(1 / compression), compression)
