"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tombola.errors import InputError, suggestion
from tombola.pruning import ALLOCATIONS, prune
from tombola.updates.base import Change, Moment, all_finite, check_setting, no_change


@dataclass(frozen=True)
class Gradual:
    """The net starts dense and loses its smallest weights little by little, many at first and few at the end.

    At a share x of the way from ``first`` to the last update, ``density + (1 - density) * (1 - x) ** 3`` of the entries
    are kept (the authors' formula for an initial sparsity of 0): exactly that times the number of entries, rounded; at
    the last update exactly ``round(density * total)``. What is pruned stays pruned, and the smallest magnitudes go.

    The way is measured in steps, and ends with the last of the updates, which come every ``every`` steps before
    ``until``; so the density of the last update is the final one whether or not the interval divides the time. If
    ``first`` is no earlier than that, the last update prunes all at once. Before ``first``, and at a mask that is
    already as sparse as it should be, nothing changes.

    The paper prunes every layer to the same sparsity, which is the allocation ``"uniform"``; that it applies to the
    output layer too is ours, as masks cover it. A mask to start from that isn't dense must have in each layer what the
    allocation gives it, or ``InputError``. The usual interval and end are ours.

    Parameters
    ----------
    density
        Kept / all entries at the end, above 0 and at most 1.
    first
        When pruning begins, as a share of the training.
    allocation
        How the density is spread over layers at every update: a name of ``tombola.pruning.ALLOCATIONS``.
    """

    description: ClassVar[str] = "prune the smallest weights of a dense net little by little while it trains"
    every: ClassVar[str] = "100it"
    until: ClassVar[float] = 0.75
    asks_gradients: ClassVar[bool] = False

    density: float
    first: float = 0.0
    allocation: str = "uniform"

    def __post_init__(self) -> None:
        check_setting("density", self.density, 0, 1, above=True)
        check_setting("first", self.first, 0, 1)
        if self.allocation not in ALLOCATIONS:
            raise InputError(f"unknown allocation {self.allocation!r}.{suggestion(str(self.allocation), ALLOCATIONS)}")

    def density_at(self, step: int, steps: int, every: int, until: int) -> float:
        """Kept / all entries after the update before ``step``, which is one of the updates."""
        last = step + max(0, until - 1 - step) // every * every
        start = self.first * steps
        if step >= last:
            return self.density
        if step <= start:
            return 1.0
        return float(self.density + (1 - self.density) * (1 - (step - start) / (last - start)) ** 3)

    def update(self, moment: Moment) -> Change:
        """Prune to the density of this step."""
        density = self.density_at(moment.step, moment.steps, moment.every, moment.until)
        if round(density * moment.mask.total) >= moment.mask.kept or not all_finite(moment.weights):
            return no_change(moment)
        scores = {name: moment.weights[name].detach().abs() for name in moment.mask}
        return Change(prune(scores, density, self.allocation, within=moment.mask))
