"""A store as it is now, read again only when something in it may have changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tombola.errors import StoreError
from tombola.store import AuditRecord, DrawRecord, RunRecord, Store, as_seen
from tombola.store.store import CATALOGUE

ANEW_SECONDS = 10.0
"""The records are read again after this long though no file has changed: a process that was killed changes none."""


@dataclass(frozen=True)
class Seen:
    """The records of a store at one moment. A draw that nobody works on any more is "interrupted"."""

    draws: Sequence[DrawRecord]
    runs: Mapping[str, RunRecord]
    audits: Sequence[AuditRecord] = ()

    @cached_property
    def searches(self) -> list[list[DrawRecord]]:
        """The draws that differ in their seed alone together, by seed; the oldest first."""
        from tombola.grouping import by_recipe

        return by_recipe(self.draws)

    def search(self, draw_id: str) -> list[DrawRecord]:
        """A draw with its other seeds; none where the store has no such draw."""
        return next((group for group in self.searches if any(draw.id == draw_id for draw in group)), [])

    @cached_property
    def under_way(self) -> list[RunRecord]:
        """The runs that are being trained."""
        return [run for run in self.runs.values() if run.status == "running"]

    @cached_property
    def alone(self) -> list[RunRecord]:
        """The finished runs that no draw has, the newest first."""
        drawn = {row.get("run") for draw in self.draws for row in draw.rounds}
        return [r for r in list(self.runs.values())[::-1] if r.finished is not None and r.id not in drawn]

    def state(self, draws: Sequence[DrawRecord], run_ids: Sequence[str] = ()) -> tuple[Any, ...]:
        """What a page of these draws and runs depends on, with the audits of them: equal as long as the page is."""
        wanted = dict.fromkeys([*(str(row.get("run")) for draw in draws for row in draw.rounds), *run_ids])
        there = [self.runs[run_id] for run_id in wanted if run_id in self.runs]
        if any(draw.status == "running" for draw in draws):
            there += self.under_way
        return (
            *((draw.id, draw.status, draw.updated) for draw in draws),
            *((run.id, run.status, run.owner, run.finished) for run in there),
            *((audit.id, audit.created) for audit in self.audits),
        )


class Watch:
    """Looks at a store in a folder. May be used from several threads."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._lock = threading.Lock()
        self._seen: Seen | None = None
        self._stamp: tuple[Any, ...] = ()
        self._read_at = 0.0

    def look(self) -> Seen:
        """The records as they are. Raises ``StoreError`` where the store is gone or can't be read."""
        with self._lock:
            stamp, now = self._files(), time.monotonic()
            if self._seen is None or stamp != self._stamp or now - self._read_at > ANEW_SECONDS:
                self._seen, self._stamp, self._read_at = None, stamp, now
                self._seen = self._read()
            return self._seen

    def _read(self) -> Seen:
        try:
            runs = self.store.runs()
            draws = [as_seen(draw, runs) for draw in self.store.draws()]
            return Seen(draws, {run.id: run for run in runs}, self.store.audits())
        except (ValueError, KeyError) as error:  # what should be JSON isn't, or a run is missing
            raise StoreError(f"the catalogue of the store {self.folder} is damaged: {error}") from error

    def _files(self) -> tuple[Any, ...]:
        """Size and date of the catalogue's files. Without them nothing is asked: SQLite would make an empty one."""
        stamp = []
        for name in (CATALOGUE, f"{CATALOGUE}-wal"):
            try:
                facts = (self.folder / name).stat()
                stamp.append((facts.st_size, facts.st_mtime_ns, facts.st_ino))
            except FileNotFoundError as error:
                if name == CATALOGUE:
                    raise StoreError(f"the store {self.folder} isn't there any more") from error
            except OSError as error:
                raise StoreError(f"the store {self.folder} can't be read: {error.strerror}") from error
        return tuple(stamp)
