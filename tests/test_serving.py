"""Served pages: they show what the store has, say when nothing is new, and say in a sentence what can't be read."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_store import a_mask, add_draw, add_run, an_id
from served import Answer, Client
from store_tools import blob_file, folder_of, sql
from test_page import HOSTILE, Parsed

import tombola as tb
from tombola.findings import findings_of
from tombola.report.page.sections import sections
from tombola.serving import pages, watching
from tombola.serving.watching import Watch
from tombola.studies.begun import Begun, remember


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tb.Store]:
    """A search over two seeds, one of another method, one of another recipe, a run by itself."""
    with tb.Store(tmp_path_factory.mktemp("full")) as store:
        for seed in (0, 1):
            add_draw(store, seed=seed, rounds=2, controls=("reinit",))
        add_draw(store, method="snip", rounds=2)
        add_draw(store, rounds=2, rate=0.5)
        add_run(store, an_id("alone"), a_mask(0.3), arm="dense")
        yield store


@pytest.fixture(scope="module")
def client(full: tb.Store) -> Client:
    return Client(full)


def draw_ids(store: tb.Store) -> list[str]:
    return [draw.id for draw in store.draws()]


def shown(client: Client, path: str, status: int = 200) -> str:
    """The text of a page."""
    answer = client.get(path)
    assert answer.status == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Parsed(answer.text).shown


def lines(html: str, name: str) -> list[list[str]]:
    """The cells of a table's lines."""
    (table,) = re.findall(rf'<table[^>]*data-name="{name}">.*?</table>', html, re.DOTALL)
    body = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2], re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line, re.DOTALL) for line in body]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in line] for line in cells]


# ---- what pages show


def test_the_overview_has_every_search_with_its_seeds(client: Client, full: tb.Store) -> None:
    html = client.get("/").text
    newest, snip, imp = lines(html, "draws")
    assert newest[1:4] == ["made-up", "imp rate 0.5", "0"]
    assert snip[1:4] == ["made-up", "snip", "0"]
    assert imp[1:5] == ["made-up", "imp rate none", "0, 1", "finished"]
    assert imp[5:9] == ["2", "25.0 %", "accuracy 89.5 %", "90.0 %"]  # means over the seeds
    ids = draw_ids(full)
    assert re.findall(r'href="/draws/([0-9a-f]+)"', html) == [ids[3], ids[2], ids[0]]
    ((run, *about),) = lines(html, "alone")
    assert run == an_id("alone")[:12]
    assert about[:5] == ["made-up", "dense", "30.0 %", "0", "finished"]
    assert "Under way" not in html
    assert "Studies" not in html


def test_recipes_of_one_method_are_told_apart(store: tb.Store) -> None:
    ladders = [[0.8**k for k in range(1, 9)] + [last] for last in (0.05, 0.01)]
    for ladder in ladders:
        add_draw(store, rounds=1, densities=ladder, allocation="uniform", survivors="reset")
    add_draw(store, rounds=1, densities=ladders[0], allocation="global", survivors="reset")
    names = [line[2] for line in lines(Client(store).get("/").text, "draws")]
    assert len(set(names)) == 3
    assert [name.split(",")[0] for name in names] == [
        f"imp allocation {kind}" for kind in ("global", "uniform", "uniform")
    ]
    assert names[0].endswith(", 0.05")
    assert names[1].endswith(", 0.01")


def test_a_draw_has_the_sections_of_the_saved_page(client: Client, full: tb.Store) -> None:
    ids = draw_ids(full)
    made = sections(findings_of(full, ids[:2]))
    for draw_id in ids[:2]:  # of either seed
        html = client.get(f"/draws/{draw_id}").text
        plain = re.sub(r'<a href="/runs/[0-9a-f]{64}">([0-9a-f]{12})</a>', r"\1", html)
        assert all(part.html in plain for part in made)
        linked = set(re.findall(r'href="/runs/([0-9a-f]{64})"', html))
        assert linked == {row["run"] for draw in full.draws()[:2] for row in draw.rounds}
        assert f'href="/draws/{draw_id}/page.html" download' in html


def test_a_run_and_a_comparison_have_theirs(client: Client, full: tb.Store) -> None:
    ids = draw_ids(full)
    run = full.draws()[0].rounds[1]["run"]
    assert all(
        part.html.split("<table")[0] in client.get(f"/runs/{run}").text
        for part in sections(findings_of(full, [], [run]))
    )
    query = f"draw={ids[0]}&draw={ids[2]}&draw={ids[0]}"
    html = client.get(f"/compare?{query}").text
    assert "Methods compared" in html
    assert Parsed(html).shown.count("made-up, imp") == 0
    for heading in ("imp", "snip", "Gradient flow"):
        assert re.search(rf'<li><a href="#[a-z0-9-]+">{heading}</a></li>', html)
    assert f"/compare/page.html?draw={ids[0]}&amp;draw={ids[2]}" in html


@pytest.mark.parametrize("kind", ["draws", "compare", "runs"])
def test_the_saved_page_needs_no_server(client: Client, full: tb.Store, kind: str) -> None:
    ids = draw_ids(full)
    run = full.draws()[0].rounds[1]["run"]
    paths = {
        "draws": f"/draws/{ids[0]}/page.html",
        "runs": f"/runs/{run}/page.html",
        "compare": f"/compare/page.html?draw={ids[0]}&draw={ids[2]}",
    }
    answer = client.get(paths[kind])
    names = {"draws": "made-up-imp", "runs": f"made-up-run-{run[:12]}-ticket", "compare": "made-up-2-searches"}
    assert answer.headers["content-disposition"] == f'attachment; filename="{names[kind]}.html"'
    assert "Content-Security-Policy" in answer.text
    assert not re.search(r'(src|href)="/', answer.text)
    assert answer.text.count("<section") >= 5


def test_every_file_that_pages_name_is_there(client: Client, full: tb.Store) -> None:
    html = client.get(f"/draws/{draw_ids(full)[0]}").text
    named = set(re.findall(r'(?:src|href)="(/assets/[^"]+)"', html))
    assert len(named) == 9
    for path in named:
        answer = client.get(path)
        assert answer.status == 200
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status, again.content) == (304, b"")
    licences = client.get("/assets/licences.txt").text
    for owner in ("Mike Bostock", "Jonas Earendel", "idiomorph"):
        assert owner in licences


def test_pages_have_no_code_of_their_own(client: Client, full: tb.Store) -> None:
    for path in ("/", f"/draws/{draw_ids(full)[0]}", "/nothing"):
        parsed = Parsed(client.get(path).text)
        assert not parsed.styles
        for attributes, text in parsed.scripts:
            assert attributes.get("type") == "application/json" or (attributes["src"] and not text)
        assert not any(name == "style" or name.startswith("on") for _, found in parsed.elements for name in found)


def test_hostile_names_stay_text(store: tb.Store) -> None:
    draw_id = add_draw(store, task=HOSTILE, method=HOSTILE, rounds=1, controls=(HOSTILE,))
    add_draw(store, task=HOSTILE, method=HOSTILE, rounds=1, rate=HOSTILE)
    add_run(store, an_id("alone"), a_mask(0.3), task=HOSTILE, arm=HOSTILE)
    claim = store.claim(an_id("now"), {"task": {"name": HOSTILE}, "arm": HOSTILE, "density": HOSTILE, "seed": HOSTILE})
    assert claim is not None
    with claim:
        for path in ("/", f"/draws/{draw_id}", f"/compare?draw={draw_id}", f"/runs/{an_id('alone')}"):
            parsed = Parsed(Client(store).get(path).text)
            assert not any("alert(1)" in text for attributes, text in parsed.scripts if "src" in attributes)
            assert not any(attributes.get("src") == "x" for _, attributes in parsed.elements)
            assert HOSTILE in " ".join(parsed.text)


def test_what_is_under_way_is_on_the_overview(store: tb.Store) -> None:
    draw_id = add_draw(store, task="digits-mlp", rounds=2, controls=("reinit",))
    draw = store.draw(draw_id)
    assert draw is not None
    draw.about["recipe"]["controls"] = ["reinit"]
    store.save_draw(draw_id, draw.about, draw.rounds[:3], "running")
    (line,) = lines(Client(store).get("/").text, "draws")
    assert line[4] == "interrupted, 3 of 5 runs done"
    about = {"task": {"name": "digits-mlp"}, "seed": 0, "arm": "ticket", "density": 0.25}
    claim = store.claim(an_id("now"), about)
    assert claim is not None
    with claim:
        client = Client(store)
        html = client.get("/").text
        assert 'data-every="1"' in html
        (line,) = lines(html, "draws")
        assert line[4] == "running, 3 of 5 runs done"
        ((run, *about_it),) = lines(html, "under-way")
        assert run == an_id("now")[:12]
        assert about_it[:5] == ["digits-mlp", "ticket", "25.0 %", "0", "running"]
        assert f"Run {an_id('now')[:12]} is running" in shown(client, f"/draws/{draw_id}")
        assert f"/runs/{an_id('now')}" in html
    assert 'data-every="3"' in client.get("/").text


def test_studies_are_on_the_overview(store: tb.Store) -> None:
    source = {
        "name": "tried",
        "seeds": "0",
        "draws": [{"tasks": ["digits-mlp"], "methods": ["imp"], "densities": [0.5]}],
    }
    common: dict[str, Any] = {"where": "tried.toml", "quick": False, "jobs": 1, "data_root": None, "out": "out"}
    where = str(folder_of(store))
    remember(where, Begun(source=source, begun=1.0, updated=2.0, **common))
    client = Client(store)
    (line,) = lines(client.get("/").text, "studies")
    assert line[:2] == ["tried", "interrupted"]
    assert line[2] == "0 of 1"
    bad = source | {"name": "gone", "draws": [{"tasks": ["no-such-task"], "methods": ["imp"]}]}
    remember(where, Begun(source=bad, begun=3.0, updated=4.0, **common))
    assert "The study gone can't be read" in shown(client, "/")
    (folder_of(store) / "studies" / "tried.json").write_text("{")
    assert "is damaged" in shown(client, "/")


def test_an_empty_store_says_what_to_do(store: tb.Store) -> None:
    assert "This store holds no draw yet. tombola draw digits-mlp makes some" in shown(Client(store), "/")


# ---- news


def version_of(answer: Answer) -> str:
    (version,) = re.findall(r'data-version="([0-9a-f]+)"', answer.text)
    assert answer.headers["etag"] == f'"{version}"'
    return str(version)


def test_nothing_is_sent_when_nothing_is_new(store: tb.Store) -> None:
    draw_id = add_draw(store, rounds=2)
    client, paths = Client(store), ("/", f"/draws/{draw_id}")
    before = [version_of(client.get(path)) for path in paths]

    def statuses() -> list[int]:
        asked = [{"If-None-Match": f'W/"x", "{version}"'} for version in before]
        return [client.get(path, headers=head).status for path, head in zip(paths, asked, strict=True)]

    assert statuses() == [304, 304]
    add_draw(store, method="snip", rounds=1)
    assert statuses() == [200, 304]  # of another draw's news nothing is seen
    add_draw(store, seed=1, rounds=2)
    assert statuses() == [200, 200]
    assert client.get(paths[1], headers={"If-None-Match": f'"{before[1]}"'}).content


def test_a_page_is_made_once_until_it_changes(store: tb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_id, other = add_draw(store, rounds=1), add_draw(store, method="snip", rounds=1)
    made: list[list[str]] = []
    whole = pages.Pages._made
    monkeypatch.setattr(
        pages.Pages, "_made", lambda s, draws, *a, **k: made.append(draws[0].id) or whole(s, draws, *a, **k)
    )
    client = Client(store)
    for _ in range(2):
        assert client.get(f"/draws/{draw_id}").status == 200
        assert client.get(f"/draws/{other}").status == 200
    assert made == [draw_id, other]
    draw = store.draw(other)
    assert draw is not None
    store.save_draw(other, draw.about, draw.rounds, "finished")
    for path in (draw_id, other):
        client.get(f"/draws/{path}")
    assert made == [draw_id, other, other]


def test_kept_pages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "KEPT_BYTES", 100)
    kept = pages._Kept()
    asked: list[int] = []

    def get(number: int, size: int = 40) -> int:
        return len(kept.get(number, lambda: asked.append(number) or pages.Page(b"x" * size, "")).html)

    for number in (0, 1, 0, 2, 0, 1):  # 1 was asked for longest ago when 2 came
        get(number)
    assert asked == [0, 1, 2, 1]
    assert get(3, 1000) == 1000
    assert get(3, 1000) == 1000
    assert asked == [0, 1, 2, 1, 3]


# ---- what goes wrong


def test_a_store_that_is_gone_is_told_and_not_made_again(store: tb.Store, tmp_path: Path) -> None:
    draw_id = add_draw(store, rounds=1)
    client, folder = Client(store), folder_of(store)
    client.get("/")
    shutil.move(folder, tmp_path / "away")
    for path in ("/", f"/draws/{draw_id}", f"/draws/{draw_id}/page.html"):
        assert "isn't there any more" in shown(client, path, 503)
    folder.mkdir()
    assert "isn't there any more" in shown(client, "/", 503)
    assert list(folder.iterdir()) == []
    folder.rmdir()
    shutil.move(tmp_path / "away", folder)
    assert client.get(f"/draws/{draw_id}").status == 200


@pytest.mark.parametrize("how", ["junk", "json"])
def test_a_damaged_store_is_told(store: tb.Store, how: str) -> None:
    add_draw(store, rounds=1)
    if how == "json":
        sql(store, "update tombola_runs set about = '{'")
    else:
        for path in folder_of(store).glob("catalogue.sqlite*"):
            path.unlink()
        (folder_of(store) / "catalogue.sqlite").write_bytes(b"no catalogue" * 1000)
    words = shown(Client(store), "/", 503)
    assert "The store can't be read" in words
    assert "catalogue" in words


def test_a_missing_blob_is_told(store: tb.Store) -> None:
    draw_id = add_draw(store, rounds=1)
    run = store.runs()[0]
    blob_file(store, run.blobs["history"]).unlink()
    words = shown(Client(store), f"/draws/{draw_id}")
    assert f"'history' of run {run.id[:8]} can't be read" in words


def test_what_breaks_gives_no_details(full: tb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("tombola.serving.pages.Pages.overview", broken)
    words = shown(Client(full), "/", 500)
    assert "The log of tombola serve says why" in words
    assert "secret" not in words
    assert str(Client(full).get("/").raised) == "a secret"  # so that the server logs it


def test_what_the_store_does_not_have_is_told(client: Client) -> None:
    for path, words in (
        (f"/draws/{an_id('none')}", "The store has no draw"),
        (f"/runs/{an_id('none')}", "The store has no run"),
        (f"/compare?draw={an_id('none')}", "The store has no draw"),
    ):
        assert words in shown(client, path, 404)
    assert "1 to 40 draws, but 0 are chosen" in shown(client, "/compare", 400)
    many = "&".join(f"draw={number:08x}" for number in range(41))
    assert "but 41 are chosen" in shown(client, f"/compare?{many}", 400)


def test_a_killed_process_is_seen_though_it_changes_no_file(store: tb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_id = add_draw(store, rounds=1)
    draw = store.draw(draw_id)
    assert draw is not None
    store.save_draw(draw_id, draw.about, draw.rounds, "running")
    claims = (
        "import sys, time; from tombola.store import Store; store = Store(sys.argv[1]);"
        "claim = store.claim(sys.argv[2], {'task': {'name': 'made-up'}, 'seed': 0});"
        "print(claim is not None, flush=True);"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", claims, str(folder_of(store)), an_id("now")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        watch = Watch(store, folder_of(store))
        assert watch.look().draws[0].status == "running"
        assert watch.look() is watch.look()
    finally:
        process.kill()
        process.communicate()
    monkeypatch.setattr(watching, "ANEW_SECONDS", -1.0)
    assert watch.look().draws[0].status == "interrupted"
