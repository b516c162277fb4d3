"""Carry out draws: one after the other in this process, several at once in processes of this machine, or in one pass.

Processes share nothing but the store, which keeps them from doing the same work twice. On a CPU, small nets want one
process a core, each with one thread; on a GPU, they want one pass that trains the nets of all seeds.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tombola.asked import controls_of
from tombola.draws import Draw, controls, rounds
from tombola.errors import InputError, TombolaError
from tombola.events import Event, Watcher
from tombola.lab import Lab, Trainer, train_alone
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
        failures = fill_store(recipes, store=store, data_root=data_root, jobs=jobs, follower=Watched(watcher))
        if failures:
            raise next(iter(failures.values()))
        watcher = None  # what follows only reads the store
    return [_search(recipe, store, data_root, watcher, part=(0, 1)) for recipe in recipes]


class Follower:
    """Hears of the draws that ``fill_store`` carries out, by their places among the recipes. This one does nothing."""

    def begun(self, index: int) -> None:
        """A process begins to work on a draw."""

    def event(self, index: int, event: Event) -> None:
        """Something happens in its lab."""

    def over(self, index: int, error: TombolaError | None) -> None:
        """The draw is in the store, with its controls; or something of it failed."""


class Watched(Follower):
    """Passes events on to a watcher."""

    def __init__(self, watcher: Watcher | None) -> None:
        self.watcher = watcher

    def event(self, index: int, event: Event) -> None:
        """Tell the watcher, if there is one."""
        if self.watcher is not None:
            self.watcher(event)


def fill_store(
    recipes: Sequence[DrawRecipe],
    *,
    store: str,
    data_root: Path | None = None,
    jobs: int = 1,
    follower: Follower | None = None,
) -> dict[int, TombolaError]:
    """Carry out draws with their controls in ``jobs`` processes, and leave them in the store.

    Gives the errors of those that failed by their places, the first to fail first; the others go on. A process lives
    until everything is done, and dies with this one. Draws begin in order.
    """
    return _Pool(recipes, store, data_root, jobs, follower or Follower()).run()


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


GOING_SECONDS = 10.0
"""How long a process that has nothing more to do may take to end."""


@dataclass(frozen=True)
class _Piece:
    """What a process does at a time: a search's rounds, or with ``part`` a share of its controls."""

    index: int
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class _ControlRow:
    """A worker's word that a control is trained: its row, and the identity of its draw."""

    draw: str
    row: dict[str, Any]


@dataclass(frozen=True)
class _End:
    """A worker's word that its piece is over; ``rounds`` are those of the search that have tickets."""

    rounds: int = 0
    error: TombolaError | None = None


@dataclass
class _Worker:
    """A process, the parent's end of the line to it, what it does now, and the draw that it knows from before."""

    process: BaseProcess
    line: Connection
    piece: _Piece | None = None
    last: int | None = None


class _Pool:
    def __init__(
        self, recipes: Sequence[DrawRecipe], store: str, data_root: Path | None, jobs: int, follower: Follower
    ) -> None:
        self.recipes, self.store, self.data_root, self.jobs, self.follower = recipes, store, data_root, jobs, follower
        self.context = multiprocessing.get_context("spawn")
        self.waiting = [_Piece(index) for index in range(len(recipes))]
        self.workers: list[_Worker] = []
        self.parts_left: dict[int, int] = {}
        self.failures: dict[int, TombolaError] = {}

    def run(self) -> dict[int, TombolaError]:
        try:
            while self.waiting or any(worker.piece for worker in self.workers):
                self._hand_out()
                self._listen()
        finally:
            for worker in self.workers:
                if worker.piece is not None:
                    worker.process.terminate()
                worker.line.close()  # at which one that is idle goes by itself, and cleans up
            for worker in self.workers:
                worker.process.join(GOING_SECONDS)
                if worker.process.exitcode is None:
                    worker.process.kill()
                    worker.process.join()
        return self.failures

    def _hand_out(self) -> None:
        """Give each idle process a piece, of the draw it knows if there is one; start processes while pieces wait."""
        for worker in self.workers:
            if self.waiting and worker.piece is None:
                own = (piece for piece in self.waiting if piece.index == worker.last)
                self._give(worker, next(own, self.waiting[0]))
        while self.waiting and len(self.workers) < self.jobs:
            self._give(self._start(), self.waiting[0])

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(theirs, self.store, self.data_root), daemon=True)
        with _interrupts_later():
            process.start()
            self.workers.append(_Worker(process, ours))
        theirs.close()  # so that the line ends when the process does
        return self.workers[-1]

    def _give(self, worker: _Worker, piece: _Piece) -> None:
        self.waiting.remove(piece)
        worker.piece, worker.last = piece, piece.index
        with suppress(OSError):  # where it is dead, the end of its line tells so in a moment
            worker.line.send((piece, self.recipes[piece.index].model_dump(mode="json")))
        if piece.part is None:
            self.follower.begun(piece.index)

    def _listen(self) -> None:
        """Take in what the processes report, and wait for it if need be."""
        lines = {worker.line: worker for worker in self.workers}
        for line in multiprocessing.connection.wait(list(lines)):
            worker = lines[line]  # type: ignore[index]
            try:
                message = worker.line.recv()
            except (EOFError, OSError):
                self._lost(worker)
                continue
            assert worker.piece is not None
            index = worker.piece.index
            if isinstance(message, Event):
                self.follower.event(index, message)
            elif isinstance(message, _ControlRow):
                self._enter(message, self.recipes[index])
            else:
                piece, worker.piece = worker.piece, None
                self._over(piece, message)

    def _lost(self, worker: _Worker) -> None:
        """A process has ended by itself: its piece has failed."""
        worker.process.join()
        worker.line.close()
        self.workers.remove(worker)
        if worker.piece is not None:
            recipe, status = self.recipes[worker.piece.index], worker.process.exitcode
            error = TombolaError(
                f"the process drawing seed {recipe.seed} ended with status {status}; run again to go on"
            )
            self._over(worker.piece, _End(error=error))

    def _over(self, piece: _Piece, end: _End) -> None:
        index = piece.index
        if end.error is not None:
            self.failures.setdefault(index, end.error)
        if piece.part is None:
            parts = 0 if end.error else self._parts(self.recipes[index], end.rounds)
            self.parts_left[index] = parts
            self.waiting += [_Piece(index, (part, parts)) for part in range(parts)]
        else:
            self.parts_left[index] -= 1
        if not self.parts_left[index]:
            self.follower.over(index, self.failures.get(index))

    def _parts(self, recipe: DrawRecipe, rounds: int) -> int:
        """Into how many pieces a draw's controls go: one for each process, but a process that takes up a draw anew
        finds its masks again, so there is one piece where others have enough to do without."""
        trainings = len(controls_of(recipe, range(1, rounds + 1)))
        return min(1 if len(self.waiting) >= self.jobs else self.jobs, trainings)

    def _enter(self, found: _ControlRow, recipe: DrawRecipe) -> None:
        """Add a control's row to its draw in the store, where no process alone has all of them."""
        with Store(self.store) as store:
            known = store.draw(found.draw)
            if known is None or _what(found.row) in map(_what, known.rounds):
                return
            rows = [*known.rounds, found.row | {"chosen": False}]
            store.save_draw(found.draw, known.about, sorted(rows, key=_order(recipe)), known.status)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """An interrupt waits until the block is over. A process that is started in it never sees one: it is the parent's to
    handle, who ends its workers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would unblock interrupts if it had to start
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row of a draw from every other."""
    return tuple(row[name] for name in ("arm", "round", "draw", "run"))


def _order(recipe: DrawRecipe) -> Callable[[Mapping[str, Any]], tuple[int, ...]]:
    """The order of a draw's rows: tickets, then controls by round, name and number, then what belongs to no ticket."""
    places: dict[str, int] = {name: place for place, name in enumerate(recipe.controls)}

    def place(row: Mapping[str, Any]) -> tuple[int, ...]:
        arm, number = row["arm"], row["round"]
        kind = 0 if arm == "ticket" else 1 if number else 2
        return (kind, number, places.get(arm, -1), row["draw"])

    return place


def _work(line: Connection, store: str, data_root: Path | None) -> None:
    """The life of a worker: do one piece after the other, report, and go when the parent goes or says so."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exit that cleans up, semaphores too
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    one_at_a_time = threading.Lock()

    def tell(message: Event | _ControlRow) -> None:
        if isinstance(message, _ControlRow) or message.kind != "found":  # every worker replays what others have done
            with one_at_a_time:
                line.send(message)

    known: tuple[int, Draw] | None = None
    while True:
        try:
            piece, fields = line.recv()
        except EOFError:  # the parent has gone
            return
        try:
            if known is None or known[0] != piece.index or piece.part is None:
                known = None  # not two draws in memory at once
                known = piece.index, _search(DrawRecipe.model_validate(fields), store, data_root, tell, None)
            if piece.part is not None:
                _train_controls(known[1], piece.part, tell)
            line.send(_End(len(known[1].rounds) - 1))
        except TombolaError as error:
            known = None
            line.send(_End(error=type(error)(str(error))))


def _train_controls(found: Draw, part: tuple[int, int], tell: Callable[[_ControlRow], None]) -> None:
    found.controls.clear()
    for _ in controls(found, *part):
        tell(_ControlRow(found.id, found.rows()[-1]))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
