"""How far studies are, what comes of them, and how long they take: from the store alone, without processes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
import pytest

import tombola as tb
from tombola.draws import Draw
from tombola.errors import StoreError
from tombola.execution import carry_out
from tombola.recipe import DrawRecipe
from tombola.studies import begun, library, results
from tombola.studies.pace import Pace, Work, seconds_left, works
from tombola.studies.plan import Plan, plan
from tombola.studies.state import look
from tombola.studies.study import Study, read_study
from tombola.task_times import Measured, Speed, Times

HEAD = 'name = "x"\n[[draws]]\ntasks = "digits-mlp"\nmethods = "imp"\n'
TINY = """
name = "tiny"
seeds = [3]
[[draws]]
tasks = "digits-mlp"
methods = ["imp", "one_shot"]
densities = [0.5]
rate = 0.3
controls = ["reinit", "shuffled"]
control_draws = 2
control_rounds = [1]
[draws.training]
steps = "20it"
evaluate_every = "10it"
[[draws]]
tasks = "digits-mlp"
methods = "snip"
densities = [0.5, 0.1]
[draws.training]
steps = "20it"
evaluate_every = "10it"
"""


def read(text: str) -> Study:
    return read_study(tomllib.loads(text), "tried.toml")


# ---- how far a study is


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, list[Draw]]:
    """A study that is carried out in this process, with its draws."""
    found, folder = plan(read(TINY)), tmp_path_factory.mktemp("tiny") / "runs"
    return found, folder, carry_out([d.recipe for d in found.draws], store=str(folder))


def test_states_before_during_and_after(tmp_path: Path) -> None:
    found = plan(read(TINY))
    imp, one_shot, snip = found.draws
    assert [s.state for s in look(found, None)] == ["waiting"] * 3
    assert [(s.left, s.total) for s in look(found, None)] == [(7, 7), (6, 6), (3, 3)]
    with tb.Store(tmp_path) as store:
        rows: list[dict[str, Any]] = []

        def enter(status: str, *more: tuple[str, int, int, float]) -> None:
            for arm, number, draw, density in more:
                row = {"arm": arm, "round": number, "draw": draw, "density": density, "seconds": 1.0}
                rows.append(row | {"run": str(len(rows))})
            store.save_draw("a" * 64, {"recipe": imp.recipe.model_dump(mode="json")}, rows, status)

        enter("running", ("ticket", 0, 0, 1.0))
        state = look(found, store)[0]
        assert (state.state, state.left, state.total) == ("begun", 6, 7)
        assert state.missing_rounds == [imp.densities[0], 0.5]
        assert look(found, store, at_work=[imp.key])[0].state == "running"
        failed = look(found, store, failures={imp.key: "it broke"})[0]
        assert (failed.state, failed.error) == ("failed", "it broke")
        enter("finished", ("ticket", 1, 0, 0.7), ("ticket", 2, 0, 0.5), ("reinit", 1, 1, 0.7))
        state = look(found, store, at_work=[one_shot.key])[0]
        assert (state.state, state.left, state.missing_rounds) == ("begun", 3, [])
        assert state.missing_controls == [0.7] * 3
        enter("finished", ("reinit", 1, 0, 0.7), ("shuffled", 1, 0, 0.7), ("shuffled", 1, 1, 0.7))
        states = look(found, store, at_work=[imp.key, snip.key], failures={imp.key: "before"})
        assert [s.state for s in states] == ["done", "waiting", "running"]
        assert states[0].left == 0
        assert states[0].seconds == 7


def test_a_search_that_ended_early_is_done(tmp_path: Path) -> None:
    found = plan(read(HEAD + 'stop_at_margin = true\ncontrols = ["reinit"]'))
    rows = [
        {"arm": "ticket", "round": n, "draw": 0, "density": 0.8**n, "seconds": 1.0, "run": str(n)} for n in range(3)
    ]
    rows += [rows[n] | {"arm": "reinit"} for n in (1, 2)]
    with tb.Store(tmp_path) as store:
        recipe = found.draws[0].recipe
        store.save_draw("a" * 64, {"recipe": recipe.model_dump(mode="json")}, rows, "finished")
        store.save_draw(
            "b" * 64, {"recipe": {"task": "digits-mlp", "method": "imp", "seed": 0, "no": 1}}, [], "running"
        )
        (state,) = look(found, store)
    assert (state.state, state.total) == ("done", 5)


def test_draws_of_the_library_count(tiny: tuple[Plan, Path, list[Draw]]) -> None:
    found, folder, draws = tiny
    with tb.Store(folder) as store:
        states = look(found, store)
    assert [s.state for s in states] == ["done"] * 3
    assert [s.total for s in states] == [len(draw.rows()) for draw in draws]
    other = plan(read(TINY.replace("[3]", "[4]")))
    with tb.Store(folder) as store:
        assert [s.state for s in look(other, store)] == ["waiting"] * 3


# ---- results


def test_results_are_the_rows_of_the_draws(tiny: tuple[Plan, Path, list[Draw]]) -> None:
    found, folder, draws = tiny
    with tb.Store(folder) as store:
        table = results.rows(found, look(found, store))
    expected = [(draw, row) for draw in draws for row in draw.rows()]
    assert len(table) == len(expected) == 7 + 6 + 3
    for row, (draw, own) in zip(table, expected, strict=True):
        assert list(row) == list(results.columns(found))
        assert (row["task"], row["method"], row["draw_id"]) == ("digits-mlp", draw.recipe.method, draw.id)
        assert (row["metric"], row["criterion"], row["survivors"]) == ("accuracy", "magnitude", "reset")
        assert {name: row[name] for name in own if "find" not in name} == {
            n: v for n, v in own.items() if "find" not in n
        }
    assert [r["asked"] for r in table if r["method"] == "imp" and r["arm"] == "ticket"] == [None, None, 0.5]
    assert sum(r["chosen"] for r in table) == 3


def test_fields_that_differ_have_columns_of_their_own() -> None:
    text = HEAD + 'rounds = [2, 3]\nmargin = [0.1, 0.2]\nallocation = ["global", "erk"]\nunpruned = ["fc3*"]\n'
    names = results.columns(plan(read(text)))
    assert [names[n] for n in ("rounds", "margin", "allocation")] == [int, float, str]
    assert list(names)[4:9] == ["seed", "rounds", "allocation", "margin", "arm"]


def test_parquet_csv_and_json_hold_the_same(tiny: tuple[Plan, Path, list[Draw]], tmp_path: Path) -> None:
    found, folder, _ = tiny
    with tb.Store(folder) as store:
        table = results.rows(found, look(found, store))
    table[1]["stop_metric"] = None  # as of a run that diverged
    csv_path, parquet_path, json_path, study_path = results.save_all(tmp_path / "out", found, table)
    parquet = pd.read_parquet(parquet_path, dtype_backend="numpy_nullable")
    text = pd.read_csv(csv_path, dtype_backend="numpy_nullable")
    assert list(parquet.columns) == list(text.columns) == list(results.columns(found))
    for frame in (parquet, text):
        back = [{n: None if pd.isna(v) else v for n, v in row.items()} for row in frame.to_dict("records")]
        assert back == table
    assert str(parquet.dtypes["stop_step"]) == str(parquet.dtypes["bytes"]) == "Int64"
    document = json.loads(json_path.read_text())
    assert document["rows"] == table
    assert (document["study"], document["size"]) == ("tiny", "full")
    again = plan(library.load(str(study_path)))
    assert [d.key for d in again.draws] == [d.key for d in found.draws]


def test_a_table_of_nothing_has_its_types(tmp_path: Path) -> None:
    found = plan(read(TINY))
    schema = pyarrow.parquet.read_table(results.save(tmp_path / "x.parquet", "parquet", found, [])).schema
    assert [str(schema.field(n).type) for n in ("task", "seed", "density", "chosen")] == [
        *("string", "int64", "double", "bool")
    ]


# ---- how long it takes


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all tasks, one is known: a step takes a second, an evaluation none."""
    times = Measured(1_000, 100, 100, None, None, cpu=Speed(1.0, 0.0))
    monkeypatch.setattr("tombola.studies.pace.known", lambda: Times({}, {"digits-conv": times}))


def steps(task: str, count: int) -> DrawRecipe:
    return DrawRecipe.model_validate({"task": task, "training": {"steps": f"{count}it"}})


def test_pace_goes_by_task_length_and_the_nearest_density(measured: None) -> None:
    recipe, pace = steps("digits-mlp", 10), Pace()
    assert pace.seconds(recipe, 0.5) is None
    for density, seconds in ((1.0, 10.0), (0.1, 1.0), (0.1, 3.0)):
        pace.add(recipe, density, seconds)
    assert pace.seconds(recipe, 0.9) == 10
    assert pace.seconds(recipe, 0.05) == 2
    assert pace.seconds(steps("fashion-mlp", 10), 0.1) is None
    assert pace.seconds(steps("digits-mlp", 5), 0.1) is None


def test_what_no_run_tells_is_reckoned_at_the_speed_of_the_runs_that_are_there(measured: None) -> None:
    short, long, pace = steps("digits-conv", 10), steps("digits-conv", 30), Pace()
    assert pace.seconds(long, 0.1) == 30
    assert seconds_left([Work(long, [1.0, 0.5], [0.5])], pace, 1) == 90
    for seconds in (4.0, 6.0):
        pace.add(short, 1.0, seconds)
    pace.add(steps("digits-mlp", 10), 1.0, 1_000.0)  # of which nothing is known otherwise
    assert pace.seconds(long, 0.1) == 15, "this machine takes half of the time"
    assert pace.seconds(short, 0.1) == 5, "measured"
    elsewhere = long.model_copy(update={"training": long.training.model_copy(update={"device": "cuda"})})
    assert pace.seconds(elsewhere, 0.1) is None
    tuned = long.model_copy(update={"fine_tune": tb.Duration(8)})
    assert (pace.seconds(tuned, 1.0), pace.seconds(tuned, 0.1)) == (15, 4)


def test_time_left_is_work_by_processes_but_no_less_than_a_search(measured: None) -> None:
    recipe = steps("digits-mlp", 10).model_copy(update={"controls": ("reinit",)})
    pace = Pace()
    searching, controls = Work(recipe, [1.0] * 6), Work(recipe, [], [1.0] * 6)
    assert seconds_left([searching], pace, 2) is None
    assert seconds_left([Work(recipe)], pace, 2) == 0
    pace.add(recipe, 1.0, 2.0)
    assert seconds_left([searching, controls], pace, 1) == 24
    assert seconds_left([searching, controls], pace, 2) == 12
    assert seconds_left([searching, controls], pace, 100) == 12
    assert seconds_left([controls], pace, 6) == 2
    strange = Work(steps("fashion-mlp", 10), [1.0] * 3)
    assert seconds_left([searching, strange], pace, 1) == 18, "what is not known counts as the mean of the others"
    controls.done("reinit", 1.0)
    searching.done("ticket", 1.0)
    searching.done("ticket", 0.8)  # no round of this search
    assert (controls.left, searching.left) == (5, 5)


def test_a_dense_net_that_draws_share_is_left_once(tiny: tuple[Plan, Path, list[Draw]]) -> None:
    found, folder, _ = tiny
    left = works(look(found, None))
    assert [len(work.rounds) for work in left.values()] == [3, 1, 2]
    with tb.Store(folder) as store:
        states = look(found, store)
        pace = Pace.of(store)
    assert sum(work.left for work in works(states).values()) == 0
    seconds = pace.seconds(found.draws[0].recipe, 1.0)
    assert seconds == pytest.approx(states[0].rows[0]["seconds"])


# ---- studies that were begun


def test_a_study_that_was_begun_is_remembered_past_garbage_collection(tmp_path: Path) -> None:
    study = read(TINY)
    fields: dict[str, Any] = {"source": dict(study.source), "where": "tried.toml", "jobs": 2, "data_root": None}
    one = begun.Begun(**fields, quick=False, out="out", begun=2.0, updated=2.0, process=begun.Process.this())
    two = one.model_copy(update={"quick": True, "begun": 1.0, "process": None, "at_work": ("a",)})
    with tb.Store(tmp_path) as store:
        begun.remember(str(tmp_path), one)
        begun.remember(str(tmp_path), two)
        store.gc(keep_runs=False, grace_seconds=0, abandoned_days=0)
    assert begun.all_begun(str(tmp_path)) == [two, one]
    assert (one.runs, two.runs) == (True, False)
    assert two.busy == ()
    assert [d.key for d in plan(begun.all_begun(str(tmp_path))[0].study).draws] == [d.key for d in plan(study).draws]
    (tmp_path / "studies" / "tiny.json").write_text("{}")
    with pytest.raises(StoreError, match=r"studies/tiny\.json .* is damaged: remove it"):
        begun.all_begun(str(tmp_path))
