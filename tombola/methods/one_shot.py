"""One-shot pruning: every density straight from the dense net (Frankle & Carbin 2019, section 2)."""

from __future__ import annotations

from collections.abc import Iterator

from tombola.mask import Mask
from tombola.methods.base import Round, Search


def one_shot(search: Search) -> Iterator[Round]:
    """Train the dense net once; at each density prune it at one go and train the survivors from their values."""
    dense = search.dense()
    yield Round(0, Mask.full(dense.model()), dense.start, dense)
    whole = search.whole(dense.model())
    for number, density in enumerate(search.densities, start=1):
        if dense.diverged:
            return
        mask = search.pruned(dense, density, number, dense.start, within=whole)
        values, run = search.survivors.train(search.lab, dense, dense, mask)
        yield Round(number, mask, values, run)
