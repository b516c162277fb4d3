"""Several processes at once: the same results as one after the other, and errors that don't cost finished work."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from toy import same

import tombola as tb
from tombola import execution
from tombola.asked import controls_of, draw_recipe
from tombola.draws import Draw, rounds
from tombola.errors import TombolaError
from tombola.events import Event
from tombola.execution import Follower, carry_out, fill_store
from tombola.lab import Lab


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that are started, in order."""
    found: list[Any] = []
    start = execution._Pool._start
    monkeypatch.setattr(execution._Pool, "_start", lambda pool: found.append(start(pool)) or found[-1])
    return found


OPTIONS = {"rounds": 1, "controls": ["reinit"], "training": {"steps": "20it", "evaluate_every": "10it"}}


def test_workers_give_the_same_bits_as_one_process(tmp_path: Path, started: list[Any]) -> None:
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
    assert len(started) == 2, "searches and controls share two processes"
    with tb.Store(tmp_path / "many") as store:
        records = {d.about["seed"]: d for d in store.draws()}
    for recipe, ours in zip(recipes, many, strict=True):
        rows = records[recipe.seed].rounds
        assert [(r["arm"], r["round"], r["run"]) for r in rows] == [
            (r["arm"], r["round"], r["run"]) for r in ours.rows()
        ]
        assert [r["chosen"] for r in rows if r["arm"] == "reinit"] == [False]


def test_a_failing_draw_does_not_stop_the_others(tmp_path: Path) -> None:
    task = tb.get_task("digits-mlp")
    bad = draw_recipe(task, {**OPTIONS, "training": {"optimizer": "sgd", "lr": 1e30, "steps": "20it"}})
    good = draw_recipe(task, {**OPTIONS, "seed": 1})
    with pytest.raises(tb.TombolaError, match="diverged"):
        carry_out([bad, good], store=str(tmp_path), jobs=2)
    with tb.Store(tmp_path) as store:
        assert {(d.about["seed"], d.status) for d in store.draws()} >= {(1, "finished")}


class Noted(Follower):
    """Writes down what it hears, and kills the process that begins a draw, where it is told to."""

    def __init__(self, kill: int | None = None) -> None:
        self.kill, self.heard = kill, list[tuple[Any, ...]]()

    def begun(self, index: int) -> None:
        self.heard.append(("begun", index))
        if index == self.kill:
            for process in multiprocessing.active_children():
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)

    def event(self, index: int, event: Event) -> None:
        self.heard.append((event.kind, index, event.seed))

    def over(self, index: int, error: TombolaError | None) -> None:
        self.heard.append(("over", index, None if error is None else str(error)))


def test_processes_live_on_and_one_that_dies_costs_its_draw_only(tmp_path: Path, started: list[Any]) -> None:
    more = {**OPTIONS, "controls": ["shuffled", "reinit"], "control_draws": 2}
    recipes = [draw_recipe(tb.get_task("digits-mlp"), {**more, "seed": seed}) for seed in (5, 6, 7)]
    noted = Noted(kill=0)
    errors = fill_store(recipes, store=str(tmp_path), jobs=1, follower=noted)
    assert list(errors) == [0]
    assert str(errors[0]) == "the process drawing seed 5 ended with status -9; run again to go on"
    assert len(started) == 2
    assert not any(worker.process.is_alive() for worker in started)
    assert [h for h in noted.heard if h[0] == "begun"] == [("begun", n) for n in range(3)]
    assert [h for h in noted.heard if h[0] == "over"] == [
        ("over", 0, str(errors[0])),
        ("over", 1, None),
        ("over", 2, None),
    ]
    assert [h for h in noted.heard if h[0] == "done"] == [("done", n, n + 5) for n in (1, 2) for _ in range(6)]
    with tb.Store(tmp_path) as store:
        assert [(d.about["seed"], d.status) for d in store.draws()] == [(6, "finished"), (7, "finished")]


class Impatient(Follower):
    """Interrupts when the first training begins."""

    def event(self, index: int, event: Event) -> None:
        raise KeyboardInterrupt


def test_a_process_at_work_that_is_interrupted_cleans_up(tmp_path: Path, started: list[Any]) -> None:
    slow = {**OPTIONS, "training": {"steps": "1000000it", "evaluate_every": "10it"}}
    with pytest.raises(KeyboardInterrupt):
        fill_store([draw_recipe(tb.get_task("digits-mlp"), slow)], store=str(tmp_path), jobs=1, follower=Impatient())
    assert [worker.process.exitcode for worker in started] == [128 + signal.SIGTERM]
    with tb.Store(tmp_path) as store:
        assert [run.status for run in store.runs()] == ["interrupted"]


@pytest.mark.parametrize("options", [
    {"controls": ["shuffled", "reinit"], "control_draws": 2, "rounds": 2},
    {"controls": ["inverted", "reinit"], "control_draws": 2, "rounds": 2, "control_rounds": [2], "method": "one_shot"},
    {"dense_rates": [0.01, 0.02], "rounds": 1},
])  # fmt: skip
def test_controls_are_counted_as_they_are_trained(store: tb.Store, options: dict[str, Any]) -> None:
    task = tb.get_task("digits-mlp")
    recipe = draw_recipe(task, {"training": {"steps": "20it", "evaluate_every": "10it"}, **options})
    found = Draw(recipe, Lab(task, store, recipe=recipe.training))
    numbers = [round.number for round in rounds(found) if round.number]
    expected = controls_of(recipe, numbers)
    assert expected
    for part in range(3):
        trained = list(execution.controls(found, part, 3))
        assert [(c.arm, c.round, c.draw) for c in trained] == expected[part::3]
