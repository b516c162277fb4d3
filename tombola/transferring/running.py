"""Carrying out draws of several tasks: each data set loaded once, what the store has read, the rest trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tombola.draws import Draw, draw_id, finish, rounds, stored_rows, tell_found
from tombola.errors import InputError
from tombola.events import Event, Watcher
from tombola.execution import Watched, fill_store
from tombola.lab import Lab
from tombola.recipe import DrawRecipe, Recipe
from tombola.store import Store
from tombola.tasks import Task, is_known


@dataclass
class Runner:
    """Carries out draws: of tasks that the library knows in ``jobs`` processes, of others in this one."""

    where: str
    """The store's folder."""
    data_root: Path | None = None
    jobs: int = 1
    watcher: Watcher | None = None
    _labs: dict[str, dict[Recipe, Lab]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store, self._quiet = Store(self.where), False

    def lab(self, task: Task, training: Recipe) -> Lab:
        """The lab for draws of a task with one training; those of one task share its data."""
        labs = self._labs.setdefault(task.name, {})
        if training not in labs:
            known: dict[str, Any] = {"data_root": self.data_root, "watcher": self._tell}
            labs[training] = Lab(task, self.store, recipe=training, like=next(iter(labs.values()), None), **known)
        return labs[training]

    def fill(self, wanted: Sequence[tuple[Task, DrawRecipe]]) -> None:
        """Have the draws that are missing carried out in several processes, where several are asked for.

        Raises the first error when everything else is done, and ``InputError`` for several processes with a task of
        one's own.
        """
        if self.jobs == 1:
            return
        if own := [task.name for task, _ in wanted if not is_known(task)]:
            raise InputError(
                f"a task of your own is trained in one process, but {self.jobs} are asked for, and {own[0]!r} is one: "
                "leave out jobs"
            )
        self._quiet = False
        missing = [r for t, r in wanted if stored_rows(r, self.lab(t, r.training)) is None]
        if missing:
            where: dict[str, Any] = {"store": self.where, "data_root": self.data_root, "jobs": self.jobs}
            failures = fill_store(missing, **where, follower=Watched(self._tell))
            if failures:
                raise next(iter(failures.values()))
        self._quiet = bool(missing)  # what follows only reads the store

    def searched(self, task: Task, recipe: DrawRecipe) -> Draw:
        """A search, with its rounds."""
        draw = Draw(recipe, self.lab(task, recipe.training))
        for _ in rounds(draw):
            pass
        return draw

    def finished(self, task: Task, recipe: DrawRecipe) -> tuple[str, list[dict[str, Any]]]:
        """The id and the rows of a finished draw with its controls."""
        lab = self.lab(task, recipe.training)
        rows = stored_rows(recipe, lab)
        if rows is None:
            rows = finish(Draw(recipe, lab)).rows()
        else:
            tell_found(rows, self._tell)
        return draw_id(recipe, rows[0]["run"]), rows

    def _tell(self, event: Event) -> None:
        """Tell the watcher, and on which task it is."""
        if self.watcher is None or self._quiet:
            return
        task = (event.about or {}).get("task")
        name = task.get("name") if isinstance(task, Mapping) else None
        self.watcher(replace(event, arm=f"{name} · {event.arm}") if name else event)
