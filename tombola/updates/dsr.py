"""Dynamic sparse reparameterization, DSR (Mostafa & Wang 2019, "Parameter efficient training of deep ... networks")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.mask import Mask
from tombola.pruning import apportion, top
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
class DSR:
    """All weights below one threshold are dropped, and as many grow in the layers where most survived.

    Kept weights whose magnitude is below the threshold are dropped, in all layers; of a layer in which all are, the
    largest stays, so that no layer dies out (the authors' code for their experiments leaves one too). As many grow, a
    layer's share in proportion to what survived in it, whole numbers by largest remainder; what a layer has no room for
    goes to the others in the same proportion. So the number of weights of the net is exact and those of layers change.

    The new places are drawn uniformly among all that didn't survive, as in the authors' library: a weight may be drawn
    that was dropped at this very moment (their code for the experiments draws elsewhere). Like every new weight it
    starts at 0.

    Then the threshold is doubled if fewer than ``1 - tolerance`` times the wanted number were dropped, and halved if
    more than ``1 + tolerance`` times. It moves only where that can matter, which is ours: up while some kept weight
    isn't below it, down while some below it isn't 0. (Weights that never train, as on dead inputs, are 0 and below
    every threshold; they alone may be more than wanted, and would halve it until no number could hold it.)

    The authors' experiments set the number to drop net by net; their library takes 1 % of all parameters, which at a
    tenth kept is a tenth of the kept. As a share of the kept, it suits every density. Threshold, tolerance and uniform
    allocation of the first mask are those of the library; the interval is the first in its script for CIFAR-10 (where
    it doubles at fixed epochs; here it stays), and so is the end, epoch 160 of 200.

    Parameters
    ----------
    fraction
        Share of the kept weights to drop each time, roughly; above 0 and at most 1.
    threshold
        The first threshold, more than 0.
    tolerance
        How far the dropped number may be from the wanted one, relatively, before the threshold moves; 0 to 1.
    """

    description: ClassVar[str] = "drop weights below an adaptive threshold, regrow where most survive"
    allocation: ClassVar[str] = "uniform"
    every: ClassVar[str] = "100it"
    until: ClassVar[float] = 0.8
    asks_gradients: ClassVar[bool] = False

    fraction: float = 0.1
    threshold: float = 1e-3
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        check_setting("fraction", self.fraction, 0, 1, above=True)
        check_setting("threshold", self.threshold, 0, above=True)
        check_setting("tolerance", self.tolerance, 0, 1)

    def update(self, moment: Moment) -> Change:
        """Drop below the threshold, regrow, and adapt the threshold, which is remembered."""
        if not all_finite(moment.weights):
            return no_change(moment)
        threshold = float(moment.memory.get("threshold", torch.tensor(self.threshold, dtype=torch.float64)))
        sizes = {name: magnitudes(moment.weights[name]) for name in moment.mask}
        now = {name: kept.flatten() for name, kept in moment.mask.items()}
        survivors = {name: _survivors(sizes[name], now[name], threshold) for name in now}
        survived = {name: int(survive.count_nonzero()) for name, survive in survivors.items()}
        room = {name: len(now[name]) - survived[name] for name in now}
        dropped = moment.mask.kept - sum(survived.values())
        growing = shared_out(dropped, survived, room)
        tensors = {
            name: regrown(survivors[name], growing[name], moment.generator).reshape(kept.shape)
            for name, kept in moment.mask.items()
        }
        change = with_redrawn_at_zero(moment, survivors, Mask(tensors))
        kept_sizes = torch.cat([torch.zeros(1), *(sizes[name][now[name]] for name in now)])
        adapted = self.adapted(threshold, dropped, moment.mask.kept, kept_sizes)
        return Change(change.mask, change.values, {"threshold": torch.tensor(adapted, dtype=torch.float64)})

    def adapted(self, threshold: float, dropped: int, kept: int, sizes: Tensor) -> float:
        """The next threshold, after ``dropped`` of ``kept`` weights with magnitudes ``sizes`` were dropped by this."""
        wanted = self.fraction * kept
        if dropped < (1 - self.tolerance) * wanted and bool((sizes >= threshold).any()):
            return 2 * threshold
        if dropped > (1 + self.tolerance) * wanted and bool(((sizes > 0) & (sizes < threshold)).any()):
            return threshold / 2
        return threshold


def shared_out(total: int, parts: Mapping[str, int], most: Mapping[str, int]) -> dict[str, int]:
    """``total`` in whole numbers, in proportion to ``parts``, but nowhere above ``most``; the others take the excess.

    The layers whose part isn't 0 have room for ``total`` together.
    """
    full: set[str] = set()
    while True:
        left = total - sum(most[name] for name in full)
        whole = sum(part for name, part in parts.items() if name not in full)
        shares = {
            name: float(most[name]) if name in full else left * part / max(1, whole) for name, part in parts.items()
        }
        over = {name for name in parts if shares[name] > most[name]}
        if not over:
            return apportion(shares, total, most)
        full |= over


def _survivors(sizes: Tensor, kept: Tensor, threshold: float) -> Tensor:
    survive = kept & (sizes >= threshold)
    return survive if bool(survive.any()) or not bool(kept.any()) else top(sizes, 1, kept)
