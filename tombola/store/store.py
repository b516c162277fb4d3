"""The store of runs: results by the hash of their recipe, complete or absent, shared by any number of processes."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import URL, delete, insert, update

from tombola.errors import InputError, StoreError, suggestion
from tombola.store.blobs import Blobs
from tombola.store.catalogue import Catalogue, audits, draws, run_blobs, runs
from tombola.store.claims import Claim, row_of, take
from tombola.store.files import Files
from tombola.store.records import (
    FINISHED,
    AuditRecord,
    DrawRecord,
    RunRecord,
    as_json,
    audit_records,
    check_audit_id,
    check_draw_id,
    check_names,
    check_run_id,
    draw_records,
    run_records,
)
from tombola.store.sweep import GcReport, sweep

CATALOGUE = "catalogue.sqlite"
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


def is_there(where: str) -> bool:
    """Whether there is a store in a folder already; of a URL that is taken for granted."""
    return "://" in where or (Path(where).expanduser() / CATALOGUE).exists()


class Store:
    """Finished runs, draws and audits, and the right to compute what is missing.

    ``where`` is a folder, or an fsspec URL such as ``s3://bucket/runs`` for the blobs; then ``catalogue`` must be the
    URL of a database. By default that is a SQLite file in the folder. SQLite keeps its promises on a local disk; where
    several hosts share one store, give a PostgreSQL URL. Whatever is missing is created.

    A run is in the store completely or not at all. Processes may be killed at any moment, and any number of them may
    work on one store: a run that one of them has claimed is left to it as long as it lives, and a finished run is
    never claimed again. The object may be used from several threads and after a fork.
    """

    def __init__(self, where: str | Path = "runs", *, catalogue: str | None = None) -> None:
        self._files = Files(where)
        self._blobs = Blobs(self._files)
        url: str | URL | None = catalogue
        if url is None:
            if self._files.folder is None:
                raise InputError(
                    f"a store at {where} needs a catalogue of its own: give catalogue= the URL of a database, like "
                    "sqlite:////home/me/runs.sqlite or postgresql+psycopg://host/name"
                )
            url = URL.create("sqlite", database=str(self._files.folder / CATALOGUE))
        self._catalogue = Catalogue(url)

    def run(self, run_id: str) -> RunRecord | None:
        """The run if it is finished (or has diverged), else None."""
        check_run_id(run_id)
        with self._catalogue.reading() as connection:
            found = run_records(connection, runs.c.id == run_id, runs.c.status.in_(FINISHED))
        return found[0] if found else None

    def runs(self) -> list[RunRecord]:
        """All runs, also those that run or were interrupted, the newest last."""
        with self._catalogue.reading() as connection:
            return run_records(connection)

    def claim(self, run_id: str, about: Mapping[str, Any]) -> Claim | None:
        """The right to compute a run; None where it is finished or another claim is held on it.

        The claim of a process that was killed is taken over at once, one from another host when it has given no
        sign of life for a minute. Two claims in one process exclude each other too.
        """
        owner = take(self._catalogue, check_run_id(run_id), as_json("what a run is about", about))
        return None if owner is None else Claim(run_id, owner, self._catalogue, self._files)

    def attach(self, run_id: str, name: str, data: bytes) -> None:
        """Add a named blob to a finished run; one of that name is replaced."""
        check_run_id(run_id)
        check_names({name: data})
        address = self._blobs.put(data)
        entry = (run_blobs.c.run == run_id) & (run_blobs.c.name == name)
        with self._catalogue.writing() as connection:
            row = row_of(connection, run_id)
            if row is None or row.status not in FINISHED:
                raise StoreError(f"only a finished run can take a blob, but run {run_id[:8]} is not in the store")
            self._ensure(address, data)
            connection.execute(delete(run_blobs).where(entry))
            connection.execute(insert(run_blobs).values(run=run_id, name=name, address=address))

    def read(self, record: RunRecord, name: str) -> bytes:
        """A run's blob, checked against its hash; StoreError where it is missing or damaged."""
        if name not in record.blobs:
            raise StoreError(f"run {record.id[:8]} has no blob {name!r}.{suggestion(name, record.blobs)}")
        try:
            return self._blobs.get(record.blobs[name])
        except StoreError as error:
            raise StoreError(f"{name!r} of run {record.id[:8]} can't be read: {error}") from error

    def discard(self, run: RunRecord | str) -> None:
        """Forget a finished run, so that it is computed anew; nothing happens where it isn't finished.

        Given the record, only that very result is forgotten, and not one that another process has put in its place.
        """
        run_id = run.id if isinstance(run, RunRecord) else check_run_id(run)
        this = (runs.c.id == run_id) & runs.c.status.in_(FINISHED)
        if isinstance(run, RunRecord):
            this &= runs.c.finished == run.finished
        with self._catalogue.writing() as connection:
            connection.execute(delete(runs).where(this))

    def save_draw(
        self, draw_id: str, about: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], status: str
    ) -> None:
        """Record a draw, or what has become of it; ``status`` is "running" or "finished"."""
        check_draw_id(draw_id)
        if status not in ("running", "finished"):
            raise InputError(f"a draw's status must be 'running' or 'finished', but got {status!r}")
        now = time.time()
        values = {
            "status": status,
            "about": as_json("what a draw is about", about),
            "rounds": as_json("a draw's rounds", rounds),
            "updated": now,
        }
        with self._catalogue.writing() as connection:
            changed = connection.execute(update(draws).where(draws.c.id == draw_id).values(**values))
            if changed.rowcount == 0:
                connection.execute(insert(draws).values(id=draw_id, created=now, **values))

    def draw(self, draw_id: str) -> DrawRecord | None:
        """The draw, or None."""
        check_draw_id(draw_id)
        with self._catalogue.reading() as connection:
            found = draw_records(connection, draws.c.id == draw_id)
        return found[0] if found else None

    def draws(self) -> list[DrawRecord]:
        """All draws, the newest last."""
        with self._catalogue.reading() as connection:
            return draw_records(connection)

    def save_audit(self, audit_id: str, document: Mapping[str, Any]) -> None:
        """Record an audit that is over, by what ``tombola audit --json`` prints; one of that id is replaced."""
        check_audit_id(audit_id)
        values = {"document": as_json("the document of an audit", document), "created": time.time()}
        with self._catalogue.writing() as connection:
            changed = connection.execute(update(audits).where(audits.c.id == audit_id).values(**values))
            if changed.rowcount == 0:
                connection.execute(insert(audits).values(id=audit_id, **values))

    def audit(self, audit_id: str) -> AuditRecord | None:
        """The audit, or None."""
        check_audit_id(audit_id)
        with self._catalogue.reading() as connection:
            found = audit_records(connection, audits.c.id == audit_id)
        return found[0] if found else None

    def audits(self) -> list[AuditRecord]:
        """All audits, the one carried out last in the end."""
        with self._catalogue.reading() as connection:
            return audit_records(connection)

    def forget(self, *records: DrawRecord | AuditRecord) -> None:
        """Take draws and audits out of the catalogue, all of them or none; their runs stay until ``gc`` takes them.

        ``InputError`` for a draw that is named by an audit which stays, as that couldn't be shown any more.
        """
        gone = {kind: {r.id for r in records if isinstance(r, kind)} for kind in (DrawRecord, AuditRecord)}
        with self._catalogue.writing() as connection:
            for audit in audit_records(connection):
                names = audit.document.get("draws")
                needed = gone[DrawRecord] & set(names if isinstance(names, list) else ())
                if needed and audit.id not in gone[AuditRecord]:
                    raise InputError(
                        f"an audit needs its draws, but draw {min(needed)[:12]} is to go and audit {audit.id[:12]} to "
                        "stay: forget that too"
                    )
            connection.execute(delete(draws).where(draws.c.id.in_(gone[DrawRecord])))
            connection.execute(delete(audits).where(audits.c.id.in_(gone[AuditRecord])))

    def find(self, prefix: str) -> list[RunRecord | DrawRecord | AuditRecord]:
        """The runs, draws and audits whose id begins so; at least 4 digits."""
        start = prefix.lower()
        if not _PREFIX.fullmatch(start):
            raise InputError(f"an id must be given by at least 4 of its hexadecimal digits, but got {prefix!r}")
        with self._catalogue.reading() as connection:
            return [
                *run_records(connection, runs.c.id.startswith(start)),
                *draw_records(connection, draws.c.id.startswith(start)),
                *audit_records(connection, audits.c.id.startswith(start)),
            ]

    def put(self, data: bytes) -> str:
        """Keep some bytes and return their address (SHA-256).

        Mention the address in what a run or a draw is about, in a summary, in rounds or in an audit: garbage collection
        removes what is mentioned nowhere, after its period of grace.
        """
        address = self._blobs.put(data)
        with self._catalogue.writing():
            self._ensure(address, data)
        return address

    def get(self, address: str) -> bytes:
        """The bytes at an address, checked; StoreError where they are missing or damaged."""
        if not re.fullmatch(r"[0-9a-f]{64}", address):
            raise InputError(f"a blob's address must be 64 lower-case hexadecimal digits, but got {address!r}")
        return self._blobs.get(address)

    def gc(
        self,
        *,
        dry_run: bool = False,
        keep_runs: bool = True,
        grace_seconds: float = 3600.0,
        abandoned_days: float = 30.0,
    ) -> GcReport:
        """Remove what nothing refers to; safe while other processes work on the store.

        Blobs that no run holds and no run, draw or audit mentions, and temporary files of killed processes, when they
        are older than ``grace_seconds`` (no less than the longest time between ``put`` and the record that mentions
        it). Checkpoints of runs that are not in progress. Unfinished runs that nobody has worked on for
        ``abandoned_days``, with their checkpoints. ``keep_runs=False`` also forgets finished runs, past the grace,
        whose id is mentioned neither by a draw or an audit nor by what a run in progress is about. ``dry_run`` only
        counts.
        """
        return sweep(
            self._catalogue,
            self._files,
            dry_run=dry_run,
            keep_runs=keep_runs,
            grace_seconds=grace_seconds,
            abandoned_days=abandoned_days,
        )

    def close(self) -> None:
        """Let go of the catalogue."""
        self._catalogue.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ensure(self, address: str, data: bytes) -> None:
        """Under the catalogue's lock: the blob is there even if it was collected as garbage a moment ago."""
        if not self._blobs.has(address):
            self._blobs.put(data)
