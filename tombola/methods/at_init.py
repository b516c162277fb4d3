"""Tickets found before training: masks from the scores of the untrained net (Lee et al. 2019 and after)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tombola.at_init import prune_at_init
from tombola.mask import Mask
from tombola.methods.base import Round, Search
from tombola.seeds import stream


@dataclass(frozen=True)
class AtInit:
    """Prune the untrained net, at each density anew from the whole of it, and train what is left.

    The scores are those of the very weights that are then trained. ``criterion`` None is the one the search names;
    ``rounds`` None is the criterion's own number. Round 0 is the dense net, trained to compare with.
    """

    description: str
    criterion: str | None = None
    rounds: int | None = None
    allocation: str = "global"
    """The default of its draws."""

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds. Every mask is found before anything is trained, so that a net that can't be scored costs
        nothing."""
        masks = list(self.masks(search))
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        for number, mask in enumerate(masks, start=1):
            values, run = search.survivors.train(search.lab, dense, dense, mask)
            yield Round(number, mask, values, run)

    def masks(self, search: Search) -> Iterator[Mask]:
        """The mask of each density in turn, found without any training."""
        return (self._mask(search, density, number) for number, density in enumerate(search.densities, start=1))

    def _mask(self, search: Search, density: float, number: int) -> Mask:
        model = search.lab.task.build(search.seed).to(search.lab.recipe.device)
        by = self.criterion or search.criterion
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
