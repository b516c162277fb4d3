"""Audits of a toy, and how many trainings each of them begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import toy
from toy import toy_task

import tombola as tb
from tombola.auditing import Audit, Claim, How, Runner, carry_out_audit, claim_of, numbers
from tombola.draws import Draw
from tombola.events import Event

SHORT = {"steps": "30it", "evaluate_every": "15it", "engine": "masked"}
TASK = toy_task(name="toy for audits", recipe=SHORT)


def drawn(store: tb.Store, task: tb.Task = TASK, **options: Any) -> Draw:
    return toy.drawn(store, task, **options)


class Audited:
    """Carries out audits in a store, and counts the trainings that each of them begins."""

    def __init__(self, place: Path) -> None:
        self.place, self.began = str(place), 0

    def claim(
        self, claim: Claim, seeds: int | Sequence[int] = 1, controls: tuple[str, ...] | None = (), **how: Any
    ) -> Audit:
        begun: list[Event] = []
        run = Runner(claim.task, self.place, watcher=lambda e: begun.append(e) if e.kind == "start" else None)
        try:
            return carry_out_audit(claim, numbers(claim, seeds), How(controls=controls, **how), run)
        finally:
            self.began = len(begun)

    def ticket(self, ticket: tb.Ticket, seeds: int | Sequence[int] = 1, **how: Any) -> Audit:
        return self.claim(claim_of(ticket, TASK), seeds, **how)


def runs_of(found: Audit, arm: str, seed: int = 0) -> list[str]:
    return [row["run"] for row in found.rows if row["arm"] == arm and row["seed"] == seed]
