"""Events of runs that never were, a tracker that writes down its calls, and a run that is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from toy import toy_task

import tombola as tb
from tombola.events import Event, Watcher
from tombola.lab import Lab
from tombola.tracking import Tracker, Tracking

ABOUT: dict[str, Any] = {"task": {"name": "toy"}, "draw": None, "full_recipe": {"lr": 0.1, "milestones": [1, 2]}}
ABOUT |= {"data": "d", "start": "s", "mask": "m"}
SUMMARY: dict[str, Any] = {"steps": 20, "seconds": 1.5, "end": {"validation_loss": 0.25}, "engine": "masked"}


class Fake:
    """A tracker that writes down its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.configs: dict[str, Mapping[str, Any]] = {}

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        self.calls.append(("start", run))
        self.configs[run] = config

    def log(self, run: str, step: int, values: Mapping[str, float | None]) -> None:
        self.calls.append(("log", run, step, dict(values)))

    def finish(self, run: str, summary: Mapping[str, Any], status: str) -> None:
        self.calls.append(("finish", run, dict(summary), status))

    def close(self) -> None:
        self.calls.append(("close",))

    def history(self, run: str) -> list[dict[str, Any]]:
        """What it was told of a run, as rows of a history."""
        return [{"step": c[2], **c[3]} for c in self.calls if c[:2] == ("log", run)]


def event(kind: Any, run: str = "a" * 64, row: Any = None) -> Event:
    return Event(kind, "ticket", 3, 0.21, row=row, run=run, about=ABOUT)


def step(number: int, run: str = "a" * 64) -> Event:
    return event("step", run, {"step": number, "train_loss": None, "validation_loss": 1 / (1 + number)})


def one_run(run: str = "a" * 64, end: Any = SUMMARY) -> list[Event]:
    return [event("start", run), step(0, run), step(10, run), step(20, run), event("done", run, end)]


def tell_all(watcher: Watcher, *events: Event) -> None:
    for one in events:
        watcher(one)


def tell(trackers: list[Tracker], *events: Event) -> None:
    with Tracking(trackers) as tracking:
        tell_all(tracking, *events)


def interrupted(tmp_path: Path, tracker: Callable[[], Tracker]) -> tb.Run:
    """A run that is interrupted after a checkpoint and goes on, with a new tracker of a kind for each part."""
    first, second = Tracking([tracker()]), Tracking([tracker()])

    def stopping(one: Event) -> None:
        first(one)
        if one.kind == "step" and one.done == 40:
            raise KeyboardInterrupt

    with tb.Store(tmp_path / "runs") as store:
        with pytest.raises(KeyboardInterrupt), first:
            Lab(toy_task(), store, watcher=stopping, checkpoint_every=0.0).train(0)
        with second:
            return Lab(toy_task(), store, watcher=second, checkpoint_every=0.0).train(0)
