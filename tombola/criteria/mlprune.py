"""MLPrune: optimal brain surgeon with a Kronecker-factored Fisher, over the whole net (Zeng & Urtasun 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from tombola.criteria.base import Scores, Traits, Weights, register
from tombola.criteria.kfac import Factors, as_matrix, damped, factors, inverse_diagonal, layers_of
from tombola.errors import InputError


@dataclass(frozen=True)
class MLPrune:
    """``w_ij^2 / (2 [F^-1]_ij,ij)`` with ``F`` a layer's Fisher information by K-FAC: so that the diagonal of its
    inverse is ``[A^-1]_jj [S^-1]_ii``. One scale over all layers, meant for one global ranking.

    ``A`` and ``S`` are the factors of ``kfac.factors``: labels come from the model's own predictive distribution, whose
    logits its output must be (for up to ``classes`` classes exactly, else from ``samples`` drawn labels an example);
    biases stand still; each group of a grouped convolution is a layer of its own. Both are restricted to the rows and
    columns of which the mask keeps anything, which is exact where it keeps all that they share; entries that it doesn't
    keep score 0. Batch normalisation in evaluation mode: in training mode the gradient of an example would hold those
    of others.

    ``damping`` is that of ``F``, as a share of the product of the factors' mean diagonals, split between them by the
    trace norms as in Martens & Grosse (2015): each factor gets ``sqrt(damping)`` times its mean diagonal
    entry. Weights of a layer that gets no inputs or no gradients score next to 0.

    Scores only: whether the paper changes the weights that stay, we haven't been able to establish, so there is no
    compensation here.
    """

    damping: float = 0.01
    classes: int = 20
    samples: int = 1
    traits: ClassVar[Traits] = Traits(mode="eval")

    def __post_init__(self) -> None:
        if not (self.damping > 0 and math.isfinite(self.damping)):
            raise InputError(f"the damping of mlprune must be more than 0, but got {self.damping!r}")
        if not (isinstance(self.samples, int) and self.samples >= 1):
            raise InputError(f"mlprune draws a whole number of samples, 1 or more, but got {self.samples!r}")

    def __call__(self, weights: Weights) -> Scores:
        """The scores of one model, float64."""
        layers = layers_of(weights, "mlprune")
        found = factors(weights, "mlprune", self.classes, self.samples)
        scores = {}
        for name, value in weights.final.items():
            place = found[name].inputs.device
            matrix = as_matrix(layers[name][0], value.to(place)).double()
            kept = torch.ones_like(matrix, dtype=torch.bool)
            if weights.mask is not None:
                kept = as_matrix(layers[name][0], weights.mask[name].to(place))
            scores[name] = (matrix.square() * kept * self._weighting(found[name], kept)).reshape(value.shape)
        return scores

    def _weighting(self, found: Factors, kept: torch.Tensor) -> torch.Tensor:
        """``1 / (2 [F^-1]_qq)`` for every entry: (groups, rows, columns), 0 where nothing is kept."""
        weighting = torch.zeros(kept.shape, dtype=torch.float64, device=kept.device)
        for group, entries in enumerate(kept):
            rows, columns = entries.any(1).nonzero().flatten(), entries.any(0).nonzero().flatten()
            if not len(rows):
                continue
            inputs, outputs = (
                inverse_diagonal(damped(matrix[index][:, index], math.sqrt(self.damping)), "mlprune")
                for matrix, index in ((found.inputs[group], columns), (found.outputs[group], rows))
            )
            weighting[group, rows[:, None], columns] = 1 / (2 * outputs[:, None] * inputs)
        return weighting


register("mlprune")(MLPrune())
