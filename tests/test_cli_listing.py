"""``tombola draw --list-tasks``: what each task needs and how long it takes, as measured and as reckoned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import call

import tombola as tb
from tombola.task_times import GPU_FLOPS, GPU_LEAST, Measured, Speed, Times, known, read, write
from tombola.tasks.pretrained import FROM_A_CHECKPOINT

NAMES = [*tb.TASKS, *(f"{name}:CHECKPOINT" for name in FROM_A_CHECKPOINT)]
RECIPE = tb.Recipe(steps=tb.Duration(2, "ep"), batch=20, evaluate_every=tb.Duration(4))
ONE = Measured(
    examples=100,
    validation=50,
    test=100,
    step_flops=3_000,
    validation_flops=40,
    cpu=Speed(0.5, 0.25, "masked"),
)


def test_a_training_is_its_steps_and_its_evaluations() -> None:
    assert ONE.cpu is not None
    assert ONE.steps(RECIPE) == 10
    # Before the first step, after 4, 8 and 10; and two of twice as many test examples.
    assert ONE.seconds(RECIPE, ONE.cpu) == 10 * 0.5 + (1 + 3 + 2 * 2) * 0.25
    assert ONE.training_flops(RECIPE) == 30_000


def test_a_gpu_is_reckoned_by_operations_or_by_launches_whichever_takes_longer() -> None:
    assert ONE.reckoned(RECIPE) == Speed(GPU_LEAST, GPU_LEAST)
    large = Measured(100, 2_500, 0, step_flops=int(3 * GPU_FLOPS), validation_flops=int(GPU_FLOPS))
    assert large.reckoned(RECIPE) == Speed(3.0, 2_500.0)
    many = Measured(100, 2_500, 0, step_flops=1, validation_flops=1)
    assert many.reckoned(RECIPE) == Speed(GPU_LEAST, 3 * GPU_LEAST)
    assert Measured(100, 50, 100, 3_000, None, plays=True).reckoned(RECIPE) is None
    assert Measured(100, 50, 100, None, None).reckoned(RECIPE) is None


def test_what_was_measured_is_read_as_it_was_written(tmp_path: Path) -> None:
    times = Times({"cpu": {"machine": "one", "torch": "2.13"}}, {"a": ONE, "b": Measured(1, 2, 3, None, None)})
    write(times, tmp_path / "times.json")
    assert read(tmp_path / "times.json") == times
    assert read(tmp_path / "nothing.json") == Times({}, {})


def test_every_task_was_measured() -> None:
    times = known()
    assert {"machine", "torch", "tombola"} <= times.machines["cpu"].keys()
    names = [name.removesuffix("CHECKPOINT") for name in NAMES]
    assert list(times.tasks) == [name for name in names if name in times.tasks]
    lacking = [name for name in names if name not in times.tasks and not name.startswith("atari-")]
    assert not lacking, "measure new tasks: python benchmarks/task_times.py NAME"
    for name, measured in times.tasks.items():
        assert measured.cpu is not None
        assert measured.cpu.step > 0
        assert measured.cpu.evaluation > 0
        assert measured.step_flops
        if name in tb.TASKS:
            assert measured.plays == (not tb.TASKS[name].data_sets and "digits" not in name)


def test_tasks_are_listed_with_what_a_choice_needs() -> None:
    shown = call("draw", "--list-tasks")
    assert shown.status == 0
    lines = shown.out.splitlines()
    found = call("draw", "--list-tasks", "--json").json
    assert [task["name"] for task in found] == NAMES
    for task in found:
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{task['name']} "))
        assert f"{task['rounds']} rounds of {task['recipe']['steps']}, batch {task['recipe']['batch']}" in lines[place]
        assert lines[place + 1].strip() == task["description"]
        for data in task["data"]:
            assert f"{data['title']}, {data['size'] or 'put in place by you'}" in lines[place]
        if task["extra"] is not None:
            assert f"[{task['extra']['name']}]" in lines[place]
            assert "missing" not in lines[place]
    assert any("pip install 'tombola[NAME]'" in line for line in lines)
    digits = next(line for line in lines if line.startswith("digits-mlp "))
    assert " seconds " in digits
    assert max(map(len, lines[: 2 * len(found)])) <= 145


def test_the_times_listed_are_of_a_whole_draw() -> None:
    found = {task["name"]: task for task in call("draw", "--list-tasks", "--json").json}
    times = known().tasks["mnist-lenet300"]
    recipe = tb.TASKS["mnist-lenet300"].recipe
    assert times.cpu is not None
    assert (reckoned := times.reckoned(recipe)) is not None
    task = found["mnist-lenet300"]
    assert task["one_core_seconds"] == pytest.approx(21 * times.seconds(recipe, times.cpu), abs=0.1)
    if times.cuda is None:
        assert task["gpu_is"] == "reckoned"
        assert task["gpu_seconds"] == pytest.approx(21 * times.seconds(recipe, reckoned), abs=0.1)
    assert task["training_flops"] == 3 * 2 * 266_200 * 60 * 50_000
    assert task["steps"] == 50_000
    assert found["cartpole"]["gpu_is"] == "bound by games on the CPU"
    assert found["cartpole"]["gpu_seconds"] is None


def test_a_measured_gpu_stands_in_place_of_a_reckoned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Measured(1_200, 300, 297, 1, 1, cpu=Speed(1.0, 1.0), cuda=Speed(0.5, 0.0))
    monkeypatch.setattr("tombola.task_times.known", lambda: Times({}, {"digits-mlp": own}))
    task = call("draw", "--list-tasks", "--json").json[0]
    assert (task["name"], task["gpu_is"], task["gpu_seconds"]) == ("digits-mlp", "measured", 16 * 1_500 * 0.5)
    lines = call("draw", "--list-tasks").out.splitlines()
    assert "3 hours" in lines[2]
    assert "~" not in lines[2]
    assert "not measured" in lines[4]


def test_a_missing_extra_is_said_where_a_task_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gymnasium", "sacrebleu"):
        monkeypatch.setitem(sys.modules, package, None)
    lines = call("draw", "--list-tasks").out.splitlines()
    told = {line.split()[0] for line in lines if "] missing" in line}
    expected = {name for name, task in tb.TASKS.items() if task.extra and task.extra.name in ("rl", "language")}
    assert told == expected
    (line,) = [line for line in lines if line.startswith("multi30k-transformer ")]
    assert "Multi30k, 1.3 MB; [language] missing" in line
    found = {task["name"]: task["extra"] for task in call("draw", "--list-tasks", "--json").json}
    assert found["multi30k-transformer"]["missing"] == ["sacrebleu"]
    assert found["wikitext2-lstm"] is None


def test_the_list_loads_no_library_of_an_extra_and_no_compiler() -> None:
    check = (
        "import sys; from tombola.cli.main import run; run(['draw', '--list-tasks', '--json']); "
        "assert not {'transformers', 'gymnasium', 'tokenizers', 'sacrebleu', 'PIL', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)
