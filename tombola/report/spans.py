"""Where the y axis of a metric ends, and whether it is log: what is shown of a ladder, and what is cut off."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from tombola.report.tables import is_perplexity, is_share, lower_is_better

FARTHEST = 6
"""Times the size of the focus's values that a linear axis reaches below the best, where no value of the focus does."""
HIGHEST = 100
"""Times the focus's highest that a log axis reaches."""
LEAST = 0.05
"""Of the size of the focus's values that an axis reaches at least: less is chance, and would look like a fall."""
_AIR = 0.04


class Span(NamedTuple):
    """The ends of an axis, and whether it is log."""

    low: float
    high: float
    log: bool = False

    @property
    def domain(self) -> list[float]:
        """Both ends."""
        return [self.low, self.high]


def span(metric: str, focus: Sequence[float], everything: Sequence[float], lower_better: bool | None = None) -> Span:
    """The y axis on which values of a metric are shown: ``focus``, the means of what the figure is about, most often
    the tickets, and ``everything``, which are those of the other arms and of single runs too. Whether less is better is
    told by the metric's name where it isn't given.

    Shares, in percent, have the ``window``: near 100 % tenths of a point count, and how far a control falls doesn't.
    Other metrics have no such top: returns of games may be negative or thousands, and a net that has lost the game,
    ticket or control, is what the ladder is drawn for. So all of the focus is shown, and of everything what is not more
    than six times the focus's size (its largest magnitude, or how far it reaches) worse than the best: only that would
    flatten the focus into a line. Perplexity is the exponential of a loss, and one of a hundred times another's is
    nothing uncommon: its axis is log, and ends at a hundred times the focus's highest.
    """
    lower_better = lower_is_better(metric) if lower_better is None else lower_better
    if is_share(metric):
        return Span(*window(focus, everything, lower_better))
    if not everything:
        return Span(0.0, 1.0)
    focus = focus or everything
    if is_perplexity(metric) and min(everything) > 0:
        logs = [math.log(v) for v in everything]
        bottom, most = min(logs), max(map(math.log, focus))
        top = max(min(max(logs), most + math.log(HIGHEST)), bottom + math.log1p(LEAST))
        air = _AIR * (top - bottom)
        return Span(math.exp(bottom - air), math.exp(top + air), log=True)
    if lower_better:
        low, high = _reaching_down([-v for v in focus], [-v for v in everything])
        return Span(-high, -low)
    return Span(*_reaching_down(focus, everything))


def _reaching_down(focus: Sequence[float], everything: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis from the best of everything down to the lowest of the focus, or of everything where that
    isn't too far below."""
    best, size = max(everything), max(*map(abs, focus), max(focus) - min(focus))
    bottom = min(min(focus), max(min(everything), best - FARTHEST * size)) if size else min(everything)
    bottom = min(bottom, best - max(LEAST * size, 1e-9))
    air = _AIR * (best - bottom)
    return bottom - air, best + air


def window(focus: Sequence[float], everything: Sequence[float], lower_better: bool = False) -> tuple[float, float]:
    """The ends of a y axis that shows ``focus`` well, and of ``everything`` what is not too far below it.

    The axis reaches from the top of everything down to its bottom, but at most three times as far as the focus does,
    and at most 3 % of the top where that is more. Values of the focus under Tukey's fence (1.5 interquartile ranges
    under its lower quartile) don't count, unless they are a quarter of it or more: in a ladder of few rounds one that
    falls is no outlier. Both ends get a margin of 4 %. Where lower is better, all is upside down.
    """
    if lower_better:
        low, high = window([-v for v in focus], [-v for v in everything])
        return -high, -low
    if not everything:
        return 0.0, 1.0
    focus = focus or everything
    lower, _, upper = statistics.quantiles(focus, n=4, method="inclusive") if len(focus) > 1 else [focus[0]] * 3
    top, fence = max(everything), lower - 1.5 * (upper - lower)
    inside = [v for v in focus if v >= fence]
    counted = focus if 4 * len(inside) <= 3 * len(focus) else inside
    reach = max(top - min(counted), 0.01 * abs(top), 1e-9)
    bottom = max(min(everything), top - 3 * reach)
    margin = _AIR * max(top - bottom, reach)
    return bottom - margin, top + margin
