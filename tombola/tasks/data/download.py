"""Downloading a file over HTTP: checked, resumed after a break, from the first mirror that delivers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from filelock import FileLock

from tombola.errors import DataError, InputError

Progress = Callable[[str, int, int | None], None]

_CHUNK = 1 << 16
_TIMEOUT = 30.0  # seconds of silence after which a server counts as gone
_RESUMES = 10  # broken connections per mirror, each of which must have brought something
# urllib's default opener would also follow a redirect to ftp:, so only what http and https need.
_HANDLERS = (
    ProxyHandler,
    HTTPHandler,
    HTTPSHandler,
    HTTPRedirectHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    UnknownHandler,
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that mirrors offer: its name, its checksum (``md5:...`` or ``sha256:...``), its size in bytes if known."""

    name: str
    checksum: str
    size: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise InputError(f"a remote file's name must be a plain file name, but got {self.name!r}")
        if not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", self.checksum):
            raise InputError(
                f"the checksum of {self.name} must be md5: or sha256: and its hex, but got {self.checksum!r}"
            )


def check_url(url: str, origin: str) -> str:
    """``url`` if it is an http or https address; ``origin`` says in the ``InputError`` where it was given."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{origin}: {url!r} is no web address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{origin} must be addresses like https://host/folder, but got {url!r}")
    return url


def fetch(file: RemoteFile, folder: Path, *, mirrors: Sequence[str], progress: Progress | None = None) -> Path:
    """Download ``file`` into ``folder`` unless it is there already; its path.

    ``mirrors`` are the addresses of folders, tried in turn. What arrives is kept in ``NAME.part`` and moved to its
    name only when its checksum is right, so an interrupted download goes on where it stopped, also in a later call.
    Processes that want the same file wait for each other by a lock on ``NAME.lock``, which the system releases when its
    holder ends: a name per process would never corrupt anything either, but would lose the resuming. ``progress`` is
    called with the name, the bytes so far and the bytes in all, where known. A file that is already there is not
    checked: it is the user's.

    Raises ``DataError`` with the reason for each mirror when none delivers.
    """
    target = folder / file.name
    urls = [check_url(f"{base.rstrip('/')}/{file.name}", "mirrors") for base in mirrors]
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{file.name}.lock"):
            return target if target.exists() else _fetch_locked(file, target, urls, progress)
    except OSError as error:
        raise DataError(f"{target} can't be written: {error.strerror or error}") from error


class _MirrorError(Exception):
    """Why a mirror didn't deliver. ``broken`` where the connection broke and what has come is worth going on from."""

    def __init__(self, reason: str, *, broken: bool = False) -> None:
        super().__init__(reason)
        self.broken = broken


def _fetch_locked(file: RemoteFile, target: Path, urls: Sequence[str], progress: Progress | None) -> Path:
    part = target.with_name(f"{file.name}.part")
    failures = []
    for url in urls:
        try:
            _download(file, url, part, progress)
        except _MirrorError as error:
            failures.append(f"\n  {url}: {error}")
        else:
            os.replace(part, target)
            return target
    raise DataError(f"{target} could not be downloaded:{''.join(failures) or ' no mirror is known'}")


def _download(file: RemoteFile, url: str, part: Path, progress: Progress | None) -> None:
    """Fill ``part`` from one mirror and check it. A part that turns out wrong is deleted."""
    resumed = _transfer_resuming(file, url, part, progress)
    if resumed and not _is_right(file, part):
        part.unlink()  # what was there before may have been the wrong half, so this mirror gets a chance of its own
        _transfer_resuming(file, url, part, progress)
    if not _is_right(file, part):
        part.unlink()
        raise _MirrorError(f"what it sent doesn't have the checksum {file.checksum}")


def _is_right(file: RemoteFile, part: Path) -> bool:
    algorithm, expected = file.checksum.split(":")
    with part.open("rb") as stream:
        return (
            hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest() == expected
        )


def _transfer_resuming(file: RemoteFile, url: str, part: Path, progress: Progress | None) -> bool:
    """Transfer with up to ``_RESUMES`` reconnections; whether the file began with bytes of an earlier call."""
    began, resumes = _size(part), 0
    while True:
        before = _size(part)
        try:
            _transfer(file, url, part, progress)
            return began > 0
        except _MirrorError as error:
            resumes += 1
            if not error.broken or resumes > _RESUMES or _size(part) <= before:
                raise


def _transfer(file: RemoteFile, url: str, part: Path, progress: Progress | None) -> None:
    """One connection: append to ``part`` what is missing of it, or write all of it if the server can't resume."""
    have = _size(part)
    if have and have == file.size:
        return
    if file.size is not None and have > file.size:
        have = 0
    response = _open(url, have)
    if have and response.status == 206 and not _continues(response, have, file):
        response.close()
        response, have = _open(url, 0), 0
    with response:
        if response.status not in (200, 206 if have else 200):
            raise _MirrorError(f"HTTP {response.status} {response.reason} where 200 was expected")
        start = have if response.status == 206 else 0
        total = file.size if response.length is None else start + response.length
        if file.size not in (None, total):
            raise _MirrorError(f"it offers {total:,} bytes, but the file has {file.size:,}")
        with part.open("ab" if start else "wb") as out:
            done = _copy(response, out, start, file, total, progress)
            out.flush()
            os.fsync(out.fileno())
    if total is not None and done < total:
        raise _MirrorError(f"the connection broke after {done:,} of {total:,} bytes", broken=True)


def _open(url: str, have: int) -> HTTPResponse:
    """The answer to a request for all of ``url``, or for what follows the first ``have`` bytes."""
    headers = {"User-Agent": "tombola", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    opener = OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    try:
        response: HTTPResponse = opener.open(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing follows: what we have isn't the beginning of what the server has
            return _open(url, 0)
        raise _MirrorError(f"HTTP {error.code} {error.reason}") from error
    except URLError as error:
        raise _MirrorError(str(error.reason)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _MirrorError(str(error) or type(error).__name__) from error
    return response


def _continues(response: HTTPResponse, have: int, file: RemoteFile) -> bool:
    """Whether a partial answer begins at byte ``have`` of a file of the right size."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == have and (file.size is None or found[2] in ("*", str(file.size)))


def _copy(
    response: HTTPResponse, out: BinaryIO, start: int, file: RemoteFile, total: int | None, progress: Progress | None
) -> int:
    """Write what arrives; where the file then ends."""
    done = start
    for chunk in _chunks(response):
        done += len(chunk)
        if file.size is not None and done > file.size:
            out.truncate(0)
            raise _MirrorError(f"it sends more than the {file.size:,} bytes of the file")
        out.write(chunk)
        if progress is not None:
            progress(file.name, done, total)
    return done


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """What arrives, as it arrives. A failure to read is the mirror's; one to write what was read isn't, so apart."""
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, HTTPException) as error:
            raise _MirrorError(f"the connection broke: {error or type(error).__name__}", broken=True) from error
        if not chunk:
            return
        yield chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
