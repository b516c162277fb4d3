"""Figures made fit for a page: series that can be hidden, tooltips, a description, their numbers as a table.

A chart's specification stays that of the figure: what is added shows only where there is somebody to click. Colours for
dark pages and a width for narrow ones are given by the page's script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tombola.grouping import heading_of

if TYPE_CHECKING:
    from tombola.report.figures import Figure

Spec: TypeAlias = dict[str, Any]
Datasets: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]

_TITLES = {
    **{"arm": "Arm", "method": "Method", "net": "Net", "layer": "Layer", "read": "Measured", "round": "Round"},
    **{"density": "Density (%)", "step": "Step", "cost": "Dense trainings", "asked": "Density asked for"},
    **{"ahead": "Ahead by", "shown": "The ticket is", "seed": "Seed"},
    **{"mean": "Mean", "low": "Lowest", "high": "Highest", "count": "Values"},
}
"""The fields of a figure's points that are told, in this order."""
_CHANNELS = ("color", "shape", "strokeDash")
_POINTS = ("point", "circle", "square", "rect")
_DIGITS = 6


@dataclass(frozen=True)
class Series:
    """What can be hidden and shown in a chart: the values of one field of its legend."""

    parameter: str
    field: str
    title: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """A figure on a page."""

    name: str
    """Of its files."""
    title: str
    notes: str
    spec: Spec
    series: tuple[Series, ...]
    columns: tuple[tuple[str, str], ...]
    """Field and heading of each column of its table."""
    rows: tuple[str, ...]
    """The data sets in ``spec`` that its table shows."""
    fixed: bool
    """Whether it has one width, and is moved sideways where there is no room."""

    @property
    def description(self) -> str:
        """What it shows, for those who don't see it."""
        return f"Chart: {self.title}. {self.notes} Its numbers are in the table under it.".replace("  ", " ")

    @property
    def embedded(self) -> Spec:
        """What the page's script needs, as JSON."""
        return {
            "name": self.name,
            "fixed": self.fixed,
            "spec": self.spec,
            "columns": [list(column) for column in self.columns],
            "rows": list(self.rows),
            "series": [{"parameter": s.parameter, "field": s.field, "names": list(s.names)} for s in self.series],
        }


def chart(name: str, figure: Figure, *, title: str, of: str, fixed: bool = False) -> Chart:
    """A figure as a chart with its own ``title`` on the page; its files say also what it is ``of``.

    ``name`` is that of its files, in lower case and without spaces. ``fixed`` is for a figure whose labels are placed
    for the one width that it has.
    """
    spec: Spec = figure.to_dict(validate=False)
    spec.pop("usermeta", None)
    heading = spec["title"]
    notes = " ".join(" ".join(heading.get("subtitle", ())).split())
    heading["text"] = f"{heading_of(of)}: {title[0].lower()}{title[1:]}"
    spec["datasets"] = {key: [_rounded(row) for row in rows] for key, rows in spec["datasets"].items()}
    panels = spec.get("concat", [spec])
    notes = " ".join(filter(None, [notes, *(_notes(panel) for panel in panels if panel is not spec)]))
    series = [one for number, panel in enumerate(panels) for one in _interactive(panel, number, spec["datasets"])]
    for panel in panels:
        _tell(panel, spec["datasets"])
    rows = tuple(dict.fromkeys(row for panel in panels for row in _lines(panel, spec["datasets"])))
    fields = {field for row in rows for point in spec["datasets"][row] for field in point}
    columns = tuple((field, title) for field, title in _TITLES.items() if field in fields)
    made = Chart(name, title, notes, spec, tuple(series), columns, rows, fixed)
    spec["description"] = made.description
    return made


def panels(name: str, figure: Figure, *, of: str) -> list[Chart]:
    """A figure of several independent panels as a chart for each."""
    import altair as alt

    found = []
    for number, panel in enumerate(figure.concat if isinstance(figure, alt.ConcatChart) else [figure], start=1):
        assert isinstance(panel, alt.LayerChart)  # as ``drawing.beside`` puts them together
        single = panel.copy()
        single.config = figure.config
        found.append(chart(f"{name}-{number}", single, title=str(panel.title.text), of=of))
    return found


def _notes(panel: Spec) -> str:
    title = panel.get("title") or {}
    lines = " ".join(" ".join(title.get("subtitle", ())).split()) if isinstance(title, Mapping) else ""
    return f"{title['text']}: {lines}" if lines else ""


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A point without the digits that no picture shows."""
    return {k: float(f"{v:.{_DIGITS}g}") if isinstance(v, float) else v for k, v in row.items()}


def _layers(panel: Spec) -> list[Spec]:
    layers: list[Spec] = panel.get("layer", [panel])
    return layers


def _data(layer: Spec, panel: Spec) -> str:
    """The name of a layer's data: its own, or what all layers of the panel share."""
    return str((layer.get("data") or panel.get("data") or {}).get("name", ""))


def _mark(layer: Spec) -> str:
    mark = layer["mark"]
    return str(mark if isinstance(mark, str) else mark["type"])


def _named(panel: Spec) -> Iterator[tuple[str, Spec]]:
    """Each field that a legend lists by name, with one channel that shows it."""
    seen = set()
    for layer in _layers(panel):
        for channel in _CHANNELS:
            shown = layer.get("encoding", {}).get(channel, {})
            listed = shown.get("type") == "nominal" and shown.get("legend") is not None and "domain" in shown["scale"]
            if listed and shown["field"] not in seen and len(shown["scale"]["domain"]) > 1:
                seen.add(shown["field"])
                yield shown["field"], shown


def _interactive(panel: Spec, number: int, datasets: Datasets) -> list[Series]:
    """Let a click on a legend's entry hide and show its series; what is not in the legend always shows."""
    found = []
    for field, shown in _named(panel):
        names = tuple(str(name) for name in shown["scale"]["domain"])
        found.append(Series(f"{field}_shown_{number}", field, shown.get("title") or field, names))
    if not found:
        return []
    owners: dict[str, Spec] = {}
    for layer in _layers(panel):
        encoding = layer.get("encoding", {})
        fields = {encoding[channel].get("field") for channel in _CHANNELS if channel in encoding}
        if not fields & {one.field for one in found}:
            continue
        points = datasets.get(_data(layer, panel), ())
        own = [one for one in found if one.field in fields or (points and one.field in points[0])]
        mark = layer["mark"]
        full = mark.pop("opacity", 1) if isinstance(mark, dict) else 1
        test = {"and": [{"param": one.parameter} for one in own]}
        encoding["opacity"] = {"condition": {"test": test, "value": full}, "value": 0}
        for one in own:
            if one.field in fields:
                owners.setdefault(one.parameter, layer)
    for one in found:
        owners[one.parameter].setdefault("params", []).append(
            {
                "name": one.parameter,
                "select": {"type": "point", "fields": [one.field], "toggle": "true"},
                "bind": "legend",
                "value": [{one.field: name} for name in one.names],
            }
        )
    return found


def _lines(panel: Spec, datasets: Datasets) -> list[str]:
    """The data of a panel's mean lines, or where it has none the largest."""
    named = [(layer, _data(layer, panel)) for layer in _layers(panel)]
    own = [name for layer, name in named if _mark(layer) == "line" and "color" in layer.get("encoding", {})]
    return own[:1] or sorted({name for _, name in named if name in datasets}, key=lambda name: len(datasets[name]))[-1:]


def _tell(panel: Spec, datasets: Datasets) -> None:
    """Give every mark a tooltip with its numbers; lines without marks get some that can't be seen."""
    layers = _layers(panel)
    marked = any(_mark(layer) in _POINTS and "color" in layer.get("encoding", {}) for layer in layers)
    for layer in list(layers):
        data = datasets.get(_data(layer, panel), ())
        if not data or "color" not in layer.get("encoding", {}):
            continue
        told = [_told(field, title, data) for field, title in _TITLES.items() if field in data[0]]
        if _mark(layer) in _POINTS:
            layer["encoding"]["tooltip"] = told
        elif _mark(layer) == "line" and not marked and "layer" in panel:
            encoding = {key: layer["encoding"][key] for key in ("x", "y")} | {"tooltip": told}
            mark = {"type": "point", "filled": True, "size": 90, "opacity": 0, "clip": True}
            own = {"data": layer["data"]} if "data" in layer else {}
            layers.append({**own, "mark": mark, "encoding": encoding})


def _told(field: str, title: str, data: Sequence[Mapping[str, Any]]) -> Spec:
    numbers = all(isinstance(point.get(field), int | float) for point in data)
    told: Spec = {"field": field, "title": title, "type": "quantitative" if numbers else "nominal"}
    return told | ({"format": "," if field in ("step", "round") else ",.4~g"} if numbers else {})
