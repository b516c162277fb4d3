"""The parts of the report's page: charts, tables, comparisons, pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import altair as alt
import pytest
import vl_convert as vlc
from fake_draws import fake_draw
from made_up_store import add_draw
from test_page import Parsed

import tombola as tb
from tombola.findings import Findings, findings_of
from tombola.report import figures
from tombola.report.flow_figures import gradient_figure
from tombola.report.page import compared, tables
from tombola.report.page.charts import chart, panels
from tombola.report.page.images import data_url, png
from tombola.report.page.templates import embedded
from tombola.report.page.whole import page


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Findings]:
    with tb.Store(tmp_path_factory.mktemp("found")) as store:
        yield findings_of(store, [add_draw(store, seed=seed, controls=("reinit",)) for seed in (0, 1)])


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "&lt;", "\u2028 \u2029", "\x00", "é"])
def test_embedded_json_reads_back_and_has_no_markup(text: str) -> None:
    made = embedded({text: [text]})
    assert json.loads(made) == {text: [text]}
    assert not set("<>&\u2028\u2029\x00") & set(made)


@cache
def drawn() -> dict[str, Any]:
    rows, curves, layers = fake_draw()
    return {
        "accuracy": figures.metric_figure(rows),
        "stop": figures.early_stop_figure(rows),
        "curves": figures.curves_figure(curves),
        "layers": figures.layers_figure(layers),
    }


@pytest.mark.parametrize("name", ["accuracy", "stop", "curves", "layers"])
def test_a_chart_keeps_its_figure(name: str) -> None:
    """What a page adds shows only to those who click: drawn as a file, the figure is the same picture."""
    figure = drawn()[name].copy()
    title = figure.title.text
    made = chart(name, figure, title=title, of="task")
    alt.LayerChart.from_dict(made.spec, validate=True)
    figure.title.text = made.spec["title"]["text"]
    pictures = []
    for spec in (figure.to_dict(), made.spec):
        image = pytest.importorskip("PIL.Image").open(io.BytesIO(vlc.vegalite_to_png(spec, vl_version="6.1")))
        pictures.append(image.convert("RGB"))
    assert pictures[0].size == pictures[1].size
    difference = pytest.importorskip("PIL.ImageChops").difference(*pictures)
    assert max(end for _, end in difference.getextrema()) <= 48  # numbers have six digits: edges move by a hair
    assert sum(count * value for value, count in enumerate(difference.convert("L").histogram())) / 255 < 20


def test_what_can_be_hidden_is_what_the_legend_lists() -> None:
    charts = {name: chart(name, figure, title="T", of="task") for name, figure in drawn().items()}
    listed = {name: {s.field: s.names for s in made.series} for name, made in charts.items()}
    assert listed["accuracy"] == {"arm": ("ticket", "reinit", "random"), "read": ("at early stop", "at the end")}
    assert listed["stop"] == {"arm": ("ticket", "reinit", "random")}
    assert set(listed["curves"]) == {"density", "arm"}
    assert listed["layers"] == {"layer": ("fc1.weight", "fc2.weight", "fc3.weight")}
    for made in charts.values():
        assert made.title in made.description
        assert made.spec["description"] == made.description
        params = [p["name"] for layer in made.spec["layer"] for p in layer.get("params", ())]
        assert params == [series.parameter for series in made.series]
        (rows,) = made.rows
        fields = {field for point in made.spec["datasets"][rows] for field in point}
        assert {field for field, _ in made.columns} <= fields
        assert "mean" in {field for field, _ in made.columns}


def test_two_panels_become_two_charts() -> None:
    rows = [
        {"method": m, "density": d, "seed": 0, "step": s, "squared_norm": 1.0 + s, "loss": 2.0, "status": "finished"}
        for m, d in (("dense", 1.0), ("snip", 0.1))
        for s in (0, 10)
    ]
    made = panels("gradients", gradient_figure(rows, "task"), of="task")
    assert [one.title for one in made] == ["Squared norm of the gradient", "Loss on the same examples"]
    for one in made:
        assert [series.names for series in one.series] == [("dense", "snip, 10.0 %")]
        alt.LayerChart.from_dict(one.spec, validate=True)


def test_a_table_sorts_by_numbers_and_saves_them_in_full(found: Findings) -> None:
    (search,) = found.searches
    runs = tables.runs(search, "runs")
    first = dict(zip(runs.header, runs.rows[0], strict=True))
    assert (first["density"].text, first["density"].sort) == ("100 %", 1.0)
    assert first["run"].saved == search.rounds[0]["run"]
    means = tables.rounds(search, "rounds")
    cell = dict(zip(means.header, means.rows[-2], strict=True))["accuracy at early stop %"]
    assert cell.text == "89.35 (89.30\N{EN DASH}89.40)"
    assert cell.sort == pytest.approx(0.8935)
    assert list(means.marked) == [5]
    assert dict(zip(means.header, means.rows[5], strict=True))["arm"].text == "ticket"
    costs = tables.costs(search, "costs")
    assert costs is not None
    assert [cell.text for cell in costs.rows[2]] == ["2", "25.0 %", "4", "1.5", "2", "0.25", "2.3", "3.9x"]


def test_searches_are_compared_where_they_meet(store: tb.Store) -> None:
    ids = [add_draw(store, seed=s, method=m, gain=g) for m, g in (("imp", 0.02), ("snip", 0.0)) for s in (0, 1)]
    ids.append(add_draw(store, method="rigl", rounds=1))
    findings = findings_of(store, ids)
    found = compared.comparison(findings.searches)
    assert found is not None
    assert list(found.densities) == [0.5, 0.25, 0.1252]
    assert found.cost_at == 0.25
    words = compared.best(found)
    assert words[0].startswith("At 25.0 % density imp has the best mean test accuracy at early stop of 2 searches: 91.")
    assert "imp at 50.0 % density" in words[1]
    imp = [row for row in found.rows if row["method"] == "imp" and row["seed"] == 0]
    assert [(r["asked"], r["find_times"]) for r in imp] == [(0.5, 1.0), (0.25, 1.5), (0.1252, 1.75)]
    metric, cost = compared.tables(found, "x")
    assert [row[0].text for row in metric.rows] == ["dense", "snip", "rigl", "imp"]
    assert metric.rows[3][2].text.endswith("★")
    assert metric.rows[3][2].sort == pytest.approx(91.75)
    assert len(cost.rows) == 3
    shown = Parsed(page(findings)).shown
    assert words[0] in shown
    assert shown.count("Figures and tables") == 3


def test_what_does_not_meet_is_not_compared(store: tb.Store) -> None:
    one = findings_of(store, [add_draw(store)])
    assert compared.comparison(one.searches) is None
    two = findings_of(store, [add_draw(store, task="a"), add_draw(store, task="b")])
    assert compared.comparison(two.searches) is None
    assert "2 searches, each by itself below" in Parsed(page(two)).shown


def test_a_picture_is_an_image_of_its_numbers() -> None:
    image = pytest.importorskip("PIL.Image")
    grid = ((0.0, 1.0, 2.0), (None, 2.0, 0.5))
    made = image.open(io.BytesIO(png(grid, 2.0)))
    made.load()
    assert made.size == (3, 2)
    pixels = made.convert("RGBA").load()
    assert pixels[0, 0] == (22, 24, 29, 255)
    assert pixels[2, 0] == pixels[1, 1] == (0xC2, 0xC8, 0x1E, 255)
    assert pixels[0, 1][3] == 0
    brightness = [sum(pixels[x, y][:3]) for x, y in ((0, 0), (2, 1), (1, 0), (2, 0))]
    assert brightness == sorted(set(brightness))
    assert data_url(grid, 2.0).startswith("data:image/png;base64,")
