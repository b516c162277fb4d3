"""Every audit that is over is in the store, as it says of itself; one that was interrupted is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from auditing_tools import TASK, Audited, drawn

import tombola as tb
from tombola.auditing import How, Runner, carry_out_audit, claim_of, claim_of_record, numbers
from tombola.events import Event
from tombola.report.audited import read_audit

ASKED: dict[str, Any] = {"controls": ("reinit",), "control_draws": 1}


@pytest.fixture
def audits(store: tb.Store, tmp_path: Path) -> Audited:
    """In the place of ``store``."""
    return Audited(tmp_path / "runs")


def test_an_audit_is_kept_as_it_says_of_itself(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=2)
    ticket = draw.ticket(draw.rounds[2])
    found = audits.ticket(ticket, 2, **ASKED)
    (record,) = store.audits()
    assert (record.id, record.document) == (found.id, found.as_dict())
    told = read_audit(record)
    assert told.verdict == found.verdict
    assert (told.numbers, told.ticket, told.draws) == ((0, 1), ticket.digest, tuple(draw.id for draw in found.draws))
    tb.audit(ticket, task=TASK, seeds=2, store=audits.place, controls=["reinit"], control_draws=1)
    (again,) = store.audits()
    assert (again.id, again.document) == (record.id, record.document)
    assert again.created > record.created


def test_what_was_judged_and_how_tells_audits_apart(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1)
    ticket = draw.ticket(draw.rounds[1])
    found = audits.ticket(ticket, 2, **ASKED)
    assert audits.ticket(ticket, 2, **ASKED, margin=draw.recipe.margin).id == found.id, "which it has anyway"
    assert audits.ticket(ticket, [1, 0], **ASKED).id == found.id
    others = [
        audits.ticket(ticket, 1, **ASKED),
        audits.ticket(ticket, 2, controls=()),
        audits.ticket(ticket, 2, **ASKED, margin=0.3),
        audits.ticket(ticket, 2, **ASKED, as_it_is=True),
        audits.claim(replace(claim_of(ticket, TASK), ticket=None), 2, **ASKED),
    ]
    ids = [found.id, *(other.id for other in others)]
    assert {audit.id for audit in store.audits()} == set(ids)
    stricter: list[dict[str, Any]] = [{"speed_margin": 0.3}, {"alpha": 0.1}, {"at": "end"}, {"round": 2}]
    ids += [replace(found, verdict=replace(found.verdict, **how)).id for how in stricter]
    assert len(set(ids)) == len(ids)


def test_an_interrupted_audit_leaves_none(store: tb.Store, tmp_path: Path) -> None:
    draw = drawn(store, rounds=1)
    claim, place = claim_of(draw.ticket(draw.rounds[1]), TASK), str(tmp_path / "runs")
    begun = 0

    def interrupt(event: Event) -> None:
        nonlocal begun
        begun += event.kind == "start"
        if begun == 4:  # the last control but one
            raise KeyboardInterrupt

    how, seeds = How(**ASKED), numbers(claim, 2)
    with pytest.raises(KeyboardInterrupt):
        carry_out_audit(claim, seeds, how, Runner(TASK, place, watcher=interrupt))
    assert begun == 4
    assert store.audits() == []
    with pytest.raises(tb.InputError, match="unknown control"):
        carry_out_audit(claim, seeds, How(controls=("none",)), Runner(TASK, place))
    assert store.audits() == []
    found = carry_out_audit(claim, seeds, how, Runner(TASK, place))
    assert [audit.id for audit in store.audits()] == [found.id]


def test_the_ticket_of_an_audit_as_it_is_is_no_garbage(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1)
    found = audits.ticket(draw.ticket(draw.rounds[1]), 2, as_it_is=True, **ASKED)
    (record,) = store.audits()
    address = record.document["recipe"]["ticket"]
    assert store.gc(grace_seconds=-1, keep_runs=False).blobs == 0
    assert tb.Ticket.from_bytes(store.get(address)).digest == found.as_dict()["ticket"]


def test_an_audit_is_nothing_to_audit(store: tb.Store) -> None:
    store.save_audit("ab" * 32, {})
    with pytest.raises(tb.InputError, match="audit abababab is a verdict, not a ticket: name a file, a draw or a run"):
        claim_of_record(store.audits()[0], [])
