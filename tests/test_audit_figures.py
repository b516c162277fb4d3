"""The figure, the table and the files of an audit, and figures of a draw with many arms."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from audited import DENSE, GOOD, arm_rows, judged, near, rows

from tombola.audits.pairing import ORDER
from tombola.audits.verdict import Verdict
from tombola.report.audit_figures import OUTCOMES, audit_figures
from tombola.report.audited import arms_table, save_audit
from tombola.report.figures import metric_figure, save_figures
from tombola.report.tables import MOST_DRAWN, arms, drawn_arms

CONTROLS = [name for name in ORDER if name not in ("dense", "ticket")]


def shifted(by: float) -> list[float]:
    return [value - by for value in GOOD]


@pytest.fixture(scope="module")
def many() -> Verdict:
    """Twelve arms beside the dense net, some far below the ticket, some level."""
    apart = {name: near(shifted(0.004 * place), seed=place) for place, name in enumerate(CONTROLS[:12])}
    return judged(rows({"dense": DENSE, "ticket": GOOD, **apart}))


def data_of(chart: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The rows that are drawn and that have this field."""
    return [row for values in chart["datasets"].values() for row in values if key in row]


def test_every_arm_has_its_mean_interval_and_seeds(many: Verdict) -> None:
    charts = audit_figures(many, "digits")
    assert set(charts) == {"audit", "audit_metric", "audit_speed"}
    chart = charts["audit_metric"].to_dict()
    means = {row["arm"]: row for row in data_of(chart, "shown")}
    assert list(means) == [one.arm for one in many.arms]
    for one in many.arms:
        between = one.accuracy.compared.interval
        assert means[one.arm]["ahead"] == pytest.approx(100 * between.mean)
        assert [means[one.arm]["low"], means[one.arm]["high"]] == pytest.approx(
            [100 * (between.low or 0), 100 * (between.high or 0)]
        )
        assert one.accuracy.outcome in OUTCOMES[means[one.arm]["shown"]][2]
        seeds = [r["ahead"] for r in data_of(chart, "seed") if r["arm"] == one.arm]
        assert seeds == pytest.approx([100 * d for d in one.accuracy.compared.differences])
    (band,) = [row for row in data_of(chart, "low") if "arm" not in row]
    assert (band["low"], band["high"]) == pytest.approx((-0.5, 0.5))
    assert chart["height"] == 24 * 13


def test_one_arm_far_off_does_not_flatten_the_others() -> None:
    level = {name: near(shifted(0.001 * place), seed=place) for place, name in enumerate(CONTROLS[:5])}
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, **level, "random_labels": [[v - 0.8] for v in GOOD]}))
    chart = audit_figures(verdict, "digits")["audit_metric"].to_dict()
    low, high = chart["layer"][-1]["encoding"]["x"]["scale"]["domain"]
    assert low < -0.5
    assert 0.5 < high < 3
    assert "Beyond the axis: random_labels +80.0." in " ".join(chart["title"]["subtitle"])
    near_ones = audit_figures(judged(rows({"dense": DENSE, "ticket": GOOD, **level})), "digits")[
        "audit_metric"
    ].to_dict()
    assert "Beyond" not in " ".join(near_ones["title"]["subtitle"])


def test_few_seeds_show_ranges_and_other_metrics_have_no_points() -> None:
    there = (
        arm_rows("dense", [4.0, 4.2]) + arm_rows("ticket", [3.9, 4.1]) + arm_rows("reinit", [[4.4, 4.6], [4.5, 4.5]])
    )
    verdict = judged(there, metric="perplexity", higher_is_better=False, margin=0.1)
    chart = audit_figures(verdict, "words")["audit_metric"].to_dict()
    assert "from the lowest to the highest" in " ".join(chart["title"]["subtitle"])
    means = {row["arm"]: row for row in data_of(chart, "shown")}
    assert means["reinit"]["ahead"] == pytest.approx(0.5)
    assert chart["layer"][1]["encoding"]["x"]["title"] == "Ticket ahead by"


def test_figures_are_written_in_three_kinds(many: Verdict, tmp_path: Path) -> None:
    paths = save_figures(tmp_path, {"audit": audit_figures(many, "digits")["audit"]})
    assert [path.name for path in paths] == ["audit.svg", "audit.png", "audit.pdf"]
    svg = paths[0].read_text(encoding="utf-8")
    assert all(one.arm in svg for one in many.arms)
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_files_and_table_have_every_arm(many: Verdict, tmp_path: Path) -> None:
    runs = rows({"dense": DENSE, "ticket": GOOD})
    paths = save_audit(many, {"verdict": many.as_dict()}, runs, tmp_path)
    assert [path.name for path in paths] == ["audit.json", "arms.csv", "runs.csv"]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["verdict"]["words"] == list(many.words)
    with paths[1].open(newline="", encoding="utf-8") as file:
        saved = list(csv.DictReader(file))
    assert [(row["arm"], row["quantity"]) for row in saved] == [(r["arm"], r["quantity"]) for r in many.rows()]
    assert float(saved[2]["difference"]) == pytest.approx(many.arms[1].accuracy.compared.interval.mean)
    with paths[2].open(newline="", encoding="utf-8") as file:
        assert [row["run"] for row in csv.DictReader(file)] == [row["run"] for row in runs]
    table = arms_table(many)
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells[0] == ["ticket", *(one.arm for one in many.arms)]
    assert cells[2][1] == f"{100 * many.arms[0].accuracy.compared.interval.mean:+.2f}"
    assert cells[5][1:] == [one.accuracy.outcome for one in many.arms]


def test_the_table_shows_the_p_value_of_what_was_shown() -> None:
    level = judged(rows({"dense": DENSE, "ticket": GOOD, "reinit": near(GOOD)}))
    below = judged(rows({"dense": DENSE, "ticket": shifted(0.1)}))
    for verdict, place, p in [
        (level, 0, level.arms[0].accuracy.p_as_good),
        (level, 1, level.arms[1].accuracy.p_as_good),
        (below, 0, below.arms[0].accuracy.compared.worse),
    ]:
        shown = list(arms_table(verdict).columns[4].cells)[place + 1]
        assert p is not None
        assert str(shown) == ("< 0.001" if p < 0.001 else f"{p:.3f}")
    one = judged(rows({"dense": [0.98], "ticket": [0.97]}))
    assert [str(cell) for cell in arms_table(one).columns[4].cells] == ["", "\N{EN DASH}"]


def test_a_figure_of_a_draw_shows_at_most_seven_arms_and_names_the_others() -> None:
    def drawn(names: list[str]) -> list[dict[str, Any]]:
        there = [row for name in ["dense", "ticket", *names] for row in arm_rows(name, [0.9])]
        return [row | {"round": min(row["round"], 1)} for row in there]

    assert arms(drawn(CONTROLS)) == ["ticket", *CONTROLS], "tables have all of them, in one order"
    assert drawn_arms(drawn(CONTROLS[:6])) == ["ticket", *CONTROLS[:6]]
    shown = drawn_arms(drawn(CONTROLS))
    assert shown == ["ticket", "reinit", "shuffled", "random_erk", "inverted", "lr_rewind", "small_dense"]
    assert len(shown) == MOST_DRAWN
    chart = metric_figure(drawn(CONTROLS)).to_dict()
    said = " ".join(chart["title"]["subtitle"])
    left = [name for name in CONTROLS if name not in shown]
    assert f"Not drawn, but in the table: {', '.join(left)}." in said
    assert {row["arm"] for row in data_of(chart, "arm")} == set(shown)
    tuned = drawn(CONTROLS[:2]) + [row | {"arm": "dense_rate", "round": 0} for row in arm_rows("dense", [0.9])]
    assert drawn_arms(tuned) == ["ticket", "reinit", "shuffled"]
