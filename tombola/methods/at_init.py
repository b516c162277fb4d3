"""Tickets found before training: masks from the scores of the untrained net (Lee et al. 2019 and after)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tombola.at_init import prune_at_init
from tombola.mask import Mask
from tombola.methods.base import Method, Round, Search
from tombola.methods.work import Work, measured
from tombola.seeds import stream


@dataclass(frozen=True)
class AtInit(Method):
    """Prune the untrained net, at each density anew from the whole of it, and train what is left.

    The scores are those of the very weights that are then trained. ``rounds`` None is the criterion's own number.
    """

    allocation: str | None = "global"
    survivors: tuple[str, ...] = ("reset",)
    straight: bool = True
    rounds: int | None = None

    prunes: ClassVar = "before"

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds. Every mask is found before anything is trained, so that a net that can't be scored costs
        nothing."""
        found = list(self._masks(search))
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        for number, (mask, work) in enumerate(found, start=1):
            values, run = search.survivors.train(search.lab, dense, dense.final, mask)
            yield Round(number, mask, values, run, scoring=work)

    def masks(self, search: Search) -> Iterator[Mask]:
        """The mask of each density in turn, found without any training."""
        return (mask for mask, _ in self._masks(search))

    def _masks(self, search: Search) -> Iterator[tuple[Mask, Work]]:
        for number, density in enumerate(search.densities, start=1):
            with measured() as work:
                mask = self._mask(search, density, number)
            yield mask, work

    def _mask(self, search: Search, density: float, number: int) -> Mask:
        model = search.lab.task.build(search.seed).to(search.lab.recipe.device)
        by = search.criterion
        return prune_at_init(
            model,
            by,
            density,
            rounds=search.scoring.rounds or self.rounds,
            allocation=search.allocation,
            within=search.whole(model),
            generator=stream(search.seed, "criterion", number),
            **search.for_gradients(by),
        )
