"""``tombola audit`` on the embedded digits, tiny: what it prints, writes, refuses and doesn't do again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_tools import TINY, Result, call

import tombola as tb

ASKED = ("--seed", "0-1", "--control", "reinit", "--control", "shuffled", "--control-draws", 2)


class Drawn(NamedTuple):
    store: Path
    ticket: Path
    out: Path
    audit: Result

    def call(self, *args: object) -> Result:
        return call("audit", *args, "--store", self.store, "--out", self.out.parent / "other")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A draw with two rounds, and an audit of its ticket, for all tests that only look."""
    folder = tmp_path_factory.mktemp("audited")
    store, out = folder / "runs", folder / "out"
    found = call("draw", "digits-mlp", *TINY, "--rounds", 2, "--margin", "0.9", "--store", store, "--out", out)
    assert found.status == 0
    ticket = out / "digits-mlp-seed0.ticket"
    audit = call("audit", ticket, *ASKED, "--store", store, "--out", folder / "audit")
    return Drawn(store, ticket, folder / "audit", audit)


def test_it_prints_the_verdict_the_arms_and_the_files(drawn: Drawn) -> None:
    assert drawn.audit.status == 0, drawn.audit.err
    lines = drawn.audit.out.splitlines()
    assert lines[0].startswith("At 64.3 % density this is not ")
    assert "Drawn again by its recipe, the ticket is the same, bit for bit." in lines
    table = lines[lines.index("") + 1 : -1]
    assert [line.split()[0] for line in table] == ["arm", "ticket", "dense", "reinit", "shuffled"]
    assert lines[-1].startswith(f"Written: {drawn.out / 'audit.json'}, ")
    assert lines[-1].endswith(f"; in the store: audit {document_of(drawn)['id'][:12]}")
    files = {path.name for path in drawn.out.iterdir()}
    assert files == {"audit.json", "arms.csv", "runs.csv", "audit.svg", "audit.png", "audit.pdf", "audit.html"}


def test_what_the_draw_has_trained_is_not_trained_again(drawn: Drawn) -> None:
    trained = [line.partition(":")[0] for line in drawn.audit.err.splitlines() if "validation accuracy" in line]
    controls = [f"{arm} · 64.34% kept" for arm in ("reinit", "reinit", "shuffled", "shuffled")]
    assert [line for line in trained if line.startswith("seed 0")] == [f"seed 0 · {name}" for name in controls]
    assert len(trained) == 4 + 3 + 4
    again = call("audit", drawn.ticket, *ASKED, "--store", drawn.store, "--out", drawn.out, "--no-figures")
    assert "validation accuracy" not in again.err
    assert again.out.splitlines()[:-1] == drawn.audit.out.splitlines()[:-1]


def test_json_is_one_document_as_in_the_file(drawn: Drawn) -> None:
    found = drawn.call(drawn.ticket, *ASKED, "--json", "--no-figures").json
    assert [Path(name).name for name in found.pop("files")] == ["audit.json", "arms.csv", "runs.csv"]
    assert found == document_of(drawn)
    assert (found["task"], found["replicates"], found["seeds"]) == ("digits-mlp", "seeds", [0, 1])
    assert found["ticket"] == tb.load(drawn.ticket).digest
    assert [one["arm"] for one in found["verdict"]["arms"]] == ["dense", "reinit", "shuffled"]
    assert found["recipe"]["control_draws"] == 2
    assert len(found["draws"]) == 2


def document_of(drawn: Drawn) -> Any:
    return json.loads((drawn.out / "audit.json").read_text(encoding="utf-8"))


def test_it_is_listed_shown_and_reported_from_the_store(drawn: Drawn, tmp_path: Path) -> None:
    own, where = document_of(drawn), ("--store", drawn.store)
    (listed,) = (line for line in call("list", "audits", *where).out.splitlines() if line.startswith(own["id"][:12]))
    cells = [f"ticket {own['ticket'][:8]}", "digits-mlp", "imp", "2", "64.3 %", "0-1", "can't tell", "can't tell"]
    assert re.split(r"  +", listed)[1:9] == cells
    (record,) = (one for one in call("list", "audits", *where, "--json").json if one["id"] == own["id"])
    assert record["document"] == own
    assert call("show", own["id"][:16], *where, "--json").json == record
    shown = call("show", own["id"][:16], *where).out.splitlines()
    assert shown[0].startswith(f"audit {own['id']}: carried out ")
    printed = drawn.audit.out.splitlines()[:-1]
    assert shown[1 : len(printed) + 1] == printed, "the words and the table of arms"
    page = ("report", own["id"][:16], *where, "-o", tmp_path / "page.html")
    assert call(*page, "--json").json["draws"] == own["draws"]
    pages = (path.read_text(encoding="utf-8") for path in (tmp_path / "page.html", drawn.out / "audit.html"))
    made, kept = (re.findall(r"<section.*</section>", page, re.DOTALL) for page in pages)
    assert made == kept, "as from the folder"
    assert "a page has one verdict" in call(*page[:2], drawn.out, *page[2:]).err
    assert "is a verdict, not a ticket" in drawn.call(own["id"][:16]).err


def test_a_draw_and_a_run_of_it_can_be_named(drawn: Drawn) -> None:
    with tb.Store(drawn.store) as store:
        (record,) = (d for d in store.draws() if not d.about["recipe"]["controls"] and d.about["recipe"]["rounds"] == 2)
    run = next(row["run"] for row in record.rounds if row["round"] == 1)
    words = drawn.audit.out.splitlines()[0]
    assert drawn.call(record.id[:12], *ASKED, "--no-figures").out.splitlines()[0] == words, "its chosen round is 2"
    asked = ("--seed", "0", "--control", "reinit", "--control-draws", 1, "--no-figures")
    first = drawn.call(record.id[:12], "--round", 1, *asked)
    assert first.out.startswith("At 80.2 % density this is not shown to be a winning ticket")
    assert drawn.call(run[:12], *asked).out == first.out
    assert drawn.call(run[:12], "--round", 2, *asked).status == 2


def test_options_reach_the_judgement(drawn: Drawn) -> None:
    args = (drawn.ticket, *ASKED, "--margin", "0.2", "--at", "end", "--speed-margin", "0.3", "--alpha", "0.1")
    found = drawn.call(*args, "--dense-rates", "0.003,0.0001", "--control", "reinit", "--json", "--no-figures").json
    verdict = found["verdict"]
    assert (verdict["margin"], verdict["at"], verdict["speed_margin"], verdict["alpha"]) == (0.2, "end", 0.3, 0.1)
    assert any(word.startswith("The dense net is tuned: of the learning rates 0.0001, ") for word in verdict["words"])
    assert found["recipe"]["controls"] == ["reinit", "shuffled"], "one that is named twice is one"
    as_it_is = drawn.call(drawn.ticket, "--as-it-is", *ASKED, "--json", "--no-figures").json
    assert (as_it_is["replicates"], as_it_is["orders"]) == ("orders", [0, 1])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("none.ticket",), "no ticket file at none.ticket"),
        (("nothing",), "there is no ticket file 'nothing', and an id is 4 to 64 hexadecimal digits"),
        (("abcdef0123",), "the beginning of one draw's or run's id, but none has 'abcdef0123' in {store}"),
        (("abcdef0123", "--as-it-is"), "--as-it-is and --task are about the file of a ticket"),
        (("{ticket}", "--round", 1), "--round is of a draw in the store, but a file of one ticket is named"),
        (("{ticket}", "--task", "digits-mpl"), "unknown task 'digits-mpl'. Did you mean 'digits-mlp'"),
        (("{ticket}", "--task", "digits-conv"), "the ticket doesn't fit the net"),
        (("{ticket}", "--control", "reinitt"), "unknown control 'reinitt'. Did you mean 'reinit'"),
        (("{ticket}", "--control", "half_data", "--as-it-is"), "control 'half_data' searches anew"),
        (("{ticket}", "--margin", "nan"), "margin must be a number from 0 up, but got nan"),
        (("{ticket}", "--alpha", "0.7"), "alpha must lie between 0 and 0.5"),
        (("{ticket}", "--dense-rates", "0.1,fast"), "value 2 must be a valid number"),
        (("{ticket}", "--dense-rates", ""), "--dense-rates"),
        (("{ticket}", "--dense-rates", "0.0012"), "not be the recipe's own 0.0012"),
        (("{ticket}", "--at", "middle"), "'middle' is not one of 'stop', 'end'"),
        (("{ticket}", "--control-draws", 0), "0 is not in the range"),
        (("{ticket}", "--seed", "1-0"), "--seed"),
        (("{damaged}",), "damaged.ticket: "),
        ((), "Missing argument"),
    ],
)
def test_bad_input_is_said_in_a_line_and_trains_nothing(drawn: Drawn, args: tuple[Any, ...], words: str) -> None:
    damaged = drawn.out.parent / "damaged.ticket"
    damaged.write_bytes(drawn.ticket.read_bytes()[:-7] + b"damaged")
    names = {"ticket": drawn.ticket, "store": drawn.store, "damaged": damaged}
    found = drawn.call(*(str(arg).format(**names) for arg in args))
    assert found.status == 2
    assert words.format(**names) in found.err
    assert "validation accuracy" not in found.err
    assert "Traceback" not in found.err
    assert found.out == ""


def test_a_ticket_of_no_task_needs_one(drawn: Drawn) -> None:
    true = tb.load(drawn.ticket)
    path = tb.Ticket(true.mask, true.values, {}).save(drawn.out.parent / "bare.ticket")
    assert "the ticket's origin names no task: say which one" in drawn.call(path).err
    found = drawn.call(path, "--task", "digits-mlp", "--seed", "0", "--control", "reinit", "--no-figures")
    assert found.status == 0
    assert "It doesn't say how it was drawn." in found.out
    assert "It is judged as it is, over 1 data order of seed 0" in found.out


def test_the_store_must_be_there_and_the_folder_writable(drawn: Drawn, tmp_path: Path) -> None:
    found = call("audit", "abcdef0123", "--store", tmp_path / "none")
    assert (found.status, (tmp_path / "none").exists()) == (2, False)
    (tmp_path / "file").write_text("in the way")
    found = call("audit", drawn.ticket, "--store", drawn.store, "--out", tmp_path / "file")
    assert found.status == 2
    assert "can't be written" in found.err


def test_help_says_what_everything_is_for() -> None:
    shown = call("audit", "--help").out
    for part in ("What is judged", "Beside what, and how strictly", "--as-it-is", "--dense-rates", "[default: stop]"):
        assert part in shown
    assert "audit" in call("--help").out


# ---- killed, and in several processes


def test_several_processes_come_to_the_same_document(drawn: Drawn, tmp_path: Path) -> None:
    args = ("audit", drawn.ticket, *ASKED, "--json", "--no-figures", "--out", tmp_path / "out", "-j", 2)
    found = call(*args, "--store", tmp_path / "runs")
    assert found.status == 0, found.err
    document = found.json
    document.pop("files")
    assert document == json.loads((drawn.out / "audit.json").read_text(encoding="utf-8"))


def test_an_audit_that_was_killed_goes_on_and_comes_to_the_same_verdict(drawn: Drawn, tmp_path: Path) -> None:
    store, out = tmp_path / "runs", tmp_path / "out"
    args = ["audit", str(drawn.ticket), *map(str, ASKED), "--no-figures", "--store", str(store), "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tombola", *args], stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        while process.poll() is None and len(finished(store)) < 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = finished(store)
    assert len(before) >= 4
    again = call(*args, "--json")
    assert again.status == 0, again.err
    trained = [line for line in again.err.splitlines() if "validation accuracy" in line]
    assert len(trained) == 14 - len(before), "three nets and four controls of two seeds, less those that were finished"
    after = finished(store)
    assert {run: after[run] for run in before} == before, "what was finished stays as it was"
    document = again.json
    document.pop("files")
    assert document == json.loads((drawn.out / "audit.json").read_text(encoding="utf-8"))


def finished(store: Path) -> dict[str, Any]:
    """What the store has of each finished run."""
    if not (store / "catalogue.sqlite").exists():
        return {}
    with tb.Store(store) as opened:
        return {run.id: run.summary for run in opened.runs() if run.status == "finished"}
