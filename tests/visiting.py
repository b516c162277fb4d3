"""Visits to served pages in a browser, and a store for them to look at that may grow meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_up_store import add_draw, an_id
from store_tools import folder_of
from test_page_browser import PATIENCE, browser  # noqa: F401

import tombola as tb

TOMBOLA = (sys.executable, "-m", "tombola")


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Any]]:
    """A server's first page, and its process."""
    command = [*TOMBOLA, "serve", "--store", str(folder), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        yield json.loads(text)["url"], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tb.Store]:
    """The store that most tests look at: each has a task of its own in it."""
    with tb.Store(tmp_path_factory.mktemp("served") / "runs") as store:
        for seed in (0, 1):
            add_draw(store, task="known", seed=seed, rounds=2, controls=("reinit",))
        add_draw(store, task="known", method="snip", rounds=2)
        yield store


@pytest.fixture(scope="module")
def url(runs: tb.Store, browser: Any) -> Iterator[str]:  # noqa: F811
    with served(folder_of(runs)) as (first, _):
        yield first


class Visit:
    """A page that notes every complaint, and every answer."""

    def __init__(self, browser: Any, url: str, path: str = "", **context: Any) -> None:  # noqa: F811
        size = {"width": context.pop("width", 1280), "height": 900}
        self.context = browser.new_context(viewport=size, accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.answers: list[tuple[str, int]] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("response", lambda answer: self.answers.append((answer.url, answer.status)))
        self.page.goto(url + path)
        self.page.evaluate("window.mine = true")  # a page that was loaded again has lost it

    def chart(self, number: int) -> Any:
        figure = self.page.locator("figure.chart").nth(number)
        figure.scroll_into_view_if_needed()
        figure.and_(self.page.locator("[data-drawn]")).wait_for()
        return figure

    def until(self, check: Any, wanted: Any) -> None:
        """Wait until something is as it should be."""
        for _ in range(PATIENCE // 100):
            if check() == wanted:
                return
            self.page.wait_for_timeout(100)
        assert check() == wanted

    def close(self, *, complaints: int = 0) -> None:
        assert len(self.wrong) == complaints, self.wrong
        self.context.close()


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Any]:  # noqa: F811
    opened: list[Visit] = []

    def open_at(path: str = "", **context: Any) -> Visit:
        opened.append(Visit(browser, url, path, **context))
        return opened[-1]

    yield open_at
    for one in opened:
        assert all(address.startswith((url, "data:", "blob:")) for address, _ in one.answers)
        one.close()


def running(store: tb.Store, task: str) -> tuple[Any, list[dict[str, Any]]]:
    """A draw whose record says that one control has been trained so far, and its rows when it is over."""
    draw = store.draw(add_draw(store, task=task, rounds=3, controls=("reinit",)))
    assert draw is not None
    store.save_draw(draw.id, draw.about, draw.rounds[:5], "running")
    return draw, list(draw.rounds)


def at_work(store: tb.Store, task: str) -> Any:
    """A run of a task that is being trained."""
    claim = store.claim(an_id("now", task), {"task": {"name": task}, "seed": 0, "arm": "ticket", "density": 0.125})
    assert claim is not None
    return claim
