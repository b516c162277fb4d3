"""A watcher of labs that tells trackers of the runs that are trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from tombola.events import Event, Watcher
from tombola.recipe import DrawRecipe
from tombola.tracking.base import Tracker


class Tracking:
    """A watcher that tells trackers of every run that is trained. Use as a context manager, or call ``close``.

    ``search`` is the recipe that the runs are part of, where there is a single one: trackers are told its method and
    its fields. ``beside`` is another watcher, which hears every event first.

    What is found in the store isn't trained, so trackers don't hear of it, nor of a finished run that is trained again
    for its values on the way. A tracker that fails is left out from there on, with a warning. Runs that are open when
    it is closed are told to be interrupted.
    """

    def __init__(
        self, trackers: Iterable[Tracker], *, search: DrawRecipe | None = None, beside: Watcher | None = None
    ) -> None:
        self._trackers, self._search, self._beside = list(trackers), search, beside
        self._open: dict[str, None] = {}

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event, search: DrawRecipe | None = None) -> None:
        """Pass on one event; of several draws, ``search`` is the recipe of the one that it belongs to."""
        if self._beside is not None:
            self._beside(event)
        if event.about is None:
            return
        run, row = event.run, dict(event.row or {})
        if event.kind == "start" and run not in self._open:  # it is, where a claim was lost and won again
            config = _config(event, event.about, search or self._search)
            self._open[run] = None
            self._tell(lambda tracker: tracker.start(run, config))
        elif event.kind == "step" and run in self._open:
            step = int(row.pop("step"))
            self._tell(lambda tracker: tracker.log(run, step, row))
        elif event.kind == "done" and run in self._open:
            del self._open[run]
            status = "diverged" if row["end"] is None else "finished"
            self._tell(lambda tracker: tracker.finish(run, row, status))

    def close(self) -> None:
        """Finish the runs that are open and close the trackers, which hear nothing more."""
        for run in self._open:
            self._tell(lambda tracker, run=run: tracker.finish(run, {}, "interrupted"))  # type: ignore[misc]
        self._open = {}
        self._tell(lambda tracker: tracker.close())
        self._trackers = []

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 - whatever happens to a tracker, it must not cost a run
                self._trackers.remove(tracker)
                with suppress(Exception):
                    tracker.close()
                warnings.warn(
                    f"tracker {type(tracker).__name__} failed and is left out from here on, which costs no results: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=3,
                )


def _config(event: Event, about: Mapping[str, Any], search: DrawRecipe | None) -> dict[str, Any]:
    """What trackers are told of a run."""
    config = {
        "task": about["task"]["name"],
        "method": None if search is None else search.method,
        "arm": event.arm,
        "density": event.density,
        "seed": event.seed,
        "draw": about["draw"],
        "recipe": about["full_recipe"],
        "search": None if search is None else search.model_dump(mode="json", exclude={"task", "seed", "training"}),
        **{part: about[part] for part in ("data", "start", "mask")},
    }
    return {"name": _name(config, event.run), **config}


def _name(config: Mapping[str, Any], run: str) -> str:
    """What people see of a run. A dense net is the same whatever the method, so it goes without."""
    method = None if config["arm"] == "dense" else config["method"]
    parts = [config["task"], method, config["arm"], f"{config['density']:.2%}", f"seed {config['seed']}"]
    parts.append(None if config["draw"] is None else f"draw {config['draw']}")
    return " ".join([*filter(None, parts), run[:8]])
