"""The store of runs in one process: results complete or absent, blobs checked, claims exclusive."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_tools import DAY, ONE, THREE, TWO, age, blob_file, finish, folder_of, sql

from tombola.errors import InputError, StoreError
from tombola.store import ClaimLost, DrawRecord, Store, owners


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


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
