"""What trackers are told of runs, that they never cost one, and the lines of JSON that are always written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_task
from tracked import ABOUT, SUMMARY, Fake, event, interrupted, one_run, step, tell, tell_all

import tombola as tb
from tombola.asked import draw_recipe
from tombola.events import Event
from tombola.execution import carry_out
from tombola.lab import Lab
from tombola.tasks import get_task
from tombola.tracking import JsonLines, Tracking, read_events


class Failing(Fake):
    """A tracker that fails in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.failures = where, 0
        setattr(self, where, self._fail)

    def _fail(self, *_: Any) -> None:
        self.failures += 1
        raise ConnectionError("nobody is there")


# What trackers are told


@given(st.permutations([run for run in "abc" for _ in range(5)]))
def test_interleaved_runs_are_told_apart(order: list[str]) -> None:
    events = {run: iter(one_run(run * 64)) for run in "abc"}
    fake = Fake()
    tell([fake], *(next(events[run]) for run in order))
    for run in "abc":
        own = [one for one in fake.calls if one[1:2] == (run * 64,)]
        assert [one[0] for one in own] == ["start", "log", "log", "log", "finish"]
        assert [one[2] for one in own[1:4]] == [0, 10, 20]
        assert own[1][3] == {"train_loss": None, "validation_loss": 1.0}
        assert own[4][2:] == (SUMMARY, "finished")
    assert fake.calls[-1] == ("close",)


def test_several_processes_tell_what_the_store_keeps(tmp_path: Path) -> None:
    task, fake, path = get_task("digits-mlp"), Fake(), tmp_path / "out" / "events.jsonl"
    options = {"rounds": 1, "training": {"steps": "40it", "evaluate_every": "20it"}}
    recipes = [draw_recipe(task, {**options, "seed": seed}) for seed in (0, 1)]
    with Tracking([fake, JsonLines(path)], search=recipes[0]) as tracking:
        draws = carry_out(recipes, store=str(tmp_path / "runs"), jobs=2, watcher=tracking)
    trained = {round.run.id: round.run for draw in draws for round in draw.rounds}
    assert len(trained) == 4
    assert fake.configs.keys() == trained.keys()
    for run in trained.values():
        assert fake.history(run.id) == run.history
        assert ("finish", run.id, run.summary, "finished") in fake.calls
    lines = read_events(path)
    assert [(line["kind"], line["run"]) for line in lines] == [
        (call[0].replace("log", "step").replace("finish", "done"), call[1]) for call in fake.calls[:-1]
    ]
    config = fake.configs[draws[1].rounds[1].run.id]
    assert config["name"] == f"digits-mlp imp ticket 80.20% seed 1 {draws[1].rounds[1].run.id[:8]}"
    assert (config["method"], config["search"]["rounds"]) == ("imp", 1)
    assert config["recipe"] == draws[0].recipe.training.model_dump(mode="json")
    assert not {"task", "seed", "training"} & config["search"].keys()
    dense = fake.configs[draws[0].rounds[0].run.id]
    assert dense["name"] == f"digits-mlp dense 100.00% seed 0 {draws[0].rounds[0].run.id[:8]}"


def test_the_number_of_a_controls_draw_is_told(store: tb.Store) -> None:
    fake = Fake()
    with Tracking([fake]) as tracking:
        run = Lab(toy_task(), store, watcher=tracking).train(5, arm="reinit", draw=2)
    assert fake.configs[run.id]["name"] == f"toy reinit 100.00% seed 5 draw 2 {run.id[:8]}"
    assert (fake.configs[run.id]["draw"], fake.configs[run.id]["method"]) == (2, None)
    json.dumps(fake.configs[run.id], allow_nan=False)


def test_runs_of_several_draws_are_told_theirs() -> None:
    fake, task = Fake(), toy_task()
    with Tracking([fake], search=draw_recipe(task, {"method": "snip"})) as tracking:
        tracking(event("start"), draw_recipe(task, {"method": "rigl"}))
        tracking(event("start", "b" * 64))
    assert [config["method"] for config in fake.configs.values()] == ["rigl", "snip"]


def test_only_what_is_trained_is_told_and_once(store: tb.Store) -> None:
    first, again = Fake(), Fake()
    beside: list[Event] = []
    with Tracking([first]) as tracking:
        Lab(toy_task(), store, watcher=tracking).train(0)
    with Tracking([again], beside=beside.append) as tracking:
        run = Lab(toy_task(), store, watcher=tracking).train(0)
        run.at(tb.Duration(13))  # trained once more, for its values there
    assert first.history(run.id) == run.history
    assert again.calls == [("close",)]
    assert [e.kind for e in beside if e.kind in ("found", "start", "done")] == ["found", "start", "done"]


def test_a_run_that_diverged_is_told_to_have(store: tb.Store, tmp_path: Path) -> None:
    fake, path = Fake(), tmp_path / "events.jsonl"
    with Tracking([fake, JsonLines(path)]) as tracking:
        recipe = tb.Recipe(steps="60it", batch=32, evaluate_every="10it", lr=1e30, optimizer="sgd")
        run = Lab(toy_task(), store, watcher=tracking, recipe=recipe).train(0)
    assert run.diverged
    assert fake.calls[-2][3] == "diverged"
    assert fake.history(run.id)[-1]["validation_loss"] is None
    assert read_events(path)[-1]["status"] == "diverged"


def test_open_runs_are_told_to_be_interrupted() -> None:
    fake = Fake()
    tracking = Tracking([fake])
    tell_all(tracking, event("start"), step(10))
    with pytest.raises(KeyboardInterrupt), tracking:
        raise KeyboardInterrupt
    assert fake.calls[2:] == [("finish", "a" * 64, {}, "interrupted"), ("close",)]
    tracking.close()
    tell_all(tracking, step(20), *one_run("b" * 64))
    assert len(fake.calls) == 4


# What never costs a run


@pytest.mark.parametrize("where", ["start", "log", "finish", "close"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(where: str, store: tb.Store) -> None:
    failing, sound, said = Failing(where), Fake(), "Failing failed .*: ConnectionError: nobody is there"
    with pytest.warns(UserWarning, match=said) as warned, Tracking([failing, sound]) as tracking:
        runs = [Lab(toy_task(), store, watcher=tracking).train(seed) for seed in (0, 1)]
    assert len(warned) == 1
    assert failing.failures == (2 if where == "close" else 1)  # it is asked to let go of what it holds
    assert [sound.history(run.id) for run in runs] == [run.history for run in runs]


def test_a_folder_that_takes_no_events_costs_no_run(store: tb.Store, tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path / "in the way" / "events.jsonl")
    (tmp_path / "in the way").touch()
    with pytest.warns(UserWarning, match="JsonLines failed"), Tracking([tracker]) as tracking:
        run = Lab(toy_task(), store, watcher=tracking).train(0)
    assert run.record.status == "finished"


# Lines of JSON


def test_lines_of_json_are_there_at_once_and_complete(tmp_path: Path) -> None:
    path, first = tmp_path / "events.jsonl", one_run()
    with Tracking([JsonLines(path)]) as tracking:
        assert not path.exists()
        for count, one in enumerate(first, start=1):
            tracking(one)
            assert len(read_events(path)) == count
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    keys = ["time", "kind", "run", "arm", "seed", "density", "step", "status", "values"]
    assert all(list(line) == keys and line["arm"] == "ticket" and line["seed"] == 3 for line in lines)
    assert [line["step"] for line in lines] == [None, 0, 10, 20, None]
    assert lines[0]["values"]["recipe"] == ABOUT["full_recipe"]
    assert lines[-1]["values"] == SUMMARY


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tell([JsonLines(path)], *one_run(end={"end": {"test_loss": float("inf")}, "steps": [float("nan"), 1]}))
    assert "Infinity" not in path.read_text()
    assert read_events(path)[-1]["values"] == {"end": {"test_loss": None}, "steps": [None, 1]}


def test_events_go_on_where_a_training_does(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    run = interrupted(tmp_path, lambda: JsonLines(path))
    assert path.read_bytes().count(b'"step": 30,') == 1
    assert path.read_bytes().count(b'"step": 40,') == 2  # the interruption came before its checkpoint
    events = read_events(path)
    assert [{"step": e["step"], **e["values"]} for e in events if e["kind"] == "step"] == run.history
    assert [e["status"] for e in events if e["kind"] == "done"] == ["interrupted", "finished"]


@given(cut=st.integers(1, 10_000))
def test_an_unfinished_last_line_is_left_out_and_replaced(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "events.jsonl"
    tell([JsonLines(path)], *one_run())
    data = path.read_bytes()
    data = data[: len(data) - cut % len(data)]
    path.write_bytes(data)
    before = read_events(path)
    assert len(before) == data.count(b"\n")
    tell([JsonLines(path)], *one_run("b" * 64))
    after = read_events(path)
    assert after[: len(before)] == before
    assert [e["run"][0] for e in after[len(before) :]] == ["b"] * 5


def test_other_files_are_neither_spoilt_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("{}\nhello")
    with pytest.raises(tb.InputError, match=r"notes.txt holds something else"):
        JsonLines(path)
    with pytest.raises(tb.InputError, match="line 1 is none"):
        read_events(path)
    with pytest.raises(tb.InputError, match="can't be written to"):
        JsonLines(tmp_path)
    with pytest.raises(tb.InputError, match="can't be read from"):
        read_events(tmp_path / "nothing")
