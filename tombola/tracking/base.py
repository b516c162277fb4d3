"""What a tracker is, and what those of other makers share: missing packages, flat names, plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tracker(Protocol):
    """Takes note of runs. Several may be open at once, and their calls are interleaved; all come from one thread.

    ``run`` is the run's identity, 64 hexadecimal digits. A tracker may raise whatever it likes: it is then left out
    from there on, and the training isn't touched.
    """

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """A training begins, or goes on from its checkpoint in another process, so that the run may be known already.

        ``config`` holds only what JSON can: ``name`` (for people), ``task``, ``method`` (None where it isn't known),
        ``arm``, ``density``, ``seed``, ``draw`` (None but for a control's random draw), ``recipe`` (all fields),
        ``search`` (the fields of the draw's recipe, or None), and the checksums ``data``, ``start`` and ``mask``.
        """

    def log(self, run: str, step: int, values: Mapping[str, float | None]) -> None:
        """An evaluation after ``step`` optimiser steps: training loss since the last, validation loss and metrics.

        None where a value wasn't finite, or nothing has been trained yet. After a training went on from its
        checkpoint, steps may come that were told before, with the same values.
        """

    def finish(self, run: str, summary: Mapping[str, Any], status: str) -> None:
        """A training is over: ``finished``, ``diverged``, or ``interrupted``, which has an empty summary."""

    def close(self) -> None:
        """Nothing more will come. No run is open, unless the tracker has failed."""


def flat(values: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by names with slashes between: ``{"end": {"loss": 1}}`` is ``{"end/loss": 1}``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{under}{name}/") if isinstance(value, Mapping) else {f"{under}{name}": value}
    return found


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the leaves."""
    return {
        name: value
        for name, value in flat(values).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
