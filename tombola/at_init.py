"""Pruning at initialisation: scores of an untrained net, in one round or in many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tombola.criteria import Criterion, Loss, Scores, Weights, criterion, traits
from tombola.criteria.base import checked, refuse_nan, untouched
from tombola.errors import InputError
from tombola.mask import Mask, prunable
from tombola.pruning import Allocation, marked, prune, rest
from tombola.schedules import to_target


def prune_at_init(
    model: nn.Module,
    by: str | Criterion,
    density: float,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    rounds: int | None = None,
    *,
    schedule: str = "exponential",
    allocation: Allocation = "global",
    within: Mask | None = None,
    mode: str | None = None,
    generator: torch.Generator | None = None,
) -> Mask:
    """The mask that keeps the highest scores of the model's present weights; the model comes back bit for bit.

    With several rounds the density falls by ``schedule``, and each round scores the net that the last one left, by the
    same batches. What is pruned stays pruned, unless the criterion says otherwise (``"force"``).

    Parameters
    ----------
    model, by, batches, loss, mode, generator
        As for ``score``.
    density
        Kept / all prunable entries, above 0 and at most 1; exactly ``round(density * total)`` are kept.
    rounds
        Default: the criterion's own, which is 1, but 100 for ``"synflow"`` and ``"force"``. Asked for by number they
        are exactly as many. By default synflow takes more where a round would empty a layer at one go: the proof that
        no layer collapses before the others (Tanaka et al. 2020, theorem 3) asks for no less, and 100 rounds collapse
        on VGG-16 at a compression of a million.
    schedule
        ``"exponential"`` (``density ** (k / rounds)`` after round k), ``"linear"`` or ``"cubic"``.
    allocation
        As for ``prune``: over the whole net at once, or layer by layer.
    within
        Entries that this mask leaves out are never kept, and parameters that it doesn't cover are left alone. Default:
        every prunable parameter.

    Raises ``InputError`` for what ``score`` and ``prune`` refuse.
    """
    function = criterion(by)
    own = traits(function)
    if rounds is not None and not (isinstance(rounds, int) and rounds >= 1):
        raise InputError(f"pruning takes a whole number of rounds, 1 or more, but got {rounds!r}")
    covered = prunable(model) if within is None else within.parameters(model)
    if not covered:
        raise InputError("there is nothing to prune: the model has no prunable parameter, or the mask covers none")
    whole = within or Mask({name: torch.ones(p.shape, dtype=torch.bool) for name, p in covered.items()})
    ladder = _ladder(schedule, density, own.rounds if rounds is None else rounds, whole)
    if (len(ladder) > 1 or own.cautious) and isinstance(batches, Iterable) and not isinstance(batches, (list, tuple)):
        batches = _Same(batches)
    generator = torch.Generator() if generator is None else generator
    with untouched(model, mode or own.mode) as remembered:
        start = {name: remembered[p] for name, p in covered.items()}
        parameters = {name: dict(model.named_parameters())[name] for name in covered}
        room: dict[str, Any] = {}

        def scored() -> Scores:
            final = {name: p.detach() for name, p in parameters.items()}
            weights = Weights(model, final, whole, batches, loss, generator, start, room)
            return checked(function(weights), weights, by)

        if allocation == "global" and not own.revives and (len(ladder) > 1 or own.cautious):
            survivors = _Survivors(parameters, whole, by)
            for step in ladder:
                count = round(step * whole.total)
                survivors.narrow(scored, count, cautious=own.cautious and rounds is None)
            return survivors.mask()
        mask = whole
        for number, step in enumerate(ladder):
            if number:
                room.clear()
                for name, value in start.items():
                    parameters[name].data = value.clone()  # a criterion may have left another type
            if mask.kept < mask.total:
                mask.apply_(model)
            found, limit = scored(), whole if own.revives else mask
            refuse_nan(found, by)
            mask = prune(found, step, allocation, within=limit if limit.kept < limit.total else None)
        return mask


def _ladder(schedule: str, density: float, rounds: int, whole: Mask) -> list[float]:
    """The densities of the rounds, from that of ``whole`` down."""
    ladder = to_target(schedule, density, rounds)
    if not 0 < whole.kept < whole.total:
        return ladder
    if round(density * whole.total) > whole.kept:
        raise InputError(
            f"density {density:g} is more than the mask to stay within keeps, {whole.density:g}: prune further"
        )
    return [whole.density * d for d in to_target(schedule, min(1.0, density / whole.density), rounds)[:-1]] + [density]


class _Same:
    """Batches that are the same whenever they are gone through, as those of an iterator or of a loader that shuffles
    are not. Each is taken when it is first asked for."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches, self._taken = batches, list[Any]()
        self._coming: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._coming is None:  # a loader is not made to begin before it is needed
            self._coming = iter(self._batches)
        yield from self._taken
        for batch in self._coming:
            self._taken.append(batch)
            yield batch


class _Survivors:
    """What a global ranking has left after some rounds, each over the survivors alone: time falls with them.

    Rounds give the same masks as ``prune`` within the last one's mask. Pruned weights are set to 0 in place, in
    whatever type a criterion has left them. ``by`` is whose scores they are, to be named where some are NaN.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], whole: Mask, by: str | Criterion) -> None:
        self.parameters, self._by, self._shapes = parameters, by, {name: p.shape for name, p in parameters.items()}
        small = all(p.numel() <= torch.iinfo(torch.int32).max for p in parameters.values())
        parts = [marked(whole[name].flatten()).to(torch.int32 if small else torch.int64) for name in parameters]
        self._index, self._ends = torch.cat(parts), list(accumulate(map(len, parts)))
        self._room = torch.empty(0)
        for name, parameter in parameters.items():
            if len(parts.pop(0)) < parameter.numel():
                parameter.data.masked_fill_(~whole[name].to(parameter.device), 0)

    def narrow(self, scored: Callable[[], Scores], count: int, *, cautious: bool) -> None:
        """Keep the ``count`` highest scores. A cautious round that would empty a layer is taken in several."""
        while True:
            pool, best = self._pool(scored())
            keep, dropped = count, rest(pool, count, where="the net")
            if cautious and len(dropped):
                cut, highest, size = self._cut(pool), float(pool[dropped].max()), float(pool[dropped].double().sum())
                # Where every layer keeps its best and enough still flows, as nearly always, that is all.
                if highest >= min(best) or not size < 0.999 * cut:
                    keep = max(count, _cautious_count(pool, best, cut))
                    dropped = rest(pool, keep, where="the net")
            self._drop(dropped)
            if keep == count:
                return

    def _pool(self, scores: Scores) -> tuple[Tensor, list[float]]:
        """The scores of the survivors, and the best of each layer that has any."""
        short = all(score.dtype == torch.float32 for score in scores.values())  # they rank alike
        if not len(self._room):
            self._room = torch.empty(len(self._index), dtype=torch.float32 if short else torch.float64)
        pool, best = self._room[: len(self._index)], []
        for name, start, end in zip(self._shapes, *self._limits(), strict=True):
            if start == end:
                continue
            part = pool[start:end]
            chosen = scores[name].detach().to("cpu", pool.dtype).flatten()
            torch.index_select(chosen, 0, self._index[start:end], out=part)
            best.append(float(part.max()))
            if math.isnan(best[-1]):
                refuse_nan({name: part}, self._by)
        return pool, best

    def _cut(self, pool: Tensor) -> float:
        """The most that a layer's scores sum to: all that flows through the net."""
        return max(float(pool[start:end].double().sum()) for start, end in zip(*self._limits(), strict=True))

    def _limits(self) -> tuple[list[int], list[int]]:
        return [0, *self._ends[:-1]], self._ends

    def _drop(self, places: Tensor) -> None:
        """Leave out these places of ``_index``, and set their weights to 0."""
        cuts = torch.searchsorted(places, torch.tensor(self._ends)).tolist()
        for parameter, start, end in zip(self.parameters.values(), [0, *cuts[:-1]], cuts, strict=True):
            where = self._index[places[start:end]].to(parameter.device, torch.int64)
            pruned = parameter.data.reshape(-1).index_fill_(0, where, 0)
            if not parameter.is_contiguous():  # then that was a copy
                parameter.data.copy_(pruned.view(parameter.shape))
        self._index = torch.from_numpy(np.delete(self._index.numpy(), places.numpy()))  # faster than torch's masks
        self._ends = [end - cut for end, cut in zip(self._ends, cuts, strict=True)]

    def mask(self) -> Mask:
        """What is left."""
        tensors = {}
        for (name, shape), start, end in zip(self._shapes.items(), *self._limits(), strict=True):
            tensors[name] = torch.zeros(shape, dtype=torch.bool)
            tensors[name].view(-1)[self._index[start:end].long()] = True
        return Mask(tensors)


def _cautious_count(pool: Tensor, best: list[float], cut: float) -> int:
    """How many a round must keep at least, so that it takes from no layer the last and best score, and less in all than
    flows through the net: then something still does (Tanaka et al. 2020, theorem 3).

    Where the weakest score of all is the best of its layer, that layer goes: by the conservation of flow it is then no
    cut through the net but a side path. Where nothing flows there is nothing to be cautious of.
    """
    if cut == 0 or not math.isfinite(cut):
        return 0
    weakest = float(pool.min())
    limit = min((value for value in best if value > weakest), default=math.inf)
    sizes = pool[pool < limit].double().sort().values.cumsum(0)
    return len(pool) - max(1, int((sizes < cut * (1 - 1e-9)).count_nonzero()))
