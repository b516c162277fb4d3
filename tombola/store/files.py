"""Named files in a folder or an object store, through fsspec: a file is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from tombola.atomic import write_atomic
from tombola.errors import InputError, StoreError


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file's size in bytes and when it was last written, in seconds since 1970."""

    size: int
    modified: float


class Files:
    """Bytes by relative name, under a folder or an fsspec URL such as ``s3://bucket/runs``.

    On a local file system a file is written beside its place, synced and moved there. On an object store it is
    uploaded in one request, which is atomic there.
    """

    def __init__(self, where: str | Path) -> None:
        self.where = str(where)
        self.folder = _local_folder(where)
        if self.folder is not None:
            self._make_folder(self.folder)
        else:
            self._backend()

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace one, atomically."""
        with self._failing_as(f"can't write {name}"):
            if self.folder is not None:
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, data)
            else:
                files, root = self._backend()
                files.pipe_file(f"{root}/{name}", data)

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is no such file."""
        with self._failing_as(f"can't read {name}"):
            files, root = self._backend()
            try:
                return bytes(files.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def renew(self, name: str) -> bool:
        """Date a local file as written now; False where it is gone."""
        if self.folder is None:
            raise StoreError("only a local file can be renewed in place; write it again")
        with self._failing_as(f"can't write {name}"):
            try:
                os.utime(self.folder / name)
            except FileNotFoundError:
                return False
            return True

    def facts(self, name: str) -> FileFacts | None:
        """A file's size and date, or None where there is no such file."""
        with self._failing_as(f"can't look up {name}"):
            files, root = self._backend()
            files.invalidate_cache()  # other processes write here too
            try:
                path = f"{root}/{name}"
                return FileFacts(int(files.size(path)), files.modified(path).timestamp())
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        with self._failing_as(f"can't remove {name}"), suppress(FileNotFoundError):
            files, root = self._backend()
            files.rm_file(f"{root}/{name}")

    def names(self, under: str) -> list[str]:
        """The names of all files in a sub-folder, at any depth, sorted."""
        with self._failing_as(f"can't list {under}"):
            files, root = self._backend()
            files.invalidate_cache()
            try:
                found = files.find(f"{root}/{under}")
            except FileNotFoundError:
                return []
            return sorted(path[len(root) + 1 :] for path in found)

    def _backend(self) -> tuple[Any, str]:
        """The file system and the root in it. fsspec keeps the object, and makes a new one after a fork."""
        if self.folder is not None:
            return fsspec.filesystem("file"), self.folder.as_posix()
        try:
            files, root = url_to_fs(self.where)
        except ImportError as error:
            raise StoreError(f"the store {self.where} needs a package that isn't installed: {error}") from error
        except ValueError as error:
            raise InputError(f"a store must be a folder or a URL that fsspec knows, but got {self.where!r}") from error
        return files, root.rstrip("/")

    def _make_folder(self, folder: Path) -> None:
        """Make the folder, or say what is in the way."""
        for part in (folder, *folder.parents):
            if part.exists() and not part.is_dir():
                raise InputError(
                    f"the store must be a folder, but {part} is a file; name another folder or move the file"
                )
        with self._failing_as("can't be created"):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _failing_as(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(f"the store {self.where} {what}: {reason}; check its disk, rights and space") from error


def _local_folder(where: str | Path) -> Path | None:
    """The absolute folder that ``where`` means, so that a later chdir changes nothing; None for another file system."""
    if isinstance(where, str) and "://" in where:
        scheme, _, rest = where.partition("://")
        if scheme not in ("file", "local"):
            return None
        where = rest
    return Path(os.path.abspath(Path(where).expanduser()))
