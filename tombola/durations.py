"""Durations of training as values: ``50000it`` (optimiser steps) or ``160ep`` (passes over the training data)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tombola.errors import InputError

_LIMIT = 2**53  # every whole number below is exact as a float, so that text and value are one to one
_FORM = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(it|ep)\s*$")


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training: a whole number of optimiser steps (``it``), or epochs (``ep``), which may be fractions.

    Raises ``InputError`` for a negative length, one of 2**53 or more, or a fraction of a step.
    """

    length: float
    unit: str = "it"

    def __post_init__(self) -> None:
        if self.unit not in ("it", "ep"):
            raise InputError(f"a duration is counted in 'it' (steps) or 'ep' (epochs), but got {self.unit!r}")
        if not 0 <= self.length < _LIMIT:
            raise InputError(f"a duration must be a length of 0 or more and below 2**53, but got {self.length!r}")
        if self.unit == "it" and self.length != int(self.length):
            raise InputError(f"a duration in steps must be a whole number, but got {self.length!r}it")

    @classmethod
    def of(cls, value: Duration | str | int) -> Duration:
        """``Duration.of("50000it")``, ``Duration.of("160ep")``; a bare integer counts steps."""
        if isinstance(value, Duration):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value)
        found = _FORM.match(value) if isinstance(value, str) else None
        if not found:
            raise InputError(
                "a duration must be a number with 'it' (steps) or 'ep' (epochs), like 50000it or 160ep, "
                f"but got {value!r}"
            )
        return cls(float(found[1]), found[2])

    def steps(self, steps_per_epoch: int) -> int:
        """The duration in optimiser steps; a fraction of an epoch is rounded to the nearest whole step."""
        return int(self.length) if self.unit == "it" else round(self.length * steps_per_epoch)

    def __str__(self) -> str:
        """What ``Duration.of`` reads back as the same duration: no digit is lost, and there is no exponent."""
        whole = self.length == int(self.length)
        return f"{int(self.length) if whole else format(Decimal(repr(self.length)), 'f')}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let pydantic models hold durations: read from a string, a whole number or a Duration, written as a string."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls.of, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )
