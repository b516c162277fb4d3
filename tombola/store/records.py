"""What the store hands out: one record per run, draw and audit, read-only."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, select

from tombola.errors import InputError
from tombola.store.catalogue import audits, draws, run_blobs, runs
from tombola.store.owners import Owner

FINISHED = ("finished", "diverged")  # the statuses of a run whose result is complete
_RUN_ID = re.compile(r"[0-9a-f]{64}")
_DRAW_ID = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the store knows it.

    ``status`` is "running", "interrupted" (nobody works on it), "finished" or "diverged"; the last two are complete
    results. ``blobs`` maps names to addresses. Times are seconds since 1970; ``owner`` is host:pid while it runs.
    """

    id: str
    status: str
    about: dict[str, Any]
    summary: dict[str, Any]
    blobs: dict[str, str]
    owner: str | None
    created: float
    finished: float | None


@dataclass(frozen=True, slots=True)
class DrawRecord:
    """A draw as the store knows it; ``status`` is "running" or "finished". Times are seconds since 1970."""

    id: str
    status: str
    about: dict[str, Any]
    rounds: list[dict[str, Any]]
    created: float
    updated: float


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """An audit as the store knows it, when it was last carried out in seconds since 1970.

    ``document`` is what ``tombola audit --json`` prints, as it was saved, whatever that was; empty where it is damaged.
    """

    id: str
    document: dict[str, Any]
    created: float


Record = TypeVar("Record", bound=RunRecord | DrawRecord | AuditRecord)


def kind_of(record: RunRecord | DrawRecord | AuditRecord) -> str:
    """What a record of the store is called: draw, audit or run."""
    return type(record).__name__.removesuffix("Record").lower()


def only(records: Sequence[Record], word: str, rule: str, where: str = "") -> Record:
    """The one record whose id begins with a word; ``InputError``, after the rule, for several or none in a store."""
    if len(records) != 1:
        several = ", ".join(f"{kind_of(record)} {record.id[:16]}" for record in records)
        number = (
            f"{len(records)} have {word!r}: {several}"
            if records
            else f"none has {word!r}" + (f" in {where}" if where else "")
        )
        raise InputError(f"{rule}, but {number}")
    return records[0]


def minute(seconds: float) -> str:
    """A record's time in this machine's zone, to the minute."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def as_seen(draw: DrawRecord, known: Sequence[RunRecord]) -> DrawRecord:
    """The record of a draw, ``interrupted`` where it isn't finished and no process trains its task and seed."""
    if draw.status != "running" or any(
        run.status == "running"
        and value_at(run.about, "task", "name") == value_at(draw.about, "task")
        and value_at(run.about, "seed") == value_at(draw.about, "seed")
        for run in known
    ):
        return draw
    return replace(draw, status="interrupted")


def told_in_training(evaluation: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """``train_metric``, the metric as the training data themselves told it at a row of a run's history; nothing where
    they don't come of acting. The training loss, which every row has, is none."""
    name = f"train_{metric}"
    return {"train_metric": evaluation[name]} if name in evaluation and metric != "loss" else {}


def judging(
    found: Sequence[AuditRecord], judged: Sequence[DrawRecord], known: Sequence[DrawRecord]
) -> list[AuditRecord]:
    """The audits that have judged a ticket of some draws: those of which a draw has trained that very ticket.

    ``known`` are all draws: an audit names its own, whose recipes have its controls. Two draws share a ticket's run
    where they have found the same one.
    """
    wanted = {row.get("run") for draw in judged for row in _tickets(draw)}
    there = []
    for audit in found:
        names, number = audit.document.get("draws"), value_at(audit.document, "verdict", "round")
        own = [draw for draw in known if isinstance(names, list) and draw.id in names]
        if any(row.get("run") in wanted and row.get("round") == number for draw in own for row in _tickets(draw)):
            there.append(audit)
    return there


def _tickets(draw: DrawRecord) -> list[dict[str, Any]]:
    """The rows of a draw's tickets. The dense net, which other methods have too, is none."""
    return [row for row in draw.rounds if row.get("arm") == "ticket" and row.get("round")]


def value_at(about: Any, *keys: str) -> Any:
    """What lies under some keys; None where a record has nothing there."""
    for key in keys:
        about = about.get(key) if isinstance(about, Mapping) else None
    return about


def run_records(connection: Connection, *conditions: ColumnElement[bool]) -> list[RunRecord]:
    """The records of the runs that meet the conditions, the newest last."""
    rows = connection.execute(select(runs).where(*conditions).order_by(runs.c.created, runs.c.id)).all()
    held = select(run_blobs).join(runs, runs.c.id == run_blobs.c.run).where(*conditions).order_by(run_blobs.c.name)
    blobs: dict[str, dict[str, str]] = {row.id: {} for row in rows}
    for entry in connection.execute(held):
        blobs[entry.run][entry.name] = entry.address
    now = time.time()
    return [_run_record(row, blobs[row.id], now) for row in rows]


def draw_records(connection: Connection, *conditions: ColumnElement[bool]) -> list[DrawRecord]:
    """The records of the draws that meet the conditions, the newest last."""
    rows = connection.execute(select(draws).where(*conditions).order_by(draws.c.created, draws.c.id))
    return [
        DrawRecord(row.id, row.status, json.loads(row.about), json.loads(row.rounds), row.created, row.updated)
        for row in rows
    ]


def audit_records(connection: Connection, *conditions: ColumnElement[bool]) -> list[AuditRecord]:
    """The records of the audits that meet the conditions, the last one carried out last."""
    rows = connection.execute(select(audits).where(*conditions).order_by(audits.c.created, audits.c.id))
    return [AuditRecord(row.id, _document(row.document), row.created) for row in rows]


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _run_record(row: Row[Any], blobs: dict[str, str], now: float) -> RunRecord:
    """The record of a row; a run whose owner has died reads as interrupted."""
    owner = owner_of(row)
    running = owner is not None and owner.lives(row.heartbeat, now)
    return RunRecord(
        id=row.id,
        status="interrupted" if row.status == "running" and not running else row.status,
        about=json.loads(row.about),
        summary=json.loads(row.summary),
        blobs=blobs,
        owner=f"{owner.host.partition(' ')[0]}:{owner.pid}" if running and owner is not None else None,
        created=row.created,
        finished=row.finished,
    )


def owner_of(row: Row[Any]) -> Owner | None:
    """The process that has claimed a row's run, if any."""
    return None if row.token is None else Owner(row.host, row.pid, row.started, row.token)


def as_json(what: str, value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """The value as JSON text; InputError where it holds something else. NaN and infinities stay what they are."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must hold only what JSON can: {error}") from error


def check_run_id(run_id: str) -> str:
    """The id back, or InputError."""
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise InputError(f"a run's id must be 64 lower-case hexadecimal digits, but got {run_id!r}")
    return run_id


def check_draw_id(draw_id: str) -> str:
    """The id back, or InputError."""
    if not isinstance(draw_id, str) or not _DRAW_ID.fullmatch(draw_id):
        raise InputError(f"a draw's id must be 8 to 64 lower-case hexadecimal digits, but got {draw_id!r}")
    return draw_id


def check_audit_id(audit_id: str) -> str:
    """The id back, or InputError."""
    if not isinstance(audit_id, str) or not _RUN_ID.fullmatch(audit_id):
        raise InputError(f"an audit's id must be 64 lower-case hexadecimal digits, but got {audit_id!r}")
    return audit_id


def check_names(names: Mapping[str, bytes]) -> None:
    """Refuse a blob without a proper name."""
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"a blob's name must be a word, but got {name!r}")
