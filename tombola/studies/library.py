"""Where studies come from: files, and those that come with Tombola."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from tombola.errors import InputError, suggestion
from tombola.studies.study import Study, read_study

_SHIPPED = files("tombola.studies") / "shipped"


def shipped() -> list[str]:
    """The names of the studies that come with Tombola."""
    return sorted(part.name.removesuffix(".toml") for part in _SHIPPED.iterdir() if part.name.endswith(".toml"))


def is_file(what: str) -> bool:
    """Whether a file is meant and not the name of a study: by its ending, or because there is one."""
    return what.endswith(".toml") or Path(what).is_file()


def load(what: str) -> Study:
    """The study in a TOML file, or the one of that name that comes with Tombola.

    Raises ``InputError`` for a name that is not known, a file that can't be read, and for what is wrong in it.
    """
    if is_file(what):
        try:
            text = Path(what).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"the study {what} can't be read: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"the study {what} must be TOML in UTF-8, but: {error}") from error
        return read_study(_toml(text, what), what)
    if what not in shipped():
        raise InputError(f"there is no study {what!r}.{suggestion(what, shipped())} A file's name ends in .toml")
    return read_study(_toml((_SHIPPED / f"{what}.toml").read_text(encoding="utf-8"), what), what)


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"the study {where} must be TOML in UTF-8, but: {error}") from error
    except RecursionError as error:
        raise InputError(f"the study {where} is nested too deep") from error
