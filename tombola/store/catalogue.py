"""The catalogue: which runs, draws and audits there are, in SQLite or, by URL, PostgreSQL.

Transactions that write hold one lock for the whole catalogue: SQLite's own, or a row of PostgreSQL. So what one of
them has read stays true until it commits, and no statement below has to care about races.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    NullPool,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from tombola.errors import InputError, StoreError

SCHEMA = 1
BUSY_SECONDS = 30

_tables = MetaData()
version = Table("tombola_store", _tables, Column("schema", Integer, primary_key=True, autoincrement=False))
runs = Table(
    "tombola_runs",
    _tables,
    Column("id", String(64), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("about", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("host", Text),  # host, pid, started, token: the owner while it runs
    Column("pid", Integer),
    Column("started", Text),
    Column("token", String(32)),
    Column("heartbeat", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("finished", Float),
)
run_blobs = Table(
    "tombola_run_blobs",
    _tables,
    Column("run", String(64), ForeignKey(runs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("address", String(64), nullable=False, index=True),
)
draws = Table(
    "tombola_draws",
    _tables,
    Column("id", String(64), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("about", Text, nullable=False),
    Column("rounds", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
)
audits = Table(
    "tombola_audits",
    _tables,
    Column("id", String(64), primary_key=True),
    Column("document", Text, nullable=False),
    Column("created", Float, nullable=False),
)

# Held while a connection is open, and across a fork: a child that inherits an open SQLite connection inherits its
# idea of the locks too.
_connected = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_connected.acquire, after_in_parent=_connected.release, after_in_child=_connected.release
    )


class Catalogue:
    """Transactions on the catalogue at a SQLAlchemy URL; makes the tables where there are none.

    No connection outlives its transaction, so that threads and forked processes can share the object.
    """

    def __init__(self, url: str | URL) -> None:
        self._engine = _engine(url)
        self.name = self._engine.url.render_as_string(hide_password=True)
        self._sqlite = self._engine.dialect.name == "sqlite"
        self._writing = self._engine.execution_options(tombola_writes=True)
        # one state of the catalogue for all statements of a reader, as SQLite gives anyway
        self._reading = (
            self._engine if self._sqlite else self._engine.execution_options(isolation_level="REPEATABLE READ")
        )
        try:
            self._prepare()
        except _Clash:  # PostgreSQL: another process made the tables at the same moment
            self._prepare()
        if self._sqlite:
            event.listen(self._engine, "do_connect", _only_what_is_there)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._transaction(self._reading) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The one transaction that may write now. Keep it short, and never open another within it."""
        with self._transaction(self._writing) as connection:
            connection.execute(select(version.c.schema).with_for_update())
            yield connection

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        with _connected:
            try:
                with engine.begin() as connection:
                    yield connection
            except SQLAlchemyError as error:
                reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
                raise self._failure(reason) from error

    def _failure(self, reason: str) -> StoreError:
        if "not a database" in reason:
            return StoreError(f"{self.name} is not a Tombola catalogue, but some other file; name another store")
        if "locked" in reason:
            reason += f" (another process has held it for {BUSY_SECONDS} seconds)"
        kind = _Clash if "already exists" in reason or "duplicate key" in reason else StoreError
        return kind(f"the store's catalogue {self.name} can't be used: {reason}; check that it is there and writable")

    def _prepare(self) -> None:
        with self._transaction(self._writing) as connection:
            there = inspect(connection).get_table_names()
            if version.name in there:
                self._check_version(connection)
                if audits.name not in there:  # made by a version that didn't keep audits yet, and may use it again
                    audits.create(connection)
            elif there and self._sqlite:
                raise StoreError(f"{self.name} is a database, but not a Tombola catalogue; name another store")
            else:
                _tables.create_all(connection)
                connection.execute(insert(version).values(schema=SCHEMA))
        if self._sqlite:
            self._write_ahead()

    def _check_version(self, connection: Connection) -> None:
        found = connection.execute(select(version.c.schema)).scalar()
        if not isinstance(found, int) or found < 1:
            raise StoreError(f"{self.name} is damaged: its schema should be a number from 1, but is {found!r}")
        if found > SCHEMA:
            raise StoreError(
                f"{self.name} was made by a newer Tombola: it has schema {found}, and this one reads up to {SCHEMA}; "
                "upgrade Tombola or name another store"
            )

    def _write_ahead(self) -> None:
        """Let readers and the writer work side by side, for good, where the file system and the moment allow it."""
        with _connected, suppress(OperationalError), self._engine.connect() as connection:
            raw = connection.connection.cursor()  # outside of a transaction, where the journal can be changed
            try:
                raw.execute("PRAGMA journal_mode=WAL")
            except self._engine.dialect.loaded_dbapi.OperationalError:
                pass
            finally:
                raw.close()


class _Clash(StoreError):  # noqa: N818 - it never leaves this file
    """Two processes made the tables at once; the other one has."""


def _engine(url: str | URL) -> Engine:
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and parsed.database in (None, "", ":memory:"):
            raise InputError("a catalogue in memory can't be shared between processes; name a file: sqlite:///PATH")
        wait = {"timeout": BUSY_SECONDS} if sqlite else {}
        engine = create_engine(parsed, poolclass=NullPool, connect_args=wait)
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError(
            "a catalogue must be a database URL like sqlite:////home/me/runs.sqlite or postgresql+psycopg://host/name"
        ) from error
    except ImportError as error:
        raise StoreError(f"the store's catalogue needs a package that isn't installed: {error}") from error
    if sqlite:
        event.listen(engine, "connect", _take_over_transactions)
        event.listen(engine, "begin", _begin)
    return engine


def _only_what_is_there(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """Open the file, never make one: a catalogue that went away mustn't come back empty while it is looked for."""
    if not options.get("uri"):
        arguments[0], options["uri"] = Path(arguments[0]).absolute().as_uri() + "?mode=rw", True


def _take_over_transactions(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's sqlite3 would begin transactions late, and not before every statement
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    """Take SQLite's write lock at once where it is needed: a lock taken later could fail instead of waiting."""
    writes = connection.get_execution_options().get("tombola_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
