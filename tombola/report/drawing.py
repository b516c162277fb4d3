"""What the figures of a draw share: axes, the coding of arms, subtitles that say what could not be drawn, and style.

Axis ends, ticks and aggregates are computed here, in Python; a chart carries finished points and no transforms.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tombola.grouping import heading_of
from tombola.report.spans import Span
from tombola.report.tables import Group, Row, arms, groups, is_share, metric_name, percent, present

if TYPE_CHECKING:
    import altair as alt

Points: TypeAlias = list[dict[str, Any]]

WIDTH, HEIGHT = 400, 260
GREY = "#666666"
SOLID, DASHED, DOTTED = [1, 0], [5, 3], [1, 3]

AT_STOP, AT_END = "at early stop", "at the end"

# Okabe and Ito's palette, safe for colour-blind readers, without its yellow, too pale on white. Shapes tell the same
# things apart in grey.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# One more than there are colours, so that both together repeat only after 56 names.
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
# Viridis without its pale end.
SEQUENCE = ("#440154", "#443983", "#31688e", "#21918c", "#35b779", "#6ccd5a", "#c2c81e")


def points(found: Iterable[Group], field: str, scale: float = 1) -> Points:
    """One point for each arm and round that has a value: mean, lowest and highest over its runs."""
    return [
        {
            **{"arm": g.arm, "round": g.round, "density": 100 * g.density, "read": AT_STOP},
            **{"mean": scale * s.mean, "low": scale * s.low, "high": scale * s.high},
        }
        for g in found
        if (s := g.spread(field))
    ]


def single_runs(found: Iterable[Group], field: str, scale: float = 1) -> Points:
    """One point for each single run, where a round has several."""
    return [
        {"arm": g.arm, "density": 100 * g.density, "mean": scale * row[field]}
        for g in found
        for row in g.rows
        if len(g.rows) > 1 and present(row[field])
    ]


def ends(drawn: Iterable[Mapping[str, float]]) -> list[float]:
    """The lowest and the highest value of every point."""
    return [p[end] for p in drawn for end in ("low", "high")]


def near(drawn: Points, span: Span) -> Points:
    """The points with values held to within 50 heights of the axis: renderers lose a line that goes on to 1e12. On a
    log axis nothing is as far above, and a hundredth of its low end stands for what has no place on it."""
    reach = 50 * (span.high - span.low)
    low, high = (span.low / 100, math.inf) if span.log else (span.low - reach, span.high + reach)
    held = ("mean", "low", "high")
    return [{k: min(max(v, low), high) if k in held else v for k, v in point.items()} for point in drawn]


def log_ends(values: Sequence[float]) -> list[float]:
    """The ends of a log axis around values in percent, with a little air; 1 to 100 where there is no value."""
    return [min(values) / 1.08, max(values) * 1.08] if values else [1.0, 100.0]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends of a log axis, the fewer the further it reaches."""
    reach = high / low
    steps = (1, 2, 3, 5, 7) if reach <= 30 else (1, 2, 5) if reach <= 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [float(f"{step}e{power}") for power in powers for step in steps]
    return [tick for tick in every if low <= tick <= high]


def even_log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends of a log axis; evenly spaced ones where it is short."""
    found = log_ticks(low, high)
    for step in (s * 10.0 ** math.floor(math.log10(high - low)) for s in (1, 0.5, 0.2)):
        if len(found) < 4:
            numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
            found = [float(f"{number * step:.6g}") for number in numbers]
    return found


def density_axis(drawn: Points) -> alt.X:
    """The x axis of every ladder: density of the net in percent, log, the dense net on the left."""
    import altair as alt

    low, high = log_ends([p["density"] for p in drawn])
    return alt.X(
        "density:Q",
        title="Density of the net (%)",
        scale=alt.Scale(type="log", domain=[high, low], nice=False),
        axis=alt.Axis(values=log_ticks(low, high)[::-1], format="~g"),
    )


def value_axis(title: str, domain: Sequence[float], *, whole: bool = False, log: bool = False) -> alt.Y:
    """A y axis with exactly these ends, linear or log; ``whole`` numbers get separators of thousands."""
    import altair as alt

    domain = list(domain)
    if log:
        axis = alt.Axis(values=even_log_ticks(*domain), format=",~g")
        return alt.Y("mean:Q", title=title, scale=alt.Scale(type="log", domain=domain, nice=False), axis=axis)
    axis = alt.Axis(tickCount=6, tickMinStep=1, format=",d") if whole else alt.Axis(tickCount=6)
    return alt.Y("mean:Q", title=title, scale=alt.Scale(domain=domain, zero=False, nice=False), axis=axis)


def low_end(y: alt.Y) -> alt.Y:
    """The same axis for the lowest values, where a range begins."""
    low = y.copy()
    low.shorthand = "low:Q"
    return low


def metric_axis(reading: str, metric: str) -> str:
    """``Test accuracy (%)``; a metric that isn't a share has no unit."""
    return f"{reading} {metric_name(metric)}{' (%)' if is_share(metric) else ''}"


def stroke_legend() -> alt.Legend:
    """A legend that shows solid and dashed lines in black: the dash means the same in every colour."""
    import altair as alt

    return alt.Legend(symbolStrokeColor="black", symbolType="stroke", symbolSize=300, symbolStrokeWidth=1.5)


def coded(field: str, title: str, names: Sequence[str]) -> tuple[alt.Color, alt.Shape]:
    """Colour and mark shape for each name, in one legend that keeps their order."""
    import altair as alt

    count = range(len(names))
    colours = alt.Scale(domain=list(names), range=[_PALETTE[i % len(_PALETTE)] for i in count])
    shapes = alt.Scale(domain=list(names), range=[_SHAPES[i % len(_SHAPES)] for i in count])
    legend = alt.Legend(symbolOpacity=1, symbolSize=80)
    return (
        alt.Color(f"{field}:N", title=title, scale=colours, legend=legend),
        alt.Shape(f"{field}:N", title=title, scale=shapes, legend=legend),
    )


def ladder(drawn: Points, singles: Points, y: alt.Y, dash: alt.StrokeDash | None = None) -> list[alt.Chart]:
    """The layers of a figure against density: ranges, mean lines, marks, faint single runs, the dense net dotted.

    Points whose ``read`` is "at the end" have hollow marks and no range, which would hide that of the others.
    """
    import altair as alt

    colour, shape = coded("arm", "Arm", arms(drawn))
    x = density_axis(drawn)
    late = [p for p in drawn if p["read"] == AT_END]
    main = [p for p in drawn if p["read"] != AT_END]
    dense = [p for p in main if p["arm"] == "ticket" and p["round"] == 0]
    coordinates = {"x": x, "y": y, "color": colour}

    def chart(rows: Points) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=rows))

    line = chart(drawn).mark_line(clip=True, strokeWidth=1.6).encode(**coordinates)
    layers = [
        chart(dense).mark_rule(strokeDash=DOTTED, color=GREY, clip=True).encode(y=y),
        line if dash is None else line.encode(strokeDash=dash),
        chart(late)
        .mark_point(clip=True, filled=False, fill="white", size=32, opacity=1)
        .encode(**coordinates, shape=shape),
        chart(main).mark_point(clip=True, filled=True, size=42, opacity=1).encode(**coordinates, shape=shape),
    ]
    if singles:
        ranges = chart(main).mark_rule(clip=True, opacity=0.5).encode(x=x, y=low_end(y), y2="high:Q", color=colour)
        faint = chart(singles).mark_circle(clip=True, size=12, opacity=0.4).encode(**coordinates)
        layers[1:1] = [ranges, faint]
    return layers


def averaged(found: Iterable[Group], ranges: str, at: str = "") -> str:
    """What lines and ranges stand for, and over how many runs; nothing to say where every point is one run."""
    counts: dict[str, set[int]] = {}
    for group in found:
        counts.setdefault(group.arm, set()).add(len({(row["seed"], row["draw"]) for row in group.rows}))
    if all(count == {1} for count in counts.values()):
        return ""
    runs = ", ".join(f"{arm} {' or '.join(map(str, sorted(count)))}" for arm, count in counts.items())
    return f"Lines: means; {ranges}: lowest to highest run{at}. Runs: {runs}."


def cut_off(drawn: Points, span: Span, form: Callable[[float], str]) -> str:
    """Where the y axis ends before the points do, and whose these are; nothing where all can be seen."""
    notes = []
    for where, end, names in (
        ("below", span.low, arms([p for p in drawn if p["low"] < span.low])),
        ("above", span.high, arms([p for p in drawn if p["high"] > span.high])),
    ):
        if names:
            notes.append(f"Cut off {where} {form(end)}: {', '.join(names)}.")
    return " ".join(notes)


def metric_form(metric: str) -> Callable[[float], str]:
    """How a value on the metric's axis, already in percent if it is a share, is written."""
    if is_share(metric):
        return lambda v: f"{v:.1f} %"
    return lambda v: f"{v:,.0f}" if 1e3 <= abs(v) < 1e9 else f"{v:.4g}"


def gaps(rounds: Sequence[Row], *fields: str) -> str:
    """Every arm and density of which a run diverged or misses one of the fields: nothing vanishes in silence."""
    lost = []
    for group in sorted(groups(rounds), key=lambda g: (arms(rounds).index(g.arm), g.round)):
        count, total = group.incomplete(*fields), len(group.rows)
        if count or group.density <= 0:
            lost.append(f"{group.arm} at {percent(group.density)}{f' ({count} of {total} runs)' if total > 1 else ''}")
    return f"Diverged or without a value: {'; '.join(lost)}." if lost else ""


def panel(layers: Sequence[alt.Chart], title: str, *notes: str) -> alt.LayerChart:
    """One figure: its layers, a title, and the notes as its subtitle; empty ones are left out."""
    import altair as alt

    # A percent sign never starts a line.
    lines = textwrap.wrap(" ".join(filter(None, notes)).replace(" %", "\N{NO-BREAK SPACE}%"), 90)
    title = heading_of(title)
    heading = alt.TitleParams(title, subtitle=lines) if lines else alt.TitleParams(title)
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=heading)
    styled: alt.LayerChart = style(chart)
    return styled


def style(chart: Any) -> Any:
    """White ground, one font, light grid, and sizes that can be read in a column of a paper."""
    return (
        chart.configure(background="white", font="Helvetica, Arial, sans-serif", padding=8)
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            gridColor="#e8e8e8",
            domainColor=GREY,
            tickColor=GREY,
            titlePadding=8,
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, titleFontWeight="bold", labelLimit=240, rowPadding=3)
        .configure_title(
            anchor="start",
            frame="group",
            fontSize=15,
            subtitleFontSize=11,
            subtitleColor=GREY,
            subtitlePadding=4,
            offset=10,
        )
    )


def seeds_named(rows: Iterable[Row]) -> str:
    """The seeds of rows, for a title: ``seeds 0, 1``."""
    seeds = sorted({row["seed"] for row in rows})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def beside(
    charts: Sequence[alt.LayerChart], heading: str, columns: int = 2, spacing: int = 40, *, shared: bool = False
) -> alt.ConcatChart:
    """Copies of charts side by side under a heading, in rows in which their axes are level; ``shared`` is whether they
    have one coding of colours and shapes."""
    import altair as alt

    panels = [chart.copy() for chart in charts]
    for left in range(0, len(panels), columns):
        row = panels[left : left + columns]
        lines = [[] if panel.title.subtitle is alt.Undefined else list(panel.title.subtitle) for panel in row]
        for panel, own in zip(row, lines, strict=True):
            panel.config = alt.Undefined  # only the outermost chart may have one
            panel.title.subtitle = own + [" "] * (max(map(len, lines)) - len(own)) or alt.Undefined
    title = alt.TitleParams(heading_of(heading), fontSize=18, frame="bounds")
    whole = alt.concat(*panels, columns=columns, spacing=spacing, title=title)
    if not shared:
        whole = whole.resolve_scale(color="independent", shape="independent", strokeDash="independent")
    styled: alt.ConcatChart = style(whole)
    return styled
