"""Sparse evolutionary training, SET (Mocanu et al. 2018, "Scalable training of artificial neural networks ...")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.mask import Mask
from tombola.pruning import top
from tombola.updates.base import (
    Change,
    Moment,
    all_finite,
    check_setting,
    magnitudes,
    no_change,
    regrown,
    with_redrawn_at_zero,
)


@dataclass(frozen=True)
class SparseEvolution:
    """Each layer drops a fraction of its weights, those closest to zero, and grows as many at random places.

    Per layer, of its positive weights the smallest ``round(fraction * count)`` are dropped and of its negative ones
    the largest so many, each sign by itself; of equal weights the later ones go. A kept weight that is exactly 0 has no
    sign and is always dropped, as in the authors' code: in a layer with dead inputs these are the weights that can't
    train. Every layer keeps its number of weights exactly.

    The new places are drawn uniformly among all that didn't survive, so that a weight may be drawn that was dropped at
    this very moment, as in the authors' code. Like every new weight it starts at 0, as in their Keras code (their code
    with sparse matrices draws new weights from a normal distribution).

    Once an epoch; there is no update after the last step, when nothing could be trained any more (the authors' code
    with sparse matrices leaves it out too). The authors cut by comparing with a sorted value and so may drop one weight
    more of a sign. The first mask is Erdos-Renyi, here with the kernels' dimensions counted in.

    Parameters
    ----------
    fraction
        The paper's zeta, above 0 and at most 1.
    """

    description: ClassVar[str] = "each layer drops its weights closest to zero and grows as many at random"
    allocation: ClassVar[str] = "erk"
    every: ClassVar[str] = "1ep"
    until: ClassVar[float] = 1.0
    asks_gradients: ClassVar[bool] = False

    fraction: float = 0.3

    def __post_init__(self) -> None:
        check_setting("fraction", self.fraction, 0, 1, above=True)

    def update(self, moment: Moment) -> Change:
        """Drop and regrow in every layer."""
        if not all_finite(moment.weights):
            return no_change(moment)
        survivors, tensors = {}, {}
        for name, kept in moment.mask.items():
            survivors[name] = self._survivors(moment.weights[name].detach().flatten(), kept.flatten())
            dropped = int(kept.count_nonzero()) - int(survivors[name].count_nonzero())
            tensors[name] = regrown(survivors[name], dropped, moment.generator).reshape(kept.shape)
        return with_redrawn_at_zero(moment, survivors, Mask(tensors))

    def _survivors(self, weights: Tensor, kept: Tensor) -> Tensor:
        size = magnitudes(weights)
        survive = torch.zeros_like(kept)
        for side in (kept & (weights > 0), kept & (weights < 0)):
            count = int(side.count_nonzero())
            survive |= top(size, count - round(self.fraction * count), side)
        return survive
