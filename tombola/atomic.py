"""Files that are there completely or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TEMPORARY = ".tmp"
"""The ending of a file that is being written; what a crash leaves behind still has it."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file or replace one: beside its place first, synced, then moved there. Raises ``OSError``."""
    part = path.parent / f".{path.name[:100]}.{secrets.token_hex(8)}{TEMPORARY}"
    unfinished = part.open("xb")
    try:
        with unfinished as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the move itself must survive a loss of power before anything refers to the file
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
