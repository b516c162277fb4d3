"""How far a study is, from the store alone: no data are loaded and nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

from tombola.asked import controls_of
from tombola.recipe import DrawRecipe
from tombola.store import DrawRecord, Store
from tombola.studies.plan import Plan, Planned, key_of

Row = Mapping[str, Any]
State = Literal["done", "running", "begun", "failed", "waiting"]
"""All in the store; a process of the study is at it; some of it is in the store; its last try failed; nothing yet."""


@dataclass(frozen=True)
class DrawState:
    """How far a draw of a study is; ``record`` is what the store has of it."""

    draw: Planned
    state: State
    record: DrawRecord | None = None
    error: str = ""

    @property
    def rows(self) -> Sequence[Row]:
        """The rows of its runs that are in the store."""
        return () if self.record is None else self.record.rounds

    @cached_property
    def missing_rounds(self) -> list[float]:
        """The densities of the rounds that are still to come, 1 for the dense one."""
        if _searched(self.record):
            return []
        there = {row["round"] for row in self.rows if row["arm"] == "ticket"}
        return [d for number, d in enumerate((1.0, *self.draw.densities)) if number not in there]

    @cached_property
    def missing_controls(self) -> list[float]:
        """The densities of the controls that are still to come."""
        ladder = dict(enumerate((1.0, *self.draw.densities)))
        tickets = [row for row in self.rows if row["arm"] == "ticket"]
        rounds = [row["round"] for row in tickets if row["round"]] if _searched(self.record) else sorted(ladder)[1:]
        ladder |= {row["round"]: row["density"] for row in tickets}
        there = {(row["arm"], row["round"], row["draw"]) for row in self.rows}
        return [ladder[control[1]] for control in controls_of(self.draw.recipe, rounds) if control not in there]

    @property
    def left(self) -> int:
        """How many runs are still to come."""
        return len(self.missing_rounds) + len(self.missing_controls)

    @property
    def total(self) -> int:
        """How many runs there are in all, as far as that can be told: a search may end early."""
        return len(self.rows) + self.left

    @property
    def seconds(self) -> float:
        """Seconds that its runs took, the dense one included."""
        return math.fsum(row["seconds"] for row in self.rows)


def _searched(record: DrawRecord | None) -> bool:
    return record is not None and record.status == "finished"


def look(
    plan: Plan, store: Store | None, at_work: Iterable[str] = (), failures: Mapping[str, str] | None = None
) -> list[DrawState]:
    """How far each draw of a study is, in the file's order.

    ``at_work`` has the keys of draws that processes are at, ``failures`` what those that failed said, by key. A draw
    is found by its recipe; where the store has it of several data sets, the one that was worked on last counts.
    """
    records = {} if store is None else _records(plan, store)
    busy, failed = set(at_work), failures or {}
    return [_state(draw, records.get(draw.key), draw.key in busy, failed.get(draw.key, "")) for draw in plan.draws]


def _state(draw: Planned, record: DrawRecord | None, busy: bool, error: str) -> DrawState:
    found = DrawState(draw, "waiting", record)
    if _searched(record) and not found.left:
        return DrawState(draw, "done", record)
    if busy:
        return DrawState(draw, "running", record)
    if error:
        return DrawState(draw, "failed", record, error)
    return found if record is None else DrawState(draw, "begun", record)


def _records(plan: Plan, store: Store) -> dict[str, DrawRecord]:
    """The store's records of a plan's draws, by key."""
    wanted = {(d.recipe.task, d.recipe.method, d.recipe.seed) for d in plan.draws}
    found: dict[str, DrawRecord] = {}
    for record in sorted(store.draws(), key=lambda r: (_searched(r), r.updated)):
        fields = record.about.get("recipe")
        if not isinstance(fields, dict) or tuple(fields.get(n) for n in ("task", "method", "seed")) not in wanted:
            continue
        try:
            found[key_of(DrawRecipe.model_validate(fields))] = record
        except ValidationError:
            continue  # of another version of Tombola
    return found
