"""The report's page in a browser, as a person uses it: by mouse, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_store import add_draw
from test_page import HOSTILE

import tombola as tb
from tombola.findings import Findings, findings_of
from tombola.report.page.whole import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE = 60_000  # milliseconds: a busy machine is slow, and says nothing by it

# Texts with less than WCAG's AA contrast of 4.5 to what is behind them.
CONTRAST = """
() => {
  const light = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const of = (text) => text.match(/[\\d.]+/g).map(Number);
  const lum = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const found = of(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest("svg, script")) continue;
    const [a, b] = [lum(of(getComputedStyle(e).color)), lum(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${e.tagName} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return low;
}
"""


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Findings]:
    with tb.Store(tmp_path_factory.mktemp("runs")) as store:
        yield findings_of(store, [add_draw(store, seed=seed, controls=("reinit",)) for seed in (0, 1)])


@pytest.fixture(scope="module")
def path(findings: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("pages") / "page.html"
    made.write_text(page(findings), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=list(FLAGS))
        yield opened
        opened.close()


class Visit:
    """A page in a browser that notes every complaint, every question and every request."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        scheme = "dark" if dark else "light"
        view = {"width": width, "height": height}
        self.page = browser.new_page(viewport=view, color_scheme=scheme, accept_downloads=True)
        self.page.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def drawn(self, number: int = 0) -> Any:
        """A chart, drawn."""
        figure = self.page.locator("figure.chart").nth(number)
        figure.scroll_into_view_if_needed()
        self.coloured(figure, "")
        return figure

    def coloured(self, figure: Any, scheme: str) -> None:
        """Wait until a chart is drawn, for a light or a dark page. The page's policy forbids what waits by a script."""
        own = self.page.locator(f'[data-drawn="{scheme}"]' if scheme else "[data-drawn]")
        figure.and_(own).wait_for()

    def saved(self, click: Any) -> tuple[str, bytes]:
        """Name and bytes of what a click saves."""
        with self.page.expect_download() as waiting:
            click()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


@pytest.fixture
def visit(browser: Any, path: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    opened = Visit(browser, path, **getattr(request, "param", {}))
    yield opened
    opened.page.close()
    assert opened.wrong == []
    outside = [url for url in opened.requests if not url.startswith(("data:", "blob:"))]
    assert outside == [path.as_uri()]


def column(visit: Visit, name: str, header: str) -> list[str]:
    """What stands in a column of a table, from the top."""
    script = """([name, header]) => {
      const table = document.querySelector(`table[data-name$="${name}"]`);
      const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === header);
      return [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
    }"""
    found: list[str] = visit.page.evaluate(script, [name, header])
    return found


def wait_for_column(visit: Visit, name: str, header: str, wanted: list[str]) -> None:
    for _ in range(200):
        if column(visit, name, header) == wanted:
            return
        visit.page.wait_for_timeout(50)
    assert column(visit, name, header) == wanted


def test_every_chart_is_drawn_and_says_what_it_is(visit: Visit) -> None:
    count = visit.page.locator("figure.chart").count()
    assert count == 4
    for number in range(count):
        figure = visit.drawn(number)
        assert figure.locator("svg").count() == 1
        assert "Its numbers are in the table under it." in figure.locator(".drawing").get_attribute("aria-label")
        assert figure.locator("svg path").count() > 5


def test_a_table_sorts_by_mouse(visit: Visit) -> None:
    before = column(visit, "costs", "kB to store")
    header = visit.page.locator('table[data-name$="costs"] th', has_text="kB to store")
    header.locator("button").click()
    wait_for_column(visit, "costs", "kB to store", before[::-1])
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").click()
    wait_for_column(visit, "costs", "kB to store", before)
    assert header.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_table_sorts_by_keyboard(visit: Visit, key: str) -> None:
    name = "rounds"
    before = column(visit, name, "density")
    visit.page.locator(f'table[data-name$="{name}"] th', has_text="density").locator("button").focus()
    visit.page.keyboard.press(key)
    wait_for_column(visit, name, "density", before[::-1])
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press(key)  # the next column: runs, all equal, stays as it is
    sorted_by = visit.page.locator(f'table[data-name$="{name}"] th[aria-sort]').all_text_contents()
    assert sorted_by == ["runs"]


def shown_lines(figure: Any) -> list[str]:
    """The colours of the lines that can be seen."""
    script = """(figure) => [...figure.querySelectorAll('.mark-line path')]
      .filter((line) => line.getAttribute('opacity') !== '0' && getComputedStyle(line).opacity !== '0')
      .map((line) => line.getAttribute('stroke'))"""
    found: list[str] = figure.evaluate(script)
    return sorted(found)


def wait_for_lines(visit: Visit, figure: Any, wanted: list[str]) -> None:
    for _ in range(200):
        if shown_lines(figure) == wanted:
            return
        visit.page.wait_for_timeout(50)
    assert shown_lines(figure) == wanted


TICKET, REINIT = "#0072B2", "#D55E00"


def test_a_series_hides_and_shows_by_its_legend(visit: Visit) -> None:
    figure = visit.drawn(1)
    wait_for_lines(visit, figure, [TICKET, REINIT])
    entry = figure.locator(".role-legend-label text", has_text="reinit")
    entry.click()
    wait_for_lines(visit, figure, [TICKET])
    figure.locator("summary", has_text="Series").click()
    box = figure.get_by_role("checkbox", name="reinit")
    assert not box.is_checked()
    assert figure.get_by_role("checkbox", name="ticket").is_checked()
    entry.click()
    wait_for_lines(visit, figure, [TICKET, REINIT])
    assert box.is_checked()


def test_a_series_hides_and_shows_by_keyboard_and_stays_so(visit: Visit) -> None:
    figure = visit.drawn(1)
    figure.locator("summary", has_text="Series").focus()
    visit.page.keyboard.press("Enter")
    figure.get_by_role("checkbox", name="ticket").focus()
    visit.page.keyboard.press("Space")
    wait_for_lines(visit, figure, [REINIT])
    visit.page.locator("#theme").click()
    visit.coloured(figure, "dark")
    wait_for_lines(visit, figure, ["#f0803c"])
    visit.page.locator("#theme").click()
    visit.coloured(figure, "light")
    figure.get_by_role("checkbox", name="ticket").focus()
    visit.page.keyboard.press("Space")
    wait_for_lines(visit, figure, [TICKET, REINIT])


def test_a_mark_tells_its_numbers(visit: Visit) -> None:
    figure = visit.drawn(1)
    figure.locator(".role-mark.mark-symbol path").last.hover(force=True)
    tooltip = visit.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "Mean" in tooltip.inner_text()


def test_tables_are_saved_in_full(visit: Visit, findings: Findings) -> None:
    table = visit.page.locator(".table", has=visit.page.locator('table[data-name$="runs"]'))
    name, data = visit.saved(table.locator("button", has_text="Download CSV").click)
    assert name == "s0-made-up-imp-runs.csv"
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert len(rows) == len(findings.searches[0].rounds)
    for row, run in zip(rows, findings.searches[0].rounds, strict=True):
        assert row["run"] == run["run"]
        assert row["arm"] == run["arm"]
        assert float(row["density"]) == run["density"]
        assert float(row["at early stop %"]) == run["stop_metric"]


def test_a_figure_is_saved_as_it_is_in_a_paper(visit: Visit) -> None:
    visit.page.locator("#theme").click()
    figure = visit.drawn(0)
    name, svg = visit.saved(figure.locator('button[data-do="svg"]').click)
    assert name == "s0-made-up-imp-accuracy.svg"
    for part in (b"<svg", b"made-up, imp: test accuracy", b'fill="white"', TICKET.encode()):
        assert part in svg
    name, image = visit.saved(figure.locator('button[data-do="png"]').click)
    assert name == "s0-made-up-imp-accuracy.png"
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width = int.from_bytes(image[16:20], "big")
    assert width > 900  # twice the size of the figure


def test_the_numbers_of_a_chart_are_a_table(visit: Visit) -> None:
    figure = visit.drawn(1)
    figure.locator("summary", has_text="Data").click()
    figure.locator("table").wait_for()
    rows = figure.locator("tbody tr").all_inner_texts()
    assert len(rows) == 7  # four tickets, three times reinit
    header = figure.locator("thead th").all_inner_texts()
    assert header[:3] == ["Arm", "Measured", "Round"]
    name, data = visit.saved(figure.locator("button", has_text="Download CSV").click)
    assert name == "s0-made-up-imp-early-stop-numbers.csv"
    saved = list(csv.DictReader(io.StringIO(data.decode())))
    assert [float(row["Mean"]) for row in saved] == [100.0] * 7


@pytest.mark.parametrize("visit", [{"dark": True}], indirect=True)
def test_dark_is_dark_and_can_be_left(visit: Visit) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert visit.page.evaluate(ground) == "rgb(20, 22, 26)"
    figure = visit.drawn(1)
    assert visit.page.locator("#theme").get_attribute("aria-pressed") == "true"
    wait_for_lines(visit, figure, ["#4ba3df", "#f0803c"])
    visit.page.locator("#theme").click()
    assert visit.page.evaluate(ground) == "rgb(255, 255, 255)"
    assert visit.page.locator("#theme").get_attribute("aria-pressed") == "false"
    wait_for_lines(visit, figure, [TICKET, REINIT])


@pytest.mark.parametrize(
    "visit", [{"dark": dark, "width": w} for dark in (True, False) for w in (320, 1280)], indirect=True
)
def test_text_stands_out_and_nothing_moves_sideways(visit: Visit) -> None:
    for number in range(4):
        visit.drawn(number)
        visit.page.locator("figure.chart details").nth(2 * number + 1).locator("summary").click()
    assert visit.page.evaluate(CONTRAST) == []
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    image = visit.page.screenshot(full_page=True)
    assert int.from_bytes(image[16:20], "big") == width


def test_the_page_can_be_read_by_its_landmarks(visit: Visit) -> None:
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert visit.page.get_by_role(landmark).count() == 1, landmark
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    visit.page.keyboard.press("Enter")
    assert visit.page.url.endswith("#verdict")
    assert visit.page.get_by_role("region").count() > 5
    names = visit.page.get_by_role("table").evaluate_all("(all) => all.map((t) => t.caption.textContent)")
    assert len(names) == len(set(names)) == 6
    unnamed = "(all) => all.filter((b) => !b.textContent.trim() && !b.ariaLabel).length"
    assert visit.page.get_by_role("button").evaluate_all(unnamed) == 0


def test_hostile_names_do_nothing(browser: Any, tmp_path: Path) -> None:
    with tb.Store(tmp_path / "runs") as store:
        shapes = {HOSTILE: (30, 64), f"{HOSTILE}<!--": (4, 30)}
        ids = [add_draw(store, task=HOSTILE, method=HOSTILE, controls=(HOSTILE,), shapes=shapes, rounds=2)]
        ids.append(add_draw(store, task=HOSTILE, method="imp", rounds=2))
        findings = findings_of(store, ids)
    path = tmp_path / "page.html"
    path.write_text(page(findings), encoding="utf-8")
    visit = Visit(browser, path)
    visit.page.locator(".more > summary").first.click()
    figure = visit.drawn(visit.page.locator("figure.fixed").count())
    assert figure.locator(".role-legend-label text", has_text="<script>alert(1)").count() > 0
    figure.locator("summary", has_text="Data").click()
    figure.locator("table").wait_for()
    figure.locator(".role-mark.mark-symbol path").last.hover(force=True)
    visit.page.locator("#vg-tooltip-element.visible").wait_for()
    assert visit.page.title().startswith(HOSTILE)
    assert visit.page.locator("img[src='x'], script:has-text('alert')").count() == 0
    assert visit.wrong == []
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    visit.page.close()
