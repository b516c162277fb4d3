"""The store of runs in one process: results complete or absent, blobs checked, claims exclusive, garbage collected."""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tombola.errors import InputError, StoreError
from tombola.store import ClaimLost, DrawRecord, RunRecord, Store, owners
from tombola.store.blobs import name_of

DAY = 86400.0


def an_id(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


ONE, TWO, THREE = an_id("one"), an_id("two"), an_id("three")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def finish(store: Store, run_id: str, about: dict | None = None, **blobs: bytes) -> RunRecord:
    claim = store.claim(run_id, about or {})
    assert claim is not None
    with claim:
        return claim.finish({"loss": 0.5}, blobs)


def folder_of(store: Store) -> Path:
    folder = store._files.folder
    assert folder is not None
    return folder


def sql(store: Store, statement: str, *values: object) -> list[tuple]:
    connection = sqlite3.connect(folder_of(store) / "catalogue.sqlite", timeout=30)
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def blob_file(store: Store, address: str) -> Path:
    return folder_of(store) / name_of(address)


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


# Runs


def test_a_run_is_absent_until_it_is_finished(store):
    assert store.run(ONE) is None
    with store.claim(ONE, {"task": "digits", "seed": 3}) as claim:
        assert store.run(ONE) is None
        record = claim.finish({"loss": 0.25}, {"weights": b"w", "history": b"h"})
    assert store.run(ONE) == record
    assert (record.id, record.status, record.owner) == (ONE, "finished", None)
    assert record.about == {"task": "digits", "seed": 3}
    assert record.summary == {"loss": 0.25}
    assert record.created <= record.finished
    assert {name: store.read(record, name) for name in record.blobs} == {"weights": b"w", "history": b"h"}


def test_a_finished_run_is_never_claimed_again_not_even_by_another_store_object(store):
    finish(store, ONE)
    with Store(folder_of(store)) as other:
        assert other.claim(ONE, {}) is None
        assert other.run(ONE) == store.run(ONE)


def test_a_diverged_run_is_a_result_and_keeps_its_infinities(store):
    with store.claim(ONE, {}) as claim:
        claim.finish({"loss": math.inf, "accuracy": math.nan}, {}, status="diverged")
    record = store.run(ONE)
    assert record.status == "diverged"
    assert record.summary["loss"] == math.inf
    assert math.isnan(record.summary["accuracy"])
    assert store.claim(ONE, {}) is None


def test_runs_lists_everything_the_newest_last(store):
    finish(store, ONE)
    with store.claim(TWO, {}):
        pass
    with store.claim(THREE, {}):
        found = store.runs()
    assert [(record.id, record.status) for record in found] == [
        (ONE, "finished"),
        (TWO, "interrupted"),
        (THREE, "running"),
    ]
    assert [bool(record.owner) for record in found] == [False, False, True]
    assert found[2].owner.endswith(f":{os.getpid()}")


def test_finishing_twice_gives_the_same_record(store):
    with store.claim(ONE, {}) as claim:
        first = claim.finish({"n": 1}, {"a": b"a"})
        assert claim.finish({"n": 2}, {"a": b"b"}) == first
    assert store.run(ONE) == first


def test_attach_adds_a_blob_to_a_finished_run_only(store):
    record = finish(store, ONE, weights=b"w")
    for _ in range(2):
        store.attach(ONE, "masks", b"m")
    assert store.run(ONE).blobs == {**record.blobs, "masks": hashlib.sha256(b"m").hexdigest()}
    store.attach(ONE, "masks", b"newer")
    assert store.read(store.run(ONE), "masks") == b"newer"
    with store.claim(TWO, {}), pytest.raises(StoreError, match="only a finished run"):
        store.attach(TWO, "masks", b"m")


def test_discard_forgets_a_result_but_not_the_one_that_has_replaced_it(store):
    old = finish(store, ONE, weights=b"w")
    store.discard(ONE)
    assert store.run(ONE) is None
    assert store.gc(grace_seconds=-1).blobs == 1  # its blobs have become garbage
    new = finish(store, ONE, weights=b"w")
    store.discard(old)
    assert store.run(ONE) == new
    store.discard(new)
    assert store.run(ONE) is None
    with store.claim(ONE, {}):
        store.discard(ONE)
        assert store.claim(ONE, {}) is None  # a run in progress is left alone


def test_find_by_prefix(store):
    run = finish(store, ONE)
    store.save_draw(TWO[:12], {}, [], "running")
    assert store.find(ONE[:4]) == [run]
    assert store.find(ONE[:9].upper()) == [run]
    assert store.find(TWO[:4]) == [store.draw(TWO[:12])]
    assert store.find("0" * 64) == []
    for bad in ("abc", "ab%d", ""):
        with pytest.raises(InputError, match="at least 4"):
            store.find(bad)


# Claims


def test_a_claim_excludes_every_other_also_from_threads(store):
    barrier, won = threading.Barrier(4), []

    def compete() -> None:
        barrier.wait()
        won.append(store.claim(ONE, {}))

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [claim for claim in won if claim is not None]
    assert len(winners) == 1
    with winners[0]:
        assert Store(folder_of(store)).claim(ONE, {}) is None


def test_leaving_a_claim_gives_the_run_up_and_keeps_the_checkpoint(store):
    with store.claim(ONE, {"n": 1}) as claim:
        assert claim.checkpoint.load() is None
        claim.checkpoint.save(b"step 1")
        claim.checkpoint.save(b"step 2")
    with pytest.raises(StoreError, match="closed"):
        claim.checkpoint.save(b"too late")
    with pytest.raises(ClaimLost):
        claim.finish({}, {})
    with store.claim(ONE, {"n": 1}) as claim:
        assert claim.checkpoint.load() == b"step 2"
        claim.finish({}, {})
    assert not any((folder_of(store) / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("column", "value", "taken_over"),
    [
        ("host", "elsewhere", False),  # another host, heard of just now
        ("started", "1", True),  # our pid, but of a process that began at another time
        ("pid", 2**22 + 1, True),  # above the largest pid there can be
    ],
)
def test_only_the_claim_of_a_dead_owner_is_taken_over(store, column, value, taken_over):
    if column == "started" and not Path("/proc/self/stat").exists():
        pytest.skip("this system doesn't say when a process began")
    with store.claim(ONE, {}):
        sql(store, f"UPDATE tombola_runs SET {column} = ?", value)
        other = store.claim(ONE, {})
        assert (other is not None) == taken_over


@pytest.mark.parametrize(("silence", "lives"), [(50, True), (70, False), (-DAY, False)])
def test_an_owner_elsewhere_lives_as_long_as_its_heartbeat(silence, lives):
    now = time.time()
    assert owners.Owner("elsewhere", 1, "", "t").lives(now - silence, now) == lives


def test_an_error_within_a_claim_passes_through_and_gives_the_run_up(store):
    with pytest.raises(KeyboardInterrupt), store.claim(ONE, {}):
        raise KeyboardInterrupt
    assert [record.status for record in store.runs()] == ["interrupted"]


def test_who_has_lost_a_claim_can_not_finish_over_the_new_owner(store):
    with store.claim(ONE, {}) as old:
        sql(store, "UPDATE tombola_runs SET host = 'elsewhere', heartbeat = heartbeat - 100")
        with store.claim(ONE, {}) as new:
            with pytest.raises(ClaimLost):
                old.finish({"by": "old"}, {"weights": b"old"})
            with pytest.raises(ClaimLost):
                old.checkpoint.save(b"old")
            assert store.run(ONE) is None
            record = new.finish({"by": "new"}, {"weights": b"new"})
        assert old.finish({"by": "old"}, {"weights": b"old"}) == record
    assert store.read(store.run(ONE), "weights") == b"new"


def test_the_heart_beats_while_a_claim_is_open_and_sees_that_it_was_lost(store, monkeypatch):
    monkeypatch.setattr(owners, "HEARTBEAT_SECONDS", 0.01)
    with store.claim(ONE, {}) as claim:
        sql(store, "UPDATE tombola_runs SET heartbeat = 0")
        wait_until(lambda: sql(store, "SELECT heartbeat FROM tombola_runs")[0][0] > 0)
        sql(store, "UPDATE tombola_runs SET token = 'of another'")
        wait_until(claim._lost.is_set)
        with pytest.raises(ClaimLost):
            claim.check()


def wait_until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


# Blobs


@given(data=st.binary(max_size=200))
def test_what_is_put_comes_back(shared_store, data):
    address = shared_store.put(data)
    assert address == hashlib.sha256(data).hexdigest()
    assert shared_store.get(address) == data


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("damage", [b"", b"weight", b"weightz", b"weights and more"])
def test_a_damaged_blob_is_never_handed_out_and_is_repaired_by_the_next_put(store, damage):
    record = finish(store, ONE, weights=b"weights")
    blob_file(store, record.blobs["weights"]).write_bytes(damage)
    with pytest.raises(StoreError, match=rf"'weights' of run {ONE[:8]} .* damaged"):
        store.read(record, "weights")
    with pytest.raises(StoreError, match="damaged"):
        store.get(record.blobs["weights"])
    store.put(b"weights")
    assert store.read(record, "weights") == b"weights"


def test_missing_and_unknown_blobs_are_named(store):
    record = finish(store, ONE, weights=b"w")
    blob_file(store, record.blobs["weights"]).unlink()
    with pytest.raises(StoreError, match=rf"'weights' of run {ONE[:8]} .* missing"):
        store.read(record, "weights")
    with pytest.raises(StoreError, match=r"no blob 'wieghts'\. Did you mean 'weights'"):
        store.read(record, "wieghts")
    with pytest.raises(StoreError, match="missing"):
        store.get(TWO)


def test_a_sound_blob_is_not_written_again(store):
    file = blob_file(store, store.put(b"the same"))
    age(file, DAY)
    before = file.stat()
    store.put(b"the same")
    assert file.stat().st_ino == before.st_ino
    assert file.stat().st_mtime > before.st_mtime  # but it is dated anew


def test_a_failed_write_leaves_nothing_behind(store, monkeypatch):
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with store.claim(ONE, {}) as claim, pytest.raises(StoreError, match="No space left on device; check its disk"):
        claim.finish({}, {"weights": b"w"})
    assert store.run(ONE) is None
    assert [path for path in (folder_of(store) / "blobs").rglob("*") if path.is_file()] == []


# Draws


def test_a_draw_is_saved_round_by_round(store):
    assert store.draw(ONE) is None
    store.save_draw(ONE, {"task": "digits"}, [], "running")
    created = store.draw(ONE).created
    store.save_draw(ONE, {"task": "digits"}, [{"density": 0.8}, {"density": 0.64}], "finished")
    draw = store.draw(ONE)
    assert isinstance(draw, DrawRecord)
    assert (draw.status, draw.rounds, draw.created) == ("finished", [{"density": 0.8}, {"density": 0.64}], created)
    store.save_draw(TWO, {}, [], "running")
    assert [draw.id for draw in store.draws()] == [ONE, TWO]


# Garbage collection


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


# Opening


def test_what_is_missing_is_created_and_the_same_store_opens_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store("a/b/runs") as store:
        record = finish(store, ONE, weights=b"w")
        monkeypatch.chdir("/")
        assert store.read(record, "weights") == b"w"
    with Store(f"file://{tmp_path}/a/b/runs") as store:
        assert store.run(ONE) == record
        assert sql(store, "PRAGMA journal_mode") == [("wal",)]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("notes")
    for where in (tmp_path / "runs", tmp_path / "runs" / "deeper"):
        with pytest.raises(InputError, match=r"must be a folder, but .*runs is a file"):
            Store(where)


def test_a_newer_schema_is_refused(store):
    sql(store, "UPDATE tombola_store SET schema = 2")
    with pytest.raises(StoreError, match=r"newer Tombola: it has schema 2, and this one reads up to 1; upgrade"):
        Store(folder_of(store))


def test_something_else_in_the_place_of_the_catalogue_is_refused(tmp_path):
    (tmp_path / "catalogue.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="not a Tombola catalogue"):
        Store(tmp_path)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE poems (line TEXT)")
    other.close()
    with pytest.raises(StoreError, match="not a Tombola catalogue"):
        Store(tmp_path / "fine", catalogue=f"sqlite:///{tmp_path / 'other.sqlite'}")


def test_a_crash_before_the_tables_are_made_leaves_a_store_that_opens(tmp_path):
    (tmp_path / "catalogue.sqlite").touch()
    finish(Store(tmp_path), ONE)


READ_ONLY = """
import os, sys
from tombola.errors import StoreError
from tombola.store import Store
Store(sys.argv[1]).close()  # whatever is imported late is imported now
if os.getuid() == 0:
    os.setuid(65534)  # rights don't bind root
os.chmod(sys.argv[1], 0o555) if os.stat(sys.argv[1]).st_uid == os.getuid() else None
for where in (sys.argv[1], sys.argv[1] + "/below"):
    try:
        Store(where)
    except StoreError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
def test_a_folder_without_the_right_to_write():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, folder], capture_output=True, text=True, check=True, timeout=60
        )
        os.chmod(folder, 0o755)
    there, below = done.stdout.splitlines()
    assert "can't be used" in there
    assert "check that it is there and writable" in there
    assert "can't be created: Permission denied; check its disk, rights and space" in below


@pytest.mark.parametrize(
    ("where", "catalogue", "message"),
    [
        ("memory://runs", None, "needs a catalogue of its own"),
        ("nonsense://runs", "sqlite:////tmp/c.sqlite", "a folder or a URL that fsspec knows"),
        ("runs", "sqlite://", "in memory"),
        ("runs", "not a url", "must be a database URL"),
        ("runs", "nonsense://host/name", "must be a database URL"),
    ],
)
def test_places_that_can_not_be_a_store(tmp_path, monkeypatch, where, catalogue, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        Store(where, catalogue=catalogue)


def test_bad_values_are_refused_by_their_rule(store):
    for call in (
        lambda: store.run("ONE"),
        lambda: store.claim(ONE.upper(), {}),
        lambda: store.claim(ONE, {"when": object()}),
        lambda: store.get("../../etc/passwd"),
        lambda: store.save_draw("x", {}, [], "running"),
        lambda: store.save_draw(ONE, {}, [], "done"),
    ):
        with pytest.raises(InputError, match="must"):
            call()
    with store.claim(ONE, {}) as claim:
        with pytest.raises(InputError, match="'finished' or 'diverged', but got 'running'"):
            claim.finish({}, {}, status="running")
        with pytest.raises(InputError, match="name must be a word"):
            claim.finish({}, {"": b""})
        assert store.run(ONE) is None


# Another file system for the blobs


def test_blobs_in_an_object_store_with_the_catalogue_elsewhere(tmp_path):
    catalogue = f"sqlite:///{tmp_path / 'catalogue.sqlite'}"
    where = f"memory://{tmp_path.name}/runs"
    with Store(where, catalogue=catalogue) as store:
        with store.claim(ONE, {}) as claim:
            claim.checkpoint.save(b"half way")
            assert claim.checkpoint.load() == b"half way"
            record = claim.finish({}, {"weights": b"w"})
            assert claim.checkpoint.load() is None
        store.attach(ONE, "masks", b"m")
        orphan = store.put(b"orphan")
        assert store.gc().blobs == 0
        assert store.gc(grace_seconds=-1).blobs == 1
        with pytest.raises(StoreError, match="missing"):
            store.get(orphan)
    with Store(where, catalogue=catalogue) as again:
        assert again.read(record, "weights") == b"w"
        assert again.read(again.run(ONE), "masks") == b"m"
        again._files.write(name_of(record.blobs["weights"]), b"W")
        with pytest.raises(StoreError, match="damaged"):
            again.read(record, "weights")
