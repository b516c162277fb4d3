"""``tombola report``: what is named is found, and nothing else is written."""

from __future__ import annotations

import re
from pathlib import Path

from cli_tools import call
from made_up_store import add_draw, an_id
from store_tools import folder_of

import tombola as tb
from tombola.report.tables import save_rows


def test_the_command_reports_the_last_draw_with_its_seeds(store: tb.Store, tmp_path: Path) -> None:
    old = add_draw(store, rate=0.1)
    ids = [add_draw(store, seed=seed) for seed in (0, 1)]
    path = tmp_path / "page.html"
    where = ("--store", folder_of(store), "-o", path)
    result = call("report", *where, "--json")
    assert (result.status, result.err) == (0, "")
    document = {"file": str(path), "bytes": path.stat().st_size, "title": "made-up, imp", "draws": ids, "runs": []}
    assert result.json == document
    assert path.read_text(encoding="utf-8").endswith("</html>")
    assert call("report", old[:10], *where, "--json").json["draws"] == [old]
    run = an_id("made-up", 0)
    assert call("report", run[:12], *where, "--json").json["runs"] == [run]
    result = call("report", *where)
    assert re.fullmatch(r".*page\.html: made-up, imp \(\d\.\d MB\)\n", result.out)


def test_the_command_reports_folders(store: tb.Store, tmp_path: Path) -> None:
    ids = [add_draw(store, method=m) for m in ("imp", "snip")]
    draw = store.draw(ids[1])
    assert draw is not None
    out = tmp_path / "out"
    tb_rows = [{"seed": 0, "run": row["run"]} for row in draw.rounds]
    out.mkdir()
    save_rows(out / "rounds.csv", tb_rows)
    where = ("--store", folder_of(store), "-o", tmp_path / "page.html", "--json")
    assert call("report", out, *where).json["draws"] == [ids[1]]
    flow = tmp_path / "flow"
    flow.mkdir()
    row = {
        "method": "dense",
        "density": 1.0,
        "seed": 0,
        "step": 5,
        "squared_norm": 1.5,
        "loss": 2,
        "status": "finished",
    }
    save_rows(flow / "gradients.csv", [row])
    assert call("report", out, flow, *where).json["draws"] == [ids[1]]
    assert "Loss on the same examples" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_command_refuses_what_it_does_not_know(store: tb.Store, tmp_path: Path) -> None:
    where = ("--store", folder_of(store), "-o", tmp_path / "page.html")
    empty = tmp_path / "empty"
    empty.mkdir()
    for what, words in (
        ((), "holds no draw to report"),
        (("nothing",), "there is no folder 'nothing'"),
        (("0123abcd",), "none has '0123abcd'"),
        ((empty,), "has no table of runs"),
    ):
        result = call("report", *what, *where)
        assert (result.status, result.out) == (2, "")
        assert words in result.err
    (empty / "rounds.csv").write_text(f"run\n{an_id('elsewhere')}\n")
    add_draw(store)
    assert "none of the runs" in call("report", empty, *where).err
    assert not (tmp_path / "page.html").exists()
    assert "there is no store" in call("report", "--store", tmp_path / "none").err
