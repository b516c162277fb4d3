"""From p values to words: what a comparison has shown, and how many seeds would show what it has not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tombola.audits.pairing import Compared
from tombola.audits.statistics import fewest_seeds, holm, seeds_for_difference, seeds_for_equivalence

Outcome = Literal["wins", "matches", "loses", "can't tell"]
Beaten = Literal["beats", "does as well", "can't tell"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A comparison and what it has shown.

    ``p`` is the one-sided p value that the ticket is better, and ``p_adjusted`` the same, corrected for the number of
    controls. ``p_as_good`` is that of the claim that the arm does as well: for the dense net and for rivals that the
    difference lies within the margin, for a control that it is no more than the margin worse, corrected as well. All
    are None with one seed.
    """

    compared: Compared
    p: float | None
    p_adjusted: float | None
    p_as_good: float | None
    outcome: Outcome | Beaten


def alone(compared: Compared, alpha: float) -> Judged:
    """What a ticket has shown against the dense net or a rival.

    ``matches``: the difference lies within the margin. ``wins``: it is above 0, and not shown to lie within the margin.
    ``loses``: the same below 0. Each is shown at ``alpha`` on its own side.

    The margin was fixed beforehand as the smallest difference that matters. A gain or a loss that is certain, but
    smaller, is therefore a match (and said). So also in the three-sided view of Goeman, Solari & Stijnen (2010):
    inferior, equivalent and superior part the line of differences at the two margins; one of them is true, and the
    tests need no correction for being three.
    """
    outcome: Outcome = "can't tell"
    if compared.equivalent is not None and compared.better is not None and compared.worse is not None:
        if compared.equivalent <= alpha:
            outcome = "matches"
        elif compared.better <= alpha:
            outcome = "wins"
        elif compared.worse <= alpha:
            outcome = "loses"
    return Judged(compared, compared.better, compared.better, compared.equivalent, outcome)


def family(compared: Sequence[Compared], alpha: float) -> list[Judged]:
    """What a ticket has shown against each of its controls.

    ``does as well``: the control is less than the margin worse, or better. ``beats``: the ticket is better, and the
    control is not shown to do as well: by the measure by which a ticket matches the dense net, a control matches the
    ticket. Both kinds of claim are corrected for the number of controls (Holm 1979), each at ``alpha``.
    """
    better, as_good = _adjusted([c.better for c in compared]), _adjusted([c.not_better for c in compared])
    judged = []
    for one, p, q in zip(compared, better, as_good, strict=True):
        outcome: Beaten = "can't tell"
        if q is not None and q <= alpha:
            outcome = "does as well"
        elif p is not None and p <= alpha:
            outcome = "beats"
        judged.append(Judged(one, one.better, p, q, outcome))
    return judged


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrected for the number of those that are there."""
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


@dataclass(frozen=True, slots=True)
class Power:
    """How many seeds a comparison wants.

    ``fewest`` are those at which its exact test can reach ``alpha`` at all; ``difference`` those that show a mean
    difference as large as the margin, ``equivalence`` those that show a difference of 0 to lie within it, with 80 %
    power, judged by the spread of the differences seen. None: there is no spread to judge by, or no number will do.
    """

    arm: str
    quantity: str
    seeds: int
    alpha: float
    spread: float | None
    fewest: int
    difference: int | None
    equivalence: int | None


def power(compared: Compared, quantity: str, margin: float, alpha: float) -> Power:
    """The number of seeds that a comparison wants, at the alpha of its claim: in a family, divided by its size."""
    spread, fewest = compared.spread, fewest_seeds(alpha, compared.draws)
    wanted = (
        (seeds_for_difference(spread, margin, alpha), seeds_for_equivalence(spread, margin, alpha))
        if spread
        else (None, None)
    )
    difference, equivalence = (None if count is None else max(count, fewest) for count in wanted)
    return Power(compared.theirs, quantity, len(compared.seeds), alpha, spread, fewest, difference, equivalence)
