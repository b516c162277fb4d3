"""An audit on the page: every arm in figure and table, what it says in words, read back from its document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audited import DENSE, GOOD, WORSE, judged, near, rows
from made_up_store import add_draw
from test_page import Parsed

import tombola as tb
from tombola.audits.verdict import Verdict
from tombola.cli.report import collect
from tombola.errors import InputError
from tombola.findings import Judgement, findings_of
from tombola.report.audited import read_audit, save_audit
from tombola.report.page.judged import arms, parts
from tombola.report.page.sections import sections
from tombola.report.page.whole import page

ARMS = {"dense": DENSE, "ticket": GOOD, "reinit": WORSE, "shuffled": near(GOOD), "lr_rewind": GOOD}


@pytest.fixture
def verdict() -> Verdict:
    return judged(rows(ARMS))


def saved(verdict: Verdict, folder: Path, draws: list[str], replicates: str = "seeds") -> Path:
    document = {"draws": draws, "replicates": replicates, "verdict": verdict.as_dict()}
    save_audit(verdict, document, rows(ARMS), folder)
    return folder / "audit.json"


def test_the_document_of_an_audit_is_read_back_whole(verdict: Verdict, tmp_path: Path) -> None:
    path = saved(verdict, tmp_path, ["a", "b"])
    assert read_audit(path) == (["a", "b"], verdict)
    assert read_audit(saved(verdict, tmp_path, ["a", "b"], "orders")) == (["a"], verdict)
    document = json.loads(path.read_text())
    del document["verdict"]["arms"][1]["accuracy"]["outcome"]
    for text in ("[]", "{}", "nonsense", json.dumps(document)):
        path.write_text(text)
        with pytest.raises(InputError, match="not the document of an audit by this version: audit the ticket again"):
            read_audit(path)


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
