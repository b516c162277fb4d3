"""Deep rewiring, DEEP R (Bellec et al. 2018, "Deep rewiring: training very sparse deep networks")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.mask import Mask
from tombola.pruning import marked
from tombola.updates.base import Change, Moment, all_finite, check_setting, draw_places, no_change

AWAKE = 1e-12
"""The magnitude of a connection that has just been activated."""


@dataclass(frozen=True)
class DeepR:
    """Connections keep their sign, wander, and are replaced by others at random when they would change it.

    Every connection has a sign that is fixed for the whole training, and a weight ``sign * theta``. After a step, each
    active theta loses ``rate * l1`` and gains ``sqrt(2 * rate * temperature)`` times a normal deviate (the gradient's
    part is the training step itself). Those whose theta is now below 0 become dormant, and as many dormant ones, drawn
    uniformly at random, those that just became dormant among them, are activated at a theta of 1e-12, as in the
    authors' code.

    With updates every k steps, the drift and the noise of k steps come at once (``k * rate * l1`` and ``sqrt(k)`` times
    the noise) and signs are looked at then: for k = 1 that is the algorithm itself, otherwise an Euler step k times as
    long for everything but the gradient. ``rate`` is the learning rate of the step that follows.

    The number of active connections of each layer is exact, as in the authors' basic implementation (they have another
    with one number for the whole net).

    Signs are fixed at the first update, and remembered: a connection that is active and not 0 then has that of its
    weight (even if training took it across zero before), all others by the toss of a coin.

    The algorithm is written for plain gradient descent, whose steps and noise belong together. With momentum or Adam a
    theta may be carried below 0 by moments rather than by its gradient, and the size of a gradient step no longer fits
    that of the noise; nothing here corrects for that.

    The defaults are those of the authors' script for MNIST; its noise, 1e-5 times the learning rate of 0.5, is that of
    a temperature of 2.5e-11. The first mask is spread by ERK, which for LeNet-300-100 is close to the 1, 3 and 30 % of
    that script.

    Parameters
    ----------
    l1
        The paper's alpha, 0 or more.
    temperature
        The paper's T, 0 or more.
    """

    description: ClassVar[str] = "weights with fixed signs wander; those that cross zero are replaced at random"
    allocation: ClassVar[str] = "erk"
    every: ClassVar[str] = "1it"
    until: ClassVar[float] = 1.0
    asks_gradients: ClassVar[bool] = False

    l1: float = 1e-5
    temperature: float = 2.5e-11

    def __post_init__(self) -> None:
        check_setting("l1", self.l1, 0)
        check_setting("temperature", self.temperature, 0)

    def update(self, moment: Moment) -> Change:
        """Let the active connections wander, and replace those that crossed zero. The signs are remembered."""
        if not all_finite(moment.weights):
            return no_change(moment)
        positive = {name: _positive(moment, name) for name in moment.mask}
        tensors, values = {}, {}
        for name, kept in moment.mask.items():
            tensors[name], values[name] = self._rewired(moment, moment.weights[name].detach(), kept, positive[name])
        same = all(tensors[name] is kept for name, kept in moment.mask.items())
        return Change(moment.mask if same else Mask(tensors), values, positive)

    def _rewired(self, moment: Moment, weights: Tensor, kept: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's kept entries (the same tensor if they stay) and its values."""
        active, signs = marked(kept.flatten()), positive.flatten()
        values = weights.flatten().clone()
        sign = signs[active].to(values.dtype) * 2 - 1
        noise = torch.randn(len(active), generator=moment.generator).to(values.dtype)
        drift = moment.every * moment.rate * self.l1
        theta = sign * values[active] - drift + math.sqrt(2 * moment.every * moment.rate * self.temperature) * noise
        values[active] = sign * theta
        dormant = active[theta < 0]
        if len(dormant) == 0:
            return kept, values.reshape(kept.shape)
        rewired = kept.flatten().clone()
        rewired[dormant], values[dormant] = False, 0.0
        woken = draw_places(rewired, len(dormant), moment.generator)
        rewired[woken] = True
        values[woken] = (signs[woken].to(values.dtype) * 2 - 1) * AWAKE
        return rewired.reshape(kept.shape), values.reshape(kept.shape)


def _positive(moment: Moment, name: str) -> Tensor:
    """Whether each connection's sign is positive: as remembered, or fixed now."""
    if name in moment.memory:
        return moment.memory[name]
    weights, kept = moment.weights[name].detach(), moment.mask[name]
    tossed = torch.randint(2, weights.shape, generator=moment.generator, dtype=torch.int8).bool()
    return torch.where(kept & (weights != 0), weights > 0, tossed)
