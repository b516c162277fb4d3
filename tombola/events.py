"""What a watcher of a lab is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["start", "step", "done", "found", "waiting", "download", "compile"]


@dataclass(frozen=True)
class Event:
    """Something a watcher of a lab may want to show."""

    kind: Kind
    """A training begins, has come to an evaluation, is over; was in the store; is under way in another process;
    a file of data is on its way, ``arm`` its name, ``done`` and ``total`` its bytes; kernels are compiled first, which
    happens once on a machine."""
    arm: str
    seed: int
    density: float
    done: int = 0
    total: int = 0
    row: Mapping[str, Any] | None = None
    run: str = ""
    """The run's identity, which tells two draws of one control apart."""
    about: Mapping[str, Any] | None = None
    """What the run is, as its record in the store says; None where a run that was finished is trained again."""


Watcher = Callable[[Event], None]
