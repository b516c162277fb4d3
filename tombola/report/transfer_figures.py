"""The figure of a transfer: a heat map of sources and targets for each density.

A cell's colour is how far its ticket is ahead of the random ticket, or where there is none of the dense net: blue where
it is ahead, orange where it is behind, told apart by colour-blind readers and by the signs of the numbers. One
definition serves SVG, PNG and PDF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tombola.audits.pairing import DENSE
from tombola.report import drawing
from tombola.report.tables import is_share, metric_name, percent
from tombola.report.transfer import OWN, RANDOM, READINGS, Cell, Transfer, shown, signed

if TYPE_CHECKING:
    import altair as alt

    from tombola.report.figures import Figure

WIDE, LINE, AIR = 112, 15, 14  # pixels: of a cell across, of a line in it, and around its lines
LABEL = 400  # pixels of a name, at most
COLUMNS = 2
_NAMES = {RANDOM: "random", OWN: "own", DENSE: "dense"}
_LOW, _MIDDLE, _HIGH = (0xD5, 0x5E, 0x00), (0xFF, 0xFF, 0xFF), (0x00, 0x72, 0xB2)
_DARK = 0.62  # share of the scale from which a cell is written on in white


def transfer_figures(found: Transfer, *, title: str) -> dict[str, Figure]:
    """``transfer``: a panel for each density.

    In a cell stand the mean of the metric and how far that is ahead of the random ticket, of the target's own ticket
    and of the dense net, as far as there are such; the first of them gives the colour. A frame is around the target's
    own ticket. All panels have one scale of colours, the same far to both sides of zero.
    """
    drawn = [shown(found, density) for density in found.densities]
    against = RANDOM if RANDOM in found.controls else DENSE
    reach = max((abs(_ahead(cell, against)) for cells in drawn for cell in cells), default=0.0) or 1e-9
    panels = [_panel(found, cells, against, reach) for cells in drawn]
    share = is_share(found.metric)
    heading = f"{title}: {found.data} {metric_name(found.metric)}{' (%)' if share else ''} {READINGS[found.at]}"
    count = len(found.seeds)
    over = f"means over {count} seeds" if count > 1 else f"seed {found.seeds[0]}"
    others = [arm for arm in _NAMES if any(arm in cell.arms for cells in drawn for cell in cells)]
    words = {RANDOM: "of the random ticket", OWN: "of the target's own ticket", DENSE: "of the dense net"}
    listed = ", ".join(words[arm] for arm in others[:-1]) + " and " * (len(others) > 1) + words[others[-1]]
    notes = [
        f"{over[0].upper()}{over[1:]}. Below: {'points ' if share else ''}ahead {listed}.",
        f"Colour: ahead {words[against]}."
        + " Framed: the target's own ticket." * any(c.own for cells in drawn for c in cells),
    ]
    whole = drawing.beside(panels, heading, COLUMNS, spacing=30, shared=True)
    whole.title.subtitle = notes
    return {"transfer": whole}


def _ahead(cell: Cell, against: str) -> float:
    compared = cell.ahead(against)
    return 0.0 if compared is None else compared.interval.mean


def _panel(found: Transfer, cells: Sequence[Cell], against: str, reach: float) -> alt.LayerChart:
    import altair as alt

    points = [_point(cell, found.metric, against, reach) for cell in cells]
    lines = 1 + max(len(point["below"]) for point in points)
    sources = list(dict.fromkeys(cell.source for cell in cells))
    labels: dict[str, Any] = {"labelLimit": LABEL, "grid": False, "domain": False, "ticks": False}
    x = alt.X(
        "target:N",
        title="Trained on",
        sort=found.targets,
        scale=alt.Scale(domain=found.targets, paddingInner=0.04),
        axis=alt.Axis(labelAngle=-30, **labels),
    )
    # The title lies above the names: beside them, long ones would run into it.
    above: dict[str, Any] = {
        "titleAngle": 0,
        "titleAnchor": "start",
        "titleAlign": "right",
        "titleX": -6,
        "titleY": -10,
    }
    y = alt.Y(
        "source:N",
        title="Ticket from",
        sort=sources,
        scale=alt.Scale(domain=sources, paddingInner=0.06),
        axis=alt.Axis(**labels, **above),
    )
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y)
    own = alt.Chart(alt.InlineData(values=[p for p in points if p["own"]])).encode(x=x, y=y)
    drawn = [
        base.mark_rect().encode(color=alt.Color("fill:N", scale=None)),
        own.mark_rect(filled=False, stroke="black", strokeWidth=2),
    ]
    for count, place in ((n, place) for n in {1 + len(p["below"]) for p in points} for place in range(n)):
        there = [p | {"line": (p["text"], *p["below"])[place]} for p in points if len(p["below"]) == count - 1]
        line = alt.Chart(alt.InlineData(values=there)).encode(
            x=x, y=y, text="line:N", color=alt.Color("ink:N", scale=None)
        )
        drawn.append(line.mark_text(fontSize=11 if place else 13, dy=LINE * (place - (count - 1) / 2)))
    panel = drawing.panel(drawn, f"{percent(cells[0].asked)} density")
    return panel.properties(width=WIDE * len(found.targets), height=(LINE * lines + AIR) * len(sources))


def _point(cell: Cell, metric: str, against: str, reach: float) -> dict[str, Any]:
    ahead, mean = _ahead(cell, against), cell.mean()
    assert mean is not None
    below = [f"{signed(_ahead(cell, arm), metric)} {name}" for arm, name in _NAMES.items() if arm in cell.arms]
    return {
        **{"source": cell.source, "target": cell.target, "own": cell.own, "mean": mean, "ahead": ahead},
        **{"text": _written(mean, metric), "below": below},
        **{"fill": shade(ahead / reach), "ink": "white" if abs(ahead) / reach > _DARK else "black"},
    }


def _written(value: float, metric: str) -> str:
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.4g}"


def shade(place: float) -> str:
    """The colour of a place from -1 (orange) over 0 (white) to 1 (blue)."""
    end, share = (_HIGH if place > 0 else _LOW), min(abs(place), 1.0)
    mixed = (round(middle + share * (to - middle)) for middle, to in zip(_MIDDLE, end, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
