"""Carry out what is left of a study."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tombola.engines import check_device
from tombola.errors import TombolaError
from tombola.events import Event
from tombola.execution import Follower, fill_store
from tombola.store import Store
from tombola.studies.begun import Begun, Process, remember
from tombola.studies.plan import Plan, Planned
from tombola.studies.state import DrawState, look
from tombola.tracking import Tracking

HEARTBEAT_SECONDS = 15.0  # how often another host may learn that this one is at work


class Onlooker:
    """Hears how a study goes. This one does nothing."""

    def begun(self, draw: Planned) -> None:
        """A process begins to work on a draw."""

    def event(self, draw: Planned, event: Event) -> None:
        """Something happens in its lab."""

    def over(self, draw: Planned, error: TombolaError | None) -> None:
        """It is done, or has failed."""


class Tracked(Onlooker):
    """Tells trackers of what happens, beside another onlooker."""

    def __init__(self, onlooker: Onlooker, tracking: Tracking) -> None:
        self._onlooker, self._tracking = onlooker, tracking

    def begun(self, draw: Planned) -> None:
        """Tell the other one."""
        self._onlooker.begun(draw)

    def event(self, draw: Planned, event: Event) -> None:
        """Tell both."""
        self._tracking(event, draw.recipe)
        self._onlooker.event(draw, event)

    def over(self, draw: Planned, error: TombolaError | None) -> None:
        """Tell the other one."""
        self._onlooker.over(draw, error)


@dataclass(frozen=True)
class Setting:
    """Where and how a study is carried out."""

    store: str
    out: Path
    jobs: int = 1
    data_root: Path | None = None


def run_study(
    plan: Plan, setting: Setting, onlooker: Callable[[list[DrawState]], Onlooker] | None = None
) -> list[DrawState]:
    """Carry out what the store lacks of a study, and give what has become of each draw, in the file's order.

    A draw that fails doesn't stop the others: its state is ``failed``, with the reason. The study is remembered in the
    store from its beginning. ``onlooker`` is made of the states before the work. Raises ``InputError`` for a device
    that isn't there, before any work.
    """
    for device in {draw.recipe.training.device: draw.recipe.training for draw in plan.draws}.values():
        check_device(device)
    with Store(setting.store) as store:
        states = look(plan, store)
        done = {state.draw.key for state in states if state.state == "done"}
        pending = [draw for draw in plan.in_order() if draw.key not in done]
        with _Following(plan, setting, pending, onlooker(states) if onlooker else Onlooker()) as following:
            errors = fill_store(
                [draw.recipe for draw in pending],
                store=setting.store,
                data_root=setting.data_root,
                jobs=setting.jobs,
                follower=following,
            )
        return look(plan, store, failures={pending[index].key: str(error) for index, error in errors.items()})


class _Following(Follower):
    """Passes on to an onlooker what happens to the draws, and writes it down in the store."""

    def __init__(self, plan: Plan, setting: Setting, pending: list[Planned], onlooker: Onlooker) -> None:
        self.store, self.pending, self.onlooker = setting.store, pending, onlooker
        self.at_work: dict[str, None] = {}
        self.failures: dict[str, str] = {}
        now = time.time()
        self.document = Begun(
            source=dict(plan.study.source),
            where=plan.study.where,
            quick=plan.quick,
            jobs=setting.jobs,
            data_root=None if setting.data_root is None else str(setting.data_root),
            out=str(setting.out),
            begun=now,
            updated=now,
            process=Process.this(),
        )

    def __enter__(self) -> _Following:
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self.at_work.clear()
        self.document = self.document.model_copy(update={"process": None})
        self._write()

    def begun(self, index: int) -> None:
        draw = self.pending[index]
        self.at_work[draw.key] = None
        self._write()
        self.onlooker.begun(draw)

    def event(self, index: int, event: Event) -> None:
        if time.time() - self.document.updated > HEARTBEAT_SECONDS:
            self._write()
        self.onlooker.event(self.pending[index], event)

    def over(self, index: int, error: TombolaError | None) -> None:
        draw = self.pending[index]
        self.at_work.pop(draw.key, None)
        if error is not None:
            self.failures[draw.key] = str(error)
        self._write()
        self.onlooker.over(draw, error)

    def _write(self) -> None:
        news = {"updated": time.time(), "at_work": tuple(self.at_work), "failures": dict(self.failures)}
        self.document = self.document.model_copy(update=news)
        remember(self.store, self.document)
