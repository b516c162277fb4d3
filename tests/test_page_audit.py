"""An audit on the page: every arm in figure and table, what it says in words, read back from its document."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audited import DENSE, GOOD, WORSE, document, judged, near, rows
from made_up_store import add_draw
from test_page import Parsed

import tombola as tb
from tombola.audits.verdict import Verdict
from tombola.cli.report import collect
from tombola.errors import InputError
from tombola.findings import Judgement, findings_of
from tombola.report.audited import in_a_line, read_audit, save_audit
from tombola.report.page.judged import arms, parts
from tombola.report.page.sections import sections
from tombola.report.page.whole import page
from tombola.store import AuditRecord

ARMS = {"dense": DENSE, "ticket": GOOD, "reinit": WORSE, "shuffled": near(GOOD), "lr_rewind": GOOD}


@pytest.fixture
def verdict() -> Verdict:
    return judged(rows(ARMS))


def saved(verdict: Verdict, folder: Path, draws: list[str], replicates: str = "seeds") -> Path:
    save_audit(verdict, document(verdict, draws, replicates), rows(ARMS), folder)
    return folder / "audit.json"


def test_the_document_of_an_audit_is_read_back_whole(verdict: Verdict, tmp_path: Path) -> None:
    told = read_audit(saved(verdict, tmp_path, ["a", "b"]))
    assert (told.task, told.method, told.replicates, told.numbers) == ("made-up", "imp", "seeds", (0, 1))
    assert (told.draws, told.ticket, told.verdict) == (("a", "b"), None, verdict)
    assert told.judgement == Judgement(verdict.words, verdict.decision, verdict=verdict)
    orders = read_audit(saved(verdict, tmp_path, ["a", "b"], "orders"))
    assert orders.judgement.orders == orders.draws == ("a", "b")
    record = AuditRecord("0" * 64, json.loads((tmp_path / "audit.json").read_text(encoding="utf-8")), 1.0)
    assert read_audit(record) == orders, "a file and the store are read in one way"


def changed(found: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    """The document with something else under some keys."""
    made = copy.deepcopy(found)
    at: Any = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return made


def test_what_no_audit_says_is_no_audit(verdict: Verdict, tmp_path: Path) -> None:
    good = json.loads(saved(verdict, tmp_path, ["a", "b"]).read_text(encoding="utf-8"))
    compared = ("verdict", "arms", 1, "accuracy", "compared")
    less = copy.deepcopy(good)
    del less["verdict"]["arms"][1]["accuracy"]["outcome"]
    deep: Any = {}
    for _ in range(300):
        deep = {"verdict": deep}
    wrong: list[Any] = [[], {}, less, deep, {name: part for name, part in good.items() if name != "seeds"}]
    wrong += [
        changed(good, *path, to=to)
        for path, to in [
            (("draws",), []),
            (("seeds",), []),
            (("seeds",), ["one"]),
            (("replicates",), "weeks"),
            (("replicates",), ["seeds"]),
            (("recipe",), "imp"),
            (("task",), "\ud800"),
            (("verdict", "words"), []),
            (("verdict", "arms"), []),
            (("verdict", "arms"), good["verdict"]["arms"][::-1]),
            (("verdict", "arms"), good["verdict"]["arms"][:1] * 2),
            (("verdict", "accuracy"), "perhaps"),
            (("verdict", "margin"), math.nan),
            (("verdict", "density"), math.inf),
            ((*compared, "seeds"), [0, 1]),
            ((*compared, "differences"), []),
            ((*compared, "their_values"), [[], [], [], [], []]),
            ((*compared, "their_mean"), 10**400),
            ((*compared, "interval", "mean"), 1e308),
        ]
    ]
    path = tmp_path / "audit.json"
    for text in ("nonsense", "[" * 100_000, *map(json.dumps, wrong)):
        path.write_text(text)
        with pytest.raises(InputError, match="not the document of an audit by this version: audit the ticket again"):
            read_audit(path)
    for found in wrong[1:]:
        line = in_a_line(AuditRecord("ab" * 32, found, 0.0))
        assert line["what"] == "not readable by this version"
        assert line.keys() == in_a_line(AuditRecord("ab" * 32, good, 0.0)).keys()


def test_a_line_of_an_audit(verdict: Verdict) -> None:
    line = in_a_line(AuditRecord("ab" * 32, document(verdict, ["cd" * 32] * 3), 0.0))
    assert list(line.values())[:-1] == [
        *("abababababab", "draw cdcdcdcd", "made-up", "imp", "9", "13.5 %", "0-2"),
        *("matches", "matches", "not passed"),
    ]
    orders = document(verdict, ["cd" * 32], "orders", ticket="ef" * 32)
    line = in_a_line(AuditRecord("ab" * 32, orders, 0.0))
    assert (line["what"], line["method"], line["seeds"]) == ("ticket efefefef", "given", "1 data order")


def test_each_arm_has_a_line_in_the_table(verdict: Verdict) -> None:
    table = arms(verdict)
    assert [line[0].text for line in table.rows] == ["ticket", "dense", "reinit", "shuffled", "lr_rewind"]
    assert all(len(line) == len(table.header) for line in table.rows)
    shown = dict(zip(table.header, table.rows[2], strict=True))
    assert shown["accuracy %"].text == "96.20"
    assert shown["ahead by"].text == "+2.00"
    assert (shown["shown"].text, table.rows[3][table.header.index("shown")].text) == ("beats", "does as well")
    lost = {line[0].text: (line[3].text, line[-1].text) for line in parts(verdict).rows}
    assert lost["initial values"] == ("+2.00", "matters")
    assert lost["positions within the layers"][1] == "does not matter"


def test_the_page_has_the_audit_after_its_verdict(store: tb.Store, verdict: Verdict) -> None:
    found = findings_of(store, [add_draw(store)], judgement=Judgement(verdict.words, verdict.decision, verdict=verdict))
    made = sections(found)
    assert [part.id for part in made[:2]] == ["verdict", "audit"]
    assert {"gradients"} <= {part.id for part in made}
    parsed = Parsed(page(found))
    charts = {json.loads(text)["name"] for kind, text in parsed.scripts if kind.get("type") == "application/json"}
    assert {"audit-metric", "audit-speed"} <= charts
    assert "Audit not passed" in parsed.shown
    assert all(" ".join(words.split()) in parsed.shown for words in (*verdict.words, *verdict.details))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_round_that_was_judged_is_the_one_shown(store: tb.Store, verdict: Verdict) -> None:
    draws = [add_draw(store, rounds=3), add_draw(store, seed=1, rounds=3)]
    (search,) = findings_of(store, draws).searches
    assert (search.chosen, search.shown) == (3, 3)
    judgement = Judgement(verdict.words, verdict.decision, verdict=replace(verdict, round=2))
    (search,) = (found := findings_of(store, draws, judgement=judgement)).searches
    assert (search.chosen, search.shown) == (2, 2)
    assert "Weights kept 25.0 %" in Parsed(page(found)).shown


def test_a_folder_of_an_audit_gives_its_draws_and_its_verdict(
    store: tb.Store, verdict: Verdict, tmp_path: Path
) -> None:
    ids = [add_draw(store, seed=seed) for seed in (0, 1)]
    (tmp_path / "two").mkdir()
    for folder in (tmp_path, tmp_path / "two"):
        saved(verdict, folder, ids)
    found = collect(store, [str(tmp_path)])
    assert [draw.id for search in found.searches for draw in search.draws] == ids
    assert found.judgement is not None
    assert (found.judgement.verdict, found.judgement.passed) == (verdict, False)
    with pytest.raises(InputError, match=r"a page has one verdict, but .* is the second audit"):
        collect(store, [str(tmp_path), str(tmp_path / "two")])


def test_data_orders_are_shown_together_in_the_place_of_seeds(store: tb.Store, verdict: Verdict) -> None:
    ids = [add_draw(store, method="given", rounds=1, training={"order": order, "lr": 0.1}) for order in range(3)]
    found = findings_of(store, ids)
    assert [search.seeds for search in found.searches] == [[0], [0], [0]]
    told = read_audit(AuditRecord("0" * 64, document(verdict, ids, "orders"), 0.0))
    found = findings_of(store, told.draws, judgement=told.judgement)
    (search,) = found.searches
    assert search.seeds == [0, 1, 2]
    assert [draw.id for draw in search.draws] == ids
    assert search.recipe["training"] == {"lr": 0.1}
    assert len(search.rounds) == 2 * 3
    assert {point["seed"] for point in search.curves} == {layer["seed"] for layer in search.layers} == {0, 1, 2}
    assert all(f"draw of seed {order}" in page(found) for order in range(3))


def test_a_draw_names_the_audits_that_have_judged_its_ticket(store: tb.Store, verdict: Verdict) -> None:
    draw, other = add_draw(store), add_draw(store, method="snip")
    assert "Not audited" in sections(findings_of(store, [draw]))[0].html
    store.save_audit("ab" * 32, document(replace(verdict, round=3), [draw]))
    store.save_audit("cd" * 32, document(replace(verdict, round=3), [other]))
    found = findings_of(store, [draw])
    assert found.audits == ("ab" * 32,)
    html = sections(found)[0].html
    assert f'Judged by audit <span data-audit="{"ab" * 32}">abababababab</span>. Each has' in html
    assert "Not audited" not in html
    told = read_audit(AuditRecord("0" * 64, document(verdict, [draw]), 0.0))
    assert findings_of(store, [draw], judgement=told.judgement).audits == (), "it is shown itself"
