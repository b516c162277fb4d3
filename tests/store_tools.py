"""What the tests of the store share."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path

from tombola.store import RunRecord, Store
from tombola.store.blobs import name_of

DAY = 86400.0


def an_id(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


ONE, TWO, THREE = an_id("one"), an_id("two"), an_id("three")


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
