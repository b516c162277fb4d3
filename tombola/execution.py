"""Carry out draws: one after the other in this process, several at once in processes of this machine, or in one pass.

Processes share nothing but the store, which keeps them from doing the same work twice. On a CPU, small nets want one
process a core, each with one thread; on a GPU, they want one pass that trains the nets of all seeds.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tombola.draws import Draw, controls, rounds
from tombola.errors import InputError, TombolaError
from tombola.lab import Event, Lab, Trainer, Watcher, train_alone
from tombola.recipe import DrawRecipe
from tombola.store import Store
from tombola.tasks import get_task
from tombola.together import check_engine, side_by_side


def carry_out(
    recipes: Sequence[DrawRecipe],
    *,
    store: str,
    data_root: Path | None = None,
    jobs: int = 1,
    together: bool = False,
    watcher: Watcher | None = None,
) -> list[Draw]:
    """The finished draws of these recipes, with their controls, in order. ``jobs`` processes work at once.

    ``together`` trains a net of each draw in one pass, wherever they fit together: the same runs with the same
    identities, equal to those of the masked engine to rounding. Raises ``InputError`` with more than one of
    ``jobs``, a single recipe, or a recipe that asks for another engine.

    A search is one piece of work, as its rounds build on each other; its controls are spread over all processes. When a
    piece fails the others go on, and the first error is raised at the end: finished work is in the store.
    """
    if together:
        return _draw_together(recipes, store, data_root, jobs, watcher)
    if jobs > 1:
        _Pool(recipes, store, data_root, jobs, watcher).run()
        watcher = None  # what follows only reads the store
    return [_search(recipe, store, data_root, watcher, part=(0, 1)) for recipe in recipes]


def _draw_together(
    recipes: Sequence[DrawRecipe], store: str, data_root: Path | None, jobs: int, watcher: Watcher | None
) -> list[Draw]:
    if jobs > 1:
        raise InputError(f"seeds train together in one process, but {jobs} are asked for: leave out jobs, or together")
    if len(recipes) < 2:
        raise InputError(f"only several seeds can train together, but got {len(recipes)}: name more, like 0-4")
    for recipe in recipes:
        check_engine(recipe.training)

    def search(recipe: DrawRecipe) -> Callable[[Trainer], Draw]:
        return lambda trainer: _search(recipe, store, data_root, watcher, (0, 1), trainer)

    return side_by_side([search(recipe) for recipe in recipes])


def _search(
    recipe: DrawRecipe,
    store: str,
    data_root: Path | None,
    watcher: Watcher | None,
    part: tuple[int, int] | None,
    trainer: Trainer = train_alone,
) -> Draw:
    task, training = get_task(recipe.task), recipe.training
    lab = Lab(task, Store(store), recipe=training, data_root=data_root, watcher=watcher, trainer=trainer)
    found = Draw(recipe, lab)
    for _ in rounds(found):
        pass
    if part is not None:
        for _ in controls(found, *part):
            pass
    return found


@dataclass(frozen=True)
class _Piece:
    """What one process does: a search's rounds, or with ``part`` a share of its controls."""

    index: int
    part: tuple[int, int] | None = None


class _Pool:
    def __init__(
        self, recipes: Sequence[DrawRecipe], store: str, data_root: Path | None, jobs: int, watcher: Watcher | None
    ) -> None:
        self.recipes, self.store, self.data_root, self.jobs, self.watcher = recipes, store, data_root, jobs, watcher
        self.context = multiprocessing.get_context("spawn")
        self.messages: Any = self.context.Queue()
        self.waiting = [_Piece(index) for index in range(len(recipes))]
        self.running: dict[_Piece, BaseProcess] = {}
        self.failures: list[BaseException] = []

    def run(self) -> None:
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.jobs:
                    self._start(self.waiting.pop(0))
                self._listen()
                self._collect()
        finally:
            for process in self.running.values():
                process.terminate()
        if self.failures:
            raise self.failures[0]

    def _start(self, piece: _Piece) -> None:
        recipe = self.recipes[piece.index].model_dump(mode="json")
        process = self.context.Process(
            target=_work, args=(piece, recipe, self.store, self.data_root, self.messages), daemon=True
        )
        # Workers inherit what is ignored when they start: an interrupt is the parent's to handle, who ends them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        self.running[piece] = process

    def _listen(self) -> None:
        """Pass on what the workers report, for as long as there is something, or a moment."""
        until = time.monotonic() + 0.2
        while (left := until - time.monotonic()) > 0:
            try:
                message = self.messages.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(message, BaseException):
                self.failures.append(message)
            elif self.watcher is not None:
                self.watcher(message)

    def _collect(self) -> None:
        for piece, process in list(self.running.items()):
            if process.exitcode is None:
                continue
            del self.running[piece]
            if process.exitcode not in (0, 1):
                seed = self.recipes[piece.index].seed
                self.failures.append(
                    TombolaError(
                        f"the process drawing seed {seed} ended with status {process.exitcode}; run again to go on"
                    )
                )
            elif process.exitcode == 0 and piece.part is None and self.recipes[piece.index].controls:
                self.waiting += [_Piece(piece.index, (part, self.jobs)) for part in range(self.jobs)]


def _work(piece: _Piece, recipe: dict[str, Any], store: str, data_root: Path | None, messages: Any) -> None:
    """The life of a worker: do the piece, report, and go when the parent goes."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()

    def tell(event: Event) -> None:
        if event.kind != "found":  # every worker replays what others have done
            messages.put(event)

    try:
        _search(DrawRecipe.model_validate(recipe), store, data_root, tell, piece.part)
    except TombolaError as error:
        messages.put(type(error)(str(error)))
        raise SystemExit(1) from error


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
