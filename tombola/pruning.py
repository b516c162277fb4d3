"""From scores and a density to a mask: allocations, exact counts, ties.

The counts are exact and their rounding is stated:

* the net as a whole keeps ``round(density * total)`` entries (Python's ``round``: a half goes to the even number);
* an allocation other than ``global`` first fixes each layer's share, a real number, and hands out whole entries by
  largest remainder: every layer gets the whole part of its share, and the entries left over go one each to the layers
  with the largest fractions, earlier layers first where fractions are equal; with ``within``, a layer of which nothing
  more is left to keep passes its turn on;
* inside a pool (the net, or one layer) the highest scores are kept; of equal scores, the one that comes first in the
  model's order of parameters, then in row-major order.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tombola.errors import InputError, suggestion
from tombola.mask import Mask

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter names and shapes, in the model's order."""


@dataclass(frozen=True)
class Layerwise:
    """Allocation by per-layer pruning rates: after ``t`` rounds layer l keeps ``(1 - rate * relative_l) ** t``.

    ``relative`` maps patterns of parameter names (``fnmatch``: ``"fc3.weight"``, ``"conv*"``) to a multiple of the
    common rate; the first pattern that fits counts, and layers that none fits have 1. The output layer pruned at half
    the rate, as Frankle & Carbin (2019) prune theirs, is ``Layerwise(0.2, {"fc3.weight": 0.5})``.

    For a density, ``t`` is the real number at which the layers together keep that share; so every density has exactly
    one set of layer shares, and the densities of a geometric ladder give back the whole rounds.
    """

    rate: float = 0.2
    relative: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise InputError(f"a pruning rate must be between 0 and 1, both excluded, but got {self.rate!r}")
        for pattern, factor in self.relative.items():
            if not (factor >= 0 and factor * self.rate < 1):
                raise InputError(
                    "a relative rate times the rate must be at least 0 and below 1, "
                    f"but {pattern!r} has {factor!r} x {self.rate!r}"
                )

    def rates(self, shapes: Shapes) -> dict[str, float]:
        """Each layer's own rate. ``InputError`` for a pattern that fits no layer."""
        check_patterns(self.relative, shapes)
        rates = {}
        for name in shapes:
            factors = (f for pattern, f in self.relative.items() if fnmatch.fnmatchcase(name, pattern))
            rates[name] = self.rate * next(factors, 1.0)
        return rates

    def density_after(self, rounds: float, shapes: Shapes) -> float:
        """The density of the whole net after ``rounds`` rounds (a real number 0 or more)."""
        return sum(self._shares(rounds, shapes).values()) / _total(shapes)

    def shares(self, density: float, shapes: Shapes) -> dict[str, float]:
        """How many entries, as real numbers, each layer keeps at this density of the whole net."""

        def kept(rounds: float) -> float:
            return sum(self._shares(rounds, shapes).values())

        least = kept(math.inf)
        wanted = density * _total(shapes)
        if wanted < least and not math.isclose(wanted, least, rel_tol=1e-12):
            spared = [name for name, rate in self.rates(shapes).items() if 1 - rate == 1]
            raise InputError(
                f"density {density:g} can't be reached: the layers with rate 0 ({', '.join(spared)}) keep more"
            )
        low, high = 0.0, 1.0
        while kept(high) > max(wanted, least):
            low, high = high, 2 * high
        for _ in range(200):  # bisection to the last bit
            middle = (low + high) / 2
            if middle in (low, high):
                break
            if kept(middle) > wanted:
                low = middle
            else:
                high = middle
        # Rounds that were whole are whole again, however the bisection rounded.
        whole = round(high)
        return self._shares(whole if math.isclose(kept(whole), wanted, rel_tol=1e-12) else high, shapes)

    def _shares(self, rounds: float, shapes: Shapes) -> dict[str, float]:
        return {n: math.prod(shapes[n]) * (1 - rate) ** rounds for n, rate in self.rates(shapes).items()}


def check_patterns(patterns: Iterable[str], names: Iterable[str]) -> None:
    """``InputError`` for a pattern (``fnmatch``) that fits none of the names of prunable parameters."""
    known = list(names)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise InputError(f"no prunable parameter fits the pattern {pattern!r}.{suggestion(pattern, known)}")


def uniform_shares(density: float, shapes: Shapes) -> dict[str, float]:
    """Every layer at the same density."""
    return {name: density * math.prod(shape) for name, shape in shapes.items()}


def erk_shares(density: float, shapes: Shapes) -> dict[str, float]:
    """Erdos-Renyi-Kernel: layer density in proportion to (sum of dimensions) / (product of dimensions).

    Mocanu et al. (2018) for matrices, Evci et al. (2020) for kernels. A layer whose share would exceed it is kept whole
    and the others are scaled up for it.
    """
    # density * size is in proportion to the sum of dimensions; a single number counts as one of length 1
    weights = {name: float(sum(shape or (1,))) for name, shape in shapes.items()}
    return _filled(weights, {name: float(math.prod(shape)) for name, shape in shapes.items()}, density * _total(shapes))


def smart_ratio_shares(density: float, shapes: Shapes) -> dict[str, float]:
    """Smart ratio (Su et al. 2020): of L layers, layer l keeps a share in proportion to (L - l + 1)^2 + (L - l + 1).

    The last linear layer keeps 0.3 of its entries whatever the density; the others are scaled for the total to be
    exact. The paper's further factor for VGG is left out. Where it says nothing: a layer whose share would exceed it is
    kept whole, the last linear layer has at most half of all that is kept, and what the others can't hold.
    """
    sizes = {name: float(math.prod(shape)) for name, shape in shapes.items()}
    weights = {n: (k * k + k) * sizes[n] for k, n in zip(range(len(shapes), 0, -1), shapes, strict=True)}
    total, last = density * _total(shapes), next((n for n in reversed(list(shapes)) if len(shapes[n]) == 2), None)
    if last is None:
        return _filled(weights, sizes, total)
    others = {n: weight for n, weight in weights.items() if n != last}
    shares = _filled(others, sizes, total - min(0.3 * sizes[last], total / 2))
    return {n: shares[n] if n in others else total - sum(shares.values()) for n in shapes}


def _filled(weights: Mapping[str, float], sizes: Mapping[str, float], total: float) -> dict[str, float]:
    """``total`` in proportion to the weights; what would exceed its size is kept whole, and others scaled up for it."""
    whole = {name for name in weights if sizes[name] == 0}
    while True:
        partial = [name for name in weights if name not in whole]
        left = total - sum(sizes[n] for n in whole)
        scale = left / sum(weights[n] for n in partial) if partial else 0.0
        full = {n for n in partial if scale * weights[n] > sizes[n]}
        if not full:
            return {n: sizes[n] if n in whole else scale * weights[n] for n in weights}
        whole |= full


ALLOCATIONS: dict[str, Callable[[float, Shapes], dict[str, float]] | None] = {
    "global": None,  # no shares: one pool
    "layerwise": Layerwise().shares,
    "uniform": uniform_shares,
    "erk": erk_shares,
    "smart_ratio": smart_ratio_shares,
}
Allocation = str | Layerwise | Mapping[str, float]


def prune(
    scores: Mapping[str, Tensor],
    density: float | None = None,
    allocation: Allocation = "global",
    within: Mask | None = None,
    structure: str = "entry",
) -> Mask:
    """Keep the highest scores: exactly ``round(density * total)`` entries.

    Parameters
    ----------
    scores
        Parameter name to a tensor of the parameter's shape; higher is kept. Of any real type, compared as float64.
        Infinities are fine, NaN is refused.
    density
        Kept / all entries, 0 to 1. Left out only when ``allocation`` gives every layer's density itself.
    allocation
        ``"global"`` (one ranking over all layers), ``"layerwise"`` or a ``Layerwise`` (per-layer rates), ``"uniform"``,
        ``"erk"``, ``"smart_ratio"``, or a mapping from each layer's name to its own density.
    within
        Keep only entries that this mask keeps. Counts still refer to all entries.
    structure
        ``"entry"``, or ``"channel"``: whole output channels (dimension 0) are kept or dropped, ranked by the mean score
        of their entries, and ``density`` and all counts are of channels.

    Raises ``InputError`` for scores with NaN, a density outside 0 to 1, an unknown allocation or structure, masks that
    don't fit, and counts that ``within`` can't supply.
    """
    if structure not in ("entry", "channel"):
        raise InputError(f"structure must be 'entry' or 'channel', but got {structure!r}")
    _check(scores, within)
    if structure == "channel":
        return _prune_channels(scores, density, allocation, within)
    pools = _pools(scores)
    shapes = {name: tuple(value.shape) for name, value in scores.items()}
    free = None if within is None else {name: within[name].flatten() for name in scores}
    kept = _keep(pools, shapes, density, allocation, free)
    return Mask({name: kept[name].reshape(shape) for name, shape in shapes.items()})


def _pools(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Flat scores in float64, or in float32 where all are: they rank alike, in half the memory."""
    short = all(value.dtype == torch.float32 for value in scores.values())
    return {
        name: value.detach().to("cpu", torch.float32 if short else torch.float64).flatten()
        for name, value in scores.items()
    }


def _prune_channels(
    scores: Mapping[str, Tensor], density: float | None, allocation: Allocation, within: Mask | None
) -> Mask:
    flat = [name for name, value in scores.items() if value.dim() == 0]
    if flat:
        raise InputError(f"structure='channel' needs parameters with an output dimension, but {flat[0]!r} has none")
    # In float64, where any type's sums are exact enough; a channel without entries scores 0.
    rowwise = {n: v.detach().to("cpu", torch.float64).unsqueeze(-1).flatten(1) for n, v in scores.items()}
    pools = {name: rows.sum(dim=1) / max(1, rows.shape[1]) for name, rows in rowwise.items()}
    shapes = {name: tuple(value.shape) for name, value in scores.items()}
    rows = _keep(
        pools,
        {n: (len(p),) for n, p in pools.items()},
        density,
        allocation,
        None if within is None else within.channels(),
    )
    mask = Mask.of_channels(shapes, rows)
    return mask if within is None else mask & within


def _keep(
    pools: Mapping[str, Tensor],
    shapes: Shapes,
    density: float | None,
    allocation: Allocation,
    free: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """The bool vector of kept elements for each pool of scores (1-D, float64)."""
    for name, pool in pools.items():
        if bool(torch.isnan(pool).any()):
            raise InputError(f"scores must not be NaN, but those of {name!r} have some: did the training diverge?")
    shares = _shares(shapes, density, allocation)
    if shares is None:
        assert density is not None
        scores = torch.cat(list(pools.values()))
        allowed = None if free is None else torch.cat([free[name] for name in pools])
        chosen = top(scores, round(density * len(scores)), allowed, where="the net")
        return dict(zip(pools, torch.split(chosen, [len(p) for p in pools.values()]), strict=True))
    most = {name: len(pool) if free is None else int(free[name].sum()) for name, pool in pools.items()}
    counts = apportion(shares, None if density is None else round(density * _total(shapes)), most)
    return {
        name: top(pool, counts[name], None if free is None else free[name], where=repr(name))
        for name, pool in pools.items()
    }


def _shares(shapes: Shapes, density: float | None, allocation: Allocation) -> dict[str, float] | None:
    if isinstance(allocation, Mapping):
        if density is not None:
            raise InputError("give either a density or every layer's own, not both: leave out density=")
        unknown = sorted(set(allocation) ^ set(shapes))
        if unknown:
            raise InputError(
                f"an allocation by layer names every scored parameter and no other; they differ at {unknown[0]!r}"
            )
        return {name: _checked_density(allocation[name]) * math.prod(shape) for name, shape in shapes.items()}
    if density is None:
        raise InputError("give the density to prune to, e.g. density=0.05")
    density = _checked_density(density)
    if isinstance(allocation, Layerwise):
        return allocation.shares(density, shapes)
    if not isinstance(allocation, str) or allocation not in ALLOCATIONS:
        raise InputError(f"unknown allocation {allocation!r}.{suggestion(str(allocation), ALLOCATIONS)}")
    divide = ALLOCATIONS[allocation]
    return None if divide is None else divide(density, shapes)


def apportion(
    shares: Mapping[str, float], total: int | None = None, most: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Whole numbers for real shares by largest remainder, summing to ``total`` (default: their sum, rounded).

    ``most`` is what each can hold at most: one that is full passes its turn at the entries left over on to the next.
    ``InputError`` where all are full.
    """
    # A share such as 188159.99999999997 is a whole number that binary fractions can't hold.
    exact = {n: round(s) if math.isclose(s, round(s), rel_tol=1e-12, abs_tol=1e-9) else s for n, s in shares.items()}
    counts = {name: math.floor(share) for name, share in exact.items()}
    total = round(sum(exact.values())) if total is None else total
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])  # stable: earlier layers first
    while (left := total - sum(counts.values())) > 0:
        takers = [name for name in by_remainder if most is None or counts[name] < most[name]][:left]
        if not takers:
            raise _too_many("the net", total - left, total)
        for name in takers:
            counts[name] += 1
    return counts


def top(scores: Tensor, count: int, allowed: Tensor | None = None, *, where: str = "the scores") -> Tensor:
    """A bool vector that marks the ``count`` highest of 1-D ``scores``; of equal ones, the earlier.

    ``allowed`` limits the choice; ``where`` names the pool in the ``InputError`` raised when it is too small.
    """
    index = None if allowed is None else allowed.nonzero().flatten()
    pool = scores if index is None else scores[index]
    if count > len(pool):
        raise _too_many(where, len(pool), count)
    chosen = torch.zeros(len(pool), dtype=torch.bool)
    if count > 0:
        cut = kth_smallest(pool, len(pool) - count + 1)
        chosen = pool >= cut
        if surplus := int(chosen.count_nonzero()) - count:  # several times as fast as a sum
            chosen[(pool == cut).nonzero().flatten()[-surplus:]] = False
    if index is None:
        return chosen
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[index[chosen]] = True
    return kept


def rest(scores: Tensor, count: int, *, where: str = "the scores") -> Tensor:
    """The places that ``top`` doesn't mark, in order: fast where they are few."""
    if count > len(scores):
        raise _too_many(where, len(scores), count)
    share, places = 1 - count / max(1, len(scores)), None
    if len(scores) >= 8 * _SAMPLE:
        sample = scores[:: len(scores) // _SAMPLE].sort().values
        high = math.ceil(share * len(sample) + 4 * math.sqrt(share * len(sample))) + 1
        if high < len(sample):
            places = marked(scores <= sample[high])
    if places is None or len(places) < len(scores) - count:
        return marked(~top(scores, count))
    return places[marked(~top(scores[places], len(places) - (len(scores) - count)))]


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The ``k``-th smallest (from 1) of 1-D ``values``.

    A selection goes over all values many times. A sample tells between which two values the wanted one lies; then the
    rest need only be compared with these, and the few between them are selected from (Floyd & Rivest 1975).
    """
    if len(values) < 8 * _SAMPLE:
        return values.kthvalue(k).values
    sample = values[:: len(values) // _SAMPLE].sort().values
    place, spread = k / len(values) * len(sample), 4 * math.sqrt(len(sample))
    low, high = math.floor(place - spread), math.ceil(place + spread)
    inside = values >= sample[low] if low >= 0 else torch.ones(len(values), dtype=torch.bool)
    below = len(values) - int(inside.count_nonzero())
    if high < len(sample):
        inside &= values <= sample[high]
    middle = values[marked(inside)]
    # Values that the sample misjudged, as in a sorted or periodic order, are looked for among all of them.
    if below < k <= below + len(middle) and len(middle) < len(values) // 2:
        return kth_smallest(middle, k - below)
    return values.kthvalue(k).values


def marked(chosen: Tensor) -> Tensor:
    """Where a bool vector is true, in order. NumPy is many times as fast as torch where few are."""
    return torch.from_numpy(np.flatnonzero(chosen.numpy()))


_SAMPLE = 1 << 14


def _too_many(where: str, most: int, count: int) -> InputError:
    return InputError(f"{where} can keep at most {most} entries here, but {count} are asked for: prune less")


def _check(scores: Mapping[str, Tensor], within: Mask | None) -> None:
    if not scores:
        raise InputError("there are no scores to prune by: the model has no prunable parameter")
    for name, value in scores.items():
        if value.is_complex():
            raise InputError(f"scores must be real numbers, to be ranked, but those of {name!r} are {value.dtype}")
    if within is not None:
        shapes: Sequence[tuple[str, tuple[int, ...]]] = [(n, tuple(v.shape)) for n, v in scores.items()]
        differing = sorted(set(shapes) ^ {(n, tuple(t.shape)) for n, t in within.items()})
        if differing:
            raise InputError(
                f"scores and the mask to stay within don't cover the same parameters: {differing[0][0]!r} differs"
            )


def _checked_density(density: float) -> float:
    if not 0 <= density <= 1:
        raise InputError(f"a density must be between 0 and 1, but got {density!r}")
    return float(density)


def _total(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
