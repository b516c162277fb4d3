"""The masks that methods give, by method, seed and density: what the diagnostics of masks look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tombola.draws import Draw, numbered_masks
from tombola.errors import InputError, TombolaError
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.methods import METHODS, Search, get_method
from tombola.recipe import DrawRecipe


@dataclass(frozen=True)
class FoundMask:
    """The mask of one round of a draw. ``density`` is the one that was asked for."""

    method: str
    seed: int
    round: int
    density: float
    mask: Mask


def untrained(method: str) -> bool:
    """Whether a method finds its masks before any training. ``InputError`` for an unknown one."""
    return get_method(method).prunes == "before"


def check_untrained(method: str) -> None:
    """``InputError`` for a method that must train to find its masks."""
    if not untrained(method):
        known = ", ".join(name for name in METHODS if untrained(name))
        raise InputError(f"method {method!r} trains before it prunes, but this takes one that doesn't: {known}")


def whole_mask(lab: Lab, recipe: DrawRecipe) -> Mask:
    """The mask of the dense net: every weight that a draw may prune."""
    return Search(lab, recipe.seed, (), unpruned=recipe.unpruned).whole(lab.task.build(recipe.seed))


def masks_of(lab: Lab, recipe: DrawRecipe) -> Iterator[FoundMask]:
    """The masks of all rounds of a draw but the dense one. Only a method that needs training trains."""
    for number, mask in numbered_masks(Draw(recipe, lab)):
        yield FoundMask(recipe.method, recipe.seed, number, mask.density, mask)


def masks_at(lab: Lab, recipe: DrawRecipe, densities: Sequence[float]) -> Iterator[FoundMask]:
    """A method's mask at each density (0 to 1, both excluded), from the densest on.

    The masks are those of draws with the rest of ``recipe``. Where rounds build on each other, as IMP's do, each
    density has a draw of its own, whose ladder ends there; the rounds above are shared through the store. All other
    methods go to each density straight, in one draw.

    Raises ``InputError`` for a method that finds a density of its own, ``TombolaError`` where a search gives no mask of
    a density: a net diverged, or its channels didn't settle.
    """
    ladder = sorted(set(densities), reverse=True)
    method = get_method(recipe.method)
    if not method.densities:
        raise InputError(f"method {recipe.method!r} finds a density of its own, so it has no mask at others")
    if not method.cumulative:
        yield from _straight(lab, _changed(recipe, densities=ladder), ladder)
        return
    for density in ladder:
        *_, last = masks_of(lab, _changed(recipe, density=density))
        if last.mask.kept != round(density * last.mask.total):
            raise TombolaError(
                f"the search of seed {recipe.seed} ends at {last.density:.2%}, before density {density:.2%}: "
                "a net diverged, so lower the learning rate"
            )
        yield FoundMask(last.method, last.seed, last.round, density, last.mask)


def _straight(lab: Lab, recipe: DrawRecipe, ladder: Sequence[float]) -> Iterator[FoundMask]:
    """The masks of a draw that goes to each density by itself, so that one may be missing."""
    found = numbered_masks(Draw(recipe, lab))
    for number, density in enumerate(ladder, start=1):
        at, mask = next(found, (None, None))
        if mask is None or at != number:
            raise TombolaError(
                f"method {recipe.method!r} has found no mask of density {density:g} for seed {recipe.seed}: "
                "leave that density out, or train longer"
            )
        yield FoundMask(recipe.method, recipe.seed, number, density, mask)


def _changed(recipe: DrawRecipe, **ending: Any) -> DrawRecipe:
    """The recipe with another ending."""
    endings = {"rounds": None, "density": None, "densities": None}
    return DrawRecipe.model_validate({**recipe.model_dump(mode="json"), **endings, **ending})
