"""Served pages in a browser: a reader finds their way, other pages get nothing, trouble is said."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from made_up_store import a_mask, add_draw, add_run, an_id
from test_page import HOSTILE
from test_page_browser import CONTRAST
from visiting import Visit, at_work, browser, running, runs, served, url, visit  # noqa: F401

import tombola as tb

# ruff: noqa: F811 - fixtures are arguments


def test_a_reader_finds_their_way(visit: Any, runs: tb.Store) -> None:
    page = visit().page
    rows = page.locator('table[data-name="draws"] tr', has_text="known")
    rows.filter(has_text="imp").get_by_role("link").click()
    page.get_by_role("heading", name="known, imp").wait_for()
    run = runs.draws()[0].rounds[0]["run"]
    page.locator(f'a[href="/runs/{run}"]').click()
    page.get_by_role("heading", name=f"known, run {run[:12]}").wait_for()
    page.get_by_role("link", name="All draws").click()
    for method in ("imp", "snip"):
        rows.filter(has_text=method).get_by_role("checkbox").check()
    page.get_by_role("button", name="Compare the chosen").click()
    page.get_by_role("heading", name="Methods compared").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Save this page").click()
    assert waiting.value.suggested_filename == "known-2-searches.html"
    assert Path(waiting.value.path()).read_bytes().startswith(b"<!doctype html>")


def test_the_overview_sorts_and_fits_a_phone(visit: Any) -> None:
    for dark, width in ((False, 320), (True, 1280)):
        page = visit(width=width, color_scheme="dark" if dark else "light").page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) == []
        for landmark in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(landmark).count() == 1
    header = page.locator('table[data-name="draws"] th', has_text="method")
    header.get_by_role("button").click()
    page.locator('th[aria-sort="ascending"]').wait_for()
    assert header.get_attribute("aria-sort") == "ascending"


def test_the_theme_holds_for_all_pages(visit: Any) -> None:
    seen = visit()
    seen.page.locator("#theme").click()
    seen.page.locator('table[data-name="draws"] a').first.click()
    seen.page.locator("#verdict").wait_for()
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    seen.until(lambda: seen.page.locator("#theme").get_attribute("aria-pressed"), "true")


def test_hostile_names_do_nothing(visit: Any, runs: tb.Store) -> None:
    draw_id = add_draw(runs, task=HOSTILE, method=HOSTILE, controls=(HOSTILE,), rounds=2)
    add_run(runs, an_id("hostile"), a_mask(0.3), task=HOSTILE, arm=HOSTILE)
    draw = runs.draw(draw_id)
    assert draw is not None
    with at_work(runs, HOSTILE):
        runs.save_draw(draw_id, draw.about, draw.rounds[:3], "running")
        first, seen = visit(), visit(f"draws/{draw_id}")
        assert first.page.get_by_role("link", name=HOSTILE).count() == 1
        seen.chart(0)
        runs.save_draw(draw_id, draw.about, draw.rounds, "running")
        seen.page.locator("#verdict", has_text="5 runs are done").wait_for()
    for page in (first.page, seen.page):
        assert page.locator("img[src='x'], script:text('alert')").count() == 0


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_gets_nothing(browser: Any, url: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>another</title>")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        page = browser.new_page()
        failed: list[str] = []
        page.on("requestfailed", lambda request: failed.append(request.url))
        page.goto(f"http://{name}:{other.server_port}/index.html")
        fetched = "([url, mode]) => fetch(url, {mode}).then(() => 'something', () => 'nothing')"
        for mode in ("cors", "no-cors"):
            assert page.evaluate(fetched, [url, mode]) == "nothing"
        loaded = """([tag, url]) => new Promise((end) => {
          const part = document.createElement(tag);
          [part.onload, part.onerror, part.src] = [() => end(true), () => end(false), url];
          document.body.append(part);
        })"""
        for kind, asset in (("script", "live.js"), ("img", "icon.svg")):
            assert page.evaluate(loaded, [kind, f"{url}assets/{asset}"]) is False
        assert len(failed) == 4
        page.evaluate("(url) => { location = url; }", url)  # a link may be followed
        page.wait_for_url(url)
        assert page.get_by_role("heading", name="Draws").count() == 1
        page.close()
        other.shutdown()


def test_trouble_is_said_and_goes_away(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with tb.Store(folder) as store:
        draw, _ = running(store, "gone")
        with at_work(store, "gone"), served(folder) as (url, process):
            seen = Visit(browser, url, f"draws/{draw.id}")
            said = seen.page.get_by_role("status")
            (folder / "catalogue.sqlite").rename(folder / "away")
            seen.until(said.inner_text, f"The store {folder} isn't there any more.")
            assert seen.page.locator("#verdict").is_visible()
            (folder / "away").rename(folder / "catalogue.sqlite")
            seen.until(said.inner_text, "")
            process.kill()
            seen.until(said.inner_text, "The server doesn't answer: what you see is what it said last.")
            assert seen.page.evaluate("window.mine")
            assert all("Failed to load resource" in words for words in seen.wrong)
            seen.close(complaints=len(seen.wrong))
