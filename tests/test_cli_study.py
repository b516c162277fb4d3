"""``tombola study`` on the embedded digits, tiny: what it prints, writes, refuses, and how it goes on after a kill."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from cli_tools import Result, call
from rich.console import Console

import tombola as tb
from tombola.cli.studying.overview import Overview
from tombola.errors import TombolaError
from tombola.events import Event
from tombola.execution import carry_out
from tombola.studies.library import load, shipped
from tombola.studies.pace import Pace
from tombola.studies.plan import Plan, plan
from tombola.studies.state import look
from tombola.task_times import Times

STUDY = """
name = "small"
description = "A study of seconds"
seeds = "0-1"
[[draws]]
tasks = ["digits-mlp"]
methods = ["imp", "snip"]
densities = [0.5]
rate = 0.3
controls = ["reinit"]
[draws.training]
steps = "20it"
evaluate_every = "10it"
[[draws]]
tasks = ["digits-mlp"]
methods = ["one_shot"]
densities = [0.5]
[draws.training]
steps = "20it"
optimizer = "sgd"
lr = 1e30
[quick]
seeds = "0"
"""
LONGER = """
name = "longer"
seeds = "0-1"
[[draws]]
tasks = "digits-mlp"
methods = "imp"
rounds = 1
controls = ["reinit", "shuffled"]
[draws.training]
steps = "200it"
"""


class Ran(NamedTuple):
    """A study that was carried out once, for all tests that only look."""

    file: Path
    store: Path
    out: Path
    result: Result


def written(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("study")
    file, store, out = written(folder, STUDY), folder / "runs", folder / "out"
    return Ran(file, store, out, call("study", "run", file, "-j", 2, "--store", store, "--out", out))


# ---- run


def test_a_study_is_carried_out_and_failing_draws_are_told(ran: Ran) -> None:
    assert ran.result.status == 1
    first, *failures, last = ran.result.out.splitlines()
    assert first.startswith("small (full): 4 of 6 draws done, 14 runs, ")
    assert failures == [
        f"digits-mlp · one_shot · seed {seed} failed: the dense net of seed {seed} diverged after 20 steps, "
        "so there is nothing to prune: lower the learning rate"
        for seed in (0, 1)
    ]
    assert last == f"Written: {', '.join(str(ran.out / f'results.{k}') for k in ('csv', 'parquet', 'json'))}, " + str(
        ran.out / "study.toml"
    )
    lines = ran.result.err.splitlines()
    assert lines[0].startswith("small (full): 0 of 6 draws, 0 of 18 runs; ")
    for method, runs in (("imp", 4), ("snip", 3)):
        assert all(f"digits-mlp · {method} · seed {seed}: done, {runs} runs" in lines for seed in (0, 1))
    assert sum(": failed: the dense net of seed" in line for line in lines) == 2


def test_the_same_again_trains_nothing_that_is_done(ran: Ran) -> None:
    shown = call("study", "resume", "small", "-j", 1, "--store", ran.store, "--json")
    assert shown.status == 1, "what failed is tried again, and fails again"
    assert shown.err.startswith("4 draws of 6 in the store already\n")
    assert "imp" not in shown.err
    assert shown.json["states"] == {"done": 4, "running": 0, "begun": 0, "failed": 2, "waiting": 0}
    assert {Path(name).name for name in shown.json["files"]} == set(os.listdir(ran.out)) - {"events.jsonl"}
    quick = call("study", "status", ran.file, "--quick", "--store", ran.store, "--json").json
    assert [one["state"] for one in quick["draws"]] == ["done", "done", "begun"], "a draw belongs to no size or study"


# ---- status


def test_status_tells_what_is_done_and_what_failed(ran: Ran) -> None:
    shown = call("study", "status", ran.file, "--full", "--store", ran.store)
    assert shown.status == 0
    lines = shown.out.splitlines()
    assert lines[0].startswith("small (full), begun 20")
    assert ": 4 of 6 draws done, 16 of 18 runs; not running, left: about " in lines[0]
    assert lines[0].endswith("; tombola study resume goes on")
    assert lines[1].split()[:4] == ["task", "method", "draws", "done"]
    assert [line.split() for line in lines[2:5]] == [
        ["digits-mlp", "imp", "2", "2", "0", "0", "0", "0", "8", "8"],
        ["digits-mlp", "snip", "2", "2", "0", "0", "0", "0", "6", "6"],
        ["digits-mlp", "one_shot", "2", "0", "0", "0", "2", "0", "2", "4"],
    ]
    assert sum("failed: the dense net" in line for line in lines[5:]) == 2
    found = call("study", "status", "small", "--full", "--store", ran.store, "--json").json
    assert (found["study"], found["size"], found["running"], found["runs"]) == ("small", "full", False, 18)
    assert [one["state"] for one in found["draws"]] == ["done"] * 4 + ["failed"] * 2
    assert found["seconds_left"] > 0


def test_watching_a_study_that_is_over_ends_at_once(ran: Ran) -> None:
    watched = call("study", "status", "small", "--full", "--watch", "--store", ran.store)
    assert watched.status == 0
    assert watched.out.startswith("small (full), begun 20")
    live = call("study", "status", "small", "--full", "--watch", "--store", ran.store, terminal=True)
    assert "4 of 6 draws done" in live.out


# ---- results


def test_results_are_the_files_of_the_run(ran: Ran, tmp_path: Path) -> None:
    asked = ("study", "results", "small", "--full", "--store", ran.store)
    assert call(*asked).out == (ran.out / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(call(*asked).out)))
    assert len(rows) == 2 * (4 + 3 + 1)
    assert {(r["arm"], r["status"]) for r in rows} == {
        *((arm, "finished") for arm in ("ticket", "reinit")),
        ("ticket", "diverged"),
    }
    assert [r["end_metric"] for r in rows if r["status"] == "diverged"] == ["", ""]
    for found in (call(*asked, "--json").json, call(*asked, "--format", "json").json):
        assert found == json.loads((ran.out / "results.json").read_text())
    path = tmp_path / "more" / "x.parquet"
    saved = call(*asked, "--format", "parquet", "-o", path)
    assert (saved.status, saved.out) == (0, "")
    assert pd.read_parquet(path).equals(pd.read_parquet(ran.out / "results.parquet"))
    assert list(pd.read_parquet(path)["run"]) == [r["run"] for r in rows]


# ---- show and list


def test_show_tells_every_draw_and_what_the_store_has(ran: Ran, tmp_path: Path) -> None:
    shown = call("study", "show", ran.file, "--store", ran.store)
    lines = shown.out.splitlines()
    assert lines[0] == "small (full): A study of seconds"
    assert lines[2].rsplit(maxsplit=4) == ["digits-mlp · imp · seed 0", "2", "1", "4", "4"]
    assert len(lines) == 2 + 6 + 1
    assert lines[-1].startswith("6 draws, 18 runs; what draws share")
    before = call("study", "show", ran.file, "--quick", "--store", tmp_path / "none", "--json").json
    assert [one["state"] for one in before["draws"]] == ["waiting"] * 3
    assert 0 < before["seconds_left"] < 60, "reckoned"
    assert before["draws"][0]["densities"] == [0.707107, 0.5]
    assert not (tmp_path / "none").exists()


def test_list_has_the_shipped_studies(tmp_path: Path) -> None:
    found = call("study", "list", "--store", tmp_path / "none", "--json").json
    assert [one["name"] for one in found] == shipped()
    assert all(one["quick"]["runs"] < one["full"]["runs"] or one["name"] == "rewinding" for one in found)
    shown = call("study", "list", "--store", tmp_path / "none")
    assert all(f"{name}: " in shown.out for name in shipped())
    assert not (tmp_path / "none").exists()


# ---- bad input


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run", "lenet-ticket"), "Did you mean 'lenet-tickets'?"),
        (("run", "none.toml"), "none.toml can't be read"),
        (("run", "lenet-tickets", "-j", "0"), "--jobs"),
        (("run", "lenet-tickets", "--qick"), "Did you mean '--quick'?"),
        (("runn", "lenet-tickets"), "unknown command 'runn'. Did you mean 'run'?"),
        (("resume",), "no study was begun in"),
        (("resume", "lenet-tickets"), "no study 'lenet-tickets' was begun in"),
        (("status",), "no study was begun in"),
        (("status", "at-init"), "there is no store at"),
        (("status", "at-init", "--watch", "--json"), "leave one of them out"),
        (("results", "at-init"), "there is no store at"),
        (("results", "at-init", "--json", "--format", "csv"), "don't go together"),
        (("show", "at-inti"), "Did you mean 'at-init'?"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    shown = call("study", *args, "--store", tmp_path / "runs")
    assert (shown.status, shown.out) == (2, "")
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "runs").exists()


def test_parquet_wants_a_file(ran: Ran) -> None:
    shown = call("study", "results", "--format", "parquet", "--store", ran.store)
    assert (shown.status, shown.out) == (2, "")
    assert "-o" in shown.err


def test_what_is_in_the_way_of_results_is_told_before_the_work(ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "results.parquet").mkdir()
    shown = call("study", "run", ran.file, "--store", tmp_path / "runs", "--out", tmp_path)
    assert (shown.status, shown.out) == (2, "")
    assert "results.parquet is in the way" in shown.err
    assert not (tmp_path / "runs").exists()


# ---- killed


def test_a_killed_study_goes_on_without_its_file(tmp_path: Path) -> None:
    file, store = written(tmp_path, LONGER), tmp_path / "runs"
    command = [sys.executable, "-m", "tombola", "study", "run", str(file), "-j", "1", "--store", str(store)]
    victim = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    try:
        found = during(store)
        assert (found["study"], found["running"], found["jobs"]) == ("longer", True, 1)
        assert found["runs"] == 8
        assert 0 < found["runs_done"] < 8
        refused = call("study", "resume", "--store", store)
        assert (refused.status, "is running" in refused.err) == (2, True)
    finally:
        victim.kill()
        victim.communicate()
    file.unlink()
    after = call("study", "status", "--store", store, "--json").json
    assert not after["running"]
    assert {one["state"] for one in after["draws"]} <= {"begun", "waiting", "done"}
    resumed = call("study", "resume", "--store", store)
    assert resumed.status == 0, resumed.err
    assert resumed.out.startswith("longer (full): 2 of 2 draws done, 8 runs")
    study = load(str(tmp_path / "out" / "study.toml"))
    calm = carry_out([d.recipe for d in plan(study).draws], store=str(tmp_path / "calm"))
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [row for draw in calm for row in draw.rows()]
    assert [row["run"] for row in rows] == [row["run"] for row in expected]
    assert [float(row["stop_metric"]) for row in rows] == [row["stop_metric"] for row in expected]


def during(store: Path) -> Any:
    """The status of a study that another process carries out, when some of it is done."""
    for _ in range(1200):
        time.sleep(0.1)
        if any((store / "studies").glob("*.json")):
            found = call("study", "status", "--store", store, "--json").json
            if any(one["state"] == "running" and one["runs_done"] for one in found["draws"]):
                return found
    raise AssertionError("it didn't begin")


def test_an_interrupt_ends_with_its_own_status(tmp_path: Path) -> None:
    file, store = written(tmp_path, LONGER), tmp_path / "runs"
    command = [sys.executable, "-m", "tombola", "study", "run", str(file), "-j", "1", "--store", str(store)]
    victim = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        time.sleep(0.05)
        if any((store / "studies").glob("*.json")):
            break
    victim.send_signal(signal.SIGINT)
    _, err = victim.communicate(timeout=300)
    assert victim.returncode == 130
    assert err.splitlines()[-1].startswith("Interrupted.")
    assert not call("study", "status", "--store", store, "--json").json["running"]


# ---- what is seen while it runs


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def small(tmp_path: Path) -> Plan:
    return plan(load(str(written(tmp_path, STUDY))), quick=True)


def seen(found: Plan, *happened: tuple[float, str, Any], terminal: bool = False) -> str:
    """What is written when a draw meets with these things at these seconds."""
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, force_terminal=terminal, width=140, highlight=False, color_system=None)
    with Overview(found, Pace(), 2, console=console, clock=clock) as overview:
        overview.of(look(found, None))
        for seconds, what, argument in happened:
            clock.now = seconds
            getattr(overview, what)(found.draws[0], *argument)
            if terminal:
                overview.bars.refresh()
    return text.getvalue()


def event(kind: Any, **changes: Any) -> Event:
    return Event(**{"kind": kind, "arm": "ticket", "seed": 0, "density": 1.0, **changes})


def test_a_log_has_a_line_for_each_draw_and_is_not_silent(small: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tombola.studies.pace.known", lambda: Times({}, {}))
    done = [("event", [event("done", density=density, row={"seconds": 3.0})]) for density in (1.0, 0.7, 0.5)]
    text = seen(small, (0, "begun", []), (1, *done[0]), (29, *done[1]), (61, *done[2]), (62, "over", [None]))
    assert text.splitlines() == [
        "small (quick): 0 of 3 draws, 0 of 9 runs; nothing tells yet how long it takes",
        "small (quick): 0 of 3 draws, 3 of 9 runs; about 8 seconds left",
        "digits-mlp · imp · seed 0: done, 4 runs",
    ]
    failed = seen(small, (0, "begun", []), (1, "over", [TombolaError("it broke")]))
    assert failed.splitlines()[-1] == "digits-mlp · imp · seed 0: failed: it broke"


def test_a_terminal_has_bars_for_the_study_and_its_draws(small: Plan) -> None:
    step = ("event", [event("step", done=10, total=20)])
    done = ("event", [event("done", row={"seconds": 3.0})])
    text = seen(small, (0, "begun", []), (1, *step), (3, *done), (9, *done), (10, "over", [None]), terminal=True)
    assert "ticket at 100.00%, step 10 of 20" in text
    assert "small (quick)" in text
    assert "4/9" in text
    assert "about 6 seconds left" in text
    assert text.count("digits-mlp · imp · seed 0: done, 4 runs") == 1


def test_downloads_are_told(small: Plan) -> None:
    download = ("event", [event("download", arm="train.gz", done=10**6, total=10**6)])
    assert "train.gz: downloaded, 1.0 MB" in seen(small, (1, *download))


def test_nothing_to_do_is_said_in_a_line(ran: Ran) -> None:
    found = plan(load(str(ran.file)))
    with tb.Store(ran.store) as store:
        states = look(found, store)[:4]
    text = io.StringIO()
    Overview(found, Pace(), 1, console=Console(file=text, width=100)).of(states)
    assert text.getvalue() == "4 draws of 4 in the store already\n"


# ---- report


def test_a_study_is_reported_by_name_although_a_folder_is_called_so(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    page = ("--store", ran.store, "-o", tmp_path / "page.html", "--json")
    by_name = call("report", "small", *page).json["draws"]
    assert len(by_name) == 6
