"""Where a store can be: created where it is missing, refused where something is in the way."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from store_tools import ONE, TWO, finish, folder_of, sql

from tombola.errors import InputError, StoreError
from tombola.store import Store
from tombola.store.blobs import name_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


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


def test_a_catalogue_that_goes_away_is_not_made_anew_and_empty(store, tmp_path):
    finish(store, ONE)
    catalogue, away = folder_of(store) / "catalogue.sqlite", tmp_path / "away"
    catalogue.rename(away)
    with pytest.raises(StoreError, match="can't be used: unable to open"):
        store.claim(TWO, {})
    assert not catalogue.exists()
    away.rename(catalogue)
    assert store.run(ONE) is not None
    finish(store, TWO)


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
        ("nonsense://runs", "sqlite:///c.sqlite", "a folder or a URL that fsspec knows"),
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
