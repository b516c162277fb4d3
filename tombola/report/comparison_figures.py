"""Methods compared in figures: the metric against density, and against what finding and training cost.

A few methods share one panel; of more, each panel has those that prune before, during or after training, all on the
same axes and with the best of all methods in grey. Every line and mark is labelled where it stands. Axis ends, places
of labels and aggregates are computed here; a chart carries finished points and no transforms.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tombola.errors import InputError
from tombola.grouping import heading_of
from tombola.report import drawing
from tombola.report.comparison import DENSE, ORDER, READINGS, Comparison
from tombola.report.drawing import DOTTED, GREY, Points
from tombola.report.spans import Span, span
from tombola.report.tables import is_share, metric_name, percent

if TYPE_CHECKING:
    import altair as alt

    from tombola.report.figures import Figure

TOGETHER = 7  # methods in one panel, at most: more colours can't be told apart
WIDTH, HEIGHT = 290, 300
WIDE = 460
AIR = 12  # pixels between the ends of an axis and what is drawn
APART = 2.5  # pixels between methods at one density
LABEL_HEIGHT = 13  # pixels from one label to the next
LABEL_SIZE = 11
TO_LABEL = 10  # pixels from the panel to its labels
ROOM = 0.6  # share of a panel in which a name has room beside its mark
LARGEST = 100  # square pixels of the mark of the highest density
LEAST_ERROR = 0.01  # in percent: none at all has no place on a log axis
BEST = "#c4c4c4"
# Okabe and Ito's palette without its yellow, and a brown: no group of methods is larger.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right", "triangle-left", "cross")


def comparison_figures(found: Comparison, *, title: str) -> dict[str, Figure]:
    """Both figures by name: ``equal_density``, and ``equal_cost`` where any cost is known. ``title`` names the task."""
    made = {"equal_density": density_figure(found, title=title)}
    if any(point["cost"] is not None for point in _points(found)):
        made["equal_cost"] = cost_figure(found, title=title)
    return made


def density_figure(found: Comparison, *, title: str) -> Figure:
    """The metric against density (log), a line for each method: means, bars of one standard deviation either way,
    methods a few pixels apart.

    The dotted line is the mean of the dense nets. A method with a density of its own stands there. The y axis of a
    share is the log of the error; else it is the ``spans.span`` of all means, that of dense nets foremost, and the
    subtitle names what is cut off. Raises ``InputError`` where there is no result.
    """
    view = _View.of(found)
    panels = [_density_panel(view, group) for group in view.groups]
    spread = "Means; bars: one standard deviation either way." if len(found.seeds) > 1 else ""
    dense = "Dotted: the dense nets." if view.dense else ""
    best = "Grey: the best at each density." if len(panels) > 1 else ""
    return _together(view, panels, f"{title}: {view.heading}, at equal density", spread, dense, best)


def cost_figure(found: Comparison, *, title: str) -> Figure:
    """The metric against the operations of finding and training together, in dense trainings (log): a mark for each
    method and density, the larger the denser.

    The grey line is the best that any method reaches at that cost or less. Raises ``InputError`` where no cost is
    known.
    """
    view = _View.of(found, cost=True)
    panels = [_cost_panel(view, group) for group in view.groups]
    marks = ", ".join(percent(density) for density in found.densities)
    unknown = sorted({p["method"] for p in _points(found) if p["cost"] is None})
    sizes = f"Marks from large to small: {marks} kept." if len(found.densities) > 1 else ""
    best = "Grey line: the best of all methods at that cost or less."
    gone = f"Cost unknown: {', '.join(unknown)}." if unknown else ""
    return _together(view, panels, f"{title}: {view.heading}, at equal cost", sizes, best, gone)


def _points(found: Comparison) -> Points:
    """A point for each cell with a result: mean, one standard deviation either way, density in percent, cost."""
    scale, made = 100 if is_share(found.metric) else 1, []
    for cell in found.cells:
        if cell.mean is None or not cell.density:
            continue
        mean, around = scale * cell.mean, scale * (cell.deviation or 0.0)
        point = {"arm": cell.method, "method": cell.method, "prunes": cell.prunes, "asked": cell.asked}
        point |= {"density": 100 * cell.density, "cost": cell.total or None}
        made.append({**point, "mean": mean, "low": mean - around, "high": mean + around})
    return made


@dataclass(frozen=True)
class _Axis:
    """An axis in pixels: from ``first`` to ``last`` over ``length``, linear or log."""

    first: float
    last: float
    length: float
    log: bool = True

    def pixel(self, value: float) -> float:
        """Where a value stands; beyond the ends as well."""
        return self.length * (self._at(value) - self._at(self.first)) / (self._at(self.last) - self._at(self.first))

    def value(self, pixel: float) -> float:
        """What stands there."""
        at = self._at(self.first) + pixel / self.length * (self._at(self.last) - self._at(self.first))
        return math.exp(at) if self.log else at

    def wider(self, pixels: float) -> _Axis:
        """The same axis with so much air at both ends."""
        inner = _Axis(self.first, self.last, self.length - 2 * pixels, self.log)
        return _Axis(inner.value(-pixels), inner.value(inner.length + pixels), self.length, self.log)

    def _at(self, value: float) -> float:
        return math.log(value) if self.log else value


@dataclass(frozen=True)
class _View:
    """What all panels of a figure share: the points of methods and of dense nets, and the axes.

    Shares have the log of the error as their axis, so that 98 and 97 % are told apart beside 30 %: points then have
    errors in place of values.
    """

    found: Comparison
    points: Points
    dense: Points
    cost: bool

    @classmethod
    def of(cls, found: Comparison, cost: bool = False) -> _View:
        every = [p for p in _points(found) if p["cost"] is not None or not cost]
        if is_share(found.metric):
            every = [{**p, **{k: max(100 - p[k], LEAST_ERROR) for k in ("mean", "low", "high")}} for p in every]
        points = [p for p in every if p["prunes"]]
        if not points:
            raise InputError("a figure needs results to draw, but none of the methods has one")
        return cls(found, points, [p for p in every if not p["prunes"]], cost)

    @cached_property
    def groups(self) -> list[tuple[str, list[str]]]:
        """The methods of each panel under its heading."""
        names = {p["method"]: p["prunes"] for p in self.points}
        if len(names) <= TOGETHER:
            return [("", list(names))]
        groups = [(when, [name for name in names if names[name] == when]) for when in ORDER]
        return [(f"Pruned {when} training", group) for when, group in groups if group]

    @property
    def errors(self) -> bool:
        """Whether points have errors in percent in place of values."""
        return is_share(self.found.metric)

    @property
    def sign(self) -> int:
        """1 where more is better on the y axis, or -1."""
        return -1 if self.errors or self.found.lower_is_better else 1

    @property
    def field(self) -> str:
        """What the x axis shows."""
        return "cost" if self.cost else "density"

    @cached_property
    def across(self) -> _Axis:
        """The x axis, log: falling densities, rising costs."""
        shown = [p[self.field] for p in (*self.points, *(self.dense if self.cost else ()))]
        if min(shown) == max(shown):
            shown += [shown[0] / 2, shown[0] * 2]
        first, last = sorted([min(shown), max(shown)], reverse=not self.cost)
        return _Axis(first, last, WIDE if len(self.groups) == 1 else WIDTH).wider(AIR)

    @cached_property
    def down(self) -> _Axis:
        """The y axis, from its top."""
        means = [p["mean"] for p in (*self.points, *self.dense)]
        if self.errors:
            return _Axis(min(means) / 1.02, max(means) * 1.02, HEIGHT).wider(AIR)
        dense = [p["mean"] for p in self.dense] or means
        low, high, log = span(self.found.metric, dense, means, self.found.lower_is_better)
        return _Axis(high, low, HEIGHT, log)

    @property
    def shown(self) -> Span:
        """The ends of the y axis, that of errors upside down."""
        return Span(self.down.last, self.down.first, self.down.log)

    @property
    def heading(self) -> str:
        """What is read, and when."""
        return f"{self.found.data} {metric_name(self.found.metric)} {READINGS[self.found.at]}"

    def held(self, points: Points) -> Points:
        """The points with values near enough to the axis for renderers."""
        return points if self.errors else drawing.near(points, self.shown)

    def x(self) -> alt.X:
        """The x axis of a chart."""
        import altair as alt

        ends = [self.across.first, self.across.last]
        return alt.X(
            f"{self.field}:Q",
            title="Operations to find and train (x a dense training)" if self.cost else "Density of the net (%)",
            scale=alt.Scale(type="log", domain=ends, nice=False),
            axis=alt.Axis(values=drawing.log_ticks(min(ends), max(ends)), format="~g", labelOverlap="greedy"),
        )

    def y(self, heading: str) -> alt.Y:
        """The y axis of the panel of this heading: the first has the title for all."""
        import altair as alt

        title = drawing.metric_axis(self.found.data.capitalize(), self.found.metric)
        y = drawing.value_axis(title, self.shown.domain, log=self.shown.log and not self.errors)
        if self.errors:
            ticks = drawing.even_log_ticks(self.down.first, self.down.last)
            y = y.axis(alt.Axis(values=ticks, labelExpr="format(100 - datum.value, '~g')"))
            y = y.scale(alt.Scale(type="log", domain=self.shown.domain, nice=False))
        return y if heading == self.groups[0][0] else y.title(None)

    def apart(self, points: Points, names: Sequence[str]) -> Points:
        """The points of methods at one density a few pixels from each other, so that no bar covers another."""
        shift = {name: APART * (place - (len(names) - 1) / 2) for place, name in enumerate(names)}
        at = self.across
        return [{**p, "density": at.value(at.pixel(p["density"]) + shift[p["method"]])} for p in points]

    def labels(self, marks: Points, left: float) -> Points:
        """Where the names of these marks stand, in values of the axes, ``to_...`` being the marks': in one column at
        this pixel, as near to their marks as can be without covering each other."""
        half, found = LABEL_HEIGHT / 2, []
        placed = sorted(((self._height(p["mean"]), p) for p in marks), key=itemgetter(0))
        heights = spread_out([height for height, _ in placed], LABEL_HEIGHT, half, HEIGHT - half)
        for (own, mark), height in zip(placed, heights, strict=True):
            at = {self.field: self.across.value(left), "mean": self.down.value(height)}
            to = {f"to_{self.field}": mark[self.field], "to_mean": self.down.value(own)}
            cut = " \N{DOWNWARDS ARROW}" if self.down.pixel(mark["mean"]) > HEIGHT + 1e-6 else ""
            cut = " \N{UPWARDS ARROW}" if self.down.pixel(mark["mean"]) < -1e-6 else cut
            found.append({**at, **to, "method": mark["method"], "text": mark["method"] + cut})
        return found

    def _height(self, value: float) -> float:
        """Pixels from the top; what is cut off stands at the end of the axis."""
        return min(max(self.down.pixel(value), 0.0), float(HEIGHT))


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places between ``low`` and ``high``, at least ``gap`` apart, as near as can be to the wanted ones, which rise.

    Least squares, by pooling neighbours that are too close. Where there is no room for all, the gap is smaller.
    """
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    pools: list[tuple[float, int]] = []  # the mean of what each wants for its first place, and how many are in it
    for number, place in enumerate(wanted):
        pools.append((place - number * gap, 1))
        while len(pools) > 1 and pools[-1][0] <= pools[-2][0]:
            (above, m), (mean, n) = pools.pop(), pools.pop()
            pools.append(((mean * n + above * m) / (n + m), n + m))
    last = high - (len(wanted) - 1) * gap
    first = [min(max(mean, low), last) for mean, count in pools for _ in range(count)]
    return [place + number * gap for number, place in enumerate(first)]


def _density_panel(view: _View, group: tuple[str, list[str]]) -> alt.LayerChart:
    heading, names = group
    own = view.apart([p for p in view.points if p["method"] in names], names)
    x, y = view.x(), view.y(heading)
    colour, shape = _coded(names)
    base = _chart(view.held(own)).encode(x=x, color=colour)
    layers = [
        _chart(_edge(view)).mark_line(color=BEST, strokeWidth=5, clip=True).encode(x=x, y=y),
        _chart(view.dense).mark_rule(strokeDash=DOTTED, color=GREY, clip=True).encode(y=y),
        base.mark_rule(clip=True, opacity=0.55).encode(y=drawing.low_end(y), y2="high:Q"),
        base.mark_line(clip=True, strokeWidth=1.6).encode(y=y),
        base.mark_point(clip=True, filled=True, size=38, opacity=1).encode(y=y, shape=shape),
    ]
    last = {p["method"]: p for p in own}  # the sparsest of each
    far = [
        p for p in last.values() if p["asked"] is None and view.across.pixel(p["density"]) < ROOM * view.across.length
    ]
    labels = view.labels([p for p in last.values() if p not in far], view.across.length + TO_LABEL)
    for point in far:
        labels += view.labels([point], view.across.pixel(point["density"]) + TO_LABEL)
    return _panel(view, [*layers, *_written(labels, x, y, colour)], heading)


def _edge(view: _View) -> Points:
    """The best mean at each density asked for; only where not all methods share one panel."""
    if len(view.groups) == 1:
        return []
    best: dict[float, dict[str, Any]] = {}
    for p in view.points:
        held = best.get(p["asked"])
        if p["asked"] is not None and (held is None or view.sign * p["mean"] > view.sign * held["mean"]):
            best[p["asked"]] = p
    return [{"density": 100 * density, "mean": p["mean"]} for density, p in best.items()]


def _cost_panel(view: _View, group: tuple[str, list[str]]) -> alt.LayerChart:
    import altair as alt

    heading, names = group
    own = [p for p in view.points if p["method"] in names]
    x, y = view.x(), view.y(heading)
    colour, shape = _coded(names)
    sizes = {density: LARGEST / 2**place for place, density in enumerate(view.found.densities)}
    marks = [{**p, "size": sizes.get(p["asked"], LARGEST / 2)} for p in view.held(own)]
    base = _chart(marks).encode(x=x, y=y, color=colour)
    best = _chart(_best_by_cost(view)).mark_line(interpolate="step-after", color=BEST, strokeWidth=3, clip=True)
    size = alt.Size("size:Q", scale=None, legend=None)
    layers = [
        best.encode(x=x, y=y),
        _chart(view.dense).mark_point(shape="cross", filled=True, color=GREY, size=80, opacity=1).encode(x=x, y=y),
        base.mark_line(clip=True, strokeWidth=1, opacity=0.45).encode(order="cost:Q"),
        base.mark_point(clip=True, filled=True, opacity=0.8).encode(shape=shape, size=size),
    ]
    dearest = {p["method"]: p for p in sorted((*own, *view.dense), key=itemgetter("cost"))}
    labels = view.labels(list(dearest.values()), view.across.length + TO_LABEL)
    return _panel(view, [*layers, *_written(labels, x, y, colour)], heading)


def _best_by_cost(view: _View) -> Points:
    """The best mean of all methods at that cost or less, on to the end of the axis."""
    steps: Points = []
    for p in sorted(view.points, key=lambda p: (p["cost"], -view.sign * p["mean"])):
        if not steps or view.sign * p["mean"] > view.sign * steps[-1]["mean"]:
            steps.append({"cost": p["cost"], "mean": p["mean"]})
    ends = sorted((view.down.first, view.down.last))
    steps.append({"cost": view.across.last, "mean": steps[-1]["mean"]})
    return [{**step, "mean": min(max(step["mean"], ends[0]), ends[1])} for step in steps]


def _chart(rows: Sequence[Mapping[str, object]]) -> alt.Chart:
    import altair as alt

    return alt.Chart(alt.InlineData(values=list(rows)))


def _coded(names: Sequence[str]) -> tuple[alt.Color, alt.Shape]:
    """Colour and mark shape of each method of a panel, without a legend: labels stand at the marks."""
    import altair as alt

    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(names))]
    shapes = [_SHAPES[i % len(_SHAPES)] for i in range(len(names))]
    return (
        alt.Color("method:N", scale=alt.Scale(domain=[*names, DENSE], range=[*colours, GREY]), legend=None),
        alt.Shape("method:N", scale=alt.Scale(domain=list(names), range=shapes), legend=None),
    )


def _written(labels: Points, x: alt.X, y: alt.Y, colour: alt.Color) -> list[alt.Chart]:
    """Labels on a white halo, each with a dotted line to its mark."""
    base = _chart(labels)
    to_mark = base.mark_rule(strokeWidth=0.8, strokeDash=[1, 2], opacity=0.8)
    at = {"x": x, "y": y}
    style: dict[str, Any] = {"align": "left", "baseline": "middle", "fontSize": LABEL_SIZE, "clip": False}
    text = base.mark_text(**style)
    halo = base.mark_text(**style, stroke="white", strokeWidth=3)
    return [
        to_mark.encode(**at, x2=f"to_{x.shorthand}".removesuffix(":Q"), y2="to_mean", color=colour),
        halo.encode(**at, text="text:N"),
        text.encode(**at, text="text:N", color=colour),
    ]


def _panel(view: _View, layers: Sequence[alt.Chart], heading: str) -> alt.LayerChart:
    return drawing.panel(layers, heading).properties(width=view.across.length, height=HEIGHT)


def _together(view: _View, panels: Sequence[alt.LayerChart], heading: str, *notes: str) -> Figure:
    """The panels in one figure under a heading, with the notes and what was cut off or has no result."""
    import altair as alt

    heading, cut = heading_of(heading), "On a log scale of the error."
    if not view.errors:
        means = [{**p, "low": p["mean"], "high": p["mean"]} for p in view.points]
        cut = drawing.cut_off(means, view.shown, drawing.metric_form(view.found.metric))
    seeds = f"{drawing.seeds_named(view.found.rows).capitalize()}."
    text = " ".join(filter(None, (seeds, *notes, cut, view.found.gaps()))).replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.wrap(text, 90 if len(panels) == 1 else 90 * len(panels))
    if len(panels) == 1:
        panels[0].title = alt.TitleParams(heading, subtitle=lines)
        return panels[0]
    whole = drawing.beside(panels, heading, len(panels), spacing=12)
    whole.title = alt.TitleParams(heading, subtitle=lines, fontSize=18, frame="bounds")
    return whole
