"""Where verbs read and write: a store that must be there, a folder for results that must take them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tombola.errors import InputError, TombolaError

if TYPE_CHECKING:
    from tombola.store import Store


def opened(store: str) -> Store:
    """The store, for reading: ``InputError`` where there is none, rather than a new one."""
    from tombola.store import Store, is_there

    if not is_there(store) and not Path(store).expanduser().is_file():
        raise InputError(f"there is no store at {store}; give its folder with --store, or make one with tombola draw")
    return Store(store)


def is_ticket_file(what: str) -> bool:
    """Whether a file is meant and not an id: by its name, or because there is one."""
    try:
        return Path(what).suffix == ".ticket" or Path(what).exists()
    except OSError:
        return False  # longer than a name can be


def check_id(what: str, file: str = "ticket file") -> None:
    """``InputError`` for what can't be the beginning of an id; ``file`` is what else could have been named."""
    if not re.fullmatch("[0-9a-fA-F]{4,64}", what):
        raise InputError(f"there is no {file} {what[:80]!r}, and an id is 4 to 64 hexadecimal digits")


def plain(name: str) -> str:
    """A task's name as part of a file's: a checkpoint's path in it is no path there."""
    return re.sub(r"[^\w.@-]+", "-", name)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Tell of results that can't be written, where they should have gone and that no training is lost by it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise TombolaError(
            f"the results can't be written to {error.filename or folder}: {reason}. "
            "The nets are kept in the store: the same command, with another --out say, writes them without training"
        ) from error


def check_writable(folder: Path, names: Iterable[str]) -> None:
    """``InputError`` unless files of these names can be written to the folder. Leaves everything as it was."""
    made = []
    try:
        made = [part for part in (folder, *folder.parents) if not part.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in (folder / name for name in names):
            if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
                raise InputError(f"results can't be written: {path} is in the way; move it, or give another --out")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"results can't be written to {folder}: {reason}; give another folder with --out") from error
    finally:
        for part in made:
            with suppress(OSError):
                part.rmdir()  # only where it is empty still
