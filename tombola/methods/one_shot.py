"""One-shot pruning: every density straight from the dense net (Frankle & Carbin 2019, section 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tombola.methods.base import Method, Round, Search


@dataclass(frozen=True)
class OneShot(Method):
    """Train the dense net once; at each density prune it at one go and train the survivors from their values."""

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds, each of which prunes the dense net."""
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        whole = search.whole(dense.model())
        for number, density in enumerate(search.densities, start=1):
            if dense.diverged:
                return
            pruned = search.pruned(dense, density, number, dense.start, within=whole)
            values, run = search.survivors.train(search.lab, dense, pruned.values, pruned.mask)
            yield Round(number, pruned.mask, values, run, (dense,), pruned.work)
