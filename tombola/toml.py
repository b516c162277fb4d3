"""TOML that people have written: every way in which it can be wrong is an error that names it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tombola.errors import InputError


def read(path: Path, what: str) -> dict[str, Any]:
    """What a TOML file says. ``InputError`` where it can't be read; ``what`` names it there: ``the recipe FILE``."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{what} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{what} must be TOML in UTF-8, but: {error}") from error
    return parsed(text, what)


def parsed(text: str, what: str) -> dict[str, Any]:
    """What a text says in TOML. ``InputError`` where it is none."""
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"{what} must be TOML in UTF-8, but: {error}") from error
    except RecursionError as error:
        raise InputError(f"{what} is nested too deep") from error
