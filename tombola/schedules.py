"""Schedules: how density falls over rounds. Each gives the densities of rounds 1 to n; round 0 is dense.

Those that go to a target end on it exactly.
"""

from __future__ import annotations

from collections.abc import Callable

from tombola.errors import InputError, suggestion


def geometric(rate: float, rounds: int) -> list[float]:
    """The same rate every round: ``(1 - rate) ** k``. The ladder of Frankle & Carbin (2019)."""
    if not 0 < rate < 1:
        raise InputError(f"a pruning rate must be between 0 and 1, both excluded, but got {rate!r}")
    return [(1 - rate) ** k for k in range(1, _positive(rounds) + 1)]


def exponential(target: float, rounds: int) -> list[float]:
    """The same rate every round, the last round at ``target``: ``target ** (k / n)`` (Tanaka et al. 2020)."""
    return [_target(target) ** (k / rounds) for k in range(1, _positive(rounds) + 1)]


def linear(target: float, rounds: int) -> list[float]:
    """The same number of entries every round: ``target + (1 - target) * (1 - k / n)``."""
    return [_target(target) + (1 - target) * (1 - k / rounds) for k in range(1, _positive(rounds) + 1)]


def cubic(target: float, rounds: int) -> list[float]:
    """Fast at first, slow at the end: ``target + (1 - target) * (1 - k / n) ** 3`` (Zhu & Gupta 2017)."""
    return [_target(target) + (1 - target) * (1 - k / rounds) ** 3 for k in range(1, _positive(rounds) + 1)]


TO_TARGET: dict[str, Callable[[float, int], list[float]]] = {
    "exponential": exponential,
    "linear": linear,
    "cubic": cubic,
}
SCHEDULES = ("geometric", *TO_TARGET)


def to_target(schedule: str, target: float, rounds: int) -> list[float]:
    """The densities of a schedule that ends at ``target`` after ``rounds`` rounds."""
    if schedule not in TO_TARGET:
        raise InputError(f"unknown schedule {schedule!r} to a target density.{suggestion(schedule, TO_TARGET)}")
    return TO_TARGET[schedule](target, rounds)


def _positive(rounds: int) -> int:
    if rounds < 1:
        raise InputError(f"a schedule has at least one round, but got {rounds!r}")
    return rounds


def _target(target: float) -> float:
    if not 0 < target <= 1:
        raise InputError(f"a target density must be above 0 and at most 1, but got {target!r}")
    return target
