"""How a ticket was to be trained, from what it says of its origin."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from tombola.recipe import DrawRecipe, Recipe
from tombola.tasks import Task
from tombola.ticket import Ticket


def training_of(ticket: Ticket, task: Task) -> tuple[int, Recipe]:
    """The seed of a ticket, and the recipe by which its draw trained it: from its rewind step on where it has one.

    A ticket that doesn't say, or not in words of today's recipes, has seed 0 and the task's own recipe.
    """
    recipe, number = ticket.origin.get("recipe"), seed_of(ticket)
    if not isinstance(recipe, Mapping):
        return number, task.recipe
    try:
        drawn = DrawRecipe.model_validate(dict(recipe))
    except ValidationError:
        return number, task.recipe
    if drawn.survivors in ("rewind", "lr-rewind"):
        return number, drawn.training.model_copy(update={"start": drawn.back_to})
    return number, drawn.training


def seed_of(ticket: Ticket) -> int:
    """The seed of a ticket; 0 where it doesn't say."""
    return told_seed(ticket) or 0


def told_seed(ticket: Ticket) -> int | None:
    """The seed that a ticket says it is of; None where it says none."""
    seed = ticket.origin.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 else None
