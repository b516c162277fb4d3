"""The rules by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from tombola.errors import InputError, suggestion
from tombola.updates.base import Rule
from tombola.updates.deep_r import DeepR
from tombola.updates.dsr import DSR
from tombola.updates.gradual import Gradual
from tombola.updates.rigl import RigL
from tombola.updates.sparse_evolution import SparseEvolution

RULES: dict[str, type[Rule]] = {
    "gradual": Gradual,  # type: ignore[dict-item]  # its allocation can be chosen, so it is a field
    "set": SparseEvolution,
    "rigl": RigL,
    "dsr": DSR,
    "deep_r": DeepR,
}


def settings_of(name: str) -> dict[str, float | str | None]:
    """A rule's settings and their defaults; None for one that has to be given. ``InputError`` for unknown names."""
    return {own.name: None if own.default is MISSING else own.default for own in _fields(name)}


def make_rule(name: str, settings: Mapping[str, float | str] | None = None) -> Rule:
    """The rule of that name, e.g. ``make_rule("rigl", {"fraction": 0.5})``; what isn't given has its default.

    Raises ``InputError`` for a rule or a setting that isn't known, a setting that is missing, or a value out of range.
    """
    given = dict(settings or {})
    known = {own.name: own for own in _fields(name)}
    for setting in given:
        if setting not in known:
            raise InputError(f"{name} has no setting {setting!r}.{suggestion(setting, known)}")
    for setting, own in known.items():
        if setting not in given and own.default is MISSING:
            raise InputError(f"{name} needs the setting {setting!r}: give it a number")
    rule: type[Any] = RULES[name]
    made: Rule = rule(**given)
    return made


def _fields(name: str) -> tuple[Field[Any], ...]:
    if name not in RULES:
        raise InputError(f"unknown rule {name!r} to update a mask.{suggestion(name, RULES)}")
    rule: type[Any] = RULES[name]
    return fields(rule)
