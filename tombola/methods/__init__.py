"""Methods: ways to find a ticket. Each is a generator of rounds; a new one is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tombola.errors import InputError, suggestion
from tombola.methods.at_init import AtInit
from tombola.methods.base import Round, Search
from tombola.methods.imp import imp
from tombola.methods.one_shot import one_shot

Method = Callable[[Search], Iterator[Round]]
METHODS: dict[str, Method] = {
    "imp": imp,
    "one_shot": one_shot,
    "snip": AtInit("Before training, by |w dL/dw| (Lee et al. 2019).", "snip"),
    "iterative_snip": AtInit("SNIP in 100 rounds; what is pruned stays so (de Jorge et al. 2021).", "snip", rounds=100),
    "force": AtInit("SNIP in 100 rounds; what is pruned may come back (de Jorge et al. 2021).", "force"),
    "grasp": AtInit("Before training, by what the gradient flow loses (Wang et al. 2020).", "grasp"),
    "synflow": AtInit(
        "Before training and without data, by synaptic flow in 100 rounds (Tanaka et al. 2020).", "synflow"
    ),
    "magnitude_at_init": AtInit("Before training, by the size of the initial weights.", "magnitude"),
    "random_at_init": AtInit("Before training, at random.", "random"),
    "at_init": AtInit("Before training, by the criterion asked for."),
}


def get_method(name: str) -> Method:
    """The method of that name; ``InputError`` with the nearest one for a name that is not known."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}.{suggestion(name, METHODS)}")
    return METHODS[name]


def before_training(name: str) -> AtInit | None:
    """The method of that name where it finds its masks before any training, else None."""
    method = get_method(name)
    return method if isinstance(method, AtInit) else None


__all__ = ["METHODS", "AtInit", "Method", "Round", "Search", "before_training", "get_method", "imp", "one_shot"]
