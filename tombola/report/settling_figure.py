"""The figure of settling: how far the channel masks of each two epochs of a training are apart.

Rows are those of ``tombola.diagnostics.settling.settling_rows``. One definition serves SVG, PNG and PDF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tombola.errors import InputError
from tombola.report import drawing
from tombola.report.drawing import SEQUENCE, Points
from tombola.report.tables import Row, percent

if TYPE_CHECKING:
    import altair as alt

SIDE = 300
MOST_EPOCHS = 80  # a side, at most: of more, evenly spaced ones are drawn
WRITTEN_EPOCHS = 9  # at most: with more, cells are too small for numbers
DRAWN = "#D55E00"


def settling_figure(
    rows: Sequence[Row], *, window: int, distance: float, title: str
) -> alt.LayerChart | alt.ConcatChart:
    """A heat map of epoch against epoch for each seed and density, all on one scale of colours.

    Where a ticket is drawn, the distances that decided it are outlined. Raises ``InputError`` where there are no rows.
    """
    if not rows:
        raise InputError("a figure needs rows to draw, but there are none")
    top = max(max(100 * row["distance"] for row in rows), 1e-9)
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    densities = list(dict.fromkeys(row["density"] for row in rows))
    panels = []
    for seed in seeds:
        for density in densities:
            own = [row for row in rows if (row["seed"], row["density"]) == (seed, density)]
            heading = f"{percent(density)} of the channels" + (f", seed {seed}" if len(seeds) > 1 else "")
            panels.append(_panel(own, top, window, distance, heading))
    whole = f"{title}: how channel masks settle"
    if len(panels) > 1:
        return drawing.beside(panels, whole, min(len(densities), 3), spacing=30, shared=True)
    panels[0].title.text = f"{whole}, {panels[0].title.text}"
    styled: alt.LayerChart = drawing.style(panels[0])
    return styled


def _panel(rows: Sequence[Row], top: float, window: int, distance: float, heading: str) -> alt.LayerChart:
    import altair as alt

    last, drawn = max(row["epoch"] for row in rows), rows[0]["drawn"]
    every = -(-last // MOST_EPOCHS)
    shown = set(range(1, last + 1, every)) | (set(range(drawn - window + 1, drawn + 1)) if drawn else set())
    near = [(row["epoch"], row["before"], 100 * row["distance"]) for row in rows]
    both = [(x, y, value) for one, other, value in near for x, y in ((one, other), (other, one))]
    cells: Points = [
        {"epoch": x, "before": y, "distance": value}
        for x, y, value in [*both, *((epoch, epoch, 0.0) for epoch in range(1, last + 1))]
        if {x, y} <= shown
    ]
    ticks = sorted(shown)[:: max(1, -(-len(shown) // 10))]
    axis = alt.Axis(values=ticks, labelAngle=0, grid=False)
    x = alt.X("epoch:O", title="Epoch", scale=alt.Scale(paddingInner=0, paddingOuter=0), axis=axis)
    y = alt.Y("before:O", title="Epoch", scale=alt.Scale(paddingInner=0, paddingOuter=0), axis=axis)
    scale = alt.Scale(domain=[0, top], range=list(SEQUENCE))
    colour = alt.Color("distance:Q", title="Distance (%)", scale=scale)
    base = alt.Chart(alt.InlineData(values=cells)).encode(x=x, y=y)
    layers = [base.mark_rect().encode(color=colour)]
    if last <= WRITTEN_EPOCHS:
        for ink, dark in (("white", True), ("black", False)):
            written = [cell for cell in cells if (cell["distance"] < 0.55 * top) == dark]
            text = alt.Chart(alt.InlineData(values=written)).mark_text(fontSize=11, color=ink)
            layers.append(text.encode(x=x, y=y, text=alt.Text("distance:Q", format=".3~g")))
    if drawn is not None:
        decisive = [c for c in cells if drawn - window < c["before"] < c["epoch"] == drawn]
        outline = alt.Chart(alt.InlineData(values=decisive)).encode(x=x, y=y)
        layers.append(outline.mark_rect(filled=False, stroke=DRAWN, strokeWidth=2.5))
    found = f"ticket after epoch {drawn}." if drawn else f"no ticket in {last} epochs."
    notes = [f"{window} masks within {100 * distance:g} %: {found}", f"Every {every} epochs." if every > 1 else ""]
    return drawing.panel(layers, heading, *notes).properties(width=SIDE, height=SIDE)
