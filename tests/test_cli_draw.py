"""``tombola draw`` and ``tombola train`` on the embedded digits, tiny: what they print, write, and don't do again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_tools import TINY, Result, call

import tombola as tb

SENTENCE = "On average over 2 seeds, "


class Drawn(NamedTuple):
    """A draw that was carried out once, for all tests that only look."""

    store: Path
    out: Path
    args: tuple[object, ...]
    result: Result


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("drawn")
    args = ("draw", "digits-mlp", *TINY, "--rounds", 2, "--margin", "0.9", "--seed", "0-1", "--control", "reinit")
    args += ("--store", folder / "runs", "--out", folder / "out")
    return Drawn(folder / "runs", folder / "out", args, call(*args))


def test_a_draw_prints_table_sentence_and_ticket(drawn: Drawn) -> None:
    assert drawn.result.status == 0
    lines = drawn.result.out.splitlines()
    assert lines[0].split()[:2] == ["round", "density"]
    assert [line.split()[0] for line in lines[1:6]] == ["0", "1", "1", "*", "2"]
    assert lines[6] == "* the chosen round"
    assert lines[7].startswith(SENTENCE)
    tickets = [drawn.out / f"digits-mlp-seed{seed}.ticket" for seed in (0, 1)]
    assert lines[8].startswith(f"Tickets: {tickets[0]} (")
    assert len(lines) == 9
    for seed, path in enumerate(tickets):
        assert tb.load(path).origin["seed"] == seed
    assert {path.name for path in drawn.out.iterdir()} >= {"rounds.csv", "curves.csv", "layers.csv", "rounds.md"}


def test_progress_goes_to_standard_error_a_line_for_each_run(drawn: Drawn) -> None:
    lines = drawn.result.err.splitlines()
    assert [line.partition(":")[0] for line in lines[:5]] == [
        "seed 0 · dense · 100.00% kept",
        "seed 0 · ticket · 80.20% kept",
        "seed 0 · ticket · 64.34% kept",
        "seed 0 · reinit · 80.20% kept",
        "seed 0 · reinit · 64.34% kept",
    ]
    assert len(lines) == 10
    assert all(": validation accuracy " in line and line.endswith(" s") for line in lines)


def test_piped_output_is_not_folded(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    again = call(*drawn.args)
    assert again.out == drawn.result.out
    header, *_ = lines = again.out.splitlines()
    assert "accuracy at early stop %" in header
    assert sum(line.startswith(SENTENCE) and line.endswith(".") for line in lines) == 1
    assert not any(line != line.rstrip() for line in lines)


def test_a_narrow_terminal_folds_between_words(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    shown = call(*drawn.args, terminal=True)
    assert shown.status == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.out).splitlines()
    lines = [line for line in lines if not line.startswith("Ticket")]  # a path stays whole
    assert max(map(len, lines)) <= 40
    said = next(line for line in drawn.result.out.splitlines() if line.startswith(SENTENCE))
    assert " ".join(said.split()) in " ".join(" ".join(lines).split())


def test_color_is_only_for_terminals_that_want_it(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in call("list", "--store", drawn.store, terminal=True).out
    assert "\x1b[" not in call("list", "--store", drawn.store).out + drawn.result.out + drawn.result.err
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[(\d+;)*[34]\d[;m]", call("list", "--store", drawn.store, terminal=True).out)


def test_json_is_one_document_with_everything(drawn: Drawn) -> None:
    shown = call(*drawn.args, "--json")
    assert shown.status == 0
    found = shown.json
    assert found["task"] == "digits-mlp"
    assert found["found"] in drawn.result.out
    assert found["chosen_round"] == 2
    assert [draw["seed"] for draw in found["draws"]] == [0, 1]
    assert len(found["rounds"]) == 10
    assert {row["arm"] for row in found["rounds"]} == {"ticket", "reinit"}
    assert found["tickets"] == [str(drawn.out / f"digits-mlp-seed{seed}.ticket") for seed in (0, 1)]
    assert all(Path(name).is_file() for name in found["files"])


def test_finished_work_is_not_done_again(drawn: Drawn, tmp_path: Path) -> None:
    again = call(*drawn.args)
    assert "validation accuracy" not in again.err
    more = call(*drawn.args, "--rounds", 3, "--out", tmp_path)
    assert [line.partition(":")[0] for line in more.err.splitlines() if "validation" in line] == [
        line
        for seed in (0, 1)
        for line in (f"seed {seed} · ticket · 51.63% kept", f"seed {seed} · reinit · 51.63% kept")
    ]


def test_several_processes_with_live_bars(drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    args = ("draw", "digits-mlp", *TINY, "--rounds", 2, "--margin", "0.9", "--seed", "0-1", "--jobs", 2)
    shown = call(*args, "--store", tmp_path / "runs", "--out", tmp_path / "out", terminal=True)
    assert shown.status == 0
    assert "━" in shown.err
    for seed in (0, 1):
        for density in ("100.00%", "80.20%", "64.34%"):
            assert f" · {density} kept: validation accuracy" in shown.err
        name = f"digits-mlp-seed{seed}.ticket"
        assert tb.load(tmp_path / "out" / name).digest == tb.load(drawn.out / name).digest


def test_figures_are_drawn_unless_refused(drawn: Drawn) -> None:
    assert not list(drawn.out.glob("*.png"))
    args = [arg for arg in drawn.args if arg != "--no-figures"]
    shown = call(*args)
    assert shown.status == 0
    assert shown.out.splitlines()[-1].startswith(f"Figure: {drawn.out / 'overview.png'} (")
    assert {path.suffix for path in drawn.out.glob("overview.*")} == {".png", ".svg", ".pdf"}


# ---- lists


def test_methods_are_listed_with_a_line_each() -> None:
    from tombola.audits.controls import CONTROLS
    from tombola.criteria import CRITERIA
    from tombola.methods import METHODS

    found = call("draw", "--list-methods", "--json").json
    assert found["methods"].keys() == METHODS.keys()
    assert found["criteria"].keys() == CRITERIA.keys()
    assert found["controls"].keys() == found["changes"].keys() == CONTROLS.keys()
    shown = call("draw", "--list-methods").out.splitlines()
    assert shown[:2] == ["methods:", f"  {'imp':{max(map(len, METHODS))}}  {found['methods']['imp']}"]
    assert not any(line != line.rstrip() for line in shown)
    (line,) = [line for line in shown if line.split()[:1] == ["reinit"]]
    assert line.endswith("Fresh initial values under the same mask. Changes: values.")


# ---- train


def test_train_reports_a_dense_net_and_a_ticket(drawn: Drawn) -> None:
    args = ("train", "digits-mlp", *TINY[:-1], "--store", drawn.store)
    dense = call(*args)
    assert dense.status == 0
    lines = dense.out.splitlines()
    assert lines[0] == "dense net of digits-mlp, seed 0, 100.00% kept: finished"
    assert [line.split(":")[0].strip() for line in lines[1:3]] == [lines[1].split(":")[0].strip(), "end"]
    assert dense.err == "1 net was in the store already\n"  # the draw's own dense net
    ticket = call(*args, "--ticket", drawn.out / "digits-mlp-seed0.ticket", "--json")
    assert ticket.json["status"] == "finished"
    assert ticket.json["density"] == pytest.approx(0.6434, abs=1e-4)
    assert 0 < ticket.json["end"]["test_accuracy"] <= 1


def test_train_refuses_a_ticket_of_another_net(drawn: Drawn) -> None:
    found = call("train", "mnist-lenet300", "--ticket", drawn.out / "digits-mlp-seed0.ticket", "--store", drawn.store)
    assert (found.status, found.out) == (2, "")
    assert "the ticket doesn't fit the net" in found.err


def test_a_training_that_diverges_is_reported_in_json_too(tmp_path: Path) -> None:
    args = ("train", "digits-mlp", *TINY[:-1], "--optimizer", "sgd", "--lr", "1e30", "--store", tmp_path)
    shown = call(*args)
    assert shown.status == 0
    assert "diverged after " in shown.err
    assert "end: nothing, it diverged" in shown.out
    found = call(*args, "--json").json
    assert found["status"] == "diverged"
    assert found["end"] is None
