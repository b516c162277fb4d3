"""Claims: the right of one process to compute one run, kept alive by a heartbeat, and the way to finish it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from tombola.errors import InputError, StoreError
from tombola.store import owners
from tombola.store.blobs import Blobs
from tombola.store.catalogue import Catalogue, run_blobs, runs
from tombola.store.files import Files
from tombola.store.owners import Owner
from tombola.store.records import FINISHED, RunRecord, as_json, check_names, owner_of, run_records

CHECKPOINTS = "checkpoints"


class ClaimLost(StoreError):  # noqa: N818 - it says what happened
    """Another process has taken the run over, because this one gave no sign of life for too long."""


def take(catalogue: Catalogue, run_id: str, about: str) -> Owner | None:
    """Claim a run in the catalogue; None where it is finished or a living process has it."""
    me, now = Owner.me(), time.time()
    mine = {"host": me.host, "pid": me.pid, "started": me.started, "token": me.token}
    with catalogue.writing() as connection:
        row = row_of(connection, run_id)
        if row is None:
            new = {"id": run_id, "created": now, "summary": "{}"}
            connection.execute(insert(runs).values(**new, **mine, status="running", about=about, heartbeat=now))
            return me
        owner = owner_of(row)
        if row.status in FINISHED or (owner is not None and owner.lives(row.heartbeat, now)):
            return None
        changed = update(runs).where(runs.c.id == run_id)
        connection.execute(changed.values(**mine, status="running", about=about, heartbeat=now))
        return me


def row_of(connection: Connection, run_id: str) -> Row[Any] | None:
    """A run's row."""
    return connection.execute(select(runs).where(runs.c.id == run_id)).one_or_none()


class Checkpoint:
    """The one checkpoint of a claimed run: whole or absent. It outlives the claim until the run is finished."""

    def __init__(self, claim: Claim, files: Files) -> None:
        self._claim = claim
        self._files = files
        self._name = f"{CHECKPOINTS}/{claim.id}"

    def save(self, data: bytes) -> None:
        """Replace the checkpoint; ClaimLost where another process has taken the run over."""
        self._claim.check()
        self._files.write(self._name, data)

    def load(self) -> bytes | None:
        """The last bytes saved by whoever worked on this run, or None."""
        return self._files.read(self._name)


class Claim:
    """The right to compute one run. Use it as a context manager; leaving without ``finish`` gives the run up."""

    def __init__(self, run_id: str, owner: Owner, catalogue: Catalogue, files: Files) -> None:
        self.id = run_id
        self.checkpoint = Checkpoint(self, files)
        self._owner = owner
        self._catalogue = catalogue
        self._blobs = Blobs(files)
        self._files = files
        self._mine = (runs.c.id == run_id) & (runs.c.token == owner.token)
        self._lost = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name=f"heartbeat of run {run_id[:8]}", daemon=True).start()

    def check(self) -> None:
        """Raise unless this process still holds the claim, as far as the last heartbeat could see."""
        if self._closed.is_set() or os.getpid() != self._owner.pid:
            raise StoreError(f"this claim of run {self.id[:8]} is closed; claim the run again to work on it")
        if self._lost.is_set():
            raise ClaimLost(f"run {self.id[:8]} was taken over by another process; wait for its result")

    def finish(self, summary: Mapping[str, Any], blobs: Mapping[str, bytes], status: str = "finished") -> RunRecord:
        """Make the result complete: first its blobs, then its record in one transaction.

        Where another process took the run over and has finished it, that record is returned: results of one id
        are the same. Where it is still at work, ClaimLost is raised.
        """
        if status not in FINISHED:
            raise InputError(f"a run must end as 'finished' or 'diverged', but got {status!r}")
        text = as_json("a run's summary", summary)
        check_names(blobs)
        addresses = {name: self._blobs.put(data) for name, data in blobs.items()}
        with self._catalogue.writing() as connection:
            record = self._finished_elsewhere(connection)
            if record is None:
                for name, address in addresses.items():
                    if not self._blobs.has(address):  # collected as garbage a moment ago; not while we hold the lock
                        self._blobs.put(blobs[name])
                record = self._record(connection, text, addresses, status)
        self._closed.set()
        self._files.remove(f"{CHECKPOINTS}/{self.id}")
        return record

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the run up unless it is finished: it reads as interrupted and keeps its checkpoint."""
        if self._closed.is_set() or os.getpid() != self._owner.pid:
            return
        self._closed.set()
        with self._catalogue.writing() as connection:
            connection.execute(update(runs).where(self._mine).values(status="interrupted", token=None))

    def _finished_elsewhere(self, connection: Connection) -> RunRecord | None:
        row = row_of(connection, self.id)
        if row is not None and row.status in FINISHED:
            return run_records(connection, runs.c.id == self.id)[0]
        if row is None or row.token != self._owner.token:
            self._lost.set()
            raise ClaimLost(f"run {self.id[:8]} can't be finished: the claim was given up, or lost to another process")
        return None

    def _record(self, connection: Connection, summary: str, addresses: Mapping[str, str], status: str) -> RunRecord:
        done = {"status": status, "summary": summary, "finished": time.time(), "token": None}
        connection.execute(update(runs).where(self._mine).values(**done))
        connection.execute(delete(run_blobs).where(run_blobs.c.run == self.id))
        if addresses:
            entries = [{"run": self.id, "name": name, "address": address} for name, address in addresses.items()]
            connection.execute(insert(run_blobs), entries)
        return run_records(connection, runs.c.id == self.id)[0]

    def _beat(self) -> None:
        while not self._closed.wait(owners.HEARTBEAT_SECONDS):
            try:
                with self._catalogue.writing() as connection:
                    alive = connection.execute(update(runs).where(self._mine).values(heartbeat=time.time()))
            except StoreError:
                continue  # the database is busy or away for a moment; finish tells when it stays so
            if alive.rowcount == 0:
                self._lost.set()
                return
