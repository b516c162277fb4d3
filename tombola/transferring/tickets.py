"""Tickets made fit for the nets that they are carried to, and those that a search or a file has to give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tombola.draws import Draw
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.tasks import Task
from tombola.tasks.adapting import output_layer
from tombola.ticket import Ticket

NEAR = 0.02
"""How far, as a share of it, a ticket's density may be from one that is asked for."""
_FROM = ("task", "method", "seed", "round")

Found = list[tuple[float, Ticket]]
"""Tickets with the densities that they are known by."""


def carried(ticket: Ticket, task: Task, seed: int) -> Ticket:
    """A ticket as it is trained on a task whose net is that of its source, but perhaps for the output layer, or for the
    head where the task has a rule of its own for that (``Task.head``).

    Mask and values stay. A replaced output layer begins at the initial values that the task's dense net of the seed has
    there, and the mask doesn't cover it, so that the ticket's density is that of the other layers. Of its origin only
    what says where it is from is kept, so that equal tickets are one in the store.

    Raises ``InputError`` for a ticket of another net.
    """
    net = task.build(seed)
    fresh = net.state_dict()
    theirs = {name: value.shape for name, value in ticket.values.items()}
    differing = [n for n in {**fresh, **theirs} if n not in fresh or theirs.get(n) != fresh[n].shape]
    in_head = task.head()
    if differing and in_head is None:
        layer = output_layer(task, net)
        own = [name for name in differing if name.rpartition(".")[0] != layer]
    else:
        own = [name for name in differing if in_head is None or not in_head(name)]
    if own:
        name = own[0]
        raise InputError(
            f"a ticket is carried to its own net with at most another output layer, but {name!r} has shape "
            f"{tuple(theirs.get(name, ())) or 'none'} in the ticket and "
            f"{tuple(fresh[name].shape) if name in fresh else 'none'} in the net of {task.name!r}: name the task that "
            "it was drawn on"
        )
    values = {n: fresh[n] if n in differing else ticket.values[n] for n in fresh}
    mask = Mask({name: kept for name, kept in ticket.mask.items() if name not in differing})
    origin: dict[str, Any] = {name: ticket.origin[name] for name in _FROM if name in ticket.origin}
    return Ticket(mask, values, origin)


def of_a_draw(draw: Draw, label: str, densities: Sequence[float] | None) -> Found:
    """The tickets of a search's rounds; with ``densities`` those next to them, which must be near.

    A round of a search that was told its densities is known by that, another by its mask's, to three digits.
    """
    asked = draw.recipe.densities
    there = [
        (asked[r.number - 1] if asked else float(f"{r.mask.density:.3g}"), draw.ticket(r))
        for r in draw.rounds
        if r.number
    ]
    return _near(there, label, densities)


def of_a_file(ticket: Ticket, label: str, densities: Sequence[float] | None) -> Found:
    """The ticket of a file, known by its density to three digits."""
    return _near([(float(f"{ticket.density:.3g}"), ticket)], label, densities)


def _near(there: Found, label: str, densities: Sequence[float] | None) -> Found:
    if densities is None:
        return there
    found: Found = []
    for density in densities:
        at, ticket = min(there, key=lambda one: abs(one[0] - density), default=(0.0, None))
        if ticket is None or abs(at - density) > NEAR * density:
            listed = ", ".join(f"{known:g}" for known, _ in there) or "none"
            raise InputError(
                f"a ticket of density {density:g} is asked for, but those of {label} have {listed}: name these with "
                "densities, or none for all of them"
            )
        found.append((density, ticket))
    return found
