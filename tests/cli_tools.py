"""Runs the command line in this process and keeps what it writes."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from tombola.cli.main import run

TINY = ("--steps", "40it", "--evaluate-every", "20it", "--no-figures")  # digits-mlp in tenths of a second


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output. JSON knows no NaN."""
        return json.loads(self.out, parse_constant=_refuse)


def call(*args: object, terminal: bool = False) -> Result:
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    with redirect_stdout(out), redirect_stderr(err):
        status = run([str(arg) for arg in args])
    return Result(status, out.getvalue(), err.getvalue())


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
