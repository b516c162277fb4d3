"""No work is lost: kill -9 at any moment, the same command again, the same bits. Two processes share one store."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from toy import same, toy_task

import tombola as tb
from tombola.events import Event
from tombola.lab import Lab

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE), "NO_COLOR": "1"}


def logged(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_it_gives_the_same_bits(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, str(HERE / "kill_driver.py"), str(tmp_path), "7", str(seed)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["killed"] > 0
    calm, killed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("calm", "killed"))
    assert killed == calm
    assert len(calm) == 3 + 2 + 1, "dense, two rounds, two controls, and the ticket"

    # At most the work since the last checkpoint is repeated: with one at every evaluation, no more than one evaluation.
    last: dict[tuple[str, float], int] = {}
    for kind, arm, density, step in logged(tmp_path / "killed.log"):
        if kind == "step":
            assert step >= last.get((arm, density), 0) - 5
            last[(arm, density)] = step
    starts = [line for line in logged(tmp_path / "calm.log") if line[0] == "start"]
    assert len(starts) == 5
    dones = [tuple(line[1:3]) for line in logged(tmp_path / "killed.log") if line[0] == "done"]
    assert len(dones) == len(set(dones)), "a finished run is never computed twice"


class StoppedError(Exception):
    pass


def interrupted(task: tb.Task, store: tb.Store, step: int) -> None:
    def watch(event: Event) -> None:
        if event.kind == "step" and event.row is not None and event.row["step"] == step:
            raise StoppedError

    with pytest.raises(StoppedError):
        Lab(task, store, watcher=watch, checkpoint_every=0.0).train(0)


def resumed(task: tb.Task, store: tb.Store) -> tuple[tb.Run, list[int]]:
    steps: list[int] = []

    def watch(event: Event) -> None:
        if event.kind == "step" and event.row is not None:
            steps.append(event.row["step"])

    return Lab(task, store, watcher=watch, checkpoint_every=0.0).train(0), steps


OPTIMIZERS = ({}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adamw"}, {"optimizer": "rmsprop"})


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_a_resume_goes_on_from_the_checkpoint(tmp_path: Path, options: Mapping[str, Any]) -> None:
    task = toy_task(recipe=options)
    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm:
        interrupted(task, store, 40)
        run, steps = resumed(task, store)
        assert steps == [40, 50, 60]
        straight = Lab(task, calm).train(0)
        assert same(run.final, straight.final)
        assert run.history == straight.history
        assert {k: v for k, v in run.summary.items() if "seconds" not in k} == {
            k: v for k, v in straight.summary.items() if "seconds" not in k
        }


def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path: Path) -> None:
    task = toy_task()
    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm:
        interrupted(task, store, 40)
        (checkpoint,) = [p for p in (tmp_path / "a" / "checkpoints").rglob("*") if p.is_file()]
        data = bytearray(checkpoint.read_bytes())
        data[len(data) // 2] ^= 1
        checkpoint.write_bytes(data)
        with pytest.warns(UserWarning, match="starts again"):
            run, steps = resumed(task, store)
        assert steps[0] == 0
        assert same(run.final, Lab(task, calm).train(0).final)


TWO = """
import sys
from pathlib import Path
import torch
from kill_driver import draw
torch.set_num_threads(1)
print(sorted(draw(Path(sys.argv[1]), Path(sys.argv[2])).items()))
"""


def test_two_processes_on_one_store_share_the_work(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(tmp_path / "runs"), str(tmp_path / f"{name}.log")],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert ends[0][0] == ends[1][0] != ""
    lines = logged(tmp_path / "one.log") + logged(tmp_path / "two.log")
    starts = [tuple(line[1:3]) for line in lines if line[0] == "start"]
    assert len(starts) == len(set(starts)) == 5, "each run was computed by one of them only"


def test_the_command_itself_survives_a_kill(tmp_path: Path) -> None:
    def command(store: str, out: str) -> list[str]:
        arguments = "draw digits-mlp --rounds 2 --steps 300it --evaluate-every 50it --control reinit --no-figures"
        return [
            *(sys.executable, "-m", "tombola", *arguments.split()),
            *("--store", str(tmp_path / store), "--out", str(tmp_path / out)),
        ]

    victim = subprocess.Popen(command("killed", "k"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    assert victim.stderr is not None
    victim.stderr.readline()  # the dense net is done, the first round under way
    time.sleep(0.05)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stderr.close()
    for store, out in (("killed", "k"), ("calm", "c")):
        done = subprocess.run(command(store, out), env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("dense") == (0 if store == "killed" else 1), "the finished dense run was kept"
    ticket = "digits-mlp-seed0.ticket"
    assert (tmp_path / "k" / ticket).read_bytes() == (tmp_path / "c" / ticket).read_bytes()
    tables = []
    for out in ("k", "c"):
        with (tmp_path / out / "rounds.csv").open() as file:
            tables.append([{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 5
