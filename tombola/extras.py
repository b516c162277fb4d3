"""What isn't installed with Tombola itself: pip's extras, and the one error that says so."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tombola.errors import InputError


@dataclass(frozen=True)
class Extra:
    """An extra of Tombola's, and the packages of it that something imports."""

    name: str
    packages: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that aren't installed; none of them is imported to find out."""
        return tuple(name for name in self.packages if importlib.util.find_spec(name) is None)

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install 'tombola[{self.name}]'"

    @contextmanager
    def needed_by(self, who: str) -> Iterator[None]:
        """Turn what misses a package into an ``InputError`` with the command that installs it."""
        try:
            yield
        except ImportError as error:
            raise InputError(f"{who} needs a package that is not installed ({error}); run {self.command}") from error

    def require(self, who: str) -> None:
        """Raise such an ``InputError`` where one of the packages can't be imported."""
        with self.needed_by(who), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SWIG's types have no module, which Python deprecates
            for name in self.packages:
                importlib.import_module(name)


IMAGES = Extra("images", ("PIL",))
LANGUAGE = Extra("language", ("tokenizers", "sacrebleu"))
TRANSFORMERS = Extra("transformers", ("transformers",))
GYMNASIUM = Extra("rl", ("gymnasium",))
BOX2D = Extra("rl", ("gymnasium", "Box2D"))
ATARI = Extra("rl", ("gymnasium", "ale_py"))
