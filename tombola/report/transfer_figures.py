"""The figure of a transfer: a heat map of sources and targets for each density.

A cell's colour is how far its ticket is ahead of the random ticket, or where there is none of the dense net: blue where
it is ahead, orange where it is behind, told apart by colour-blind readers and by the sign that is written below. One
definition serves SVG, PNG and PDF.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tombola.audits.pairing import DENSE
from tombola.report import drawing
from tombola.report.tables import is_share, metric_name, percent
from tombola.report.transfer import RANDOM, READINGS, Cell, Transfer, signed

if TYPE_CHECKING:
    import altair as alt

    from tombola.report.figures import Figure

WIDE, HIGH = 92, 44  # pixels of a cell
LABEL = 230  # pixels of a name, at most
COLUMNS = 2
DENSE_LINE = "dense net"
_LOW, _MIDDLE, _HIGH = (0xD5, 0x5E, 0x00), (0xFF, 0xFF, 0xFF), (0x00, 0x72, 0xB2)
_GROUND = "#eeeeee"
_DARK = 0.62  # share of the scale from which a cell is written on in white


def transfer_figures(found: Transfer, *, title: str) -> dict[str, Figure]:
    """``transfer``: a panel for each density, the first line of which are the targets' dense nets.

    In a cell stand the mean of the metric and, below, the mean difference that gives its colour; a frame is around the
    target's own ticket. All panels have one scale of colours, the same far to both sides of zero.
    """
    against = RANDOM if RANDOM in found.controls else DENSE
    reach = max((abs(_ahead(cell, against)) for cell in found.cells), default=0.0) or 1e-9
    panels = [_panel(found, density, against, reach) for density in found.densities]
    share = is_share(found.metric)
    heading = f"{title}: {found.data} {metric_name(found.metric)}{' (%)' if share else ''} {READINGS[found.at]}"
    count = len(found.seeds)
    over = f"means over {count} seeds" if count > 1 else f"seed {found.seeds[0]}"
    other = "the random ticket" if against == RANDOM else "the dense net"
    note = f"{over[0].upper()}{over[1:]}. Below, and colour: {'points ' if share else ''}ahead of {other}."
    whole = drawing.beside(panels, heading, COLUMNS, spacing=30, shared=True)
    whole.title.subtitle = [note, "Framed: the target's own ticket."] if any(c.own for c in found.cells) else [note]
    return {"transfer": whole}


def _ahead(cell: Cell, against: str) -> float:
    compared = cell.ahead(against)
    return 0.0 if compared is None else compared.interval.mean


def _panel(found: Transfer, density: float, against: str, reach: float) -> alt.LayerChart:
    import altair as alt

    cells = found.at_density(density)
    points = [_point(cell, found.metric, against, reach) for cell in cells]
    nets: dict[str, list[str]] = {}
    for cell in {(cell.target, cell.task): cell for cell in cells}.values():
        value = cell.mean(DENSE)
        nets.setdefault(cell.target, []).append("" if value is None else _written(value, found.metric))
    points += [
        {"source": DENSE_LINE, "target": target, "text": ", ".join(texts), "below": "", "fill": _GROUND, "ink": "black"}
        for target, texts in nets.items()
    ]
    sources = [DENSE_LINE, *dict.fromkeys(cell.source for cell in cells)]
    x = alt.X(
        "target:N",
        title="Trained on",
        sort=found.targets,
        scale=alt.Scale(domain=found.targets, paddingInner=0.04),
        axis=alt.Axis(labelAngle=-30, labelLimit=LABEL, grid=False, domain=False, ticks=False),
    )
    y = alt.Y(
        "source:N",
        title="Ticket from",
        sort=sources,
        scale=alt.Scale(domain=sources, paddingInner=0.06),
        axis=alt.Axis(labelLimit=LABEL, grid=False, domain=False, ticks=False),
    )
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y)
    own = alt.Chart(alt.InlineData(values=[p for p in points if p.get("own")])).encode(x=x, y=y)
    plain, two = ([p for p in points if bool(p["below"]) == there] for there in (False, True))
    middle, pairs = (alt.Chart(alt.InlineData(values=those)).encode(x=x, y=y) for those in (plain, two))
    ink = alt.Color("ink:N", scale=None)
    drawn = [
        base.mark_rect().encode(color=alt.Color("fill:N", scale=None)),
        own.mark_rect(filled=False, stroke="black", strokeWidth=2),
        middle.mark_text(fontSize=13).encode(text="text:N", color=ink),
        pairs.mark_text(fontSize=13, dy=-7).encode(text="text:N", color=ink),
        pairs.mark_text(fontSize=11, dy=9).encode(text="below:N", color=ink),
    ]
    panel = drawing.panel(drawn, f"{percent(density)} density")
    return panel.properties(width=WIDE * len(found.targets), height=HIGH * len(sources))


def _point(cell: Cell, metric: str, against: str, reach: float) -> dict[str, Any]:
    ahead, mean = _ahead(cell, against), cell.mean()
    assert mean is not None
    return {
        **{"source": cell.source, "target": cell.target, "own": cell.own, "mean": mean, "ahead": ahead},
        **{"text": _written(mean, metric), "below": signed(ahead, metric)},
        **{"fill": shade(ahead / reach), "ink": "white" if abs(ahead) / reach > _DARK else "black"},
    }


def _written(value: float, metric: str) -> str:
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.4g}"


def shade(place: float) -> str:
    """The colour of a place from -1 (orange) over 0 (white) to 1 (blue)."""
    end, share = (_HIGH if place > 0 else _LOW), min(abs(place), 1.0)
    mixed = (round(middle + share * (to - middle)) for middle, to in zip(_MIDDLE, end, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
