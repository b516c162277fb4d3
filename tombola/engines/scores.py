"""Supermasks: the weights stay as they start, and training searches which of them to have in the net.

``scores`` is Zhou et al. 2019, section 5: a weight with score s is in the net with probability sigmoid(s), drawn anew
at every step; all scores start at 0. ``top_scores`` is the edge-popup algorithm of Ramanujan et al. 2020, section 3:
the weights whose scores are largest in magnitude are in the net, a fixed share of every layer; scores start
Kaiming-uniform, in [-1, 1] / sqrt(fan in). Both as in the authors' code, with three things that papers or code leave
open or do otherwise:

* Evaluation never samples: it is of the net found so far, of weights with sigmoid(s) > 0.5. Zhou et al. evaluate nets
  drawn anew, and average ten at the end. At the start no score is above 0, so that the net found is empty.
* A layer of which n weights may be kept has ``max(1, round(score_density * n))`` of them; of equal scores the first.
* Biases and batch normalisation's scales and shifts stay as they start, while its running statistics are those of the
  nets seen in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tombola.engines.masked import MaskedSession, optimizer_over
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.pruning import top
from tombola.recipe import Recipe
from tombola.seeds import stream
from tombola.tasks.task import Examples, Task


class ScoreSession(MaskedSession):
    """Training of scores on dense tensors. ``model`` is the net found so far, with what is not in it exactly 0.

    Every kept entry of a covered parameter that wants a gradient has a score; the recipe's optimiser trains them. The
    gradient of a score passes straight through the choice: that of the weight in the net, times the weight, times the
    derivative of sigmoid(s) (``scores``) or abs(s) (``top_scores``).
    """

    def __init__(self, model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int) -> None:
        super().__init__(model, mask, task, train, recipe, seed)
        self._allowed = mask
        weights = {name: p for name, p in mask.parameters(model).items() if p.requires_grad}
        if not weights:
            raise InputError("scores are of the weights that a mask covers, but it covers none that may change")
        self._searched: dict[str, _Searched]
        if recipe.score_density is None:
            self._searched = {name: _ByChance(p, mask[name]) for name, p in weights.items()}
        else:
            random = stream(seed, "scores")
            self._searched = {n: _Top(p, mask[n], recipe.score_density, random) for n, p in weights.items()}
        self._trained = {name: searched.scores for name, searched in self._searched.items()}
        self.optimizer = optimizer_over(self._trained.values(), recipe)
        self._show()

    def stretch(self, steps: int) -> float:
        """Train for ``steps`` steps; the mean loss over their examples, of the nets drawn. NaN where scores are."""
        loss = super().stretch(steps)
        self._show()
        sound = all(bool(searched.scores.isfinite().all()) for searched in self._searched.values())
        return loss if sound else math.nan

    def remask(self, mask: Mask, values: Mapping[str, Tensor] | None = None) -> None:
        """Refused with ``InputError``: the search for a mask is not updated by another."""
        raise InputError("a training of scores finds a mask itself, and can't go on under another")

    def _train_on(self, batch: object) -> Tensor:
        for searched in self._searched.values():
            searched.put(searched.drawn())
        loss = self._backward(batch)
        for searched in self._searched.values():
            searched.pass_through()
        self.optimizer.step()
        return loss

    def _show(self) -> None:
        """Put the net found so far into the model."""
        found = {name: searched.found() for name, searched in self._searched.items()}
        for name, searched in self._searched.items():
            searched.put(found[name])
        self.mask = Mask({name: found.get(name, allowed) for name, allowed in self._allowed.items()})

    def state(self) -> dict[str, Tensor]:
        """As of ``MaskedSession``, the optimiser's tensors being those of the scores, with ``scores.NAME``, and
        ``start.NAME``: the weights to choose from."""
        state = super().state()
        for name, searched in self._searched.items():
            state[f"scores.{name}"] = searched.scores.detach().cpu().clone()
            state[f"start.{name}"] = searched.start.cpu().clone()
        return state

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        return super().tensors() | {f"scores.{name}": searched.scores for name, searched in self._searched.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state()``."""
        super().load(state)
        with torch.no_grad():
            for name, searched in self._searched.items():
                searched.scores.copy_(state[f"scores.{name}"])
                searched.start.copy_(state[f"start.{name}"])
        self._show()


class _Searched:
    """One weight tensor, the values to choose from, and a score for each of them."""

    def __init__(self, weight: nn.Parameter, allowed: Tensor, scores: Tensor) -> None:
        self.weight, self.start = weight, weight.detach().clone()
        self.allowed = allowed.to(weight.device)
        self.scores = nn.Parameter(scores.to(weight).masked_fill(~self.allowed, 0.0))
        self._nothing = torch.zeros((), dtype=weight.dtype, device=weight.device)

    def drawn(self) -> Tensor:
        """Which weights are in the net for a step of training."""
        raise NotImplementedError

    def found(self) -> Tensor:
        """Which weights are in the net that the scores tell of."""
        raise NotImplementedError

    def slope(self) -> Tensor:
        """The derivative of what ranks a weight by its score."""
        raise NotImplementedError

    @torch.no_grad()
    def put(self, chosen: Tensor) -> None:
        """Put the chosen values into the weight, and 0 for the others."""
        self.weight.copy_(torch.where(chosen, self.start, self._nothing))

    @torch.no_grad()
    def pass_through(self) -> None:
        """Give the scores their gradient, from the weight's. What must not be kept starts at 0, and so has none."""
        self.scores.grad = None if self.weight.grad is None else self.weight.grad * self.start * self.slope()


class _ByChance(_Searched):
    def __init__(self, weight: nn.Parameter, allowed: Tensor) -> None:
        super().__init__(weight, allowed, torch.zeros(allowed.shape))

    @torch.no_grad()
    def drawn(self) -> Tensor:
        return self.allowed & (torch.rand_like(self.scores) < self.scores.sigmoid())

    @torch.no_grad()
    def found(self) -> Tensor:
        return self.allowed & (self.scores > 0)

    def slope(self) -> Tensor:
        likely = self.scores.sigmoid()
        return likely * (1 - likely)


class _Top(_Searched):
    def __init__(self, weight: nn.Parameter, allowed: Tensor, density: float, random: torch.Generator) -> None:
        bound = 1 / math.sqrt(max(1, allowed.shape[1:].numel()))
        super().__init__(weight, allowed, torch.empty(allowed.shape).uniform_(-bound, bound, generator=random))
        kept = int(allowed.sum())
        self._count = min(kept, max(1, round(density * kept)))

    @torch.no_grad()
    def found(self) -> Tensor:
        if not self._count:
            return self.allowed
        ranks = self.scores.abs().masked_fill(~self.allowed, -1.0).flatten()
        if not ranks.is_cuda:  # the same, several times as fast
            return top(ranks, self._count).view_as(self.allowed)
        least = ranks.kthvalue(ranks.numel() - self._count + 1).values
        above, level = ranks > least, ranks == least
        first = level & (level.cumsum(0) <= self._count - above.sum())
        return (above | first).view_as(self.allowed)

    drawn = found

    def slope(self) -> Tensor:
        return self.scores.sign()
