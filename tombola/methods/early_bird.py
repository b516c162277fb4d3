"""Early-Bird tickets: channels drawn early in training, cut away, and trained on (You et al. 2020)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tombola.durations import Duration
from tombola.early_bird import DISTANCE, WINDOW, channel_mask, scales
from tombola.engines.slimming import slim_mask
from tombola.lab import Run
from tombola.mask import Mask
from tombola.methods.base import Method, Round, Search, Survivors, any_engine
from tombola.recipe import DrawRecipe, Recipe, Settled, checked


@dataclass(frozen=True)
class EarlyBird(Method):
    """Train with an L1 penalty on the scales of batch normalisation until the mask of its channels has settled.

    Densities are shares of channels. What the removed channels alone are made of and read by is masked with them, so
    that the compact engine trains a physically smaller net. Survivors ``continue``: the values they have, on the rest
    of the recipe; ``reset`` is the paper's ablation from initial values.

    A density whose masks don't settle, or settle when there is nothing left to train, gives no round, and a warning.
    """

    allocation: str | None = "global"
    survivors: tuple[str, ...] = ("continue", "reset")
    straight: bool = True
    densities: tuple[float, ...] = (0.7, 0.5, 0.3)

    prunes: ClassVar = "during"
    scores: ClassVar = False
    of_channels: ClassVar = True
    spreads: ClassVar = False

    @property
    def settings(self) -> Mapping[str, float]:
        """``l1``: the penalty; ``window``: masks in the queue; ``distance``: the largest among them."""
        return {"l1": 1e-4, "window": WINDOW, "distance": DISTANCE}

    def check_settings(self, recipe: DrawRecipe) -> None:
        """``InputError`` for a penalty below 0, a window that isn't 2 or more epochs, a distance outside 0 to 1."""
        _searching(recipe.training, 0.5, self.chosen(recipe.settings))

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds, each with a search of its own. A net whose channels can't be cut is refused before training."""
        lab = search.lab
        for density in search.densities:
            _mask(search, lab.task.build(search.seed), density)
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        for number, density in enumerate(search.densities, start=1):
            recipe = _searching(lab.recipe, density, self.chosen(search.settings))
            found = lab.train(search.seed, recipe=recipe, arm=f"search for {density:.4g} of channels")
            lost = _lost(search, found)
            if lost is None:
                yield _ticket(search, number, dense, found, density)
            else:
                warnings.warn(f"the channel masks of density {density:g} {lost}", stacklevel=2)


def _searching(recipe: Recipe, density: float, chosen: Mapping[str, float]) -> Recipe:
    """The recipe of the training that ends when channel masks have settled."""
    asked = checked(Settled, {"density": density, "window": chosen["window"], "distance": chosen["distance"]})
    changes = {"until_settled": asked, "scale_l1": chosen["l1"], "engine": any_engine(recipe)}
    return checked(Recipe, {**recipe.model_dump(), **changes})


def _lost(search: Search, found: Run) -> str | None:
    """Why a search gives no ticket; None where it does."""
    steps = f"{found.summary['steps']:,} steps"
    if found.diverged:
        return f"have no ticket, as the search diverged in {steps}: lower the learning rate"
    if not found.summary["settled"]:
        return (
            f"have not settled in {steps}: there is no ticket. Train longer, or allow a larger distance "
            "(settings: distance)"
        )
    _, last = search.lab.span(search.seed, search.lab.recipe)
    if search.survivors.kind == "continue" and _drawn(search, found) >= last:
        return f"have settled only at the end, in {steps}: there is nothing left to train. Train longer"
    return None


def _drawn(search: Search, found: Run) -> int:
    """The step before which the ticket was drawn."""
    first, _ = search.lab.span(search.seed, search.lab.recipe)
    return int(first + found.summary["steps"])


def _ticket(search: Search, number: int, dense: Run, found: Run, density: float) -> Round:
    mask, survivors = _mask(search, found.model(), density), search.survivors
    if survivors.kind == "continue":  # with its values at the step before which it was drawn
        survivors = Survivors("lr-rewind", Duration(_drawn(search, found)))
    values, run = survivors.train(search.lab, dense, found.final, mask)
    return Round(number, mask, values, run, (found,))


def _mask(search: Search, model: nn.Module, density: float) -> Mask:
    """The net's weights without the channels whose scales are smallest; layers left unpruned are not in it."""
    slim = slim_mask(model, channel_mask(scales(model), density), search.lab.example(search.seed))
    spared = search.lab.task.prunable(model).keys() - search.whole(model).keys()
    return Mask({name: kept for name, kept in slim.items() if name not in spared})
