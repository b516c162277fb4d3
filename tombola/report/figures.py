"""A draw in figures: its metric, early stop, training curves and layer densities, fit for a paper.

Rows are those of ``tombola.report.tables``; ``curves`` has a row for each evaluation of a run (``step``,
``validation_metric``, and ``train_metric`` where training data tell it of themselves), ``layers`` one for each layer
and round (``layer_density``, ``kept``). One definition serves the interactive page as well as SVG, PNG and PDF.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tombola.errors import InputError
from tombola.grouping import heading_of
from tombola.report import drawing
from tombola.report.drawing import AT_END, AT_STOP, DASHED, DOTTED, GREY, SEQUENCE, SOLID, Points
from tombola.report.spans import Span, span
from tombola.report.tables import (
    Group,
    Row,
    Spread,
    arms,
    drawn_arms,
    groups,
    is_share,
    metric_name,
    percent,
    present,
)

if TYPE_CHECKING:
    import altair as alt

    Figure: TypeAlias = alt.LayerChart | alt.ConcatChart

POINTS = 120  # of a curve, at most: a line of this width can't show more
CURVES = 7  # in one figure, at most: more can't be told apart
NAMED_LAYERS = 14  # at most: with more, colour stands for a layer's place in the model

OTHERS = ("early_stop", "curves", "layers", "overview")  # figures of every metric
_READINGS = {AT_STOP: "stop_metric", AT_END: "end_metric"}


def metric_figure(rounds: Sequence[Row], metric: str = "accuracy", data: str = "Test") -> alt.LayerChart:
    """The metric on test ``data`` at early stop (solid) and at the end (dashed) against density, by arm.

    Lines are means; where a point has several runs, bars reach from the lowest to the highest and faint marks are the
    single runs at early stop. The y axis is the ``spans.span`` of the tickets' means: what is far from them doesn't
    flatten them; the subtitle names the arms that are cut off.
    """
    import altair as alt

    found, scale = _drawable(rounds), _scale(metric)
    points = [{**p, "read": read} for read, field in _READINGS.items() for p in drawing.points(found, field, scale)]
    tickets = [p["mean"] for p in points if p["arm"] == "ticket"]
    shown = span(metric, tickets, drawing.ends(points))
    reading = alt.Scale(domain=list(_READINGS), range=[SOLID, DASHED])
    layers = drawing.ladder(
        drawing.near(points, shown),
        drawing.near(drawing.single_runs(found, "stop_metric", scale), shown),
        drawing.value_axis(drawing.metric_axis(data, metric), shown.domain, log=shown.log),
        alt.StrokeDash("read:N", title="Measured", scale=reading, legend=drawing.stroke_legend()),
    )
    ranges = drawing.averaged(found, "bars", " at early stop")
    cut = drawing.cut_off(points, shown, drawing.metric_form(metric))
    gaps = drawing.gaps(rounds, "stop_metric", "end_metric")
    return drawing.panel(layers, f"{data} {metric_name(metric)}", _dotted(points), _left_out(rounds), ranges, cut, gaps)


def early_stop_figure(rounds: Sequence[Row]) -> alt.LayerChart:
    """Early-stop step (that of the lowest validation loss) against density, by arm.

    The y axis runs from 0 to the highest run, but at most to four times the tickets' highest.
    """
    found = _drawable(rounds)
    points = drawing.points(found, "stop_step")
    top = max((p["high"] for p in points), default=1)
    limit = 4 * max((p["high"] for p in points if p["arm"] == "ticket"), default=top)
    shown = Span(0, 1.05 * max(min(top, limit), 5))  # room for ticks at whole steps
    y = drawing.value_axis("Early-stop step", shown.domain, whole=True)
    layers = drawing.ladder(points, drawing.single_runs(found, "stop_step"), y)
    ranges = drawing.averaged(found, "bars")
    cut = drawing.cut_off(points, shown, lambda v: f"step {v:,.0f}")
    return drawing.panel(
        layers, "Early-stop step", _dotted(points), _left_out(rounds), ranges, cut, drawing.gaps(rounds, "stop_step")
    )


def curves_figure(curves: Sequence[Row], metric: str = "accuracy") -> alt.LayerChart:
    """Validation metric against step: the rounds of ``selection`` by colour, and one of them reinitialised, dashed.

    Lines are means, bands reach from the lowest to the highest run; each is thinned to at most 120 points. The y axis
    is the ``spans.span`` of the tickets' means after the first tenth of the steps.
    """
    return _curves(curves, metric, "validation_metric", "Validation")


def training_figure(curves: Sequence[Row], metric: str) -> alt.LayerChart | None:
    """The metric as the training data themselves tell it against step, where they come of acting: reward curves, say.
    It shows the arms and has the form of ``curves_figure``. None where no training tells it.
    """
    told = [row for row in curves if present(row.get("train_metric"))]
    if not told:
        return None
    # Before something has come of acting, a running mean has no value: that is no gap.
    first: dict[Any, int] = {}
    for row in told:
        first[_run(row)] = min(row["step"], first.get(_run(row), row["step"]))
    begun = [row for row in curves if row["step"] >= first.get(_run(row), 0)]
    rows = [{"train_metric": None, **row} for row in begun]
    steps = [row["step"] for row in curves]
    note = "Running mean over the last games of training."
    return _curves(rows, metric, "train_metric", "Training", [min(steps), max(steps)], note)


def _run(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("arm", "round", "seed", "draw"))


def _curves(
    curves: Sequence[Row], metric: str, field: str, reading: str, steps: list[int] | None = None, note: str = ""
) -> alt.LayerChart:
    """A field of ``curves`` against step; ``steps`` are the ends of the axis where it isn't that of the values."""
    _check_any(curves, "curves")
    chosen, control = selection(curves)
    wanted = {("ticket", number) for number in chosen} | {("reinit", control)}
    found = [g for g in groups(curves) if (g.arm, g.round) in wanted]
    names = {g.round: percent(g.density) for g in found if g.arm == "ticket"}
    scale = _scale(metric)
    points = [
        {"arm": g.arm, "round": g.round, "density": names[g.round], **p}
        for g in found
        for p in _curve(g.rows, field, scale)
    ]
    late = max((p["step"] for p in points), default=0) / 10
    settled = [p["mean"] for p in points if p["arm"] == "ticket" and p["step"] >= late]
    shown = span(metric, settled, drawing.ends(points))
    y = drawing.value_axis(drawing.metric_axis(reading, metric), shown.domain, log=shown.log)
    layers = _curve_layers(drawing.near(points, shown), list(names.values()), y, steps)
    ranges = drawing.averaged(found, "bands")
    cut = drawing.cut_off(points, shown, drawing.metric_form(metric))
    return drawing.panel(layers, f"{reading} {metric_name(metric)}", note, ranges, cut, _broken(found, field))


def _curve_layers(points: Points, names: Sequence[str], y: alt.Y, steps: list[int] | None) -> list[alt.Chart]:
    """Bands where runs differ, and mean lines: colour by density, from dense to sparse, dashed where reinitialised."""
    import altair as alt

    shown = arms(points)
    dash = alt.StrokeDash(
        "arm:N",
        title="Arm",
        scale=alt.Scale(domain=shown, range=[SOLID, DASHED][: len(shown)]),
        legend=drawing.stroke_legend() if len(shown) > 1 else None,
    )
    shades = [SEQUENCE[round(i * (len(SEQUENCE) - 1) / max(len(names) - 1, 1))] for i in range(len(names))]
    across = alt.Scale(nice=False) if steps is None else alt.Scale(nice=False, domain=steps)
    base = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("step:Q", title="Training step", axis=alt.Axis(format=",d", tickCount=6, tickMinStep=1), scale=across),
        y=y,
        color=alt.Color(
            "density:N",
            title="Density",
            scale=alt.Scale(domain=list(names), range=shades),
            legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=2.5, symbolSize=250, symbolOpacity=1),
        ),
        detail=["arm:N", "round:N"],
    )
    lines = base.mark_line(clip=True, strokeWidth=1.5).encode(strokeDash=dash)
    if not any(p["low"] < p["high"] for p in points):
        return [lines]
    bands = base.mark_area(clip=True, opacity=0.13).encode(y=drawing.low_end(y), y2="high:Q")
    return [bands, lines]


def layers_figure(layers: Sequence[Row]) -> alt.LayerChart:
    """Density of each layer against density of the whole net, both log, in the model's order; means over seeds.

    The dotted diagonal is the whole net. A layer with nothing kept has no place on a log axis: the subtitle lists it.
    Layers that are never pruned, such as a head, are in the dense round's rows alone, and aren't shown.
    """
    import altair as alt

    _check_any(layers, "layers")
    pruned = {row["layer"] for row in layers if row["round"]}
    layers = [row for row in layers if not pruned or row["layer"] in pruned]
    names = list(dict.fromkeys(row["layer"] for row in layers))
    points = _layer_points(layers, names)
    low, high = drawing.log_ends([p["mean"] for p in points])
    axis = alt.Axis(values=drawing.log_ticks(low, high), format="~g")
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    y = alt.Y("mean:Q", title="Density of the layer (%)", axis=axis, scale=scale)
    x = drawing.density_axis(points)
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y, detail="layer:N")
    whole = [{"density": d, "mean": d} for d in sorted({p["density"] for p in points})]
    diagonal = alt.Chart(alt.InlineData(values=whole)).mark_line(strokeDash=DOTTED, color=GREY, clip=True)
    drawn = [diagonal.encode(x=x, y=y)]
    if len(names) > NAMED_LAYERS:
        shades = alt.Scale(domain=[1, len(names)], range=list(SEQUENCE))
        drawn.append(base.mark_line(strokeWidth=1.2).encode(color=alt.Color("place:Q", title="Layer", scale=shades)))
    else:
        colour, shape = drawing.coded("layer", "Layer", names)
        drawn.append(base.mark_line(strokeWidth=1.5).encode(color=colour))
        drawn.append(
            base.mark_point(filled=False, strokeWidth=1.5, size=45, opacity=1).encode(color=colour, shape=shape)
        )
    empty: dict[str, int] = {}
    for row in layers:
        if not row["kept"]:
            empty[row["layer"]] = min(row["round"], empty.get(row["layer"], row["round"]))
    gone = "; ".join(f"{name} from round {empty[name]}" for name in names if name in empty)
    notes = ["Dotted: the whole net.", f"Nothing kept: {gone}." if gone else ""]
    if len(names) > NAMED_LAYERS:
        notes.append(f"Layer 1 is {names[0]}, layer {len(names)} is {names[-1]}.")
    return drawing.panel(drawn, "Density by layer", *notes)


def _layer_points(layers: Sequence[Row], names: Sequence[str]) -> Points:
    """The mean over seeds for each layer and round in which something is kept."""
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in layers:
        cells.setdefault((row["layer"], row["round"]), []).append(row)
    means: Points = [
        {
            "layer": name,
            "place": names.index(name) + 1,
            "density": 100 * statistics.fmean(r["density"] for r in rows),
            "mean": 100 * statistics.fmean(r["layer_density"] for r in rows),
        }
        for (name, _), rows in cells.items()
    ]
    return [point for point in means if point["mean"] > 0]


def figures(
    rounds: Sequence[Row], curves: Sequence[Row], layers: Sequence[Row], *, title: str, metric: str
) -> dict[str, Figure]:
    """All figures of a draw by name: that of the metric by ``file_name``, early_stop, curves, train_METRIC where
    training data come of acting, layers, and overview, which shows them in one.

    ``title`` names the task. A draw without curves or layers has no figure of them.
    """
    name = file_name(metric)
    single = {name: metric_figure(rounds, metric), "early_stop": early_stop_figure(rounds)}
    if curves:
        single["curves"] = curves_figure(curves, metric)
    if (training := training_figure(curves, metric)) is not None:
        single[f"train_{name}"] = training
    if layers:
        single["layers"] = layers_figure(layers)
    title = heading_of(title)
    overview = drawing.beside(list(single.values()), f"{title}, {drawing.seeds_named(rounds)}")
    for chart in single.values():
        chart.title.text = f"{title}: {chart.title.text[0].lower()}{chart.title.text[1:]}"
    return {**single, "overview": overview}


def file_name(metric: str) -> str:
    """What the files of a metric's figure are called: ``accuracy``, ``return``, ``perplexity``.

    Letters, digits and low lines alone, and none of the other figures' names.
    """
    name = re.sub(r"[^a-z0-9]+", "_", metric.lower()).strip("_")
    return f"metric_{name}".strip("_") if name in ("", *OTHERS) else name


def save_figures(folder: Path, charts: Mapping[str, Figure]) -> list[Path]:
    """Write each figure as ``NAME.svg``, ``NAME.png`` (at twice its size) and ``NAME.pdf``, and give their paths."""
    import altair as alt
    import vl_convert as vlc

    folder.mkdir(parents=True, exist_ok=True)
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    paths = []
    for name, chart in charts.items():
        svg = vlc.vegalite_to_svg(chart.to_dict(), vl_version=version)
        contents = {"svg": svg.encode(), "png": vlc.svg_to_png(svg, scale=2), "pdf": vlc.svg_to_pdf(svg)}
        for kind, content in contents.items():
            paths.append(folder / f"{name}.{kind}")
            paths[-1].write_bytes(content)
    return paths


def selection(curves: Sequence[Row]) -> tuple[list[int], int | None]:
    """The rounds to draw curves of, dense first and at most seven, and the one of them to draw reinitialised.

    Rounds are spread evenly in log density. The reinitialised one is the sparsest there is; where seven others
    are chosen, it takes the place of its nearest neighbour, but never that of the dense net or of the sparsest.
    """
    density = {r["round"]: math.log(r["density"]) for r in curves if r["arm"] == "ticket" and r["density"] > 0}
    rounds = sorted(density)
    if len(rounds) > CURVES:
        first, last = density[rounds[0]], density[rounds[-1]]
        targets = [first + (last - first) * k / (CURVES - 1) for k in range(CURVES)]
        rounds = sorted({min(density, key=lambda r: (abs(density[r] - target), r)) for target in targets})
    controls = [r["round"] for r in curves if r["arm"] == "reinit" and r["round"] in density]
    control = max(controls, default=None)
    if control is not None and control not in rounds:
        if len(rounds) == CURVES:
            rounds.remove(min(rounds[1:-1], key=lambda r: abs(density[r] - density[control])))
        rounds = sorted([*rounds, control])
    return rounds, control


def _dotted(points: Points) -> str:
    dense = any(p["arm"] == "ticket" and p["round"] == 0 and p["read"] == AT_STOP for p in points)
    return "Dotted: the dense net at early stop." if dense else ""


def _scale(metric: str) -> float:
    return 100 if is_share(metric) else 1


def _check_any(rows: Sequence[Row], name: str) -> None:
    if not rows:
        raise InputError(f"a figure needs rows to draw, but there are no {name}; pass those of a finished draw")


def _drawable(rounds: Sequence[Row]) -> list[Group]:
    """The runs by round and arm that are drawn, without nets with nothing kept, which have no place on a log axis."""
    _check_any(rounds, "rounds")
    shown = drawn_arms(rounds)
    return [group for group in groups(rounds) if group.density > 0 and group.arm in shown]


def _left_out(rounds: Sequence[Row]) -> str:
    shown = drawn_arms(rounds)
    others = [arm for arm in arms(rounds) if arm not in shown]
    return f"Not drawn, but in the table: {', '.join(others)}." if others else ""


def _curve(rows: Sequence[Row], field: str, scale: float) -> Points:
    """A mean curve over runs with its lowest and highest values, thinned evenly, both ends kept."""
    values: dict[int, list[float]] = {}
    for row in rows:
        if present(row[field]):
            values.setdefault(row["step"], []).append(scale * row[field])
    steps = sorted(values)
    if len(steps) > POINTS:
        steps = [steps[round(k * (len(steps) - 1) / (POINTS - 1))] for k in range(POINTS)]
    spreads = [(step, s) for step in steps if (s := Spread.of(values[step]))]
    return [{"step": step, "mean": s.mean, "low": s.low, "high": s.high} for step, s in spreads]


def _broken(found: Iterable[Group], field: str) -> str:
    """The drawn curves of which a run has no value from some step on, or in between."""
    notes = []
    for group in found:
        lost = [row for row in group.rows if not present(row[field])]
        if lost:
            runs, total = ({(r["seed"], r["draw"]) for r in rows} for rows in (lost, group.rows))
            counted = f" ({len(runs)} of {len(total)} runs)" if len(total) > 1 else ""
            first = min(row["step"] for row in lost)
            notes.append(f"{group.arm} at {percent(group.density)} from step {first:,}{counted}")
    return f"Diverged or without a value: {'; '.join(notes)}." if notes else ""
