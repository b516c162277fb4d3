"""Optimal brain surgeon, layer by layer (Hassibi & Stork 1993; L-OBS, Dong et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.criteria.base import Scores, Traits, Weights, register
from tombola.criteria.kfac import as_matrix, cholesky, damped, inverse_diagonal, layers_of, second_moments
from tombola.errors import InputError
from tombola.mask import Mask


@dataclass(frozen=True)
class Obs:
    """``w_q^2 / (2 [H^-1]_qq)``: by how much a layer's error grows without a weight, the others of its row at their
    best.

    A layer's error is half the squared difference of its outputs, summed over them and meant over examples, so that
    every row (output) has the same Hessian ``H``: the second moments of the layer's inputs (``kfac.second_moments``),
    taken with the weights that the model has, in every layer. The rest of the net doesn't enter: the paper prunes
    layer by layer, so allocate densities to layers rather than to the net at once. Biases stand still.

    ``H`` has ``damping`` times its mean diagonal entry added to its diagonal, so that inputs that are always 0 do no
    harm. Within a row it is restricted to what the mask keeps, for what earlier rounds have pruned can't make up for
    anything: exact, at the price of an inverse for every different row. Entries that the mask doesn't keep score 0.

    ``compensate`` is exact for all that is pruned at once; the paper's one weight after the other comes to the same
    where it prunes the same.
    """

    damping: float = 0.01
    traits: ClassVar[Traits] = Traits(mode="eval")

    def __post_init__(self) -> None:
        if not (self.damping > 0 and math.isfinite(self.damping)):
            raise InputError(f"the damping of obs must be more than 0, but got {self.damping!r}")

    def __call__(self, weights: Weights) -> Scores:
        """The scores of one model, float64."""
        scores = {}
        for name, (matrix, kept, hessian) in self._layers(weights).items():
            found = torch.zeros_like(matrix)
            for group, rows, columns in _patterns(kept):
                diagonal = inverse_diagonal(hessian[group][columns][:, columns], "obs")
                found[group, rows, columns] = matrix[group, rows, columns].square() / (2 * diagonal)
            scores[name] = found.reshape(weights.final[name].shape)
        return scores

    def compensate(self, weights: Weights, kept: Mask) -> dict[str, Tensor]:
        """What the weights that ``kept`` keeps of the mask must become for the least error of each layer.

        In each row the minimiser of ``(w' - w)' H (w' - w)`` with ``w'`` 0 wherever ``kept`` is not: for a single
        weight that goes, ``w - (w_q / [H^-1]_qq) H^-1 e_q``. Of the parameters' types; rows that lose nothing stay as
        they are, bit for bit.
        """
        layers = layers_of(weights, "obs")
        made = {}
        for name, (matrix, _, hessian) in self._layers(weights).items():
            value, new = weights.final[name], torch.zeros_like(matrix)
            left = as_matrix(layers[name][0], kept[name].to(matrix.device))
            for group, rows, columns in _patterns(left):
                square = hessian[group][columns]
                # H_SS d = H_SR w_R for what is added to the kept S by the removed R
                lost = matrix[group, rows[:, 0]].index_fill(1, columns, 0)
                new[group, rows, columns] = matrix[group, rows, columns]
                if bool(lost.any()):
                    factor = cholesky(square[:, columns], "obs")
                    new[group, rows, columns] += torch.cholesky_solve(square @ lost.T, factor).T
            made[name] = new.reshape(value.shape).to(value.device, value.dtype)
        return made

    def _layers(self, weights: Weights) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Of each weight (groups, rows, columns) its kept values, what the mask keeps, and the damped Hessians."""
        layers, found = layers_of(weights, "obs"), {}
        for name, moments in second_moments(weights, "obs").items():
            matrix = as_matrix(layers[name][0], weights.final[name].to(moments.device)).double()
            kept = torch.ones_like(matrix, dtype=torch.bool)
            if weights.mask is not None:
                kept = as_matrix(layers[name][0], weights.mask[name].to(moments.device))
            found[name] = (matrix * kept, kept, damped(moments, self.damping))
        return found


def _patterns(kept: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Every different row of (groups, rows, columns) that keeps anything: its group, the numbers of the rows that are
    alike, as a column, and those of the columns that they keep."""
    for group, rows in enumerate(kept):
        patterns, which = torch.unique(rows, dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            columns = pattern.nonzero().flatten()
            if len(columns):
                yield group, (which == number).nonzero(), columns


register("obs")(Obs())
