"""Text files of data sets: read whole, within a bound, as UTF-8."""

from __future__ import annotations

from pathlib import Path

from tombola.errors import DataError


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file. ``DataError`` where it can't be read or has more than ``most`` bytes."""
    try:
        if path.stat().st_size > most:
            raise DataError(f"{path} must not exceed {most:,} bytes, but does")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error


def lines_of(content: bytes, path: Path) -> list[str]:
    """The lines of a content, the last one with or without an end. ``DataError``, naming its file, for no UTF-8."""
    try:
        return content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be text in UTF-8, but: {error}; replace it by a good copy") from error
