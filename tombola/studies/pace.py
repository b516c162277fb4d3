"""How long what is left of a study will take, by the seconds of runs that are finished."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tombola.audits.controls import DENSE_RATE
from tombola.recipe import DrawRecipe
from tombola.store import Store
from tombola.studies.plan import dense_of
from tombola.studies.state import DrawState

_NEAR = 0.1  # a tenth
_Kind = tuple[Any, ...]
_DECIDES = ("steps", "batch", "engine", "device", "precision")


class Pace:
    """Mean seconds of trainings of one task and length, by density: those of the nearest density that is known."""

    def __init__(self) -> None:
        self._seconds: dict[_Kind, dict[float, list[float]]] = {}

    @classmethod
    def of(cls, store: Store | None) -> Pace:
        """The pace of all finished runs of a store."""
        found = cls()
        for run in [] if store is None else store.runs():
            task, training = run.about.get("task"), run.about.get("full_recipe")
            seconds, density = run.summary.get("seconds"), run.about.get("density")
            if isinstance(task, Mapping) and isinstance(training, Mapping) and seconds is not None and density:
                found._add(_kind(task.get("name"), training), density, seconds)
        return found

    def add(self, recipe: DrawRecipe, density: float, seconds: float) -> None:
        """Take in a run of a draw."""
        self._add(self._of_draw(recipe, density), density, seconds)

    def seconds(self, recipe: DrawRecipe, density: float) -> float | None:
        """What a run of a draw will take; None where no run of its task and length is known."""
        known = self._seconds.get(self._of_draw(recipe, density))
        if not known:
            return None
        nearest = min(known, key=lambda there: abs(there - _place(density)))
        return math.fsum(known[nearest]) / len(known[nearest])

    def _add(self, kind: _Kind, density: float, seconds: float) -> None:
        self._seconds.setdefault(kind, {}).setdefault(_place(density), []).append(seconds)

    def _of_draw(self, recipe: DrawRecipe, density: float) -> _Kind:
        training = recipe.training.model_dump(mode="json")
        if recipe.fine_tune is not None and density < 1:
            training["steps"] = str(recipe.fine_tune)
        return _kind(recipe.task, training)


def _kind(task: Any, training: Mapping[str, Any]) -> _Kind:
    return task, *(training.get(name) for name in _DECIDES)


def _place(density: float) -> float:
    """Densities as near as a tenth count as one."""
    return round(math.log(density), 1)


@dataclass
class Work:
    """What is left of a draw: the densities of its rounds, which come one after the other, and of its controls."""

    recipe: DrawRecipe
    rounds: list[float] = field(default_factory=list)
    controls: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many runs are left."""
        return len(self.rounds) + len(self.controls)

    def done(self, arm: str, density: float) -> None:
        """One of them is done: that of the nearest density. A training beside the rounds, of a search say, is none."""
        is_control = arm in (*self.recipe.controls, DENSE_RATE)
        part = self.controls if is_control else self.rounds

        def away(there: float) -> float:
            return abs(math.log(there / density))

        nearest = min(part, key=away, default=None)
        if nearest is not None and (is_control or away(nearest) < _NEAR):
            part.remove(nearest)


def works(states: Iterable[DrawState]) -> dict[str, Work]:
    """What is left of each draw, by key; of draws that share a dense net, the first has it to train."""
    found: dict[str, Work] = {}
    dense: set[str] = set()
    for state in states:
        rounds = list(state.missing_rounds)
        shared = dense_of(state.draw.recipe)
        if rounds[:1] == [1.0]:
            rounds = rounds[shared in dense :]
            dense.add(shared)
        found[state.draw.key] = Work(state.draw.recipe, rounds, list(state.missing_controls))
    return found


def seconds_left(left: Sequence[Work], pace: Pace, jobs: int) -> float | None:
    """How long the rest takes ``jobs`` processes; None where no run of its kind is finished.

    At least as long as the longest search, as its rounds come one after the other. Runs of a kind that no finished run
    tells of count as the mean of the others.
    """
    whole, longest, known, unknown = 0.0, 0.0, 0, 0
    for work in left:
        chain = 0.0
        for part, is_chain in ((work.rounds, True), (work.controls, False)):
            for density in part:
                seconds = pace.seconds(work.recipe, density)
                known, unknown = known + (seconds is not None), unknown + (seconds is None)
                whole += seconds or 0.0
                chain += (seconds or 0.0) * is_chain
        longest = max(longest, chain)
    if not known:
        return None if unknown else 0.0
    return max(whole * (known + unknown) / known / jobs, longest)
