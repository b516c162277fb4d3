"""Draws of tasks whose data come of acting, in figures and on the page: reward curves beside validation curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_acting import bandit
from test_control_tasks import tiny
from toy import drawn, toy_task

import tombola as tb
from tombola.draws import Draw
from tombola.findings import findings_of
from tombola.report.figures import figures
from tombola.report.page.sections import sections
from tombola.report.tables import save_tables

OPTIONS: dict[str, Any] = {"rounds": 2, "controls": ["reinit", "shuffled"]}


def names(found: Draw) -> list[str]:
    metric = found.lab.task.metric
    return list(figures(found.rows(), found.curves(), found.layers(), title="x", metric=metric))


def test_a_draw_has_reward_curves_in_its_figures_its_tables_and_on_its_page(tmp_path: Path) -> None:
    with tb.Store(tmp_path / "runs") as store:
        found = drawn(store, tiny(), **OPTIONS)
        assert names(found) == ["return", "early_stop", "curves", "train_return", "layers", "overview"]
        curves = found.curves()
        assert {row["train_metric"] for row in curves if row["step"] == 0} == {None}
        assert all(row["train_metric"] > 1 for row in curves if row["step"] == 12)
        told = [row["train_metric"] for row in curves if (row["arm"], row["round"]) == ("reinit", 2)]
        (run,) = [c.run for c in found.controls if (c.arm, c.round) == ("reinit", 2)]
        assert told == [row["train_return"] for row in run.history]
        _, saved, _ = save_tables(tmp_path, found.rows(), curves, [])
        assert saved.read_text().partition("\n")[0].endswith(",validation_loss,validation_metric,train_metric")
        seen = findings_of(store, [found.id])
        assert sorted(map(str, seen.searches[0].curves)) == sorted(map(str, curves))
        (part,) = [part for part in sections(seen) if part.heading == "Training"]
    assert part.html.index("Validation return") < part.html.index("Training return")
    assert "-train-return" in part.html
    assert "Running mean over the last games of training." in part.html


def test_what_is_told_is_the_tasks_metric(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        assert "train_paid" in names(drawn(store, bandit(), rounds=1))
        # The data tell of what is paid, which isn't what the nets are judged by.
        other = drawn(store, bandit(metric="loss", higher_is_better=False, name="other"), rounds=1)
        assert names(other) == ["loss", "early_stop", "curves", "layers", "overview"]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_other_tasks_have_none(tmp_path: Path, metric: str) -> None:
    with tb.Store(tmp_path) as store:
        found = drawn(store, toy_task(metric=metric, higher_is_better=metric != "loss"), rounds=1)
        assert "train_metric" not in found.curves()[0]
        assert names(found) == [metric, "early_stop", "curves", "layers", "overview"]
        (part,) = [part for part in sections(findings_of(store, [found.id])) if part.heading == "Training"]
    assert "Training accuracy" not in part.html
    assert "Training loss" not in part.html
