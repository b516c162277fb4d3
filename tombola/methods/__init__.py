"""Methods: ways to find a ticket. Each is a generator of rounds; a new one is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tombola.errors import InputError, suggestion
from tombola.methods.base import Round, Search
from tombola.methods.imp import imp
from tombola.methods.one_shot import one_shot

Method = Callable[[Search], Iterator[Round]]
METHODS: dict[str, Method] = {"imp": imp, "one_shot": one_shot}


def get_method(name: str) -> Method:
    """The method of that name; ``InputError`` with the nearest one for a name that is not known."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}.{suggestion(name, METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Method", "Round", "Search", "get_method", "imp", "one_shot"]
