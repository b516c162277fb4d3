"""Figures of training and of the loss surface: gradient flow, barriers between nets, curvature.

Rows are those of ``tombola.diagnostics``. Lines are means over seeds; where there are several, bars reach from the
lowest to the highest. Steps stand on a square-root axis, which gives the early ones room and has a place for step 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tombola.errors import InputError
from tombola.report import drawing
from tombola.report.drawing import DASHED, DOTTED, GREY, SEQUENCE, SOLID, Points
from tombola.report.tables import Row, Spread, is_share, lower_is_better, metric_name, percent, present

if TYPE_CHECKING:
    import altair as alt

STABLE = 0.02
"""The barrier in error up to which Frankle et al. (2020) call a net stable."""


def gradient_figure(rows: Sequence[Row], title: str) -> alt.ConcatChart:
    """Squared gradient norm at the kept weights (log) and loss, both on fixed training examples, against step."""
    _check_any(rows)
    names = list(dict.fromkeys(row["method"] for row in rows))
    density = {row["method"]: percent(row["density"]) for row in rows}
    labels = {name: name if name == "dense" else f"{name}, {density[name]}" for name in names}
    panels = []
    for field, heading, log in (
        ("squared_norm", "Squared norm of the gradient", True),
        ("loss", "Loss on the same examples", False),
    ):
        points = _means(rows, ("method", "step"), field, positive=log)
        drawn = [{**point, "net": labels[point["method"]]} for point in points]
        y = _log_axis(heading, drawn) if log else drawing.value_axis(heading, _ends(drawn))
        layers = _lines(drawn, "net", "Net", list(labels.values()), y)
        notes = [_averaged(drawn), _missing(rows, "method", field, positive=log), _stopped(rows) if log else ""]
        panels.append(drawing.panel(layers, heading, *notes))
    return drawing.beside(panels, f"{title}: gradient flow, {drawing.seeds_named(rows)}")


def instability_figure(rows: Sequence[Row], barriers: Sequence[Row], title: str, metric: str) -> alt.ConcatChart:
    """The barrier against the step until which two trainings share all, and beside it the values on the line between
    their ends; in error above, in loss below.

    ``rows`` are those of ``instability``, ``barriers`` those of ``barriers`` of them.
    """
    _check_any(rows)
    share = is_share(metric)
    error = metric_name(metric) if lower_is_better(metric) else "error"
    panels = []
    for field, name, scale in (("error", error, 100 if share else 1), ("loss", "loss", 1)):
        unit = " (%)" if scale == 100 else ""
        drawn = _means(barriers, ("data", "rewind"), f"{field}_barrier", scale)
        panels.append(_barriers(drawn, name, unit, 100 * STABLE if scale == 100 else None))
        layers = _paths(_means(rows, ("rewind", "data", "alpha"), field, scale), f"{name.capitalize()}{unit}")
        panels.append(drawing.panel(layers, f"{name.capitalize()} on the line between the two nets"))
    kept = percent(rows[0]["density"])
    return drawing.beside(panels, f"{title}: instability at {kept} density, {drawing.seeds_named(rows)}")


def _barriers(drawn: Points, name: str, unit: str, limit: float | None) -> alt.LayerChart:
    """Barriers against the shared step, with a dotted line at a limit."""
    drawn = [{**point, "step": point["rewind"]} for point in drawn]
    limits = [] if limit is None else [{"mean": limit}]
    top = max([point["high"] for point in drawn] + [point["mean"] for point in limits], default=0)
    y = drawing.value_axis(f"Barrier in {name}{unit}", [0.0, 1.06 * top or 1.0])
    layers = _lines(drawn, "data", "Data", ["train", "validation"], y, "Step until which all is shared")
    if limits:
        layers = [_chart(limits).mark_rule(strokeDash=DOTTED, color=GREY).encode(y=y), *layers]
    note = f"Dotted: {percent(STABLE)}, up to which a net counts as stable." if limits else ""
    return drawing.panel(layers, f"Instability in {name}", note, _averaged(drawn))


def _paths(drawn: Points, title: str) -> list[alt.Chart]:
    """Values against the place on the line: colour by the shared step, solid on validation data, dashed on training."""
    import altair as alt

    steps = sorted({point["rewind"] for point in drawn})
    drawn = [{**point, "shared": f"{point['rewind']:,}"} for point in drawn]
    shades = [SEQUENCE[round(i * (len(SEQUENCE) - 1) / max(len(steps) - 1, 1))] for i in range(len(steps))]
    colour = alt.Scale(domain=[f"{step:,}" for step in steps], range=shades)
    dash = alt.Scale(domain=["validation", "train"], range=[SOLID, DASHED])
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=2.5, symbolSize=250, symbolOpacity=1)
    base = _chart(drawn).encode(
        x=alt.X("alpha:Q", title="Place between them", scale=alt.Scale(domain=[0, 1])),
        y=drawing.value_axis(title, _ends(drawn)),
        color=alt.Color("shared:N", title="Shared steps", scale=colour, legend=legend),
        strokeDash=alt.StrokeDash("data:N", title="Data", scale=dash, legend=drawing.stroke_legend()),
    )
    return [base.mark_line(strokeWidth=1.6)]


def curvature_figure(rows: Sequence[Row], title: str) -> alt.LayerChart:
    """The largest eigenvalues of the Hessian at the kept weights against the step of the training."""
    _check_any(rows)
    count = max(row["number"] for row in rows)
    drawn = [{**p, "place": _place(p["number"])} for p in _means(rows, ("number", "step"), "eigenvalue")]
    y = drawing.value_axis("Eigenvalue of the Hessian", _ends(drawn))
    layers = _lines(drawn, "place", "Eigenvalue", [_place(number) for number in range(1, count + 1)], y)
    loose = sorted({row["step"] for row in rows if not row["converged"]})
    note = f"Not converged at step {', '.join(f'{step:,}' for step in loose)}." if loose else ""
    kept = percent(rows[0]["density"])
    return drawing.panel(
        layers, f"{title}: curvature at {kept} density, {drawing.seeds_named(rows)}", _averaged(drawn), note
    )


def _place(number: int) -> str:
    return "largest" if number == 1 else f"number {number}"


def _means(rows: Sequence[Row], keys: tuple[str, ...], field: str, scale: float = 1, positive: bool = False) -> Points:
    """One point for each combination of keys that has a value: mean, lowest and highest over the rows."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if present(row[field]) and (row[field] > 0 or not positive):
            cells.setdefault(tuple(row[key] for key in keys), []).append(scale * row[field])
    found = [(key, spread) for key, values in cells.items() if (spread := Spread.of(values))]
    return [
        {**dict(zip(keys, key, strict=True)), "mean": s.mean, "low": s.low, "high": s.high, "count": s.count}
        for key, s in found
    ]


def _lines(
    drawn: Points, field: str, title: str, names: Sequence[str], y: alt.Y, steps: str = "Training step"
) -> list[alt.Chart]:
    """Mean lines with marks against ``step``, and bars where a point has several values."""
    import altair as alt

    colour, shape = drawing.coded(field, title, names)
    top = max((point["step"] for point in drawn), default=1)
    scale = alt.Scale(type="sqrt", domain=[0, max(top, 1)], nice=False)
    x = alt.X("step:Q", title=f"{steps} (square-root axis)", scale=scale, axis=alt.Axis(format=",d", tickCount=6))
    base = _chart(drawn).encode(x=x, y=y, color=colour)
    line = base.mark_line(strokeWidth=1.6)
    marks = base.mark_point(filled=True, size=42, opacity=1).encode(shape=shape)
    several = [point for point in drawn if point["count"] > 1]
    if not several:
        return [line, marks]
    bars = _chart(several).mark_rule(opacity=0.5).encode(x=x, y=drawing.low_end(y), y2="high:Q", color=colour)
    return [bars, line, marks]


def _chart(points: Points) -> alt.Chart:
    import altair as alt

    return alt.Chart(alt.InlineData(values=points))


def _log_axis(title: str, drawn: Points) -> alt.Y:
    import altair as alt

    values = drawing.ends(drawn)
    low, high = (min(values) / 1.2, max(values) * 1.2) if values else (0.1, 10.0)
    axis = alt.Axis(values=drawing.log_ticks(low, high), format="~g")
    return alt.Y("mean:Q", title=title, scale=alt.Scale(type="log", domain=[low, high], nice=False), axis=axis)


def _ends(drawn: Points) -> list[float]:
    """The ends of a linear axis that shows every point, with a margin of 4 %."""
    values = drawing.ends(drawn) or [0.0, 1.0]
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.04
    return [low - margin, high + margin]


def _averaged(drawn: Points) -> str:
    several = max((point["count"] for point in drawn), default=1) > 1
    return "Lines: means over seeds; bars: lowest to highest." if several else ""


def _missing(rows: Sequence[Row], field: str, value: str, *, positive: bool) -> str:
    """Whose values have no place on the axis: nothing vanishes in silence."""
    lost = [r for r in rows if not present(r[value]) or (positive and r[value] <= 0)]
    names = list(dict.fromkeys(f"{row[field]} at step {row['step']:,}" for row in lost))
    return f"Zero or without a value: {'; '.join(names)}." if names else ""


def _stopped(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row["method"] for row in rows if row["status"] == "diverged"))
    return f"Diverged, and not drawn from there on: {', '.join(names)}." if names else ""


def _check_any(rows: Sequence[Row]) -> None:
    if not rows:
        raise InputError("a figure needs rows to draw, but there are none: did the net diverge at once?")
