"""How long what is left of a study will take, by runs that are finished and by what is known of the built-in tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from tombola.audits.controls import DENSE_RATE
from tombola.recipe import DrawRecipe, Recipe
from tombola.store import Store
from tombola.studies.plan import dense_of
from tombola.studies.state import DrawState
from tombola.task_times import known

_NEAR = 0.1  # a tenth
_Kind = tuple[Any, ...]
_DECIDES = ("steps", "batch", "engine", "device", "precision")


class Pace:
    """Seconds of trainings: of one task and length measured, by density; of others reckoned.

    Measured is the mean of the finished runs of the nearest density that is known. Reckoned is what the dense net of a
    built-in task takes by ``tombola.task_times``, times how much longer than reckoned the finished runs took.
    """

    def __init__(self) -> None:
        self._seconds: dict[_Kind, dict[float, list[float]]] = {}
        self._took = self._reckoned = 0.0
        """Seconds of all finished runs for which there is a reckoning, and those reckoned."""

    @classmethod
    def of(cls, store: Store | None) -> Pace:
        """The pace of all finished runs of a store."""
        found = cls()
        for run in [] if store is None else store.runs():
            task, training = run.about.get("task"), run.about.get("full_recipe")
            seconds, density = run.summary.get("seconds"), run.about.get("density")
            if isinstance(task, Mapping) and isinstance(training, Mapping) and seconds is not None and density:
                read = _read(json.dumps(training))
                if read is not None:
                    found._add(str(task.get("name")), read, density, seconds)
        return found

    def add(self, recipe: DrawRecipe, density: float, seconds: float) -> None:
        """Take in a run of a draw."""
        self._add(recipe.task, _training(recipe, density), density, seconds)

    def seconds(self, recipe: DrawRecipe, density: float) -> float | None:
        """What a run of a draw will take; None where neither runs nor measurements tell of its task."""
        training = _training(recipe, density)
        if known := self._seconds.get(_kind(recipe.task, training)):
            nearest = min(known, key=lambda there: abs(there - _place(density)))
            return math.fsum(known[nearest]) / len(known[nearest])
        reckoned = _reckoned(recipe.task, training)
        if reckoned is None or not self._reckoned:
            return reckoned
        return reckoned * self._took / self._reckoned

    def _add(self, task: str, training: Recipe, density: float, seconds: float) -> None:
        self._seconds.setdefault(_kind(task, training), {}).setdefault(_place(density), []).append(seconds)
        if reckoned := _reckoned(task, training):
            self._took, self._reckoned = self._took + seconds, self._reckoned + reckoned


@lru_cache
def _read(training: str) -> Recipe | None:
    """A recipe from JSON; None for one of another version. A store's runs share a few, looked at again and again."""
    try:
        return Recipe.model_validate_json(training)
    except ValidationError:
        return None


def _training(recipe: DrawRecipe, density: float) -> Recipe:
    """The training of a round: a fine-tuning is a shorter one."""
    if recipe.fine_tune is None or density == 1:
        return recipe.training
    return recipe.training.model_copy(update={"steps": recipe.fine_tune})


def _reckoned(task: str, training: Recipe) -> float | None:
    """Seconds of a training of the dense net; None where its task wasn't measured on such a device."""
    name, colon, _ = task.partition(":")
    times = known().tasks.get(name + colon)
    speed = {"cpu": times.cpu, "cuda": times.cuda or times.reckoned(training)}.get(training.device) if times else None
    return times.seconds(training, speed) if times and speed else None


def _kind(task: str, training: Recipe) -> _Kind:
    return task, *(getattr(training, name) for name in _DECIDES)


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
    """How long the rest takes ``jobs`` processes; None where nothing tells of any run.

    At least as long as the longest search, as its rounds come one after the other. Runs of which nothing tells count as
    the mean of the others.
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
