"""The control that is another net: dense, and as small as the ticket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from tombola.audits.controls.base import Asked, Control, Subject, lab_of
from tombola.errors import InputError
from tombola.lab import Run
from tombola.seeds import global_stream


def small_dense(subject: Subject, draw: int) -> Run:
    """A dense net of the same family with as many weights as the ticket keeps, as near as whole widths come.

    All hidden widths are times one factor (``Task.scaled``). Weights are those that a mask may cover; of the ticket's
    net, all that is left unpruned counts as kept. Initial values are the seed's own of that net, and the training is
    that of the dense net, with the ticket's data order. Where one unit a layer are still more than the ticket keeps,
    that is the net. The run's arm says how many weights it has.

    Raises ``InputError`` for a task without ``scaled``.
    """
    lab, seed = subject.round.run.lab, subject.round.run.seed
    make = lab.task.scaled
    if make is None:
        raise InputError(f"control 'small_dense' {_UNSCALED}: leave it out, or give the task scaled=")

    def count(factor: float) -> int:
        with global_stream(seed, "control", "small_dense"):
            return weights(lab.task.prunable(make(factor)))

    factor = nearest(count, _kept(subject))
    splits = lab.splits(seed)
    parts: dict[str, Any] = {"train": splits.train, "validation": splits.validation, "test": splits.test, "load": None}
    small = lab_of(lab, replace(lab.task, model=lambda: make(factor), scaled=None, **parts))
    return small.train(seed, arm=f"small_dense of {count(factor):,} weights", draw=draw)


def weights(covered: Mapping[str, nn.Parameter]) -> int:
    """How many weights these parameters have."""
    return sum(p.numel() for p in covered.values())


def nearest(count: Callable[[float], int], wanted: int) -> float:
    """The factor from 0 to 1 at which a count that grows with it is nearest to the one wanted; of two, the smaller."""
    low, high = 0.0, 1.0
    if count(high) <= wanted:
        return high
    if count(low) >= wanted:
        return low
    while high - low > 1e-6:  # widths are whole numbers below a million
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= wanted else (low, middle)
    return low if wanted - count(low) <= count(high) - wanted else high


def _kept(subject: Subject) -> int:
    run, mask = subject.round.run, subject.round.mask
    known = run.lab.task.prunable(run.lab.task.build(run.seed))
    return sum(int(mask[name].sum()) if name in mask else p.numel() for name, p in known.items())


def _reason(asked: Asked) -> str | None:
    return None if asked.task.scaled is not None else _UNSCALED


_UNSCALED = "trains a smaller net of the task's family, but the task names none"

ARCHITECTURE = (
    Control(
        "small_dense",
        "A dense net of the same family with as many weights as the ticket keeps.",
        "architecture",
        small_dense,
        draws=False,
        channels=True,
        reason=_reason,
    ),
)
