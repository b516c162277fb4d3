"""``tombola transfer`` on the embedded digits: what it prints, writes and refuses; killed and resumed; in processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_tools import Result, call

TINY = ("--steps", "40it", "--evaluate-every", "20it", "--warmup", "0it", "--engine", "masked")
"""Of the targets; the search is of the source's own recipe."""


class Carried(NamedTuple):
    """A transfer that was carried out once, for all tests that only look."""

    store: Path
    out: Path
    args: tuple[object, ...]
    result: Result


def command(folder: Path, *more: object) -> tuple[object, ...]:
    """Tickets of a short draw of the digits' MLP, on the data of both tasks."""
    drawn = call("draw", "digits-mlp", *TINY, "--densities", "0.5,0.2", "--store", folder / "runs", "--out",
                 folder / "draw", "--no-figures", "--json")  # fmt: skip
    assert drawn.status == 0, drawn.err
    args = ("transfer", drawn.json["draws"][0]["id"][:12], "--to", "digits-conv,digits-mlp", *TINY)
    return (*args, "--store", folder / "runs", "--out", folder / "out", *more)


def told(document: Any) -> list[dict[str, Any]]:
    """The runs without what was measured."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in document["runs"]]


@pytest.fixture(scope="module")
def transferred(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    folder = tmp_path_factory.mktemp("transferred")
    args = command(folder)
    return Carried(folder / "runs", folder / "out", args, call(*args))


def test_it_prints_a_matrix_for_each_density(transferred: Carried) -> None:
    assert transferred.result.status == 0, transferred.result.err
    lines = transferred.result.out.splitlines()
    assert lines[0].startswith("Test accuracy in percent at early stop: seed 0 alone. Below: points ahead, paired")
    starts = [place for place, line in enumerate(lines) if line.startswith("Density ")]
    assert [lines[place] for place in starts] == ["Density 50.0 %:", "Density 20.0 %:"]
    for place in starts:
        assert lines[place + 1].split() == ["source", "digits-conv", "digits-mlp"]
        assert lines[place + 2].startswith("digits-mlp ")
        assert lines[place + 2].count("*") == 1, "the draw's own task; what is trained for the other column isn't shown"
        for line, name in zip(lines[place + 3 :], ("random ticket", "own ticket", "dense net"), strict=False):
            assert line.startswith(f"  ahead of {name} ")
    assert lines[-1].startswith(f"Written: {transferred.out / 'transfer.csv'}, ")


def test_the_files_have_every_run_the_matrices_and_the_figure(transferred: Carried) -> None:
    with (transferred.out / "transfer.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {r["task"] for r in rows} == {"digits-conv@digits-mlp", "digits-mlp"}
    assert {r["arm"] for r in rows} == {"dense", "ticket", "reinit", "shuffled", "random_ticket"}
    assert sum(r["arm"] == "dense" for r in rows) == 2
    for row in rows:
        if row["arm"] != "dense":
            assert float(row["density"]) == pytest.approx(float(row["asked"]), abs=1e-4)
    assert (transferred.out / "transfer.md").read_text(encoding="utf-8").count("|   ahead of dense net |") == 2
    for kind in ("svg", "png", "pdf"):
        assert (transferred.out / f"transfer.{kind}").stat().st_size > 1000
    assert "random ticket" in (transferred.out / "transfer.svg").read_text(encoding="utf-8")


def test_json_is_one_document_and_nothing_is_done_again(transferred: Carried) -> None:
    shown = call(*transferred.args, "--json", "--no-figures", "--at", "end")
    assert shown.status == 0
    assert "in the store already" in shown.err
    assert shown.err.count("\n") == 1
    found = shown.json
    assert (found["metric"], found["data"], found["at"], found["seeds"]) == ("accuracy", "test", "end", [0])
    assert found["targets"] == ["digits-conv", "digits-mlp"]
    assert found["densities"] == [0.5, 0.2]
    assert len(found["table"]) == 2 * 3, "the draw on both tasks, and the tickets of digits-conv's own data"
    cell = found["table"][0]
    own = [r for r in found["runs"] if (r["source"], r["target"], r["asked"]) == (cell["source"], cell["target"], 0.5)]
    ends = {r["arm"]: r["end_metric"] for r in own}
    assert cell["mean"] == ends["ticket"]
    assert cell["ahead_of_random"] == pytest.approx(ends["ticket"] - ends["random_ticket"])
    assert cell["low"] is None
    assert all(Path(name).is_file() for name in found["files"])


def test_what_it_leaves_in_the_store_are_draws_like_others(transferred: Carried) -> None:
    found = call(*transferred.args, "--json", "--no-figures").json
    shown = call("show", found["draws"][0][:12], "--store", transferred.store)
    assert shown.status == 0
    assert "random_ticket" in shown.out
    listed = call("list", "--store", transferred.store)
    assert "digits-conv@digits-mlp" in listed.out


def test_killed_and_gone_on_with_in_two_processes_it_comes_to_the_same(transferred: Carried, tmp_path: Path) -> None:
    (ticket,) = (transferred.out.parent / "draw").glob("*.ticket")
    args = ("transfer", ticket, "--to", "digits-conv", *TINY, "--json", "--no-figures")
    calm = call(*args, "--store", tmp_path / "calm", "--out", tmp_path / "calm-out")
    assert calm.status == 0, calm.err
    place = ("--store", tmp_path / "killed", "--out", tmp_path / "killed-out")
    program = [sys.executable, "-m", "tombola", *map(str, (*args, *place))]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for number, _ in enumerate(process.stderr, start=1):  # a line for each finished net
            if number == 3:
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    again = call(*args, *place, "--jobs", "2")
    assert again.status == 0, again.err
    assert told(again.json) == told(calm.json)
    assert again.json["draws"] == calm.json["draws"]
    trained = [line for line in again.err.splitlines() if "digits-conv@digits-mlp" in line]
    assert 1 <= len(trained) <= 2, "of five nets, what was finished before isn't done again"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "name sources and targets"),
        (("digits-mlp",), "name sources and targets"),
        (("digits-mlp", "--to", "digits-cnv"), "unknown task 'digits-cnv'. Did you mean 'digits-conv'"),
        (("digits-mpl", "--to", "digits-conv"), "unknown task 'digits-mpl'. Did you mean 'digits-mlp'"),
        (("0123abcd", "--to", "digits-conv"), "none has '0123abcd'"),
        (("none.ticket", "--to", "digits-conv"), "none.ticket"),
        (("digits-mlp", "--to", "digits-conv", "--densities", "0.5,2"), "value 2 must be less than 1"),
        (("digits-mlp", "--to", "digits-conv", "--control", "rival"), "'rival' is not one of"),
        (("digits-mlp", "--to", "digits-conv", "--control", "inverted"), "control 'inverted'"),
        (("digits-mlp", "--to", "digits-conv", "--method", "early_bird"), "method 'early_bird' isn't asked for"),
        (("digits-mlp", "--to", "digits-conv", "--back-to", "0it"), "needs back_to above 0"),
        (("digits-mlp", "--to", "digits-conv", "--momentum", "0.9", "--optimizer", "adam"), "momentum belongs to"),
        (("digits-mlp", "--to", "digits-conv@digits-mlp"), "name the task before the @ alone"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    shown = call("transfer", *args, "--store", tmp_path / "runs", "--out", tmp_path / "out")
    assert shown.out == ""
    assert shown.status == 2, shown.err
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_takes_no_results_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "transfer.md").mkdir()
    shown = call("transfer", "digits-mlp", "--to", "digits-conv", "--store", tmp_path / "runs", "--out", tmp_path)
    assert (shown.status, shown.err.count("\n")) == (2, 1)
    assert "transfer.md is in the way" in shown.err
