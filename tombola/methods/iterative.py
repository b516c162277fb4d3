"""Iterative magnitude pruning (Frankle & Carbin 2019, section 2 and appendix B)."""

from __future__ import annotations

from collections.abc import Iterator

from tombola.mask import Mask
from tombola.methods.base import Round, Search


def imp(search: Search) -> Iterator[Round]:
    """Train, prune the lowest scores of what is left, give the survivors back their values, and again.

    Round 0 is the dense net. With strategy 1 (the paper's) the next round prunes the net that this round trained from
    the ticket's values; with strategy 2 it prunes a net of its own that goes on training from its trained values, and
    the ticket is reset only to be judged. Ends when a net has diverged: there is nothing to prune by.
    """
    lab, dense = search.lab, search.dense()
    yield Round(0, Mask.full(dense.model()), dense.start, dense)
    pruned, mask = dense, search.whole(dense.model())
    for number, density in enumerate(search.densities, start=1):
        if pruned.diverged:
            return
        mask = search.pruned(pruned, density, number, dense.start, within=mask)
        values, run = search.survivors.train(lab, dense, pruned, mask)
        yield Round(number, mask, values, run)
        if search.strategy == 2:
            run = lab.train(search.seed, start=pruned.final, mask=mask, arm="search")
        pruned = run
