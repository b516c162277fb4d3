"""Taking files out of a downloaded archive without trusting it."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tombola.errors import DataError


def extract_tar(archive: Path, names: Sequence[str], folder: Path, *, limit: int) -> None:
    """Take files ``NAME`` of ``folder``'s name out of a gzipped tar archive and put them into ``folder``.

    Only regular members of exactly the names ``FOLDER/NAME`` are read, each of at most ``limit`` bytes, and written
    under our own names: no path, link or mode in the archive is followed. They are unpacked into a folder of their own
    first, so that ``folder`` gets whole files only, or none.

    Raises ``DataError`` where the archive is damaged, lacks a file or holds one that is too large.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            _unpack(archive, names, Path(temporary), folder.name, limit)
            folder.mkdir(exist_ok=True)
            for name in names:
                os.replace(Path(temporary) / name, folder / name)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} can't be unpacked to {folder}: {error}; if it is damaged, delete it") from error


def _unpack(archive: Path, names: Sequence[str], target: Path, inside: str, limit: int) -> None:
    """Write the members of these names to ``target``, in one pass: going back in a gzipped file is slow."""
    wanted = {f"{inside}/{name}": name for name in names}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = wanted.get(member.name.removeprefix("./"))
            stream = tar.extractfile(member) if name and member.isreg() else None
            if name is None or stream is None:
                continue
            if member.size > limit:
                raise DataError(f"{member.name} in {archive} must not exceed {limit:,} bytes, but does")
            with stream, (target / name).open("wb") as out:
                shutil.copyfileobj(stream, out)
    lacking = [name for name in names if not (target / name).exists()]
    if lacking:
        raise DataError(f"{archive} must hold {inside}/{lacking[0]} as a regular file, but doesn't")


def extract_members(archive: Path, members: Mapping[str, str], folder: Path, *, limit: int) -> None:
    """Take files out of a plain tar archive: ``members`` maps their names in it to relative paths under ``folder``.

    As ``extract_tar``: only regular members of exactly these names, each of at most ``limit`` bytes, under our own
    names, whole or not at all. A ``folder`` that isn't there appears when all of them are in it.

    Raises ``DataError`` where the archive is damaged, lacks a file or holds one that is too large.
    """
    there = folder.is_dir()
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder if there else folder.parent
        ) as temporary:
            whole = Path(temporary) / folder.name
            _unpack_members(archive, members, whole, limit)
            if not there:
                os.replace(whole, folder)
                return
            for name in members.values():
                os.replace(whole / name, folder / name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive} can't be unpacked to {folder}: {error}; if it is damaged, delete it") from error


def _unpack_members(archive: Path, members: Mapping[str, str], target: Path, limit: int) -> None:
    left = dict(members)
    with tarfile.open(archive, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or the headers of a million files would be held
            inside = member.name.removeprefix("./")
            stream = tar.extractfile(member) if inside in left and member.isreg() else None
            if stream is None:
                continue
            if member.size > limit:
                raise DataError(f"{member.name} in {archive} must not exceed {limit:,} bytes, but does")
            path = target / left.pop(inside)
            path.parent.mkdir(parents=True, exist_ok=True)
            with stream, path.open("wb") as out:
                shutil.copyfileobj(stream, out)
    if left:
        raise DataError(f"{archive} must hold {next(iter(left))} as a regular file, but doesn't")
