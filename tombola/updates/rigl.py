"""RigL (Evci et al. 2020, "Rigging the lottery: making all tickets winners")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from tombola.mask import Mask
from tombola.pruning import top
from tombola.updates.base import Change, Moment, all_finite, check_setting, magnitudes, no_change


@dataclass(frozen=True)
class RigL:
    """Each layer drops its smallest weights and grows as many where the loss's gradient is largest.

    Before step t, a layer with n kept weights drops the whole part of ``n * fraction / 2 * (1 + cos(pi * t / until))``
    (the authors' code rounds down too). It grows as many among the places that aren't kept now, those with the
    largest gradient magnitudes; both rankings give preference to earlier entries among equals, where the authors' code
    adds a little noise. Every layer keeps its number of weights exactly.

    A weight dropped at this moment takes part in the growing, as in the authors' code. If its gradient is large enough
    it is back at once with its value, as if it had not been dropped. So a layer that is full stays as it is, and one
    that is nearly full trades what it can. All other weights that grow start at 0.

    The update takes the place of the step's training. It is due every 100 steps for three quarters of the training.

    Parameters
    ----------
    fraction
        The paper's alpha: the fraction dropped at the beginning; above 0 and at most 1.
    """

    description: ClassVar[str] = "each layer drops its smallest weights and grows where gradients are largest"
    allocation: ClassVar[str] = "erk"
    every: ClassVar[str] = "100it"
    until: ClassVar[float] = 0.75
    asks_gradients: ClassVar[bool] = True

    fraction: float = 0.3

    def __post_init__(self) -> None:
        check_setting("fraction", self.fraction, 0, 1, above=True)

    def fraction_at(self, step: int, until: int) -> float:
        """The fraction of its weights that a layer drops before ``step``; 0 from ``until`` on."""
        return self.fraction / 2 * (1 + math.cos(math.pi * min(1.0, step / max(1, until))))

    def update(self, moment: Moment) -> Change:
        """Drop and grow in every layer, by the gradients of this step's batch."""
        if not all_finite(moment.weights) or not all_finite(gradients := moment.gradients()):
            return no_change(moment)
        fraction = self.fraction_at(moment.step, moment.until)
        tensors = {}
        for name, kept in moment.mask.items():
            now, count = kept.flatten(), int(kept.count_nonzero())
            # A share such as 2.9999999999999996 is a whole number that binary fractions can't hold.
            traded = math.floor(fraction * count + 1e-9)
            survive = top(magnitudes(moment.weights[name]), count - traded, now)
            grown = top(magnitudes(gradients[name]), traded, ~survive)
            tensors[name] = (survive | grown).reshape(kept.shape)
        return Change(Mask(tensors), replaces_step=True)
