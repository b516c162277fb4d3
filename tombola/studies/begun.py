"""Studies that were begun in a store, so that they can be resumed and looked at without their files.

Each is a small JSON document ``studies/NAME.json`` (``NAME.quick.json``) beside the catalogue, replaced in one piece.
It is no blob, as garbage collection removes blobs that no run or draw mentions, and no run or draw belongs to one
study; and it is no table, so that a store of an earlier version needs no change.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tombola.errors import StoreError
from tombola.store.files import Files
from tombola.store.owners import Owner
from tombola.studies.study import Study, read_study

FOLDER = "studies"


class Process(BaseModel):
    """The process that carries a study out."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> Process:
        """The process that asks."""
        me = Owner.me()
        return cls(host=me.host, pid=me.pid, started=me.started)

    def lives(self, heartbeat: float) -> bool:
        """Whether it still does; of another host, whether its last word is recent."""
        return Owner(self.host, self.pid, self.started, "").lives(heartbeat, time.time())


class Begun(BaseModel):
    """A study that was begun in a store. Times are seconds since 1970."""

    model_config = ConfigDict(frozen=True)

    source: dict[str, Any]
    where: str
    quick: bool
    jobs: int = Field(ge=1)
    data_root: str | None
    out: str
    begun: float
    updated: float
    process: Process | None = None
    at_work: tuple[str, ...] = ()
    failures: dict[str, str] = {}

    @property
    def study(self) -> Study:
        """What was begun, whatever has become of its file since."""
        return read_study(self.source, self.where)

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.source.get("name"))

    @property
    def runs(self) -> bool:
        """Whether a process carries it out now."""
        return self.process is not None and self.process.lives(self.updated)

    @property
    def busy(self) -> tuple[str, ...]:
        """The keys of the draws that processes are at."""
        return self.at_work if self.runs else ()


def remember(store: str, begun: Begun) -> None:
    """Write down how far a study is."""
    Files(store).write(_file(begun.name, begun.quick), begun.model_dump_json().encode())


def all_begun(store: str) -> list[Begun]:
    """The studies that were begun in a store, the last one last. ``StoreError`` for a damaged document."""
    files = Files(store)
    found = []
    for name in files.names(FOLDER):
        data = files.read(name) if name.endswith(".json") else None
        if data is None:
            continue
        try:
            found.append(Begun.model_validate_json(data))
        except ValidationError as error:
            raise StoreError(f"{name} of the store {store} is damaged: remove it, and run the study again") from error
    return sorted(found, key=lambda one: one.begun)


def _file(name: str, quick: bool) -> str:
    return f"{FOLDER}/{name}{'.quick' * quick}.json"
