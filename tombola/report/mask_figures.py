"""Figures of masks: what layers keep, where layers empty, how alike masks are, what a masked net costs.

Rows are those of ``tombola.diagnostics`` and of ``Cost.rows``. One definition of a figure serves SVG, PNG and PDF.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tombola.errors import InputError
from tombola.report import drawing
from tombola.report.drawing import DOTTED, GREY, SEQUENCE, Points
from tombola.report.tables import Row, percent

if TYPE_CHECKING:
    import altair as alt

    Figure: TypeAlias = alt.LayerChart | alt.ConcatChart

NAMED_LAYERS = 14  # at most, on an axis across; with more, layers are numbered
WRITTEN_MASKS = 12  # at most: with more, the cells of a heat map are too small for numbers


def ratio(compression: float) -> str:
    """A compression ratio for prose: ``46.5``, ``1,051,113``."""
    return f"{compression:,.0f}" if compression >= 1000 else f"{compression:.4g}"


def layers_figure(rows: Sequence[Row], *, title: str) -> Figure:
    """Share of its weights that each layer keeps (log), in the model's order, by method; one panel a density.

    Lines are means over seeds, bars reach from the lowest to the highest. The dotted line is the whole net. A layer
    with nothing kept has no place on a log axis: the subtitle lists it.
    """

    _check_any(rows)
    names = list(dict.fromkeys(row["layer"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    panels = []
    for density in sorted({row["density"] for row in rows}, reverse=True):
        own = [row for row in rows if row["density"] == density]
        panels.append(_layers_panel(own, names, methods, density))
    return _together(panels, f"{title}: what each layer keeps", columns=2)


def _layers_panel(rows: Sequence[Row], names: Sequence[str], methods: Sequence[str], density: float) -> alt.LayerChart:
    import altair as alt

    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["layer"]), []).append(100 * row["layer_density"])
    numbered = len(names) > NAMED_LAYERS
    points: Points = [
        {
            "method": method,
            "place": names.index(name) + 1 if numbered else name,
            "mean": statistics.fmean(values),
            "low": min(values),
            "high": max(values),
        }
        for (method, name), values in cells.items()
    ]
    shown = [value for p in points for value in (p["low"], p["mean"]) if value > 0]
    low, high = drawing.log_ends([*shown, 100 * density, 100.0])
    # A line breaks where nothing is kept; a bar that reaches down to nothing ends on the axis.
    points = [p | {"mean": p["mean"] or None, "low": max(p["low"], low)} for p in points]
    there = [p for p in points if p["mean"]]
    ticks = alt.Axis(values=drawing.log_ticks(low, high), format="~g")
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    y = alt.Y("mean:Q", title="Kept of the layer (%)", axis=ticks, scale=scale)
    if numbered:
        x = alt.X("place:Q", title="Layer", scale=alt.Scale(domain=[0.5, len(names) + 0.5], nice=False, zero=False))
    else:
        x = alt.X("place:N", title=None, sort=list(names), axis=alt.Axis(labelAngle=-40, labelLimit=140))
    colour, shape = drawing.coded("method", "Method", methods)
    line = alt.Chart(alt.InlineData(values=points)).mark_line(strokeWidth=1.5, invalid="break-paths-show-path-domains")
    base = alt.Chart(alt.InlineData(values=there)).encode(x=x, y=y, color=colour)
    whole = alt.Chart(alt.InlineData(values=[{"mean": 100 * density}]))
    layers = [
        whole.mark_rule(strokeDash=DOTTED, color=GREY).encode(y=y),
        line.encode(x=x, y=y, color=colour),
        base.mark_rule(opacity=0.5).encode(y=drawing.low_end(y), y2="high:Q"),
        base.mark_point(filled=True, size=42, opacity=1).encode(shape=shape),
    ]
    gone = [f"{name} ({method})" for (method, name), values in cells.items() if not max(values)]
    notes = ["Dotted: the whole net.", f"Nothing kept: {_few(gone)}." if gone else ""]
    if any(len(values) > 1 for values in cells.values()):
        notes.append(f"Means of {max(map(len, cells.values()))} seeds; bars: lowest to highest.")
    if numbered:
        notes.append(f"Layer 1 is {names[0]}, layer {len(names)} is {names[-1]}.")
    return drawing.panel(layers, f"{percent(density)} kept", *notes)


def collapse_figure(rows: Sequence[Row], maximal: float, *, title: str) -> Figure:
    """Fewest weights left in a layer, and layers left empty, against the compression ratio (log), by method.

    A line for each seed. The dotted line is the ``maximal`` compression, at which one weight is left in each layer.
    """
    import altair as alt

    _check_any(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    values = [dict(row) for row in rows]
    low, high = 1.0, max(max(row["compression"] for row in rows), maximal) * 1.1
    x = alt.X(
        "compression:Q",
        title="Compression ratio",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=[t for t in drawing.log_ticks(low, high) if f"{t:e}"[0] == "1"], format="~s"),
    )
    most = max(row["fewest"] for row in rows)
    # Linear below 1 and log above, so that a layer with nothing left has a place.
    steps = [0, *(10**power for power in range(len(str(most)) + 1) if 10**power <= 1.5 * most)]
    fewest = alt.Y(
        "fewest:Q",
        title="Fewest weights left in a layer",
        scale=alt.Scale(type="symlog", constant=1, domain=[0, most * 1.1], nice=False),
        axis=alt.Axis(values=steps, format=",d"),
    )
    worst = max(max(row["emptied"] for row in rows), 1)
    empty = alt.Y(
        "emptied:Q",
        title="Layers left empty",
        scale=alt.Scale(domain=[0, worst * 1.05], nice=False),
        axis=alt.Axis(format="d", tickCount=min(worst, 6), tickMinStep=1),
    )
    colour, shape = drawing.coded("method", "Method", methods)
    limit = alt.Chart(alt.InlineData(values=[{"compression": maximal}]))
    rule = limit.mark_rule(strokeDash=DOTTED, color=GREY).encode(x=x)
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, color=colour, detail="seed:N")
    panels = []
    for y, name in ((fewest, "The poorest layer"), (empty, "Empty layers")):
        line = base.mark_line(strokeWidth=1.5, opacity=0.8).encode(y=y)
        mark = base.mark_point(filled=False, strokeWidth=1.3, size=34, opacity=0.9).encode(y=y, shape=shape)
        panels.append(drawing.panel([rule, line, mark], name, f"Dotted: the maximal compression, {ratio(maximal)}."))
    return _together(panels, f"{title}: layer collapse")


def overlap_figure(names: Sequence[str], rows: Sequence[Row], *, title: str) -> Figure:
    """Overlap of each pair of masks, that expected of random masks with the same layer densities, and distance.

    ``names`` are in the order of the axes. The colours of the first two are on one scale.
    """

    _check_any(rows)
    overlaps = [row[field] for row in rows for field in ("overlap", "chance_overlap")]
    distances = [row["distance"] for row in rows]
    panels = [
        _heat_map(names, _cells(rows, field), heading, ends)
        for field, heading, ends in (
            ("overlap", "Overlap (Jaccard, %)", (0.0, 100 * max(overlaps))),
            ("chance_overlap", "Expected of random masks (%)", (0.0, 100 * max(overlaps))),
            ("distance", "Distance (Hamming, %)", (100 * min(distances), 100 * max(distances))),
        )
    ]
    return _together(panels, f"{title}: how alike the masks are")


def _cells(rows: Sequence[Row], field: str) -> Points:
    """A cell for each pair, and one for it the other way round; none where a mask meets itself."""
    pairs = [(row["one"], row["other"], 100 * row[field]) for row in rows]
    return [{"one": a, "other": b, "value": v} for one, other, v in pairs for a, b in ((one, other), (other, one))]


def _heat_map(names: Sequence[str], cells: Points, heading: str, ends: tuple[float, float]) -> alt.LayerChart:
    import altair as alt

    side = max(34 * len(names), 130) if len(names) <= WRITTEN_MASKS else 14 * len(names)
    low, high = ends[0], max(ends[1], ends[0] + 1e-9)
    # Dark cells are written on in white.
    cells = [cell | {"ink": "white" if cell["value"] < low + 0.55 * (high - low) else "black"} for cell in cells]
    x = alt.X("other:N", title=None, sort=list(names), axis=alt.Axis(labelAngle=-40, labelLimit=180, grid=False))
    y = alt.Y("one:N", title=None, sort=list(names), axis=alt.Axis(labelLimit=180, grid=False))
    base = alt.Chart(alt.InlineData(values=cells)).encode(x=x, y=y)
    colour = alt.Color("value:Q", title=None, scale=alt.Scale(domain=[low, high], range=list(SEQUENCE)))
    drawn = [base.mark_rect().encode(color=colour)]
    if len(names) <= WRITTEN_MASKS:
        ink = alt.Color("ink:N", scale=None)
        drawn.append(base.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".3~g"), color=ink))
    panel = drawing.panel(drawn, heading).properties(width=side, height=side).resolve_scale(color="independent")
    return cast("alt.LayerChart", panel)


_COSTS = (
    ("Weights", (("weights", "dense"), ("kept", "kept"))),
    ("Operations of an example (FLOPs)", (("flops", "dense"), ("kept_flops", "kept"))),
    (
        "Bytes",
        (("bytes_dense", "dense"), ("bytes_bitmask", "kept, with a bit mask"), ("bytes_sparse", "kept, in rows")),
    ),
)


def cost_figure(rows: Sequence[Row], *, title: str) -> Figure:
    """Weights, operations and bytes of each layer, dense and kept, on log axes; rows of ``Cost.rows`` by layer.

    Of a dense net there is one mark a layer. What is 0 (nothing kept, operations that aren't counted) has no place on
    a log axis: the subtitle lists it.
    """

    _check_any(rows)
    dense = all(row["kept"] == row["weights"] for row in rows)
    costs = [(heading, kinds[:1] if dense else kinds) for heading, kinds in _COSTS]
    labels = list(dict.fromkeys(label for _, kinds in costs for _, label in kinds))
    panels = [_cost_panel(rows, heading, kinds, labels, first=not n) for n, (heading, kinds) in enumerate(costs)]
    return _together(panels, f"{title}: cost by layer")


def _cost_panel(
    rows: Sequence[Row], heading: str, kinds: Sequence[tuple[str, str]], labels: Sequence[str], *, first: bool
) -> alt.LayerChart:
    import altair as alt

    names = [row["name"] for row in rows]
    every = [{"name": r["name"], "kind": label, "value": r[field]} for r in rows for field, label in kinds]
    points = [point for point in every if point["value"] > 0]
    lowest = min((p["value"] for p in points), default=1)
    highest = max((p["value"] for p in points), default=10)
    low, high = 10 ** (len(str(int(lowest))) - 1) / 1.1, highest * 1.3
    x = alt.X(
        "value:Q",
        title=None,
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=[t for t in drawing.log_ticks(low, high) if f"{t:e}"[0] == "1"], format="~s"),
    )
    y = alt.Y(
        "name:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(labels=first, ticks=first, labelLimit=220),
    )
    colour, shape = drawing.coded("kind", "Net", labels)
    ends = [
        {"name": name, "low": min(values), "high": max(values)}
        for name in names
        if (values := [point["value"] for point in points if point["name"] == name])
    ]
    low_end = x.copy()
    low_end.shorthand = "low:Q"
    spans = alt.Chart(alt.InlineData(values=ends)).mark_rule(color="#cccccc").encode(x=low_end, x2="high:Q", y=y)
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y, color=colour, shape=shape)
    gone = [f"{p['name']} ({p['kind']})" for p in every if not p["value"]]
    panel = drawing.panel(
        [spans, base.mark_point(filled=True, size=48, opacity=1)], heading, f"0: {_few(gone)}." if gone else ""
    )
    return panel.properties(width=230, height=max(18 * len(names), 90))


def _together(panels: Sequence[alt.LayerChart], title: str, columns: int = 3) -> Figure:
    """The panels in one figure, so many side by side, with headings of one height so that axes are level."""
    if len(panels) > 1:
        return drawing.beside(panels, title, columns, spacing=30, shared=True)
    (panel,) = panels
    panel.title.text = title if ":" not in title else f"{title}, {panel.title.text}"
    single: alt.LayerChart = drawing.style(panel)
    return single


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _check_any(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise InputError("a figure needs rows to draw, but there are none")
