"""The errors Tombola raises on purpose: each states the rule, the value that broke it and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TombolaError(Exception):
    """Something failed that was not the caller's input: the command line exits with status 1."""


class InputError(TombolaError, ValueError):
    """A value that breaks a stated rule: the command line exits with status 2."""


class DataError(TombolaError):
    """Data that are missing, damaged or not what they should be; the message names the file and the remedy."""


class TicketError(InputError):
    """A ticket file that can't be read: damaged, truncated, of the wrong shape, too large or hostile."""


class StoreError(TombolaError):
    """The store of runs can't be opened, read or written."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known word nearest to ``word``, or the list of what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" There are: {', '.join(names)}." if names else ""
