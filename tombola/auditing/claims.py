"""What an audit is to judge: the claim that a ticket's file, or a draw in the store, makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tombola.asked import draw_recipe
from tombola.criteria import CRITERIA
from tombola.diagnostics.origin import seed_of
from tombola.errors import InputError
from tombola.methods import METHODS, get_method
from tombola.recipe import DrawRecipe
from tombola.store import AuditRecord, DrawRecord, RunRecord
from tombola.tasks import Task, get_task
from tombola.ticket import Ticket


@dataclass(frozen=True)
class Claim:
    """What is to be judged: a round of a draw, and, where there is one, the ticket that claims to come from there."""

    task: Task
    recipe: DrawRecipe
    round: int
    ticket: Ticket | None = None
    untold: str = ""
    """Why a ticket can't be drawn again, in a sentence; empty where it can."""


def claim_of(ticket: Ticket, task: str | Task | None = None) -> Claim:
    """What a ticket claims; one that doesn't say how it was drawn, on this task, is one of method ``given``."""
    asked = ticket.origin.get("task") if task is None else task
    if not isinstance(asked, (str, Task)):
        raise InputError("the ticket's origin names no task: say which one it is to be judged on")
    known = asked if isinstance(asked, Task) else get_task(asked)
    recipe, untold = _told(ticket.origin, known)
    if recipe is not None and not untold:
        return Claim(known, recipe, int(ticket.origin["round"]), ticket)
    like = {} if recipe is None else recipe.model_dump()
    return Claim(known, given_recipe(known, seed_of(ticket), like), 1, ticket, untold)


def _told(origin: Mapping[str, Any], task: Task) -> tuple[DrawRecipe | None, str]:
    """The recipe that a ticket says it was drawn and trained by on this task; and why it can't be drawn again by it.

    A file is nothing to trust: a function that it names is not imported.
    """
    recipe, number = origin.get("recipe"), origin.get("round")
    if not isinstance(recipe, Mapping) or not isinstance(number, int) or isinstance(number, bool) or number < 1:
        return None, "It doesn't say how it was drawn."
    try:
        found = DrawRecipe.model_validate(dict(recipe))
    except ValidationError:
        return None, "The recipe that it says it was drawn by is none of this version."
    if {origin.get("task"), found.task} != {task.name}:
        return None, f"It wasn't drawn on task {task.name!r}."
    if found.method == "given":
        return found, "It was taken from the file of another ticket."
    if found.method not in METHODS:
        return found, f"The method that it says it was drawn by, {found.method!r}, is none of this version."
    if found.criterion not in CRITERIA:
        return found, (
            f"Its criterion, {found.criterion!r}, is a function that isn't registered here, and none is imported "
            "because a file says so."
        )
    return found, ""


def claim_of_record(
    record: DrawRecord | RunRecord | AuditRecord, draws: Sequence[DrawRecord], round: int | None = None
) -> Claim:
    """What a draw in the store claims by one of its rounds (default: the chosen one), or by the round of a run of its.

    Raises ``InputError`` for an audit, for a run that is no draw's ticket, for a draw that has no such round, or chose
    none, and for one that was made with words of another version.
    """
    if isinstance(record, AuditRecord):
        raise InputError(f"audit {record.id[:8]} is a verdict, not a ticket: name a file, a draw or a run of a draw")
    if isinstance(record, RunRecord):
        at = [(d, r) for d in draws for r in d.rounds if r["run"] == record.id and r["arm"] == "ticket" and r["round"]]
        if not at:
            raise InputError(f"run {record.id[:8]} is no draw's ticket: name a draw, or a run of one of its rounds")
        # A ticket that was judged as it is too is, in its first data order, trained by the very run of its draw.
        found, row = max(at, key=lambda pair: pair[0].about["recipe"].get("method") != "given")
        number = int(row["round"])
        if round not in (None, number):
            raise InputError(f"run {record.id[:8]} is that of round {number}, but round {round} is asked for")
    else:
        there = [int(row["round"]) for row in record.rounds if row["arm"] == "ticket" and row["round"]]
        chosen = [int(row["round"]) for row in record.rounds if row.get("chosen") and row["round"]]
        if round is None and not chosen:
            raise InputError(f"draw {record.id[:8]} chose no ticket, as none was inside the margin: name a round")
        found, number = record, chosen[0] if round is None else round
        if number not in there:
            raise InputError(
                f"the rounds of draw {record.id[:8]} go from 1 to {max(there, default=0)}, but got {number}"
            )
    try:
        recipe = DrawRecipe.model_validate(found.about["recipe"])
    except (ValidationError, KeyError) as error:
        raise InputError(f"the recipe of draw {found.id[:8]} can't be read by this version: draw it anew") from error
    if recipe.method == "given":
        raise InputError(f"draw {found.id[:8]} only trained the ticket of a file: name the file")
    return Claim(get_task(recipe.task), recipe, number)


def numbers(claim: Claim, seeds: int | Sequence[int]) -> list[int]:
    """The seeds asked for; a number of them is counted from the claim's own. ``InputError`` for what can't be seeds."""
    if isinstance(seeds, int):
        if not 1 <= seeds <= 1000:
            raise InputError(f"seeds must be from 1 to 1,000, but got {seeds}")
        return list(range(claim.recipe.seed, claim.recipe.seed + seeds))
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"seeds must be whole numbers, 0 or more, each once, but got {list(seeds)}")
    return list(seeds)


def given_recipe(task: Task, seed: int, like: Mapping[str, Any], address: str = "") -> DrawRecipe:
    """The recipe that trains a ticket that is there, in the way that another recipe has trained it."""
    known = {name: like[name] for name in ("training", "margin", "back_to", "fine_tune") if name in like}
    kind = like.get("survivors", "reset")
    if kind not in get_method("given").survivors:  # what went on from the middle of a training is judged in a whole one
        kind = "reset"
    return draw_recipe(task, {**known, "method": "given", "ticket": address, "survivors": kind, "seed": seed})
