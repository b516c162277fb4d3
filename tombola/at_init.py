"""Pruning at initialisation: scores of an untrained net, in one round or in many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tombola.criteria import Criterion, Loss, Scores, Weights, criterion, traits
from tombola.criteria.base import checked, refuse_nan, untouched
from tombola.errors import InputError
from tombola.mask import Mask, prunable
from tombola.pruning import Allocation, marked, prune, top
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
    if isinstance(batches, Iterator):
        batches = list(batches)  # it gives its batches only once
    start = {name: p.detach().clone() for name, p in covered.items()}
    whole = within or Mask({name: torch.ones(p.shape, dtype=torch.bool) for name, p in covered.items()})
    ladder = _ladder(schedule, density, own.rounds if rounds is None else rounds, whole)
    generator = torch.Generator() if generator is None else generator
    with untouched(model, mode or own.mode):
        parameters = {name: dict(model.named_parameters())[name] for name in covered}
        room: dict[str, Any] = {}

        def scored() -> Scores:
            final = {name: p.detach() for name, p in parameters.items()}
            weights = Weights(model, final, whole, batches, loss, generator, start, room)
            found = checked(function(weights), weights, by)
            refuse_nan(found, by)
            return found

        if allocation == "global" and not own.revives:
            survivors = _Survivors(parameters, whole)
            for step in ladder:
                count = round(step * whole.total)
                survivors.narrow(scored, count, cautious=own.cautious and rounds is None)
            return survivors.mask()
        mask = whole
        for step in ladder:
            with torch.no_grad():
                for name, value in start.items():
                    parameters[name].data = value.clone()  # a criterion may have left another type
            mask.apply_(model)
            mask = prune(scored(), step, allocation, within=whole if own.revives else mask)
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


class _Survivors:
    """What a global ranking has left after some rounds, each over the survivors alone: time falls with them.

    Rounds give the same masks as ``prune`` within the last one's mask. Pruned weights are set to 0 in place, in
    whatever type a criterion has left them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], whole: Mask) -> None:
        self.parameters, self._shapes = parameters, {name: p.shape for name, p in parameters.items()}
        parts = [whole[name].flatten().nonzero().flatten() for name in parameters]
        self._index, self._ends = torch.cat(parts), list(accumulate(map(len, parts)))
        self._room = torch.empty(len(self._index), dtype=torch.float64)
        self._alive, self._fresh = torch.ones(len(self._index), dtype=torch.bool), True
        for name, parameter in parameters.items():
            parameter.data.masked_fill_(~whole[name].to(parameter.device), 0)

    def narrow(self, scored: Callable[[], Scores], count: int, *, cautious: bool) -> None:
        """Keep the ``count`` highest scores. A cautious round that would empty a layer is taken in several."""
        while True:
            pool = self._pool(scored())
            keep = max(count, self._cautious_count(pool)) if cautious else count
            chosen = top(pool, keep, where="the net")
            if bool((chosen & ~self._alive).any()):  # scores of -inf are no higher than those of the dropped
                chosen = top(pool, keep, self._alive, where="the net")
            self._drop(marked(self._alive & ~chosen))
            self._alive, self._fresh = chosen, False
            if keep < 0.8 * len(self._index):
                self._compress()
            if keep == count:
                return

    def _pool(self, scores: Scores) -> Tensor:
        """The scores of the entries in ``_index``; those dropped since it was made are the lowest."""
        pool = self._room[: len(self._index)]
        for score, start, end in zip(scores.values(), *self._limits(), strict=True):
            chosen = score.detach().cpu().flatten()
            if chosen.dtype == pool.dtype:
                torch.index_select(chosen, 0, self._index[start:end], out=pool[start:end])
            else:
                pool[start:end] = chosen[self._index[start:end]]
        return pool if self._fresh else pool.masked_fill_(~self._alive, -math.inf)

    def _cautious_count(self, pool: Tensor) -> int:
        """How many a round must keep at least, so that it takes from no layer the last and best score.

        Where the weakest score of all is the best of its layer, that layer goes: by the conservation of flow it is then
        no cut through the net but a side path.
        """
        if not bool(self._alive.any()):
            return 0
        weakest = float(pool[self._alive].min())
        best = [float(pool[start:end].max()) for start, end in zip(*self._limits(), strict=True) if end > start]
        higher = [value for value in best if value > weakest]
        return int((pool >= min(higher)).count_nonzero()) if higher else 0

    def _limits(self) -> tuple[list[int], list[int]]:
        return [0, *self._ends[:-1]], self._ends

    def _drop(self, places: Tensor) -> None:
        """Set the weights at these places of ``_index`` to 0."""
        cuts = torch.searchsorted(places, torch.tensor(self._ends)).tolist()
        for parameter, start, end in zip(self.parameters.values(), [0, *cuts[:-1]], cuts, strict=True):
            where = self._index[places[start:end]].to(parameter.device)
            flat = parameter.data.reshape(-1).index_fill_(0, where, 0)
            if not parameter.is_contiguous():  # another memory format: what was filled is a copy
                parameter.data.copy_(flat.view(parameter.shape))

    def _compress(self) -> None:
        kept = self._alive.nonzero().flatten()
        self._ends = torch.searchsorted(kept, torch.tensor(self._ends)).tolist()
        self._index = self._index[kept]
        self._alive, self._fresh = torch.ones(len(kept), dtype=torch.bool), True

    def mask(self) -> Mask:
        """What is left."""
        self._compress()
        tensors = {}
        for (name, shape), start, end in zip(self._shapes.items(), *self._limits(), strict=True):
            tensors[name] = torch.zeros(shape, dtype=torch.bool)
            tensors[name].view(-1)[self._index[start:end]] = True
        return Mask(tensors)
