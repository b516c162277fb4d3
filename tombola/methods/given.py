"""A ticket from elsewhere: nothing is searched for, what its file holds is trained and judged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from tombola.errors import InputError
from tombola.methods.base import Method, Round, Search
from tombola.recipe import DrawRecipe
from tombola.ticket import Ticket


@dataclass(frozen=True)
class Given(Method):
    """Train the ticket of a file beside the dense net of the seed. It prunes nothing: allocation and rate say nothing.

    Its survivors start from the file's values, whatever they are; where it prunes, the seed's initial values stand
    behind it, for controls that keep other weights. ``survivors`` says by which part of the recipe it is trained.
    """

    straight: bool = True
    densities: tuple[float, ...] = ()

    given: ClassVar = True
    scores: ClassVar = False

    def check(self, recipe: DrawRecipe) -> None:
        """``InputError`` for what doesn't go with the method, such as no file."""
        if recipe.ticket is None:
            raise InputError(f"method {recipe.method!r} trains a ticket that is there: name its file with ticket")
        super().check(recipe)

    def __call__(self, search: Search) -> Iterator[Round]:
        """The dense round and the ticket's. ``TicketError`` for a damaged file, ``InputError`` for one that doesn't fit
        the task's net."""
        ticket = self.ticket(search)
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        values = dict(ticket.values)
        for name, kept in ticket.mask.items():
            values[name] = torch.where(kept, values[name], dense.start[name])
        recipe = search.survivors.recipe(search.lab, search.seed)
        run = search.lab.train(search.seed, start=values, mask=ticket.mask, recipe=recipe)
        yield Round(1, ticket.mask, values, run)

    def ticket(self, search: Search) -> Ticket:
        """The ticket, which fits the net."""
        assert search.ticket is not None
        kept = re.fullmatch(r"[0-9a-f]{64}", search.ticket)
        found = Ticket.from_bytes(search.lab.store.get(search.ticket)) if kept else Ticket.load(search.ticket)
        found.model(lambda: search.lab.task.build(search.seed))
        return found
