"""Audits in the store: the same one replaces its record, what it mentions stays, older stores take them."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from store_tools import ONE, THREE, TWO, an_id, finish, folder_of, sql

from tombola.errors import InputError, StoreError
from tombola.store import AuditRecord, DrawRecord, Store, catalogue, judging


def test_an_audit_is_kept_and_found(store: Store) -> None:
    assert (store.audit(ONE), store.audits()) == (None, [])
    store.save_audit(ONE, {"task": "digits", "p": None, "far": math.inf})
    found = store.audit(ONE)
    assert found == AuditRecord(ONE, {"task": "digits", "p": None, "far": math.inf}, found.created if found else 0.0)
    assert store.find(ONE[:6].upper()) == [found]
    store.save_draw(ONE, {}, [], "finished")
    run = finish(store, ONE)
    assert store.find(ONE[:4]) == [run, store.draw(ONE), found]


def test_the_same_audit_takes_the_place_of_its_record_and_is_the_last(store: Store) -> None:
    store.save_audit(ONE, {"n": 1})
    store.save_audit(TWO, {"n": 2})
    assert [audit.id for audit in store.audits()] == [ONE, TWO]
    store.save_audit(ONE, {"n": 3})
    with Store(folder_of(store)) as other:
        assert [(audit.id, audit.document) for audit in other.audits()] == [(TWO, {"n": 2}), (ONE, {"n": 3})]


def test_bad_values_are_refused(store: Store) -> None:
    for call in (
        lambda: store.audit("ab12"),
        lambda: store.save_audit(ONE.upper(), {}),
        lambda: store.save_audit(ONE, {"when": object()}),
    ):
        with pytest.raises(InputError, match="must"):
            call()
    assert store.audits() == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '"words"'])
def test_a_damaged_document_is_empty_and_hides_no_other(store: Store, text: str) -> None:
    store.save_audit(ONE, {"n": 1})
    store.save_audit(TWO, {"n": 2})
    sql(store, "UPDATE tombola_audits SET document = ? WHERE id = ?", text, ONE)
    assert [audit.document for audit in store.audits()] == [{}, {"n": 2}]
    store.gc(grace_seconds=-1)


# ---- stores that were made before


SAVE = """
import sys
from tombola.store import Store
sys.stdin.readline()
with Store(sys.argv[1]) as store:
    store.save_audit(sys.argv[2], {"by": sys.argv[2]})
    store.save_audit(sys.argv[3], {"by": sys.argv[2]})
"""


def test_a_store_that_was_made_before_takes_audits_also_of_several_processes_at_once(store: Store) -> None:
    run = finish(store, ONE)
    sql(store, "DROP TABLE tombola_audits")
    ids = [an_id(str(number)) for number in range(3)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, str(folder_of(store)), own, THREE],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for own in ids
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    assert [worker.communicate()[1] for worker in workers] == [b""] * 3
    with Store(folder_of(store)) as again:
        assert {audit.id for audit in again.audits()} == {*ids, THREE}
        assert [audit.document["by"] in ids for audit in again.audits()] == [True] * 4
        assert again.run(ONE) == run
    assert sql(store, "SELECT schema FROM tombola_store") == [(1,)], "an older version can go on with it"


def test_a_table_that_another_process_makes_meanwhile_is_no_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(store, "DROP TABLE tombola_audits")
    create, made = catalogue.audits.create, []

    def create_late(connection: Any) -> None:  # as PostgreSQL has it, where two can look before one of them makes it
        create(connection)
        made.append(connection)
        if len(made) == 1:
            create(connection)

    monkeypatch.setattr(catalogue.audits, "create", create_late)
    with Store(folder_of(store)) as opened:
        opened.save_audit(ONE, {})
        assert len(opened.audits()) == 1


# ---- garbage collection


def test_gc_leaves_what_an_audit_mentions(store: Store) -> None:
    ticket, orphan = store.put(b"ticket"), store.put(b"orphan")
    finish(store, TWO)
    finish(store, THREE)
    store.save_audit(ONE, {"recipe": {"ticket": ticket}, "runs": [TWO]})
    report = store.gc(grace_seconds=-1, keep_runs=False)
    assert (report.blobs, report.runs) == (1, 1)
    assert store.get(ticket) == b"ticket"
    assert store.run(TWO) is not None
    assert store.run(THREE) is None
    with pytest.raises(StoreError, match="missing"):
        store.get(orphan)


# ---- which audits are of a draw


def a_draw(name: str, *tickets: str) -> DrawRecord:
    """A draw of these runs, the dense one first."""
    rows = [{"arm": "ticket", "round": number, "run": an_id(run)} for number, run in enumerate(tickets)]
    return DrawRecord(an_id(name), "finished", {}, [*rows, {"arm": "reinit", "round": 1, "run": an_id("r")}], 0.0, 0.0)


def audit(*draws: DrawRecord, round: Any = 2) -> AuditRecord:
    return AuditRecord(ONE, {"draws": [draw.id for draw in draws], "verdict": {"round": round}}, 0.0)


def test_an_audit_is_of_the_draws_that_found_its_ticket() -> None:
    long, cut, other = a_draw("long", "d", "a", "b", "c"), a_draw("cut", "d", "a", "b"), a_draw("other", "d", "x", "y")
    known = [long, cut, other]
    own = audit(cut)
    assert judging([own], [cut], known) == [own]
    assert judging([own], [long], known) == [own], "the same ticket, drawn with other controls"
    assert judging([own], [other], known) == [], "the dense net alone is shared"
    assert judging([own], [other, long], known) == [own]
    assert judging([own], [cut], [long, other]) == [], "what it has judged can't be told any more"
    assert judging([audit(long, round=3)], [cut], known) == [], "another round"
    for document in ({}, {"draws": cut.id}, {"draws": [[]], "verdict": []}, {"draws": None, "verdict": {"round": []}}):
        assert judging([AuditRecord(ONE, document, 0.0)], [cut], known) == []
