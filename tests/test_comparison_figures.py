"""Methods compared in figures: panels, labels, axes, and what is said of what they can't show."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from compared_rows import Row, compared, run
from hypothesis import given
from hypothesis import strategies as st

from tombola.errors import InputError
from tombola.report import comparison_figures as figures
from tombola.report.comparison import Comparison

CUT = " \N{DOWNWARDS ARROW}"


def test_labels_are_as_near_as_can_be_without_covering_each_other() -> None:
    assert figures.spread_out([10, 50, 90], 10, 0, 100) == [10, 50, 90]
    assert figures.spread_out([50, 50], 10, 0, 100) == [45, 55]
    assert figures.spread_out([50, 51, 52], 10, 0, 100) == [41, 51, 61]
    assert figures.spread_out([0, 0, 99], 10, 0, 100) == [0, 10, 99]
    assert figures.spread_out([100, 100], 10, 0, 100) == [90, 100]
    assert figures.spread_out([5, 5, 5], 10, 0, 10) == [0, 5, 10]
    assert figures.spread_out([], 10, 0, 100) == []


@given(st.lists(st.floats(0, 300), min_size=1, max_size=20).map(sorted))
def test_labels_never_cover_each_other(wanted: list[float]) -> None:
    found = figures.spread_out(wanted, 13, 0, 300)
    assert all(-1e-9 <= place <= 300 + 1e-9 for place in found)
    assert all(b - a >= 13 - 1e-9 for a, b in pairwise(found))
    if all(b - a >= 13 for a, b in pairwise(wanted)):
        assert found == pytest.approx(wanted)


def many(*methods: tuple[str, str]) -> list[Row]:
    return [
        run(name, when, seed, d, 0.9 + 0.01 * place + 0.001 * seed, find_times=0.01 * place)
        for place, (name, when) in enumerate(methods)
        for seed in (0, 1)
        for d in (0.1, 0.05)
    ]


def drawn_points(chart: Any) -> list[Row]:
    """Every point of every layer of a figure."""
    spec = chart.to_dict()
    data = [layer["data"] for panel in spec.get("concat", [spec]) for layer in panel["layer"]]
    return [point for own in data for point in (own["values"] if "values" in own else spec["datasets"][own["name"]])]


def test_few_methods_share_a_panel_and_many_stand_by_when_they_prune() -> None:
    few = figures.comparison_figures(compared(), title="toy")
    assert set(few) == {"equal_density", "equal_cost"}
    before = [(f"b{i}", "before") for i in range(5)]
    found = compared(*many(*before, ("d", "during"), ("a", "after")))
    for name, chart in figures.comparison_figures(found, title="toy").items():
        assert "layer" in few[name].to_dict()
        panels = chart.to_dict()["concat"]
        assert [p["title"]["text"] for p in panels] == [
            f"Pruned {when} training" for when in ("before", "during", "after")
        ]
        assert {"imp", "snip", "a", "d", "b0", "b4"} <= {
            p["text"].removesuffix(CUT) for p in drawn_points(chart) if "text" in p
        }


def test_cost_figures_have_finding_and_training_together() -> None:
    marks = {
        (p["method"], p["asked"]): p for p in drawn_points(figures.cost_figure(compared(), title="toy")) if "size" in p
    }
    assert marks["imp", 0.05]["cost"] == 1.75
    assert marks["imp", 0.1]["size"] > marks["imp", 0.05]["size"]


def test_what_a_figure_cannot_show_is_said() -> None:
    unknown = run("set", "during", 0, 0.05, 0.9, find_times=None)
    found = figures.cost_figure(compared(unknown), title="toy").to_dict()
    said = " ".join(found["title"]["subtitle"]).replace("\N{NO-BREAK SPACE}", " ")
    assert "Cost unknown: set." in said
    assert "Without a result: snip at 5.0 % (1 diverged, 1 missing of 3)." in said
    rows = [{**row, "train_times": None} for row in compared().rows]
    blank = Comparison(rows, "accuracy", [0.1, 0.05], 0.05)
    assert set(figures.comparison_figures(blank, title="toy")) == {"equal_density"}
    with pytest.raises(InputError, match="none of the methods has one"):
        figures.density_figure(Comparison(compared().rows[:3], "accuracy", [0.1], 0.1), title="toy")


def test_a_line_that_leaves_the_figure_is_marked() -> None:
    far = [run("set", "during", s, d, v) for d, v in ((0.1, 0.94), (0.05, -9)) for s in range(3)]
    chart = figures.density_figure(compared(*far, metric="reward"), title="toy")
    assert f"set{CUT}" in {p["text"] for p in drawn_points(chart) if "text" in p}
    assert "Cut off below" in " ".join(chart.to_dict()["title"]["subtitle"])


def test_perplexities_stand_on_a_log_axis_to_a_hundred_times_the_dense_nets() -> None:
    worse = [run("set", "during", s, d, 0.99 * v) for d, v in ((0.1, 5), (0.05, 1e6)) for s in range(3)]
    chart = figures.density_figure(compared(*worse, metric="perplexity", lower_is_better=True), title="toy").to_dict()
    scales = [y["scale"] for layer in chart["layer"] if (y := layer["encoding"]["y"]).get("scale")]
    low, high = scales[0]["domain"]
    assert {scale["type"] for scale in scales} == {"log"}
    assert low < 0.8 < 99 < high < 140
    said = " ".join(chart["title"]["subtitle"])
    assert f"Cut off above {high:.4g}: set." in said
    assert "log scale of the error" not in said


def test_methods_that_collapse_beside_returns_are_shown() -> None:
    lost = [run("set", "during", s, d, v) for d, v in ((0.1, 0.5), (0.05, -3)) for s in range(3)]
    chart = figures.density_figure(compared(*lost, metric="return"), title="toy")
    assert f"set{CUT}" not in {p["text"] for p in drawn_points(chart) if "text" in p}
    assert "Cut off" not in " ".join(chart.to_dict()["title"]["subtitle"])


def test_shares_are_drawn_as_errors_on_a_log_axis() -> None:
    perfect = [run("set", "during", s, 0.1, 1.0) for s in range(3)]
    marks = {
        (p["method"], p["asked"]): p
        for p in drawn_points(figures.density_figure(compared(*perfect), title="toy"))
        if "asked" in p
    }
    assert marks["imp", 0.05]["mean"] == pytest.approx(7)
    assert marks["imp", 0.05]["low"] == pytest.approx(7 + 100 * math.sqrt(0.0026 / 2))
    assert marks["set", 0.1]["mean"] == 0.01  # none at all has no place on a log axis
