"""Several processes at once: the same results as one after the other, and errors that don't cost finished work."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import same

import tombola as tb
from tombola.draws import draw_recipe
from tombola.execution import carry_out
from tombola.lab import Event

OPTIONS = {"rounds": 1, "controls": ["reinit"], "training": {"steps": "20it", "evaluate_every": "10it"}}


def test_workers_give_the_same_bits_as_one_process(tmp_path: Path) -> None:
    task = tb.get_task("digits-mlp")
    recipes = [draw_recipe(task, {**OPTIONS, "seed": seed}) for seed in (0, 1)]
    events: list[Event] = []
    many = carry_out(recipes, store=str(tmp_path / "many"), jobs=2, watcher=events.append)
    one = carry_out(recipes, store=str(tmp_path / "one"))
    for ours, theirs in zip(many, one, strict=True):
        assert ours.ticket().digest == theirs.ticket().digest
        assert [r["run"] for r in ours.rows()] == [r["run"] for r in theirs.rows()]
        for a, b in zip(ours.rounds, theirs.rounds, strict=True):
            assert same(a.run.final, b.run.final)
    starts = [(e.arm, e.seed, e.density) for e in events if e.kind == "start"]
    assert len(starts) == len(set(starts)) == 6


def test_a_failing_draw_does_not_stop_the_others(tmp_path: Path) -> None:
    task = tb.get_task("digits-mlp")
    bad = draw_recipe(task, {**OPTIONS, "training": {"optimizer": "sgd", "lr": 1e30, "steps": "20it"}})
    good = draw_recipe(task, {**OPTIONS, "seed": 1})
    with pytest.raises(tb.TombolaError, match="diverged"):
        carry_out([bad, good], store=str(tmp_path), jobs=2)
    with tb.Store(tmp_path) as store:
        assert {(d.about["seed"], d.status) for d in store.draws()} >= {(1, "finished")}
