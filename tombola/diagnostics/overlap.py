"""How alike masks are, beside how alike random masks with the same layer densities would be.

The normalised Hamming distance is that of You et al. (2020), who watch it from epoch to epoch; the Jaccard overlap and
the comparison with chance follow Frankle et al. (2021), who shuffle masks inside their layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tombola.errors import InputError
from tombola.mask import Mask

Row = dict[str, Any]


@dataclass(frozen=True)
class Alike:
    """How alike two masks over the same ``total`` entries are: ``kept`` by one, by the ``other``, and by ``both``.

    ``by_chance`` and ``deviation`` are mean and standard deviation of ``both`` for independent random masks that keep
    as many entries in each layer: of n entries of which the masks keep a and b, it is hypergeometric in each layer,
    with mean ab/n and variance ab(n-a)(n-b) / (n^2 (n-1)).
    """

    total: int
    kept: int
    other: int
    both: int
    by_chance: float
    deviation: float

    @property
    def distance(self) -> float:
        """Normalised Hamming distance, 0 to 1: the share of entries on which the masks differ."""
        return self._distance(self.both)

    @property
    def overlap(self) -> float:
        """Jaccard index, 0 to 1: kept by both / kept by either. 1 when both keep nothing."""
        return self._overlap(self.both)

    @property
    def chance_distance(self) -> float:
        """The expected distance of random masks with these layer densities."""
        return self._distance(self.by_chance)

    @property
    def chance_overlap(self) -> float:
        """The overlap of random masks with these layer densities where they share as many entries as expected."""
        return self._overlap(self.by_chance)

    @property
    def sigmas(self) -> float | None:
        """How many standard deviations ``both`` is above chance; None where chance leaves nothing open."""
        return (self.both - self.by_chance) / self.deviation if self.deviation else None

    def _distance(self, both: float) -> float:
        return (self.kept + self.other - 2 * both) / self.total if self.total else 0.0

    def _overlap(self, both: float) -> float:
        either = self.kept + self.other - both
        return both / either if either else 1.0


def alike(one: Mask, other: Mask) -> Alike:
    """How alike two masks are. ``InputError`` where they don't cover the same parameters."""
    both, theirs = (one & other).kept, {layer.name: layer.kept for layer in other.layers()}
    mean, variance = 0.0, 0.0
    for layer in one.layers():
        n, a, b = layer.total, layer.kept, theirs[layer.name]
        mean += a * b / n if n else 0
        variance += a * b * (n - a) * (n - b) / (n * n * (n - 1)) if n > 1 else 0
    return Alike(one.total, one.kept, other.kept, both, mean, math.sqrt(variance))


def overlap_rows(masks: Mapping[str, Mask]) -> list[Row]:
    """One row for each pair of masks, which have names: ``one``, ``other``, and what ``Alike`` says of them.

    ``InputError`` for fewer than two masks, and for masks that don't cover the same parameters, with their names.
    """
    if len(masks) < 2:
        raise InputError(f"masks are compared two at a time, but there is {len(masks) or 'none'}: give more")
    return [_row(one, other, masks) for one, other in combinations(masks, 2)]


def _row(one: str, other: str, masks: Mapping[str, Mask]) -> Row:
    try:
        found = alike(masks[one], masks[other])
    except InputError as error:
        raise InputError(f"{one} and {other} can't be compared: {error}") from error
    return {
        "one": one,
        "other": other,
        "kept_one": found.kept,
        "kept_other": found.other,
        "both": found.both,
        "both_by_chance": found.by_chance,
        "distance": found.distance,
        "chance_distance": found.chance_distance,
        "overlap": found.overlap,
        "chance_overlap": found.chance_overlap,
        "sigmas": found.sigmas,
    }
