"""The figure of an audit: by how much the ticket is ahead of the dense net, of its controls and of its rivals.

Rows are those of ``Verdict.rows``, with the differences of single seeds beside them. One definition serves the page,
SVG, PNG and PDF.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tombola.audits.verdict import ArmJudged, Verdict
from tombola.report import drawing
from tombola.report.drawing import DOTTED, GREY, Points
from tombola.report.tables import is_share, metric_name, percent

if TYPE_CHECKING:
    import altair as alt

    Figure = alt.LayerChart | alt.ConcatChart

ROW = 24  # pixels between two arms
OUTCOMES = {
    "ahead": ("#0072B2", "circle", ("wins", "beats")),
    "level": ("#E69F00", "square", ("matches", "does as well")),
    "behind": ("#D55E00", "triangle-down", ("loses",)),
    "can't tell": (GREY, "diamond", ("can't tell",)),
}
"""What colour and shape stand for, and the outcomes of a verdict that it covers."""


def audit_figures(verdict: Verdict, title: str) -> dict[str, Figure]:
    """``audit``: the metric and the early-stop step side by side, an arm in each row; and each of them by itself."""
    accuracy, speed = accuracy_panel(verdict), speed_panel(verdict)
    both = drawing.beside([accuracy, speed], f"{title}: the ticket at {percent(verdict.density)} against each arm")
    return {"audit": both, "audit_metric": accuracy, "audit_speed": speed}


def accuracy_panel(verdict: Verdict) -> alt.LayerChart:
    """Differences in the metric: in points where it is a share."""
    share = is_share(verdict.metric)
    scale = 100.0 if share else 1.0
    where = "at early stop" if verdict.at == "stop" else "at the end"
    axis = f"Ticket ahead by{' (points)' if share else ''}"
    heading = f"{metric_name(verdict.metric)[:1].upper()}{metric_name(verdict.metric)[1:]} {where}"
    return _panel(verdict, "accuracy", scale, scale * verdict.margin, axis, heading)


def speed_panel(verdict: Verdict) -> alt.LayerChart:
    """Differences in the early-stop step: how many steps sooner the ticket has its lowest validation loss."""
    (dense,) = (one for one in verdict.arms if one.role == "dense")
    margin = verdict.speed_margin * dense.speed.compared.their_mean
    return _panel(verdict, "speed", 1.0, margin, "Ticket sooner by (steps)", "Early-stop step")


def _panel(verdict: Verdict, part: str, scale: float, margin: float, axis: str, heading: str) -> alt.LayerChart:
    import altair as alt

    means, singles = _points(verdict.arms, part, scale)
    names = [one.arm for one in verdict.arms]
    far = _far(means)
    scale_x = alt.Scale(domain=_ends([p for p in (*means, *singles) if p["arm"] not in far], margin), nice=False)
    x = alt.X("ahead:Q", title=axis, scale=scale_x, axis=alt.Axis(tickCount=7))
    y = alt.Y("arm:N", title=None, sort=None, scale=alt.Scale(domain=names), axis=alt.Axis(grid=False, labelLimit=200))
    shown = [name for name in OUTCOMES if any(point["shown"] == name for point in means)]
    legend = alt.Legend(title="The ticket is", symbolOpacity=1, symbolType="circle")
    colour = alt.Color(
        "shown:N", scale=alt.Scale(domain=shown, range=[OUTCOMES[name][0] for name in shown]), legend=legend
    )
    shape = alt.Shape(
        "shown:N", scale=alt.Scale(domain=shown, range=[OUTCOMES[name][1] for name in shown]), legend=legend
    )
    band = alt.Chart(alt.InlineData(values=[{"low": -margin, "high": margin}])).mark_rect(color=GREY, opacity=0.12)
    zero = alt.Chart(alt.InlineData(values=[{"ahead": 0}])).mark_rule(color=GREY, strokeDash=DOTTED)
    base = alt.Chart(alt.InlineData(values=means)).encode(y=y)
    ticks = alt.Chart(alt.InlineData(values=singles))
    low = alt.X("low:Q", title=axis, scale=scale_x)
    layers = [
        band.encode(x=low, x2="high:Q"),
        zero.encode(x=x),
        ticks.mark_tick(color=GREY, opacity=0.6, height=8, clip=True).encode(x=x, y=y),
        base.mark_rule(strokeWidth=2, clip=True).encode(x=low, x2="high:Q", color=colour),
        base.mark_point(filled=True, size=70, opacity=1, clip=True).encode(x=x, color=colour, shape=shape),
    ]
    seeds = max(len(one.accuracy.compared.seeds) for one in verdict.arms)
    ranges = "95 % intervals" if seeds >= 5 else "from the lowest to the highest"
    notes = f"Means over {seeds} seeds, {ranges}; ticks are seeds. The band is the margin."
    beyond = ", ".join(f"{p['arm']} {p['ahead']:+,.{1 if scale > 1 else 0}f}" for p in means if p["arm"] in far)
    panel = drawing.panel(layers, heading, notes, f"Beyond the axis: {beyond}." if beyond else "")
    sized: alt.LayerChart = panel.properties(height=ROW * len(names))
    return sized


def _ends(shown: Points, margin: float) -> list[float]:
    """The ends of the axis: what is shown, and the band of the margin, with a little air."""
    values = [p[end] for p in shown for end in ("ahead", "low", "high") if end in p] + [-margin, margin]
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 1.0
    return [low - air, high + air]


def _far(means: Points) -> set[str]:
    """Arms so far off that all others would lie on one line: above Tukey's fence, and five times as far as they."""
    distances = {p["arm"]: max(abs(p["low"]), abs(p["high"])) for p in means}
    if len(distances) < 4:
        return set()
    lower, _, upper = statistics.quantiles(distances.values(), n=4, method="inclusive")
    near = [d for d in distances.values() if d <= upper + 1.5 * (upper - lower)]
    return {arm for arm, d in distances.items() if d > max(upper + 1.5 * (upper - lower), 5 * max(near))}


def _points(arms: Sequence[ArmJudged], part: str, scale: float) -> tuple[Points, Points]:
    """A row for each arm, and one for each seed of it. With few seeds the range stands in for the interval."""
    means: Points = []
    singles: Points = []
    for one in arms:
        judged = one.accuracy if part == "accuracy" else one.speed
        between, seeds = judged.compared.interval, judged.compared.seeds
        wide = len(seeds) >= 5 and between.low is not None and between.high is not None
        low, high = (between.low, between.high) if wide else (between.lowest, between.highest)
        assert low is not None
        assert high is not None
        shown = next(name for name, (_, _, outcomes) in OUTCOMES.items() if judged.outcome in outcomes)
        means.append(
            {
                **{"arm": one.arm, "role": one.role, "shown": shown},
                **{"ahead": scale * between.mean, "low": scale * low, "high": scale * high},
            }
        )
        singles += [
            {"arm": one.arm, "seed": seed, "ahead": scale * value}
            for seed, value in zip(seeds, judged.compared.differences, strict=True)
        ]
    return means, singles
