"""Iterative pruning of trained nets (Frankle & Carbin 2019, section 2 and appendix B; Han et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tombola.lab import Run
from tombola.methods.base import Method, Round, Search
from tombola.methods.work import Work


@dataclass(frozen=True)
class Iterative(Method):
    """Train, prune the lowest scores of what is left, train the survivors, and again.

    With strategy 1 (the paper's) the next round prunes the net that this round trained from the ticket's values; with
    strategy 2 it prunes a net of its own that goes on training from its trained values, and the ticket is reset only to
    be judged. Ends when a net has diverged: there is nothing to prune by.
    """

    cumulative: ClassVar = True

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds, each of which prunes the net of the one before."""
        lab, dense = search.lab, search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        last, mask, scoring = dense, search.whole(dense.model()), Work()
        trainings: tuple[Run, ...] = (dense,)
        for number, density in enumerate(search.densities, start=1):
            if last.diverged:
                return
            pruned = search.pruned(last, density, number, dense.start, within=mask)
            mask, scoring = pruned.mask, scoring + pruned.work
            values, run = search.survivors.train(lab, dense, pruned.values, mask)
            yield Round(number, mask, values, run, trainings, scoring)
            if search.strategy == 2:
                run = lab.train(search.seed, start=pruned.values, mask=mask, arm="search")
            last, trainings = run, (*trainings, run)
