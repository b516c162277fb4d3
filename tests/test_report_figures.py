"""Figures of a draw: what they plot, on rows worked out by hand, what they say of the rest, and their files."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from fake_draws import Row, fake_draw, run
from hypothesis import given
from hypothesis import strategies as st

from tombola.errors import InputError
from tombola.grouping import heading_of
from tombola.report import drawing
from tombola.report.figures import (
    NAMED_LAYERS,
    OTHERS,
    curves_figure,
    early_stop_figure,
    figures,
    file_name,
    layers_figure,
    metric_figure,
    save_figures,
    selection,
    training_figure,
)

LADDER = [run(0, density=1.0), run(13, density=0.0557)]


@pytest.fixture(scope="module")
def many() -> tuple[list[Row], list[Row], list[Row]]:
    return fake_draw()


@pytest.fixture(scope="module")
def single() -> tuple[list[Row], list[Row], list[Row]]:
    return fake_draw(seeds=1, rounds=12, draws=1)


def drawn(chart: Any) -> list[list[Row]]:
    """The points in each layer of a chart."""
    spec = chart.to_dict()
    # Altair lifts a data set that all layers share to the top.
    return [spec["datasets"][layer.get("data", spec.get("data"))["name"]] for layer in spec["layer"]]


def subtitle(chart: Any) -> str:
    return " ".join(chart.to_dict()["title"].get("subtitle", [])).replace("\N{NO-BREAK SPACE}", " ")


def test_points_are_mean_lowest_and_highest_in_percent() -> None:
    rows = [run(0, density=1.0, stop_metric=0.96), run(0, density=1.0, seed=1, stop_metric=0.98)]
    rows += [run(1, density=0.5, stop_metric=0.5), run(1, density=0.5, seed=1, stop_metric=None)]
    dense, ranges, faint, lines, late, main = drawn(metric_figure(rows))
    assert dense == [main[0]] == [ranges[0]]
    assert main[0] == pytest.approx(
        {
            "arm": "ticket",
            "round": 0,
            "density": 100.0,
            "read": "at early stop",
            "mean": 97.0,
            "low": 96.0,
            "high": 98.0,
        }
    )
    assert [(p["density"], p["mean"], p["low"]) for p in main[1:]] == [(50.0, 50.0, 50.0)]
    assert [p["mean"] for p in faint] == [96.0, 98.0, 50.0]
    assert [p["mean"] for p in late] == [95.0, 95.0]
    assert len(lines) == 4


def test_log_axes_have_round_ticks() -> None:
    assert drawing.log_ticks(5.2, 108) == [7, 10, 20, 30, 50, 70, 100]
    assert drawing.log_ticks(0.45, 108) == [0.5, 1, 2, 5, 10, 20, 50, 100]
    assert drawing.log_ticks(0.05, 108) == [0.1, 1, 10, 100]


def test_density_falls_to_the_right_on_a_log_axis(single: Any) -> None:
    for chart in (metric_figure(single[0]), early_stop_figure(single[0]), layers_figure(single[2])):
        x = chart.to_dict()["layer"][1]["encoding"]["x"]
        lowest = 100 * min(row["density"] for row in single[0])
        assert x["scale"]["type"] == "log"
        assert x["scale"]["domain"] == pytest.approx([108, lowest / 1.08])


def test_subtitle_says_what_is_cut_off_and_what_diverged(many: Any) -> None:
    found = subtitle(metric_figure(many[0]))
    assert re.search(r"Cut off below 9\d\.\d %: reinit, random\.", found)
    assert "Diverged or without a value: random at 7.0 % (1 of 3 runs)." in found
    assert "Runs: ticket 3, reinit 9, random 3." in found
    assert "random at 7.0 % (1 of 3 runs)" in subtitle(early_stop_figure(many[0]))


def test_nothing_to_say_about_a_clean_single_seed() -> None:
    assert subtitle(metric_figure(LADDER)) == "Dotted: the dense net at early stop."


def test_a_draw_in_which_everything_diverged_is_still_drawn(tmp_path: Path) -> None:
    lost = {"status": "diverged", "stop_metric": math.nan, "stop_step": None, "end_metric": None}
    charts = {"a": metric_figure([run(0, **lost), run(1, **lost)]), "b": early_stop_figure([run(0, **lost)])}
    assert subtitle(charts["a"]) == "Diverged or without a value: ticket at 100 %; ticket at 80.0 %."
    assert all(path.stat().st_size > 0 for path in save_figures(tmp_path, charts))


def test_early_steps_far_above_the_tickets_are_cut_and_named() -> None:
    chart = early_stop_figure([run(0, density=1.0), run(1), run(1, "random", stop_step=48_000)])
    assert chart.to_dict()["layer"][1]["encoding"]["y"]["scale"]["domain"] == [0, 4200]
    assert subtitle(chart).endswith("Cut off above step 4,200: random.")


def test_ticks_of_few_steps_are_whole_and_each_there_once() -> None:
    rows = [run(0, density=1.0, stop_step=0), run(1, stop_step=0)]
    text = vl_convert.vegalite_to_svg(early_stop_figure(rows).to_json())
    ticks = re.findall(r"[(]-7,[0-9.]+[)].*?>([^<]*)</text>", text)  # of the y axis
    assert ticks == ["0", "1", "2", "3", "4", "5"]


def test_as_many_layers_as_are_named_all_look_different() -> None:
    colour, shape = drawing.coded("layer", "Layer", [f"conv{n}" for n in range(NAMED_LAYERS)])
    looks = zip(*(channel.to_dict()["scale"]["range"] for channel in (colour, shape)), strict=True)
    assert len(set(looks)) == NAMED_LAYERS


def test_selection_is_even_in_log_density_with_the_sparsest_control(single: Any) -> None:
    tickets = [{"arm": "ticket", "round": r, "density": 0.5**r} for r in range(13)]
    assert selection(tickets) == ([0, 2, 4, 6, 8, 10, 12], None)
    assert selection([*tickets, {"arm": "reinit", "round": 8, "density": 0}]) == ([0, 2, 4, 6, 8, 10, 12], 8)
    assert selection([*tickets, {"arm": "reinit", "round": 11, "density": 0}]) == ([0, 2, 4, 6, 8, 11, 12], 11)
    assert selection(tickets[:3]) == ([0, 1, 2], None)
    assert selection([{"arm": "random", "round": 1, "density": 0.5}]) == ([], None)


def test_curves_are_means_thinned_with_both_ends() -> None:
    rows = [
        {"seed": seed, "arm": "ticket", "draw": 0, "round": 0, "density": 1.0, "step": step}
        | {"validation_metric": 0.9 + seed / 100 if (seed, step) != (1, 1000) else math.nan}
        for seed in (0, 1)
        for step in range(1, 1001)
    ]
    bands, lines = drawn(curves_figure(rows))
    assert bands == lines
    assert len(lines) == 120
    assert [lines[0]["step"], lines[-1]["step"]] == [1, 1000]
    assert [lines[0][k] for k in ("mean", "low", "high")] == pytest.approx([90.5, 90.0, 91.0])
    assert [lines[-1][k] for k in ("mean", "low", "high")] == pytest.approx([90.0, 90.0, 90.0])
    assert subtitle(curves_figure(rows)).endswith("ticket at 100 % from step 1,000 (1 of 2 runs).")


@pytest.mark.parametrize(("metric", "end"), [("loss", 3 + 5 * 3), ("perplexity", 300)])
def test_a_curve_that_runs_far_off_is_cut_and_held_near_a_linear_axis(metric: str, end: float) -> None:
    key = {"seed": 0, "arm": "ticket", "draw": 0, "round": 0, "density": 1.0}
    values = [1e13, 1e6, *[3.0, 2.0] * 20]
    rows = [{**key, "step": step, "validation_metric": value} for step, value in enumerate(values)]
    chart = curves_figure(rows, metric)
    (lines,) = drawn(chart)
    scale = chart.to_dict()["layer"][0]["encoding"]["y"]["scale"]
    low, high = scale["domain"]
    assert high == pytest.approx(end, rel=0.25)
    assert scale.get("type") == ("log" if metric == "perplexity" else None)
    assert lines[0]["mean"] == pytest.approx(1e13 if metric == "perplexity" else high + 50 * (high - low))
    assert subtitle(chart) == f"Cut off above {high:.4g}: ticket."


def test_a_ladder_of_returns_shows_how_ticket_and_control_collapse() -> None:
    values = {"ticket": [199.3, 196.5, 196.4, 91.2, 23.0], "reinit": [199.3, 182.0, 94.0, 30.0, 22.0]}
    rows = [run(i, arm, stop_metric=v, end_metric=v) for arm, own in values.items() for i, v in enumerate(own)]
    chart = metric_figure(rows, "return")
    low, high = chart.to_dict()["layer"][1]["encoding"]["y"]["scale"]["domain"]
    assert low < 22.0 < 199.3 < high
    assert subtitle(chart) == "Dotted: the dense net at early stop."
    assert chart.to_dict()["layer"][1]["encoding"]["y"]["title"] == "Test return"


def test_what_is_cut_off_is_told_in_whole_thousands() -> None:
    form = drawing.metric_form("return")
    assert [form(v) for v in (-1234.56, 999.96, 1e9, 0.12345)] == ["-1,235", "1000", "1e+09", "0.1235"]
    assert drawing.metric_form("accuracy")(97.25) in ("97.2 %", "97.3 %")


def rewards(arm: str, number: int, seed: int, values: list[float | None]) -> list[Row]:
    key = {"seed": seed, "arm": arm, "draw": 0, "round": number, "density": 0.5**number}
    return [
        {**key, "step": 10 * place, "validation_metric": 7.0, "train_metric": value}
        for place, value in enumerate(values)
    ]


def test_reward_curves_are_drawn_as_validation_curves_are() -> None:
    rows = rewards("ticket", 0, 0, [None, 20.0, 100.0]) + rewards("ticket", 0, 1, [None, None, 140.0])
    rows += rewards("ticket", 1, 0, [None, 21.0, 60.0]) + rewards("reinit", 1, 0, [None, 22.0, 24.0])
    chart = training_figure(rows, "return")
    assert chart is not None
    bands, lines = drawn(chart)
    assert bands == lines
    assert [(p["arm"], p["density"], p["step"], p["mean"], p["low"], p["high"]) for p in lines] == [
        ("ticket", "100 %", 10, 20.0, 20.0, 20.0),
        ("ticket", "100 %", 20, 120.0, 100.0, 140.0),
        ("ticket", "50.0 %", 10, 21.0, 21.0, 21.0),
        ("ticket", "50.0 %", 20, 60.0, 60.0, 60.0),
        ("reinit", "50.0 %", 10, 22.0, 22.0, 22.0),
        ("reinit", "50.0 %", 20, 24.0, 24.0, 24.0),
    ]
    x = chart.to_dict()["layer"][0]["encoding"]["x"]
    assert x["scale"]["domain"] == [0, 20], "that of the validation curves beside it"
    assert chart.to_dict()["title"]["text"] == "Training return"
    # Before the first game has ended there is no value, and no gap.
    assert "without a value" not in subtitle(chart)
    assert subtitle(chart).startswith("Running mean over the last games of training.")


def test_gaps_of_reward_curves_are_told() -> None:
    rows = rewards("ticket", 0, 0, [None, 20.0, None]) + rewards("ticket", 1, 0, [None, None, None])
    chart = training_figure(rows, "return")
    assert chart is not None
    assert "Diverged or without a value: ticket at 100 % from step 20; ticket at 50.0 % from step 0." in subtitle(chart)


def test_there_are_no_reward_curves_where_no_training_tells_of_rewards(single: Any) -> None:
    assert training_figure(single[1], "accuracy") is None
    assert training_figure([], "return") is None
    assert training_figure(rewards("ticket", 0, 0, [None, None]), "return") is None


def test_layers_keep_the_models_order_and_list_what_collapsed() -> None:
    rows = [
        {"seed": seed, "round": number, "density": 0.5**number, "layer": name, "total": 10}
        | {"layer_density": share, "kept": round(10 * share)}
        for seed in (0, 1)
        for number in (0, 1)
        for name, share in (("z", 1.0 if number == 0 else 0.4 + 0.2 * seed), ("a", 1.0 - number))
    ]
    chart = layers_figure(rows)
    whole, lines, marks = drawn(chart)
    assert [(p["density"], p["mean"]) for p in whole] == [(50.0, 50.0), (100.0, 100.0)]
    assert lines == marks
    assert [(p["layer"], p["density"], round(p["mean"], 9)) for p in lines] == [
        ("z", 100.0, 100.0),
        ("a", 100.0, 100.0),
        ("z", 50.0, 50.0),
    ]
    assert chart.to_dict()["layer"][1]["encoding"]["color"]["scale"]["domain"] == ["z", "a"]
    assert subtitle(chart) == "Dotted: the whole net. Nothing kept: a from round 1."


def test_layers_that_are_never_pruned_are_not_shown() -> None:
    whole = {"seed": 0, "round": 0, "density": 1.0, "layer_density": 1.0, "kept": 10, "total": 10}
    half = whole | {"round": 1, "density": 0.5, "layer_density": 0.5, "kept": 5, "layer": "body"}
    dense = [whole | {"layer": "body"}, whole | {"layer": "head"}]
    assert {p["layer"] for p in drawn(layers_figure([*dense, half]))[1]} == {"body"}
    assert {p["layer"] for p in drawn(layers_figure(dense))[1]} == {"body", "head"}, "a dense net has them all"


def test_many_layers_are_coloured_by_their_place() -> None:
    base = {"seed": 0, "round": 0, "density": 1.0, "layer_density": 1.0, "kept": 1, "total": 1}
    chart = layers_figure([{**base, "layer": f"l{i}"} for i in range(20)])
    assert [p["place"] for p in drawn(chart)[1]] == list(range(1, 21))
    assert subtitle(chart).endswith("Layer 1 is l0, layer 20 is l19.")


def test_figures_are_all_there_and_titled(single: Any) -> None:
    charts = figures(*single, title="digits-mlp", metric="accuracy")
    assert list(charts) == ["accuracy", "early_stop", "curves", "layers", "overview"]
    assert charts["accuracy"].to_dict()["title"]["text"] == "digits-mlp: test accuracy"
    overview = charts["overview"].to_dict()
    assert overview["title"]["text"] == "digits-mlp, seed 0"
    assert [panel["title"]["text"] for panel in overview["concat"]] == [
        *("Test accuracy", "Early-stop step", "Validation accuracy", "Density by layer")
    ]
    assert overview["columns"] == 2
    headings = [len(panel["title"].get("subtitle", [])) for panel in overview["concat"]]
    assert headings[0] == headings[1]
    assert headings[2] == headings[3]
    assert list(figures(LADDER, [], [], title="x", metric="accuracy")) == ["accuracy", "early_stop", "overview"]


def test_titles_show_the_end_of_a_checkpoints_path(single: Any) -> None:
    task = "sst2-bert:/home/me/nets/small/transformers@wikitext2-mlm:/home/me/nets/small/transformers"
    short = "sst2-bert:small/transformers@wikitext2-mlm:small/transformers"
    made = figures(*single, title=f"{task}, snip", metric="accuracy")
    assert made["overview"].title.text.startswith(f"{short}, snip, ")
    assert made["layers"].title.text.startswith(f"{short}, snip: ")
    assert [heading_of(name) for name in ("digits-mlp", "sst2-bert:bert/base")] == ["digits-mlp", "sst2-bert:bert/base"]


def test_the_metrics_figure_is_named_after_it(tmp_path: Path) -> None:
    curves = rewards("ticket", 0, 0, [None, 20.0, 100.0])
    charts = figures(LADDER, curves, [], title="x", metric="return")
    assert list(charts) == ["return", "early_stop", "curves", "train_return", "overview"]
    titles = [panel["title"]["text"] for panel in charts["overview"].to_dict()["concat"]]
    assert titles == ["Test return", "Early-stop step", "Validation return", "Training return"]
    assert charts["train_return"].to_dict()["title"]["text"] == "x: training return"
    saved = save_figures(tmp_path, {"return": charts["return"], "train_return": charts["train_return"]})
    assert [path.name for path in saved][::3] == ["return.svg", "train_return.svg"]


@pytest.mark.parametrize("metric", ["curves", "layers", "early stop", "Overview"])
def test_no_metric_takes_another_figures_name(metric: str, single: Any) -> None:
    charts = figures(*single, title="x", metric=metric)
    assert list(charts) == [file_name(metric), "early_stop", "curves", "layers", "overview"]
    assert file_name(metric) == f"metric_{metric.lower().replace(' ', '_')}"


@given(st.text(max_size=30))
def test_a_name_is_fit_for_a_file(metric: str) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9_]*", file_name(metric))
    assert file_name(metric) not in OTHERS


def test_names_of_known_metrics_stay_as_they_are() -> None:
    for metric in ("accuracy", "balanced_accuracy", "return", "perplexity", "bleu"):
        assert file_name(metric) == metric


@pytest.mark.parametrize(
    ("draw", "name"), [(metric_figure, "rounds"), (curves_figure, "curves"), (layers_figure, "layers")]
)
def test_no_rows_are_refused(draw: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"there are no {name}"):
        draw([])


def test_files_are_what_their_names_say(tmp_path: Path, single: Any) -> None:
    svg, png, pdf = save_figures(tmp_path / "figures", {"accuracy": metric_figure(single[0])})
    assert [svg.name, png.name, pdf.name] == ["accuracy.svg", "accuracy.png", "accuracy.pdf"]
    text = svg.read_text()
    assert text.startswith("<svg ")
    assert "http://www.w3.org/2000/svg" in text[:200]
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    size = re.search(r'width="([\d.]+)" height="([\d.]+)"', text)
    assert size is not None
    assert struct.unpack(">II", png.read_bytes()[16:24]) == tuple(2 * math.ceil(float(side)) for side in size.groups())
    assert pdf.read_bytes()[:5] == b"%PDF-"
    assert b"%%EOF" in pdf.read_bytes()[-32:]


def test_a_large_draw_stays_a_small_file(many: Any) -> None:
    overview = figures(*many, title="x", metric="accuracy")["overview"]
    svg = vl_convert.vegalite_to_svg(overview.to_dict())
    assert len(svg.encode()) < 300_000
    assert "NaN" not in svg
