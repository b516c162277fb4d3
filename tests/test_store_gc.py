"""Garbage collection in the store: what nothing refers to goes, what anything refers to stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_tools import DAY, ONE, THREE, TWO, age, an_id, blob_file, finish, folder_of, sql

from tombola.errors import StoreError
from tombola.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def test_gc_removes_orphans_and_leaves_what_is_referred_to(store):
    record = finish(store, ONE, about={"mask": store.put(b"mask")}, weights=b"w" * 10)
    in_draw = store.put(b"ticket")
    store.save_draw(TWO, {}, [{"ticket": in_draw}], "finished")
    orphan, young = store.put(b"orphan"), store.put(b"young")
    leftover = blob_file(store, orphan).with_name("a.tmp")
    leftover.write_bytes(b"123")
    foreign = folder_of(store) / "blobs" / "notes.txt"
    foreign.write_text("mine")
    for path in folder_of(store).rglob("*"):
        if path.name != young:
            age(path, 2 * 3600)

    plan = store.gc(dry_run=True)
    assert (plan.blobs, plan.leftovers, plan.runs, plan.bytes, plan.dry_run) == (1, 1, 0, 9, True)
    assert leftover.exists()
    report = store.gc()
    assert (report.blobs, report.leftovers, report.bytes, report.dry_run) == (1, 1, 9, False)
    with pytest.raises(StoreError, match="missing"):
        store.get(orphan)
    assert not leftover.exists()
    assert foreign.exists()
    assert store.get(young) == b"young"
    assert store.get(in_draw) == b"ticket"
    assert store.get(record.about["mask"]) == b"mask"
    assert store.read(record, "weights") == b"w" * 10
    assert store.gc().bytes == 0


def test_gc_leaves_a_blob_that_was_put_again_a_moment_ago(store):
    address = store.put(b"wanted again")
    age(blob_file(store, address), DAY)
    store.put(b"wanted again")
    assert store.gc().blobs == 0


def test_gc_leaves_a_blob_that_is_mentioned_while_it_looks(store, monkeypatch):
    address = store.put(b"old")
    age(blob_file(store, address), DAY)
    names = store._files.names

    def mentioned(under: str) -> list[str]:
        store.save_draw(ONE, {"mask": address}, [], "running")
        return names(under)

    monkeypatch.setattr(store._files, "names", mentioned)
    assert store.gc().blobs == 0
    assert store.get(address) == b"old"


def test_a_blob_collected_while_a_run_is_being_finished_is_written_again(store, monkeypatch):
    with store.claim(ONE, {}) as claim:
        put = claim._blobs.put

        def collected(data: bytes) -> str:
            monkeypatch.undo()
            address = put(data)
            assert store.gc(grace_seconds=-1).blobs == 1
            return address

        monkeypatch.setattr(claim._blobs, "put", collected)
        record = claim.finish({}, {"weights": b"w"})
    assert store.read(record, "weights") == b"w"


def test_gc_removes_checkpoints_of_finished_and_abandoned_runs_only(store):
    with store.claim(ONE, {}) as claim:
        claim.checkpoint.save(b"1")
        claim.finish({}, {})
    checkpoints = folder_of(store) / "checkpoints"
    (checkpoints / ONE).write_bytes(b"a kill between the record and the removal leaves this")
    with store.claim(TWO, {}) as claim:
        claim.checkpoint.save(b"2")
    with store.claim(THREE, {}) as claim:
        claim.checkpoint.save(b"3")
        sql(store, "UPDATE tombola_runs SET heartbeat = heartbeat - ?", 20 * DAY)
        assert store.gc().checkpoints == 1
        assert sorted(path.name for path in checkpoints.iterdir()) == sorted([TWO, THREE])
        report = store.gc(abandoned_days=10)
        assert (report.checkpoints, report.runs) == (1, 1)
        assert [path.name for path in checkpoints.iterdir()] == [THREE]  # silent, but its process lives
    assert [record.id for record in store.runs()] == [ONE, THREE]


def test_gc_can_forget_the_runs_that_no_draw_mentions(store):
    for run_id in (ONE, TWO, THREE):
        finish(store, run_id, weights=run_id.encode())
    store.save_draw(an_id("draw"), {"dense": ONE}, [{"run": TWO}], "finished")
    assert store.gc(keep_runs=False).runs == 0  # all are young
    plan = store.gc(keep_runs=False, dry_run=True, grace_seconds=-1)
    assert (plan.runs, plan.blobs) == (1, 1)
    assert store.run(THREE) is not None
    report = store.gc(keep_runs=False, grace_seconds=-1)
    assert (report.runs, report.blobs, report.bytes) == (1, 1, 64)
    assert [record.id for record in store.runs()] == [ONE, TWO]
    assert store.run(THREE) is None
    assert store.read(store.run(TWO), "weights") == TWO.encode()


def test_gc_keeps_the_run_that_a_run_in_progress_starts_from(store):
    finish(store, ONE)
    with store.claim(TWO, {"start": ONE}):
        assert store.gc(keep_runs=False, grace_seconds=-1).runs == 0
