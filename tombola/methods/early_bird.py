"""Early-Bird tickets: channels drawn early in training, cut away, and trained on (You et al. 2020)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from tombola.batches import tensors
from tombola.durations import Duration
from tombola.early_bird import DISTANCE, WINDOW, channel_mask, scales
from tombola.engines.slimming import slim_mask
from tombola.lab import Run
from tombola.mask import Mask
from tombola.methods.base import Method, Round, Search
from tombola.recipe import Settled


@dataclass(frozen=True)
class EarlyBird(Method):
    """Train with an L1 penalty on the scales of batch normalisation until the mask of its channels has settled.

    Densities are shares of channels. What the removed channels alone are made of and read by is masked with them, so
    that the compact engine trains a physically smaller net. Survivors ``continue``: the values they have, on the rest
    of the recipe; ``reset`` is the paper's ablation from initial values.

    A density whose masks don't settle gives no round, and a warning.
    """

    survivors: tuple[str, ...] = ("continue", "reset")
    straight: bool = True
    densities: tuple[float, ...] = (0.7, 0.5, 0.3)

    prunes: ClassVar = "during"

    @property
    def settings(self) -> Mapping[str, float]:
        """``l1``: the penalty; ``window``: masks in the queue; ``distance``: the largest among them."""
        return {"l1": 1e-4, "window": WINDOW, "distance": DISTANCE}

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds, each with a search of its own."""
        lab, chosen = search.lab, {**self.settings, **search.settings}
        scales(lab.task.build(search.seed))  # a net without is refused before it is trained
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        for number, density in enumerate(search.densities, start=1):
            asked = Settled(density=density, window=int(chosen["window"]), distance=chosen["distance"])
            changes = {"until_settled": asked, "scale_l1": chosen["l1"], "device": lab.recipe.device}
            found = lab.train(search.seed, recipe=lab.recipe.model_copy(update=changes), arm="search")
            if not found.summary["settled"]:
                warnings.warn(
                    f"the channel masks of density {density:g} have not settled in {found.summary['steps']:,} steps: "
                    "there is no ticket. Train longer, or allow a larger distance (--setting distance=0.2)",
                    stacklevel=2,
                )
                continue
            yield self._ticket(search, number, dense, found, density)

    def _ticket(self, search: Search, number: int, dense: Run, found: Run, density: float) -> Round:
        lab, model = search.lab, found.model()
        example = tensors(lab.splits(search.seed).train.take(torch.zeros(2, dtype=torch.int64)))[0]
        mask: Mask = slim_mask(model, channel_mask(scales(model), density), example)
        if search.survivors.kind == "reset":
            values, run = search.survivors.train(lab, dense, found.final, mask)
        else:
            drawn = Duration(lab.recipe.start.steps(1) + found.summary["steps"])
            values = found.final
            rest = lab.recipe.model_copy(update={"start": drawn})
            run = lab.train(search.seed, start=values, mask=mask, recipe=rest)
        return Round(number, mask, values, run, (found,))
