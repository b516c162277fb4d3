"""Weight sharing by k-means: every layer's kept weights take a few values (Han, Mao & Dally 2016, section 3)."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tombola.errors import InputError, suggestion
from tombola.mask import Mask
from tombola.pruning import check_patterns
from tombola.sealed import tensor_bytes
from tombola.ticket import Ticket

Floats: TypeAlias = NDArray[np.float64]

DEFAULT_BITS = 5
MOST_BITS = 12
MOST_VALUES = 2**MOST_BITS
"""The most distinct values that count as shared."""

_MOST_ROUNDS = (
    10_000  # in exact arithmetic Lloyd's rounds always end; where values differ by rounding alone they may not
)


def share(values: Mapping[str, Tensor], mask: Mask, bits: int | Mapping[str, int] = DEFAULT_BITS) -> dict[str, Tensor]:
    """The values with at most 2**bits distinct ones among those that the mask keeps of each layer.

    Each covered layer is clustered on its own: one-dimensional k-means over its kept values, with 2**bits centroids
    that start evenly spread from the least value to the greatest ("linear initialisation", section 3.2 of the paper).
    Rounds of Lloyd's algorithm follow until no value changes its cluster: every value goes to the nearest centroid, of
    two equally near ones to the lower; every centroid becomes the mean of its values; a centroid without values is
    dropped at once. At the end every kept value is replaced by its centroid, rounded to the layer's dtype. The result
    depends on nothing random.

    A layer that has no more than 2**bits distinct values (by their bits) keeps them. What the mask keeps stays kept,
    also where a weight is exactly 0 or a centroid should be.

    Parameters
    ----------
    values
        A ``state_dict``. What the mask doesn't cover is passed through; what it prunes becomes 0.
    bits
        1 to 12, for all layers, or by pattern (``fnmatch``) of their names: the first that fits counts, and 5 where
        none does.

    Raises ``InputError`` for bits out of range, a pattern that fits no layer, a mask that doesn't fit the values, and
    for layers to be clustered whose values aren't real floating-point numbers, or aren't finite.
    """
    wanted = bits if isinstance(bits, Mapping) else {"*": bits}
    if isinstance(bits, Mapping):
        check_patterns(bits, mask)
    for number in wanted.values():
        if type(number) is not int or not 1 <= number <= MOST_BITS:
            raise InputError(f"weights are shared with 1 to {MOST_BITS} bits, but got {number!r}")
    shared = dict(values)
    for name, covered in mask.items():
        if name not in values:
            raise InputError(f"the mask covers {name!r}, which has no values.{suggestion(name, values)}")
        if values[name].shape != covered.shape:
            got = f"{tuple(covered.shape)}, but its values have shape {tuple(values[name].shape)}"
            raise InputError(f"the mask of {name!r} has shape {got}")
        number = next((b for pattern, b in wanted.items() if fnmatch.fnmatchcase(name, pattern)), DEFAULT_BITS)
        kept = values[name].detach().cpu()[covered]
        shared[name] = torch.zeros(covered.shape, dtype=kept.dtype)
        shared[name][covered] = _shared(kept, 2**number, name)
    return shared


def shared_ticket(ticket: Ticket, bits: int | Mapping[str, int] = DEFAULT_BITS) -> Ticket:
    """The ticket with shared values, as ``share`` makes them, without any training after it.

    Where that changes a value, the origin says so: ``{"shared": {"bits": ...}}``.
    """
    values = share(ticket.values, ticket.mask, bits)
    changed = Ticket(ticket.mask, values, {**ticket.origin, "shared": {"bits": bits}})
    return ticket if changed.digest == ticket.digest else changed


def patterns(kept: Tensor) -> NDArray[np.unsignedinteger]:
    """The bits of each entry as one whole number, so that entries are equal where they are equal bit for bit."""
    kind = f"u{kept.dtype.itemsize}"
    found: NDArray[np.unsignedinteger] = tensor_bytes(kept).numpy().view(kind)
    return found


def _shared(kept: Tensor, most: int, name: str) -> Tensor:
    if np.unique(patterns(kept)).size <= most:
        return kept
    if not kept.dtype.is_floating_point:
        raise InputError(f"only real floating-point weights can be shared, but {name!r} is {kept.dtype}")
    if not bool(kept.isfinite().all()):
        raise InputError(f"only finite weights can be shared, but {name!r} has infinities or NaN")
    numbers: Floats = kept.to(torch.float64).numpy()
    _, exponent = np.frexp(np.abs(numbers).max())  # in units of a power of two, so that nothing overflows
    numbers = np.ldexp(numbers, -exponent)
    order = np.argsort(numbers, kind="stable")
    centroids, sizes = _lloyd(numbers[order], most)
    result = np.empty_like(numbers)
    result[order] = np.repeat(np.ldexp(centroids, exponent), sizes)
    return torch.from_numpy(result).to(kept.dtype)


def _lloyd(ascending: Floats, most: int) -> tuple[Floats, NDArray[np.int64]]:
    """The centroids of ascending values, ascending, and how many values each has. A cluster is a stretch of values."""
    centroids: Floats = np.linspace(ascending[0], ascending[-1], most)
    edges = np.array([0, ascending.size])
    for _ in range(_MOST_ROUNDS):
        before = edges
        inner = np.searchsorted(ascending, (centroids[:-1] + centroids[1:]) / 2, side="right")
        edges = np.unique(np.concatenate(([0], inner, [ascending.size])))  # once each: empty clusters are dropped
        means = np.add.reduceat(ascending, edges[:-1]) / np.diff(edges)
        # Rounding must not push a mean out of its cluster: the mean of equal values is that value.
        centroids = np.clip(means, ascending[edges[:-1]], ascending[edges[1:] - 1])
        if np.array_equal(edges, before):
            break
    return centroids, np.diff(edges)
