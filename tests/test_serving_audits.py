"""Audits on served pages: what was judged stands beside its draws, follows the store, and is never trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from audited import DENSE, GOOD, WORSE, document, judged, near, rows
from made_up_store import add_draw, an_id
from served import Client
from store_tools import sql
from test_page import HOSTILE, Parsed
from test_serving import lines, shown, version_of

import tombola as tb
from tombola.audits.verdict import Verdict
from tombola.cli.report import collect
from tombola.report.page.sections import sections

ARMS = {"dense": DENSE, "ticket": GOOD, "reinit": WORSE, "shuffled": near(GOOD)}
OWN, ORDERS = an_id("audit"), an_id("audit as it is")


def verdict(**options: Any) -> Verdict:
    """Of the first round, which is all that the draws here have."""
    return replace(judged(rows(ARMS), **options), round=1)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tb.Store]:
    """An audit over two seeds, one of a ticket as it is, and a draw of which there is none."""
    with tb.Store(tmp_path_factory.mktemp("full")) as store:
        seeds = [add_draw(store, seed=seed, rounds=1, controls=("reinit",)) for seed in (0, 1)]
        orders = [add_draw(store, method="given", rounds=1, training={"order": order}) for order in range(3)]
        add_draw(store, method="snip", rounds=1)
        store.save_audit(OWN, document(verdict(), seeds))
        store.save_audit(ORDERS, document(verdict(), orders, "orders", ticket="ef" * 32))
        yield store


@pytest.fixture(scope="module")
def client(full: tb.Store) -> Client:
    return Client(full)


def test_the_overview_has_every_audit(client: Client) -> None:
    html = client.get("/").text
    orders, own = lines(html, "audits")
    assert own[0] == OWN[:12]
    assert own[2:-1] == ["made-up", "imp", "1", "13.5 %", "0-1", "matches", "matches", "not passed"]
    assert orders[1:8] == ["ticket efefefef", "made-up", "given", "1", "13.5 %", "3 data orders", "matches"]
    assert re.findall(r'href="/audits/([0-9a-f]{64})"', html) == [ORDERS, OWN]
    assert '<li><a href="#audits">Audits</a></li>' in html


def test_an_audit_has_the_sections_of_its_report(client: Client, full: tb.Store) -> None:
    html = client.get(f"/audits/{OWN}").text
    made = sections(collect(full, [OWN[:12]]))
    assert [part.id for part in made[:2]] == ["verdict", "audit"]
    plain = re.sub(r'<a href="/runs/[0-9a-f]{64}">([0-9a-f]{12})</a>', r"\1", html)
    assert all(part.html in plain for part in made)
    words = Parsed(html).shown
    assert "Audit of made-up, imp" in words
    assert "Audit not passed" in words
    assert all(" ".join(sentence.split()) in words for sentence in (*verdict().words, *verdict().details))
    saved = client.get(f"/audits/{OWN}/page.html")
    assert saved.headers["content-disposition"] == 'attachment; filename="audit-of-made-up-imp.html"'
    assert not re.search(r'(src|href)="/', saved.text)


def test_all_data_orders_of_a_ticket_are_on_its_page(client: Client) -> None:
    html = client.get(f"/audits/{ORDERS}").text
    assert "One seed" not in html
    assert all(f"draw of seed {order}" in html for order in range(3))


def test_a_draw_links_to_its_audits_and_its_file_names_them(client: Client, full: tb.Store) -> None:
    own, other = full.draws()[1].id, full.draws()[-1].id
    link = f'Judged by audit <a href="/audits/{OWN}">{OWN[:12]}</a>'
    assert link in client.get(f"/draws/{own}").text
    assert link in client.get(f"/compare?draw={own}&draw={other}").text
    html = client.get(f"/draws/{other}").text
    assert "Not audited" in html
    assert "/audits/" not in html
    saved = client.get(f"/draws/{own}/page.html").text
    assert f">{OWN[:12]}</span>" in saved
    assert 'href="/audits' not in saved


def test_an_audit_that_is_over_appears_and_its_repetition_changes_the_page(store: tb.Store) -> None:
    draw, other = add_draw(store, rounds=1), add_draw(store, method="snip", rounds=1)
    client = Client(store)
    paths = ("/", f"/draws/{draw}", f"/draws/{other}")
    before = {path: version_of(client.get(path)) for path in paths}

    def statuses() -> list[int]:
        return [client.get(path, headers={"If-None-Match": f'"{tag}"'}).status for path, tag in before.items()]

    store.save_audit(OWN, document(verdict(), [draw]))
    assert statuses() == [200, 200, 304]
    before = {f"/audits/{OWN}": version_of(client.get(f"/audits/{OWN}"))}
    assert statuses() == [304]
    store.save_audit(OWN, document(verdict(margin=0.2), [draw]))
    assert statuses() == [200]
    store.save_audit(ORDERS, document(verdict(), [other]))
    before = {f"/audits/{OWN}": version_of(client.get(f"/audits/{OWN}"))}
    store.save_audit(ORDERS, document(verdict(margin=0.2), [other]))
    assert statuses() == [304], "of another audit's news nothing is seen"


def test_hostile_words_stay_text(store: tb.Store) -> None:
    draw, true = add_draw(store, rounds=1), verdict()
    arms = tuple(replace(one, arm=HOSTILE) if one.role == "control" else one for one in true.arms)
    words = replace(true, metric=HOSTILE, words=(HOSTILE,), details=(HOSTILE,), arms=arms, as_good=(HOSTILE,))
    told = document(words, [draw], ticket=HOSTILE, task=HOSTILE, recipe={"method": HOSTILE})
    store.save_audit(OWN, told)
    for path in ("/", f"/audits/{OWN}", f"/audits/{OWN}/page.html", f"/draws/{draw}"):
        answer = Client(store).get(path)
        assert answer.status == 200
        parsed = Parsed(answer.text)
        assert not any("alert(1)" in text for attributes, text in parsed.scripts if "src" in attributes)
        assert not any(attributes.get("src") == "x" for _, attributes in parsed.elements)
        if "draws" not in path:
            assert HOSTILE in " ".join(parsed.text)


@pytest.mark.parametrize("text", ["{", "{}", '{"verdict": {"round": 1}}', "of another version"])
def test_what_can_not_be_read_is_said(store: tb.Store, text: str) -> None:
    draw = add_draw(store, rounds=1)
    told = document(verdict(), [draw])
    del told["verdict"]["alpha"]
    store.save_audit(OWN, told)
    if text != "of another version":
        sql(store, "UPDATE tombola_audits SET document = ?", text)
    client = Client(store)
    ((audit, what, *rest),) = lines(client.get("/").text, "audits")
    assert (audit, what, {*rest[:-1]}) == (OWN[:12], "not readable by this version", {"\N{EN DASH}"})
    for path in (f"/audits/{OWN}", f"/audits/{OWN}/page.html"):
        words = f"Audit {OWN[:12]} is not the document of an audit by this version: audit the ticket again."
        assert words in shown(client, path, 503)
    assert client.get(f"/draws/{draw}").status == 200


def test_an_audit_or_a_draw_of_it_that_is_not_there_is_said(store: tb.Store) -> None:
    client = Client(store)
    assert "The store has no audit" in shown(client, f"/audits/{OWN}", 404)
    shown(client, "/audits/abcd", 404)
    store.save_audit(OWN, document(verdict(), [add_draw(store, rounds=1), an_id("gone")]))
    assert f"rests on draw {an_id('gone')[:16]}, which the store doesn't have" in shown(client, f"/audits/{OWN}", 503)
