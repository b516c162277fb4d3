"""Whether a ticket is the one that its recipe draws, and in words how it differs from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tombola.draws import Draw
from tombola.ticket import Ticket
from tombola.version import versions


def compared(ticket: Ticket, again: Draw, round: int) -> str | None:
    """None where a ticket is that of a draw's round, bit for bit; else in words how they differ."""
    seed, there = again.recipe.seed, {one.number: one for one in again.rounds}
    if round not in there:
        return f"Drawn again by its recipe (seed {seed}), there is no round {round}."
    found, start = again.ticket(there[round]), there[round].values
    if found.digest == ticket.digest:
        return None
    if found.mask.keys() != ticket.mask.keys():
        return f"Drawn again by its recipe (seed {seed}), it has other layers."
    shared, kept = (ticket.mask & found.mask).kept, max(1, ticket.mask.kept)
    same = sum(int((ticket.values[n][m] == start[n][m]).sum()) for n, m in ticket.mask.items())
    chance = sum(a.kept * b.density for a, b in zip(ticket.mask.layers(), found.mask.layers(), strict=True)) / kept
    return (
        f"It isn't the ticket that its recipe draws (seed {seed}): of the weights it keeps, {shared / kept:.1%} are "
        f"kept there too (by chance {chance:.1%}), and {same / kept:.1%} have the value that they start from there."
        + _made_elsewhere(ticket.origin, again)
    )


def _made_elsewhere(origin: Mapping[str, Any], again: Draw) -> str:
    """What may be behind a difference: other data, other versions."""
    theirs, ours, parts = origin.get("versions"), versions(), []
    if origin.get("data") not in (None, again.lab.data_digest(again.recipe.seed)):
        parts.append("other data")
    if isinstance(theirs, Mapping):
        parts += [f"{name} {theirs[name]}, not {own}" for name, own in ours.items() if theirs.get(name, own) != own]
    return f" It says that it was drawn with {'; '.join(parts)}." if parts else ""
