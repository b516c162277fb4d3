"""``tombola compare`` on the embedded digits, tiny: what it prints, writes, refuses, and doesn't do again."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_tools import TINY, Result, call

METHODS = ("--method", "one_shot,early_bird", "--method", "random_at_init")


class Compared(NamedTuple):
    """A comparison that was carried out once, for all tests that only look."""

    store: Path
    out: Path
    args: tuple[object, ...]
    result: Result


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    args: tuple[object, ...] = ("compare", "digits-mlp", *TINY, *METHODS, "--densities", "0.2,0.5", "--seed", "0-1")
    args += ("--store", folder / "runs", "--out", folder / "out")
    return Compared(folder / "runs", folder / "out", args, call(*args))


def test_a_comparison_prints_both_tables_and_what_is_left_out(compared: Compared) -> None:
    assert compared.result.status == 0
    lines = compared.result.out.splitlines()
    assert lines[0].startswith("Test accuracy in percent at the end of training")
    assert lines[1].split() == ["method", "prunes", "50.0", "%", "20.0", "%", "own", "density"]
    assert [line.split()[:2] for line in lines[3:5]] == [["random_at_init", "before"], ["one_shot", "after"]]
    assert [line.split()[0] for line in lines[8:11]] == ["dense", "random_at_init", "one_shot"]
    assert lines[6].startswith("What it cost at 50.0 % density")
    assert lines[12].startswith("early_bird is left out: ")
    assert "batch normalisation" in lines[12]
    assert lines[13].startswith(f"Written: {compared.out / 'comparison.csv'}, ")
    assert len(lines) == 14


def test_the_files_have_every_run_and_both_tables(compared: Compared) -> None:
    with (compared.out / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["seed"], r["asked"]) for r in rows] == [
        ("dense", "0", ""),
        ("dense", "1", ""),
        *((name, seed, d) for name in ("one_shot", "random_at_init") for seed in "01" for d in ("0.5", "0.2")),
    ]
    assert all(float(r["density"]) == pytest.approx(float(r["asked"] or 1), abs=1e-4) for r in rows)
    for row in rows:
        found, trained = float(row["find_times"]), float(row["train_times"])
        assert trained == pytest.approx(float(row["density"]), rel=0.02)
        assert (found == 1) if row["method"] == "one_shot" else (found < 0.01)
    text = (compared.out / "comparison.md").read_text(encoding="utf-8")
    assert text.count("| one_shot | after |") == 2
    assert "early_bird is left out: " in text


def test_the_best_is_bold_in_markdown_and_on_a_terminal(compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = call(*compared.args, terminal=True)
    text = (compared.out / "comparison.md").read_text(encoding="utf-8")
    best = re.findall(r"\*\*([^*]+)\*\*", text)
    assert len(best) == 2
    assert all(f"\x1b[1m{value}" in re.sub(r"(\x1b\[1m) +", r"\1", shown.out) for value in best)


def test_finished_work_is_not_done_again(compared: Compared) -> None:
    again = call(*compared.args)
    assert again.err == "12 nets were in the store already\n"  # a dense net in each of four draws, and eight others
    assert again.out.splitlines()[:6] == compared.result.out.splitlines()[:6]


def test_trainings_are_those_of_draw(compared: Compared, tmp_path: Path) -> None:
    shown = call("compare", "digits-mlp", *TINY, "--method", "imp", "--densities", "0.5", "--rate", "0.3",
                 "--store", compared.store, "--out", tmp_path, "--json")  # fmt: skip
    assert shown.json["runs"][-1]["asked"] == 0.5
    ladder = ("--densities", "0.707107,0.5", "--store", compared.store, "--out", tmp_path)
    drawn = call("draw", "digits-mlp", *TINY, *ladder, "--rate", "0.3", "--json")
    assert drawn.err == "3 nets were in the store already\n"
    assert drawn.json["rounds"][-1]["run"] == shown.json["runs"][-1]["run"]


def test_json_is_one_document_with_everything(compared: Compared) -> None:
    shown = call(*compared.args, "--json", "--at", "stop", "--cost-at", "0.2")
    assert shown.status == 0
    found = shown.json
    assert (found["task"], found["metric"], found["data"]) == ("digits-mlp", "accuracy", "test")
    assert (found["at"], found["cost_at"], found["densities"], found["seeds"]) == ("stop", 0.2, [0.5, 0.2], [0, 1])
    assert [(one["method"], one["seeds"]) for one in found["left_out"]] == [("early_bird", [0, 1])]
    assert [(c["method"], c["asked"], c["runs"]) for c in found["table"]] == [
        ("dense", None, 2),
        *((name, density, 2) for name in ("random_at_init", "one_shot") for density in (0.5, 0.2)),
    ]
    cell, runs = found["table"][-1], [r["stop_metric"] for r in found["runs"] if r["method"] == "one_shot"]
    assert cell["mean"] == pytest.approx((runs[1] + runs[3]) / 2)
    assert cell["standard_deviation"] == pytest.approx(abs(runs[1] - runs[3]) / 2**0.5)
    assert cell["total_times"] == pytest.approx(1.2, abs=0.01)
    assert all(Path(name).is_file() for name in found["files"])


def test_figures_are_drawn_unless_refused(compared: Compared) -> None:
    assert not list(compared.out.glob("*.png"))
    shown = call(*(arg for arg in compared.args if arg != "--no-figures"))
    assert shown.status == 0
    for name in ("equal_density", "equal_cost"):
        assert {path.suffix for path in compared.out.glob(f"{name}.*")} == {".png", ".svg", ".pdf"}
        assert "random_at_init" in (compared.out / f"{name}.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "name the methods to compare"),
        (("--method", "imp,rigle"), "unknown method 'rigle'. Did you mean 'rigl'?"),
        (("--method", "imp", "--method", "snip,imp"), "methods must be named once each, but 'imp' is there 2 times"),
        (("--method", "all,imp"), "leave out the others"),
        (("--method", "imp,"), "unknown method ''"),
        (("--method", "imp", "--densities", "0.5,2"), "value 2 must be less than 1, but got '2'"),
        (("--method", "imp", "--densities", "0.5,0.2", "--cost-at", "0.1"), "one of the densities 0.5, 0.2, but got"),
        (("--method", "imp", "--channel-densities", "0.5"), "those of early_bird"),
        (("--method", "imp", "--unpruned", "conv9*"), "conv9*"),
        (("--method", "early_bird"), "batch normalisation"),
        (("--method", "imp", "--steps", "0it"), "steps"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    shown = call("compare", "digits-mlp", *args, "--store", tmp_path / "runs", "--out", tmp_path / "out")
    assert (shown.status, shown.out) == (2, "")
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_is_refused_with_the_nearest(tmp_path: Path) -> None:
    shown = call("compare", "digits-mpl", "--method", "imp", "--store", tmp_path)
    assert shown.status == 2
    assert "Did you mean 'digits-mlp'" in shown.err


def test_a_folder_that_takes_no_results_is_refused_before_the_work(compared: Compared, tmp_path: Path) -> None:
    (tmp_path / "comparison.md").mkdir()
    shown = call(*compared.args, "--out", tmp_path)
    assert (shown.status, shown.err.count("\n")) == (2, 1)
    assert "comparison.md is in the way" in shown.err
