"""Rows of draws as arms that are paired by seed: which runs count, which are refused, and what a diverged one counts.

A row is what ``Draw.rows()`` gives: a mapping with ``seed``, ``arm``, ``draw``, ``round``, ``status``, ``run`` and the
metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tombola.audits.statistics import Interval, deviation, exchange, interval, mean, within
from tombola.errors import InputError

Row = Mapping[str, Any]
At = Literal["stop", "end"]

DENSE, TICKET = "dense", "ticket"
RIVALS = ("half_data", "lr_rewind", "fine_tune", "small_dense")
"""Arms that a winning ticket need not beat: its own search with less data, other trainings of its mask, another net."""

ORDER = (
    *(DENSE, TICKET, "reinit", "shuffled", "random_uniform", "random_erk", "random_smart_ratio"),
    *("values_shuffled", "signed_reinit", "signed_constant", "inverted", "random_labels", "shuffled_pixels"),
    *("random_ticket", "reinit_whole", "random_ticket_whole"),
    *RIVALS,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is judged: a field of the rows, which way is better, and the smallest difference that matters."""

    name: str
    field: str
    higher_is_better: bool
    margin: float
    share: bool = False

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True, slots=True)
class Arm:
    """The values of one arm: for each seed, in order, one for each draw; and what its diverged runs count as."""

    name: str
    values: Mapping[int, tuple[float, ...]]
    diverged: int = 0
    counted_as: float | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """Two arms compared over the seeds they share. Differences are ours minus theirs, turned so that more is better.

    The value of a seed is the mean of its draws; ``our_values`` and ``their_values`` keep the single ones. The p values
    are one-sided: that ours is ``better`` or ``worse``, that it is ``not_worse`` or ``not_better`` by the margin. All
    are None with one seed.
    """

    ours: str
    theirs: str
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]
    our_values: tuple[tuple[float, ...], ...]
    their_values: tuple[tuple[float, ...], ...]
    our_mean: float
    their_mean: float
    their_spread: float | None
    differences: tuple[float, ...]
    spread: float | None
    interval: Interval
    ratio: float | None
    better: float | None = None
    worse: float | None = None
    not_worse: float | None = None
    not_better: float | None = None

    @property
    def draws(self) -> int:
        """How many draws of theirs there are in each seed; the fewest, where seeds differ."""
        return min(map(len, self.their_values))

    @property
    def equivalent(self) -> float | None:
        """The p value that the difference lies within the margin on both sides."""
        if self.not_worse is None or self.not_better is None:
            return None
        return max(self.not_worse, self.not_better)


def arms(rows: Sequence[Row], round: int, quantity: Quantity) -> dict[str, Arm]:
    """The dense net, the ticket of a round and the arms beside it, in the order of ``ORDER``.

    A diverged run is never dropped. It counts as 0 where the metric is a share; elsewhere as worse than the worst value
    that is there, for each seed by the margin and the distance from the best to the worst: by more than all seeds can
    make up for, so that a ticket that diverged neither wins against the dense net nor matches it.

    Raises ``InputError`` where the dense net or the round is missing, where a run is there twice, where a finished run
    has no value, and where a dense net diverged: there is nothing to judge by.
    """
    runs = _runs(rows, round)
    values = {key: _value(row, quantity) for key, row in runs.items()}
    if lost := [seed for (arm, seed, _), value in values.items() if arm == DENSE and value is None]:
        raise InputError(
            f"a ticket is judged against the dense net, but it diverged with {listed(lost)}: train it anew"
        )
    seeds = len({seed for _, seed, _ in runs})
    worst = _worst([v for v in values.values() if v is not None], seeds, quantity)
    found = []
    for name in sorted({name for name, _, _ in runs}, key=_place):
        own = {(seed, draw): value for (arm, seed, draw), value in sorted(values.items()) if arm == name}
        by_seed = {s: tuple(worst if v is None else v for (t, _), v in own.items() if t == s) for s, _ in own}
        diverged = sum(value is None for value in own.values())
        found.append(Arm(name, by_seed, diverged, worst if diverged else None))
    return {arm.name: arm for arm in found}


def _runs(rows: Sequence[Row], round: int) -> dict[tuple[str, int, int], Row]:
    """The runs of the dense net and of a round by arm, seed and draw."""
    numbers = sorted({int(row["round"]) for row in rows if row["arm"] == TICKET and row["round"]})
    if round not in numbers:
        there = f"there are {', '.join(map(str, numbers))}" if numbers else "there is none: draw a ticket first"
        raise InputError(f"the round to judge must be that of a ticket, but got {round}; {there}")
    dense = [row for row in rows if row["arm"] == TICKET and row["round"] == 0]
    if not dense:
        raise InputError("a ticket is judged against the dense net, but no row is of round 0: add the dense runs")
    found: dict[tuple[str, int, int], Row] = {}
    for row in [*dense, *(row for row in rows if row["round"] == round)]:
        key = (str(row["arm"]) if row["round"] else DENSE, int(row["seed"]), int(row["draw"]))
        if found.setdefault(key, row)["run"] != row["run"]:
            raise InputError(
                f"each seed and draw of an arm must be there once, but {key[0]}, seed {key[1]}, draw {key[2]} is "
                "there with two runs: judge the rows of one method and one recipe at a time"
            )
    return found


def _value(row: Row, quantity: Quantity) -> float | None:
    value = row[quantity.field]
    if row["status"] == "diverged":
        return None
    if value is None or not math.isfinite(value):
        raise InputError(
            f"every finished run must have a {quantity.field}, but that of seed {row['seed']}, arm {row['arm']!r}, "
            f"round {row['round']} has {value}: train it again"
        )
    return float(value)


def _worst(there: Sequence[float], seeds: int, quantity: Quantity) -> float:
    if quantity.share:
        return 0.0 if quantity.higher_is_better else 1.0
    below = seeds * (max(there) - min(there) + quantity.margin) or 1.0
    return min(there) - below if quantity.higher_is_better else max(there) + below


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def compare(ours: Arm, theirs: Arm, quantity: Quantity) -> Compared:
    """Two arms over the seeds they share. ``InputError`` where they share none."""
    seeds = tuple(sorted(ours.values.keys() & theirs.values.keys()))
    if not seeds:
        raise InputError(
            f"arms must be paired by seed, but {ours.name} has {listed(ours.values)} and {theirs.name} "
            f"{listed(theirs.values)}: train both with the same seeds"
        )
    a, b = (tuple(arm.values[seed] for seed in seeds) for arm in (ours, theirs))
    turned_a, turned_b = ([[quantity.sign * value for value in seed] for seed in arm] for arm in (a, b))
    differences = tuple(mean(x) - mean(y) for x, y in zip(turned_a, turned_b, strict=True))
    a_means, b_means = ([mean(seed) for seed in arm] for arm in (a, b))
    p: dict[str, float] = {}
    if len(seeds) > 1:
        plain = exchange(turned_a, turned_b)
        not_worse, not_better = within(turned_a, turned_b, quantity.margin)
        p = {"better": plain.better, "worse": plain.worse, "not_worse": not_worse, "not_better": not_better}
    return Compared(
        ours=ours.name,
        theirs=theirs.name,
        seeds=seeds,
        unpaired=tuple(sorted(ours.values.keys() ^ theirs.values.keys())),
        our_values=a,
        their_values=b,
        our_mean=mean(a_means),
        their_mean=mean(b_means),
        their_spread=deviation(b_means),
        differences=differences,
        spread=deviation(differences),
        interval=interval(differences),
        ratio=mean(b_means) / mean(a_means) if mean(a_means) > 0 and not quantity.share else None,
        **p,
    )


def listed(seeds: Iterable[int]) -> str:
    """``seeds 0-4 and 7``, ``seed 3``."""
    there = sorted(seeds)
    starts = [seed for seed in there if seed - 1 not in there]
    ends = [seed for seed in there if seed + 1 not in there]
    runs = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return f"seed{'s' * (len(there) > 1)} {series(runs)}"


def series(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
