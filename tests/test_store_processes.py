"""The store of runs among processes: killed at any moment, racing for the same runs, stopped and continued."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tombola.store import Store

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs processes that can be forked, killed and stopped"
)

# What every process here runs: one interpreter that has imported everything, and a fork of it per worker.
COMMON = """
import hashlib, os, random, signal, sys, time
from tombola.store import Store

def an_id(n):
    return hashlib.sha256(b"%d" % n).hexdigest()

def blobs_of(run_id):
    return {name: random.Random(run_id + name).randbytes(size) for name, size in (("weights", 150_000), ("log", 2_000))}

def note(file, line):  # one write to a file opened for appending is never torn or lost
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (line + "\\n").encode())
    os.close(handle)

def in_fork(work, *values):
    child = os.fork()
    if child == 0:
        try:
            work(*values)
        except BaseException as error:
            note(os.path.join(sys.argv[1], "errors"), repr(error))
            os._exit(1)
        os._exit(0)
    return child
"""

KILLED = (
    COMMON
    + """
folder, seconds = sys.argv[1], float(sys.argv[2])
store = Store(folder + "/runs")

def sealed(data):
    return hashlib.sha256(data).digest() + data

def work(seed):
    order = random.Random(seed)
    while True:
        run_id = an_id(order.randrange(150))
        claim = store.claim(run_id, {"seed": seed})
        if claim is None:
            record = store.run(run_id)
            if record is None:
                raise SystemError("the only other processes are dead, and still a claim is held")
            for name, data in blobs_of(run_id).items():
                assert store.read(record, name) == data
            continue
        with claim:
            found = claim.checkpoint.load()
            if found is not None and sealed(found[32:]) != found:
                raise SystemError("a torn checkpoint was read")
            for step in range(order.randrange(3)):
                claim.checkpoint.save(sealed(order.randbytes(50_000)))
            claim.finish({"id": run_id}, blobs_of(run_id))
            note(folder + "/finished", run_id)

def count():
    return len(open(folder + "/finished").readlines())

with store.claim(an_id(1000), {}) as claim:  # also imports and connects whatever a child would have to
    claim.finish({"id": an_id(1000)}, blobs_of(an_id(1000)))
note(folder + "/finished", an_id(1000))

# the moments spread over about two runs, however fast this machine is just now
moments, window, kills, end = random.Random(0), 0.02, 0, time.monotonic() + seconds
while time.monotonic() < end and (kills < 50 or count() < 10):
    before = count()
    child = in_fork(work, kills)
    time.sleep(moments.random() * window)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    window *= 0.8 if count() > before else 1.2
print(kills)
"""
)

RACING = (
    COMMON
    + """
folder, workers = sys.argv[1], int(sys.argv[2])

def work(number):
    store = Store(folder + "/runs")  # all of them create it at once
    for n in range(50):
        while True:
            claim = store.claim(an_id(n), {"n": n})
            if claim is not None:
                with claim:
                    note(folder + "/computed", str(n))
                    claim.finish({"by": number}, {"result": b"%d" % n})
            record = store.run(an_id(n))
            if record is not None:
                assert store.read(record, "result") == b"%d" % n
                note(folder + "/seen", f"{number} {n} {record.summary['by']}")
                break
            time.sleep(0.001)

children = [in_fork(work, number) for number in range(workers)]
print([os.waitpid(child, 0)[1] for child in children])
"""
)

HOLDING = (
    COMMON
    + """
claim = Store(sys.argv[1] + "/runs").claim(an_id(0), {})
claim.checkpoint.save(b"half way")
print("claimed", flush=True)
sys.stdin.readline()
with claim:
    claim.finish({"by": "holder"}, {"result": b"r"})
print("finished", flush=True)
"""
)

FORKING = (
    COMMON
    + """
import threading
from tombola.store import owners
owners.HEARTBEAT_SECONDS = 0.001
store = Store(sys.argv[1] + "/runs")

def work(n):
    with store.claim(an_id(n), {}) as claim:
        claim.finish({}, {"result": b"%d" % n})

# heartbeats are at work on the catalogue nearly always, so that forks fall into the middle of it
with store.claim(an_id(1000), {}), store.claim(an_id(1001), {}):
    for n in range(12):
        os.waitpid(in_fork(work, n), 0)
print(len([record for record in store.runs() if record.status == "finished"]))
"""
)


def an_id(n: int) -> str:
    return hashlib.sha256(b"%d" % n).hexdigest()


def run_script(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_kill_9_at_any_moment_leaves_results_complete_or_absent(tmp_path):
    kills = int(run_script(KILLED, tmp_path, 15))
    assert lines(tmp_path / "errors") == []
    finished = lines(tmp_path / "finished")
    assert min(kills, len(finished)) > 5, "too slow a machine to see anything"
    assert max(Counter(finished).values()) == 1  # nothing was computed again once it was finished
    with Store(tmp_path / "runs") as store:
        records = {record.id: record for record in store.runs()}
        assert {record.status for record in records.values()} == {"finished", "interrupted"}
        assert {run_id for run_id in finished if records[run_id].status != "finished"} == set()
        for record in records.values():
            if record.status == "finished":
                for name, size in (("weights", 150_000), ("log", 2_000)):
                    assert store.read(record, name) == random.Random(record.id + name).randbytes(size)
        leftovers = list((tmp_path / "runs").rglob("*.tmp"))
        assert store.gc(grace_seconds=-1).leftovers == len(leftovers)
        for record in records.values():
            if record.status == "interrupted":
                with store.claim(record.id, {}) as claim:
                    claim.finish({}, {})


def test_processes_that_race_compute_every_run_exactly_once(tmp_path):
    assert run_script(RACING, tmp_path, 4).split() == ["[0,", "0,", "0,", "0]"], lines(tmp_path / "errors")
    assert sorted(map(int, lines(tmp_path / "computed"))) == list(range(50))
    seen = [tuple(map(int, line.split())) for line in lines(tmp_path / "seen")]
    assert sorted((worker, n) for worker, n, _ in seen) == [(worker, n) for worker in range(4) for n in range(50)]
    assert len({(n, by) for _, n, by in seen}) == 50  # all of them saw the same result


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.communicate()


def test_the_claim_of_a_killed_process_is_taken_over_at_once_with_its_checkpoint(tmp_path, holder):
    with Store(tmp_path / "runs") as store:
        assert store.claim(an_id(0), {}) is None
        assert store.runs()[0].status == "running"
        os.kill(holder.pid, signal.SIGKILL)
        wait_for_state(holder.pid, "Z")  # dead, though its parent has not looked yet
        assert store.runs()[0].status == "interrupted"
        with store.claim(an_id(0), {}) as claim:
            assert claim.checkpoint.load() == b"half way"
            holder.wait()
            assert store.claim(an_id(0), {}) is None


def test_a_stopped_process_keeps_its_claim_and_can_finish(tmp_path, holder):
    with Store(tmp_path / "runs") as store:
        os.kill(holder.pid, signal.SIGSTOP)
        wait_for_state(holder.pid, "T")
        catalogue = sqlite3.connect(tmp_path / "runs" / "catalogue.sqlite")
        with catalogue:
            catalogue.execute("UPDATE tombola_runs SET heartbeat = heartbeat - 1e6")
        catalogue.close()
        assert store.claim(an_id(0), {}) is None
        os.kill(holder.pid, signal.SIGCONT)
        holder.stdin.write("go on\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "finished\n"
        assert store.run(an_id(0)).summary == {"by": "holder"}


def test_a_store_can_be_used_after_a_fork_while_heartbeats_write(tmp_path):
    assert run_script(FORKING, tmp_path) == "12\n", lines(tmp_path / "errors")
    assert lines(tmp_path / "errors") == []


def wait_for_state(pid: int, state: str) -> None:
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        pytest.skip("this system doesn't say in which state a process is")
    end = time.monotonic() + 10
    while stat.read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < end, f"the process never came into state {state}"
        time.sleep(0.005)
