"""Where studies come from: files, and those that come with Tombola."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from tombola import toml
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
        return read_study(toml.read(Path(what).expanduser(), f"the study {what}"), what)
    if what not in shipped():
        raise InputError(f"there is no study {what!r}.{suggestion(what, shipped())} A file's name ends in .toml")
    text = (_SHIPPED / f"{what}.toml").read_text(encoding="utf-8")
    return read_study(toml.parsed(text, f"the study {what}"), what)
