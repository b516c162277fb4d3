"""SNIP (Lee et al. 2019), and the same score where pruned weights may come back (FORCE, de Jorge et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tombola.criteria.base import Scores, Traits, Weights, register
from tombola.criteria.gradients import mean_gradients


@dataclass(frozen=True)
class Snip:
    """``|dL/dc|`` at ``c = 1`` for a gate ``c`` on each weight, which is ``|w dL/dw|`` (equations 3 to 6).

    Over any number of batches: the gradient of their mean loss. ``normalised`` divides by the sum over the net, as the
    paper writes it; that changes no ranking. Batch normalisation in evaluation mode, as the authors have it. Biases
    have no gates here; in the authors' code they do, and count among the weights.
    """

    normalised: bool = False
    traits: ClassVar[Traits] = Traits(mode="eval")

    def __call__(self, weights: Weights) -> Scores:
        """The scores of one model."""
        gradients = mean_gradients(weights, "snip")
        scores = {name: gradients[name].mul_(w).abs_() for name, w in weights.final.items()}
        if not self.normalised:
            return scores
        total = torch.stack([s.double().sum() for s in scores.values()]).sum()
        return {name: s / total for name, s in scores.items()} if total else scores


@dataclass(frozen=True)
class Force:
    """``|w dL/dw|`` with the gradient of the pruned net but the initial value of each weight (section 4, FORCE).

    A weight that is pruned still has a gradient, and so a score: the next round may take it back. Needs the initial
    weights; before any pruning it is SNIP.
    """

    traits: ClassVar[Traits] = Traits(mode="eval", rounds=100, revives=True)

    def __call__(self, weights: Weights) -> Scores:
        """The scores of one model, pruned entries included."""
        initial = weights.initial
        gradients = mean_gradients(weights, "force")
        return {name: g.mul_(initial[name].to(g.device)).abs_() for name, g in gradients.items()}


register("snip")(Snip())
register("force")(Force())
