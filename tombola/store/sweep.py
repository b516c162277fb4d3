"""Garbage collection: what nothing refers to, and what crashes left behind."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Row, Select, delete, select

from tombola.atomic import TEMPORARY
from tombola.store.blobs import BLOBS
from tombola.store.catalogue import Catalogue, audits, draws, run_blobs, runs
from tombola.store.claims import CHECKPOINTS
from tombola.store.files import Files
from tombola.store.records import FINISHED, owner_of

_HASH = re.compile(r"[0-9a-f]{64}")
_AT_ONCE = 50  # files looked at under the lock before others get their turn


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection removed, or with ``dry_run`` would have: counts, and the bytes of the files."""

    blobs: int
    checkpoints: int
    leftovers: int
    runs: int
    bytes: int
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the catalogue refers to: addresses of blobs, and runs that may have a checkpoint."""

    blobs: frozenset[str]
    checkpoints: frozenset[str]


def sweep(
    catalogue: Catalogue, files: Files, *, dry_run: bool, keep_runs: bool, grace_seconds: float, abandoned_days: float
) -> GcReport:
    """Collect the garbage of a store that other processes may be working on; ``Store.gc`` states the rules."""
    now = time.time()
    young = now - grace_seconds
    with catalogue.writing() as connection:
        forgotten = set(_abandoned(connection, now, now - abandoned_days * 86400))
        if not keep_runs:
            forgotten.update(_unused(connection, young))
        if not dry_run:
            for run_id in forgotten:
                connection.execute(delete(runs).where(runs.c.id == run_id))
    counts = {"blobs": 0, "checkpoints": 0, "leftovers": 0}
    freed = 0
    with catalogue.reading() as connection:
        wanted = _wanted(connection, forgotten)
    names = files.names(BLOBS) + files.names(CHECKPOINTS)
    for some in _slices([name for name in names if _kind(name, wanted)]):
        with catalogue.writing() as connection:  # whoever refers to a blob looks under this lock that it is there
            wanted = _wanted(connection, forgotten)
            for name in some:
                kind, facts = _kind(name, wanted), files.facts(name)
                if kind is None or facts is None or (kind != "checkpoints" and facts.modified > young):
                    continue
                if not dry_run:
                    files.remove(name)
                counts[kind] += 1
                freed += facts.size
    return GcReport(**counts, runs=len(forgotten), bytes=freed, dry_run=dry_run)


def _kind(name: str, wanted: _Wanted) -> str | None:
    """What sort of garbage a file is; None for what is wanted, and for what isn't the store's."""
    folder, _, last = name.partition("/")[0], *name.rpartition("/")[1:]
    if last.endswith(TEMPORARY):
        return "leftovers"
    if not _HASH.fullmatch(last):
        return None
    if folder == BLOBS:
        return None if last in wanted.blobs else "blobs"
    return None if last in wanted.checkpoints else "checkpoints"


def _wanted(connection: Connection, forgotten: Iterable[str]) -> _Wanted:
    """Everything referred to, by a run's blobs or by a mention in the text of a run, a draw or an audit."""
    gone = set(forgotten)
    blobs: set[str] = set()
    unfinished = set()
    for row in connection.execute(select(runs.c.id, runs.c.status, runs.c.about, runs.c.summary)):
        if row.id not in gone:
            blobs.update(_HASH.findall(row.about), _HASH.findall(row.summary))
            if row.status not in FINISHED:
                unfinished.add(row.id)
    held = connection.execute(select(run_blobs.c.run, run_blobs.c.address))
    blobs.update(entry.address for entry in held if entry.run not in gone)
    blobs.update(_of_draws_and_audits(connection))
    return _Wanted(frozenset(blobs), frozenset(unfinished))


def _abandoned(connection: Connection, now: float, before: float) -> Iterator[str]:
    """Unfinished runs that nobody has worked on since."""
    rows = connection.execute(select(runs).where(runs.c.status.not_in(FINISHED), runs.c.heartbeat < before))
    return (row.id for row in rows.all() if not _has_owner(row, now))


def _has_owner(row: Row[tuple[object, ...]], now: float) -> bool:
    owner = owner_of(row)
    return owner is not None and owner.lives(row.heartbeat, now)


def _unused(connection: Connection, before: float) -> Iterator[str]:
    """Runs finished before then that neither a draw, an audit nor a run in progress mentions."""
    used = _of_draws_and_audits(connection)
    used |= _mentions(connection, select(runs.c.about).where(runs.c.status.not_in(FINISHED)))
    rows = connection.execute(select(runs.c.id).where(runs.c.status.in_(FINISHED), runs.c.finished < before))
    return (row.id for row in rows.all() if row.id not in used)


def _of_draws_and_audits(connection: Connection) -> set[str]:
    """What draws and audits mention."""
    return _mentions(connection, select(draws.c.about, draws.c.rounds)) | _mentions(
        connection, select(audits.c.document)
    )


def _mentions(connection: Connection, texts: Select[tuple[str, ...]] | Select[tuple[str]]) -> set[str]:
    """Every 64-digit hash that occurs in some columns of text."""
    return {found for row in connection.execute(texts) for text in row for found in _HASH.findall(text)}


def _slices(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]
