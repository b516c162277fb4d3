"""Served pages in a browser follow a store that grows, and the reader stays where they are."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from made_up_store import an_id
from store_tools import folder_of
from test_page_browser import REINIT, TICKET, shown_lines
from visiting import TOMBOLA, at_work, browser, running, runs, url, visit  # noqa: F401

import tombola as tb

# ruff: noqa: F811 - fixtures are arguments


def test_a_draw_that_grows_is_followed_where_the_reader_is(visit: Any, runs: tb.Store) -> None:
    draw, rows = running(runs, "growing")
    with at_work(runs, "growing"):
        seen = visit(f"draws/{draw.id}")
        page, figure = seen.page, seen.chart(1)
        assert "5 runs are done" in page.locator("#verdict").inner_text()
        figure.locator("summary", has_text="Series").click()
        figure.get_by_role("checkbox", name="reinit").uncheck()
        figure.locator("summary", has_text="Data").click()
        heading = page.locator('table[data-name$="rounds"] th', has_text="density")
        heading.get_by_role("button").click()
        page.locator('th[aria-sort="ascending"]').wait_for()
        box = figure.get_by_role("checkbox", name="reinit")
        box.evaluate("(box) => { box.scrollIntoView({ behavior: 'instant' }); box.focus({ preventScroll: true }); }")
        seen.until(lambda: shown_lines(figure), [TICKET])
        top = "document.activeElement.closest('figure').getBoundingClientRect().top"
        before = page.evaluate(top)
        asked = len(seen.answers)

        runs.save_draw(draw.id, draw.about, rows, "running")

        page.locator("#verdict", has_text="7 runs are done").wait_for()
        densities = page.locator('table[data-name$="rounds"] tbody tr td:nth-child(3)')
        seen.until(densities.all_inner_texts, ["12.5 %"] * 2 + ["25.0 %"] * 2 + ["50.0 %"] * 2 + ["100 %"])
        assert heading.get_attribute("aria-sort") == "ascending"
        assert figure.locator("details[open]").count() == 2
        assert figure.locator("details.numbers tbody tr").count() == 7
        seen.until(lambda: figure.locator(".mark-symbol path").count() > 8, True)
        assert not figure.get_by_role("checkbox", name="reinit").is_checked()
        assert figure.get_by_role("checkbox", name="ticket").is_checked()
        seen.until(lambda: shown_lines(figure), [TICKET])
        assert page.evaluate("document.activeElement.value") == "reinit"
        assert abs(page.evaluate(top) - before) < 30
        assert page.evaluate("window.mine")
        assert (seen.page.url, 200) in seen.answers[asked:]
        figure.get_by_role("checkbox", name="reinit").check()
        seen.until(lambda: shown_lines(figure), [TICKET, REINIT])


def test_nothing_is_drawn_or_sent_again_that_is_the_same(visit: Any, runs: tb.Store) -> None:
    draw, rows = running(runs, "still")
    with at_work(runs, "still"):
        seen = visit(f"draws/{draw.id}")
        figure = seen.chart(0)
        figure.locator("svg").first.evaluate("(svg) => { svg.mine = true; }")
        asked = len(seen.answers)
        seen.until(lambda: len(seen.answers) >= asked + 2, True)
        assert {status for _, status in seen.answers[asked:]} == {304}
    runs.save_draw(draw.id, draw.about, rows[:5], "finished")
    seen.until(lambda: "still running" in seen.page.locator("#verdict").inner_text(), False)
    assert seen.page.get_attribute("body", "data-every") == "3"
    assert figure.locator("svg").first.evaluate("(svg) => svg.mine")


def test_what_is_begun_appears_by_itself(visit: Any, runs: tb.Store) -> None:
    seen = visit()
    box = seen.page.locator("tr", has_text="snip").get_by_role("checkbox").first
    box.check()
    draw, rows = running(runs, "new")
    row = seen.page.locator('table[data-name="draws"] tr', has_text="new")
    row.get_by_text("interrupted, 5 runs done").wait_for()
    with at_work(runs, "new"):
        row.get_by_text("running, 5 runs done").wait_for()
        seen.page.locator("#under-way").get_by_text(an_id("now", "new")[:12]).wait_for()
    runs.save_draw(draw.id, draw.about, rows, "finished")
    row.get_by_text("finished").wait_for()
    runs.save_audit(an_id("audit"), {})
    seen.page.locator("#audits").get_by_role("link", name=an_id("audit")[:12]).wait_for()
    assert box.is_checked()
    assert seen.page.locator("#draws input:checked").count() == 1
    assert seen.page.evaluate("window.mine")


def test_a_real_draw_is_followed_from_the_first_run_to_the_last(visit: Any, runs: tb.Store, tmp_path: Path) -> None:
    seen = visit()
    training = ("--rounds", "1", "--steps", "2000it", "--evaluate-every", "100it", "--engine", "masked")
    command = [*TOMBOLA, "draw", "digits-mlp", *training, "--no-figures", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--store", str(folder_of(runs))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        seen.page.locator("#under-way").get_by_text("digits-mlp").wait_for()
        row = seen.page.locator('table[data-name="draws"] tr', has_text="digits-mlp")
        row.get_by_text("finished").wait_for()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    assert row.locator("td").nth(2).inner_text() == "0"
    assert seen.page.evaluate("window.mine")
    row.get_by_role("link").click()
    assert seen.chart(0).locator("svg").count() == 1
