"""``tombola list``, ``show``, ``gc`` and ``doctor``: stores in every state, and tickets that mean harm."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from audited import DENSE, GOOD, WORSE, document, judged, rows
from cli_tools import call

import tombola as tb

RUN, DRAW, AUDIT = "ab12" + "0" * 60, "cd34" + "0" * 60, "ef56" + "0" * 60
UNREADABLE = "not readable by this version"
ABOUT = {"task": {"name": "digits-mlp"}, "seed": 0, "arm": "dense", "density": 1.0}
HOSTILE = "[red]x[/red]\x1b]0;owned\x07\x1b[2J\r\n\u202egpj"


def draw_about(task: str = "digits-mlp", seed: int = 0, metric: str = "accuracy") -> dict[str, Any]:
    return {"task": task, "seed": seed, "metric": metric, "recipe": {"method": "imp"}}


def row(number: int, **changes: Any) -> dict[str, Any]:
    known = {"seed": 0, "arm": "ticket", "draw": 0, "round": number, "density": 0.8**number, "status": "finished"}
    known |= {"stop_step": 100, "stop_metric": 0.9, "end_metric": 0.8, "validation_metric": 0.9, "seconds": 1.0}
    return known | {"run": RUN, "chosen": number == 1} | changes


def cells(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


# ---- stores that are empty or not there


def test_a_store_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    for where in (tmp_path / "none", tmp_path):
        for verb in (["list"], ["list", "runs"], ["show", "abcd"], ["forget", "abcd"], ["gc"]):
            found = call(*verb, "--store", where)
            assert (found.status, found.out) == (2, "")
            assert f"there is no store at {where}; give its folder with --store" in found.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_store(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "the store must be a folder" in call("list", "--store", file).err
    (tmp_path / "catalogue.sqlite").write_text("no database at all, but of some length" * 100)
    found = call("list", "--store", tmp_path)
    assert found.status == 1
    assert "is not a Tombola catalogue" in found.err


def test_an_empty_store_is_no_error(tmp_path: Path) -> None:
    tb.Store(tmp_path).close()
    assert (
        call("list", "--store", tmp_path).out == f"{tmp_path} holds no draws yet: tombola draw digits-mlp makes some\n"
    )
    assert "holds no runs yet" in call("list", "runs", "--store", tmp_path).out
    assert "holds no audits yet: tombola audit makes some" in call("list", "audits", "--store", tmp_path).out
    assert call("list", "--store", tmp_path, "--json").json == []
    assert call("gc", "--store", tmp_path).out == "There is nothing to remove\n"
    missing = call("show", "abcd", "--store", tmp_path)
    assert missing.status == 2
    assert f"none has 'abcd' in {tmp_path}" in missing.err


def test_the_store_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tb.Store(tmp_path).close()
    monkeypatch.setenv("TOMBOLA_STORE", str(tmp_path))
    assert str(tmp_path) in call("list").out


# ---- list


def test_runs_are_listed_with_their_state(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        for number, fate in enumerate(("finished", "diverged", "interrupted")):
            claim = store.claim(f"{number:064x}", ABOUT | {"density": 0.8**number})
            assert claim is not None
            with claim:
                if fate != "interrupted":
                    claim.finish({}, {}, status=fate)
        running = store.claim(f"{3:064x}", ABOUT | {"task": {"name": "a task with quite a long name"}})
        assert running is not None
        with running:
            lines = call("list", "runs", "--store", tmp_path).out.splitlines()
    assert cells(lines[0]) == ["run", "task", "arm", "seed", "kept", "status", "begun"]
    assert [cells(line)[4:6] for line in lines[1:]] == [
        ["100.00%", "finished"],
        ["80.00%", "diverged"],
        ["64.00%", "interrupted"],
        ["100.00%", "running"],
    ]
    assert cells(lines[4])[1] == "a task with quite a long name"


def test_draws_are_listed_with_their_ticket(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        store.save_draw("a" * 64, draw_about(), [row(0), row(1), row(1, arm="reinit", chosen=False)], "finished")
        store.save_draw(
            "b" * 64, draw_about("text", 3, "perplexity"), [row(0, stop_metric=12.3456, chosen=True)], "running"
        )
        store.save_draw("c" * 64, draw_about(), [], "running")
        lines = call("list", "--store", tmp_path).out.splitlines()
    assert cells(lines[0]) == ["draw", "task", "method", "seed", "rounds", "kept", "at early stop", "status", "begun"]
    dash = "\N{EN DASH}"
    assert [cells(line)[:-1] for line in lines[1:]] == [
        ["a" * 12, "digits-mlp", "imp", "0", "1", "80.00%", "accuracy 90.00%", "finished"],
        ["b" * 12, "text", "imp", "3", "0", "100.00%", "perplexity 12.35", "interrupted"],
        ["c" * 12, "digits-mlp", "imp", "0", "0", dash, dash, "interrupted"],
    ]


def test_draws_of_one_task_and_method_are_told_apart(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        for number, lr in enumerate((0.1, 0.1, 0.003)):
            recipe = {"method": "imp", "seed": number, "training": {"optimizer": "adam", "lr": lr}}
            store.save_draw(str(number) * 64, draw_about(seed=number) | {"recipe": recipe}, [row(1)], "finished")
        store.save_draw("b" * 64, draw_about("text"), [row(1)], "finished")
        lines = call("list", "--store", tmp_path).out.splitlines()
    assert cells(lines[0])[-1] == "where recipes differ"
    assert [cells(line)[9:] for line in lines[1:]] == [["lr 0.1"], ["lr 0.1"], ["lr 0.003"], []]


def test_a_draw_runs_while_a_process_trains_its_task_and_seed(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        store.save_draw(DRAW, draw_about(), [row(0)], "running")
        store.save_draw("e" * 64, draw_about(seed=1), [row(0)], "running")
        claim = store.claim(RUN, ABOUT)
        assert claim is not None
        with claim:
            listed = call("list", "--store", tmp_path, "--json").json
            assert [draw["status"] for draw in listed] == ["running", "interrupted"]
            assert call("show", "cd34", "--store", tmp_path, "--json").json["status"] == "running"
            assert f"run {RUN}: running, by " in call("show", "ab12", "--store", tmp_path).out
        assert f"draw {DRAW}: interrupted; begun " in call("show", "cd34", "--store", tmp_path).out
        shown = call("show", "ab12", "--store", tmp_path).out
        assert f"run {RUN}: interrupted, the command that began it goes on from its last checkpoint" in shown


def test_records_of_another_make_are_listed_all_the_same(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        store.save_draw(DRAW, {}, [{"arm": "ticket"}, {}], "finished")
        claim = store.claim(RUN, {"task": "not a mapping", "density": "thin"})
        assert claim is not None
        with claim:
            claim.finish({"loss": float("nan"), "best": float("-inf")}, {})
        store.save_audit(AUDIT, {"verdict": {"accuracy": HOSTILE}})
    for args in (["list"], ["list", "runs"], ["list", "audits"], ["show", "cd34"], ["show", "ab12"]):
        assert call(*args, "--store", tmp_path).status == 0
    assert cells(call("list", "audits", "--store", tmp_path).out.splitlines()[1])[:2] == [AUDIT[:12], UNREADABLE]
    for verb in ("show", "report"):
        found = call(verb, "ef56", "--store", tmp_path)
        assert (found.status, found.out) == (2, "")
        assert f"audit {AUDIT[:12]} is not the document of an audit by this version: audit the ticket" in found.err
    assert call("show", "ef56", "--store", tmp_path, "--json").json["document"] == {"verdict": {"accuracy": HOSTILE}}
    assert call("show", "ab12", "--store", tmp_path, "--json").json["summary"] == {"loss": None, "best": None}


# ---- show


def test_a_draw_is_shown_with_table_and_sentence(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        store.save_draw(DRAW, draw_about(), [row(0), row(1)], "finished")
    lines = call("show", "cd34", "--store", tmp_path).out.splitlines()
    assert lines[0].startswith(f"draw {DRAW}: finished; begun ")
    assert [line.split()[0] for line in lines[1:4]] == ["round", "0", "*"]
    assert lines[5].startswith("At 80.0 % density (round 1) the ticket of digits-mlp reaches 90.0 % test accuracy")
    assert "    method: imp" in lines


def test_a_hostile_audit_is_shown_inert(tmp_path: Path) -> None:
    true = judged(rows({"dense": DENSE, "ticket": GOOD, "reinit": WORSE}))
    arms = tuple(replace(one, arm=HOSTILE) if one.role == "control" else one for one in true.arms)
    verdict = replace(true, metric=HOSTILE, words=(HOSTILE,), arms=arms)
    with tb.Store(tmp_path) as store:
        told = {"task": HOSTILE, "ticket": HOSTILE, "recipe": {"method": HOSTILE, HOSTILE: [HOSTILE]}}
        store.save_audit(AUDIT, document(verdict, [HOSTILE], **told))
    for args in (("list", "audits"), ("show", "ef56")):
        found = call(*args, "--store", tmp_path)
        assert found.status == 0
        assert "[red]x[/red]" in found.out
        assert not any(c in found.out for c in "\x1b\x07\r\u202e")


@pytest.mark.parametrize("what", ["xyz!", "abc", "ab" * 40, "a" * 5000, "no such\x1b[2J"])
def test_what_is_neither_file_nor_id_is_refused(what: str, tmp_path: Path) -> None:
    tb.Store(tmp_path).close()
    found = call("show", what, "--store", tmp_path)
    assert (found.status, found.out) == (2, "")
    assert "there is no ticket file" in found.err
    assert "an id is 4 to 64 hexadecimal digits" in found.err
    assert "\x1b" not in found.err
    assert len(found.err) < 300


def test_an_ambiguous_id_names_the_candidates(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        store.save_draw("ab12f" + "0" * 59, draw_about(), [], "finished")
        claim = store.claim(RUN, ABOUT)
        assert claim is not None
        with claim:
            claim.finish({}, {})
    found = call("show", "AB12", "--store", tmp_path)
    assert found.status == 2
    assert f"2 have 'AB12': run {RUN[:16]}, draw ab12f" in found.err


def test_a_ticket_is_shown(tmp_path: Path) -> None:
    mask = tb.Mask({"w": torch.tensor([[True, False], [True, True]]), "v": torch.zeros(3, dtype=torch.bool)})
    values = {"w": torch.ones(2, 2), "v": torch.ones(3), "b": torch.ones(1)}
    path = tb.Ticket(mask, values, {"task": "t", "results": {"dense": [1, None]}}).save(tmp_path / "a.ticket")
    lines = call("show", path).out.splitlines()
    assert lines[0].startswith(f"{path}: 3 of 7 weights kept (42.86%), ")
    assert lines[2].split() == ["w", "2x2", "3", "4", "75.00%"]
    assert lines[4] == "Layer collapse: nothing is kept of v"
    assert lines[5:9] == ["origin:", "  results:", "    dense: [1, null]", "  task: t"]
    found = call("show", path, "--json").json
    assert (found["kept"], found["total"], found["collapsed"]) == (3, 7, ["v"])
    assert found["digest"] == tb.load(path).digest


@pytest.mark.parametrize("terminal", [False, True])
def test_a_hostile_ticket_is_shown_inert(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "300")
    mask = tb.Mask({"w": torch.tensor([True]), HOSTILE: torch.tensor([False, False])})
    origin = {"task": HOSTILE, HOSTILE: {"deep": [HOSTILE]}, "bar": "\x9b31m"}
    path = tb.Ticket(mask, {"w": torch.ones(1), HOSTILE: torch.ones(2)}, origin).save(tmp_path / "a.ticket")
    shown = call("show", path, terminal=terminal)
    assert shown.status == 0
    assert_inert(shown.out)
    assert shown.out.count("[red]x[/red]") == 5  # table, collapse, task, a key, a list
    assert r"\x1b]0;owned\x07\x1b[2J\r\n\u202egpj" in shown.out
    assert call("show", path, "--json").json["origin"]["task"] == HOSTILE


def assert_inert(text: str) -> None:
    """Nothing but letters, newlines and the styles of a table's header."""
    plain = re.sub(r"\x1b\[[01]m", "", text)
    assert all(character.isprintable() or character == "\n" for character in plain)


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_records_are_shown_inert(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with tb.Store(tmp_path) as store:
        rounds = [row(0, chosen=True), row(1, arm=HOSTILE, chosen=False)]
        store.save_draw(DRAW, draw_about(HOSTILE, metric=HOSTILE) | {HOSTILE: HOSTILE}, rounds, "finished")
        claim = store.claim(RUN, ABOUT | {"task": {"name": HOSTILE}, "arm": HOSTILE})
        assert claim is not None
        with claim:
            claim.finish({HOSTILE: HOSTILE}, {HOSTILE: b""})
    for args in (["list"], ["list", "runs"], ["show", "cd34"], ["show", "ab12"]):
        shown = call(*args, "--store", tmp_path, terminal=terminal)
        assert shown.status == 0
        assert_inert(re.sub(r"\x1b\[[0-9;]*m", "", shown.out))
        assert "owned" in shown.out


def test_a_deeply_nested_origin_is_no_traceback(tmp_path: Path) -> None:
    origin: dict[str, Any] = {}
    for _ in range(700):
        origin = {"k": origin}
    path = tb.Ticket(tb.Mask({"w": torch.tensor([True])}), {"w": torch.ones(1)}, origin).save(tmp_path / "a.ticket")
    assert call("show", path).status == 0
    found = call("show", path, "--json")
    assert found.status in (0, 2)


# ---- forget


def test_forgotten_draws_and_audits_are_gone_and_their_runs_can_go(tmp_path: Path) -> None:
    other = "0123" + "0" * 60
    with tb.Store(tmp_path) as store:
        claim = store.claim(RUN, ABOUT)
        assert claim is not None
        with claim:
            claim.finish({}, {"final": b"x"})
        store.save_draw(DRAW, draw_about(), [row(1)], "finished")
        store.save_draw(other, draw_about(seed=1), [], "finished")
        store.save_audit(AUDIT, {"draws": [DRAW]})
    at = ("--store", tmp_path)
    needed = call("forget", "cd34", "0123", *at)
    assert (needed.status, needed.out) == (2, "")
    assert f"draw {DRAW[:12]} is to go and audit {AUDIT[:12]} to stay: forget that too" in needed.err
    assert len(call("list", *at, "--json").json) == 2, "all of them go, or none"
    assert call("forget", "cd34", "EF56", "cd340", *at).out.startswith(f"Forgot draw {DRAW[:12]}, audit {AUDIT[:12]}\n")
    assert [draw["id"] for draw in call("list", *at, "--json").json] == [other]
    assert call("list", "audits", *at, "--json").json == []
    assert call("forget", "0123", *at, "--json").json == [{"kind": "draw", "id": other}]
    assert call("gc", "--grace", 0, "--runs", *at).out == "Removed 1 run, 1 blob: 0.0 MB\n"


def test_a_run_and_a_draw_under_way_are_not_forgotten(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        store.save_draw(DRAW, draw_about(), [], "running")
        claim = store.claim(RUN, ABOUT)
        assert claim is not None
        with claim:
            busy = call("forget", "cd34", "--store", tmp_path)
            assert (busy.status, busy.out) == (2, "")
            assert f"draw {DRAW[:12]} is being carried out: interrupt it first" in busy.err
            assert "none has 'ab12'" in call("forget", "ab12", "--store", tmp_path).err
        assert "Forgot draw" in call("forget", "cd34", "--store", tmp_path).out, "it was interrupted"
    assert (
        "no draw or audit 'digits-mlp', and an id is 4 to 64" in call("forget", "digits-mlp", "--store", tmp_path).err
    )


# ---- gc


def test_gc_says_what_goes_and_what_would(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        store.put(b"nobody mentions this")
        claim = store.claim(RUN, ABOUT)
        assert claim is not None
        with claim:
            claim.finish({}, {"final": b"x" * 2_000_000})
    gc = ("gc", "--store", tmp_path)
    assert call(*gc).out == "There is nothing to remove\n"  # all of it is young
    assert call(*gc, "--grace", 0, "--dry-run").out == "Would remove 1 blob: 0.0 MB\n"
    assert call(*gc, "--grace", 0, "--runs", "--dry-run").out == "Would remove 1 run, 2 blobs: 2.0 MB\n"
    found = call(*gc, "--grace", 0, "--json").json
    assert (found["blobs"], found["runs"], found["dry_run"]) == (1, 0, False)
    assert call(*gc, "--grace", 0, "--runs").out == "Removed 1 run, 1 blob: 2.0 MB\n"
    assert call("list", "runs", "--store", tmp_path, "--json").json == []


@pytest.mark.parametrize("grace", ["nan", "inf", "-1", "soon"])
def test_gc_refuses_a_grace_that_is_no_time(grace: str, tmp_path: Path) -> None:
    tb.Store(tmp_path).close()
    found = call("gc", "--store", tmp_path, "--grace", grace)
    assert (found.status, found.out) == (2, "")
    assert "Invalid value for '--grace'" in found.err


# ---- doctor


def test_doctor_reports_versions_data_and_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOMBOLA_CONFIG", raising=False)
    (tmp_path / "data" / "MNIST" / "raw").mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "data" / "MNIST" / "raw" / f"{name}-ubyte{'.gz' if '3' in name else ''}").touch()
    (tmp_path / "data" / "sst2").mkdir()
    (tmp_path / "data" / "sst2" / "dev.tsv").touch()
    args = ("doctor", "--data-root", tmp_path / "data", "--store", tmp_path / "runs")
    found = call(*args, "--json").json
    assert found["versions"]["tombola"] == tb.__version__
    assert found["data"]["root"] == str(tmp_path / "data")
    data = found["data"]
    assert data["MNIST"] == f"found in {tmp_path / 'data' / 'MNIST' / 'raw'}"
    assert data["CIFAR-10"] == f"not in {tmp_path / 'data'}: downloaded when first needed (170 MB)"
    assert data["SST-2"].startswith(f"only in part in {tmp_path / 'data' / 'sst2'}: the rest is downloaded")
    assert data["ImageNet"].endswith("you must put it there")
    assert {"WikiText-2", "Multi30k", "Places365-Standard"} <= data.keys()
    assert found["store"]["state"] == "not there yet: made when first needed"
    assert found["problems"] == []
    tb.Store(tmp_path / "runs").close()
    shown = call(*args)
    assert shown.status == 0
    assert "  state: draws: 0, runs: 0" in shown.out.splitlines()


def test_doctor_names_problems_instead_of_dying_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("= [")
    monkeypatch.setenv("TOMBOLA_CONFIG", str(file))
    monkeypatch.delenv("TOMBOLA_DATA", raising=False)
    shown = call("doctor", "--store", file)
    assert shown.status == 1
    assert f"Problem: the configuration file {file} must be TOML" in shown.out
    assert "Problem: the store must be a folder" in shown.out
    found = call("doctor", "--store", file, "--json")
    assert found.status == 1
    assert len(found.json["problems"]) == 2
