"""The pages that are served: rendered once, and kept until what they show has changed."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tombola.errors import InputError, StoreError
from tombola.serving.watching import Seen, Watch
from tombola.store import DrawRecord, Store
from tombola.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

    from tombola.findings import Findings, Judgement
    from tombola.studies.begun import Begun

KEPT_BYTES = 64_000_000
"""Of rendered pages."""
BUSY_SECONDS, IDLE_SECONDS = 1, 3
"""How often a page asks for news: while something is under way, and else."""

_RUN = re.compile(r'(<th scope="row" data-saved="([0-9a-f]{64})">)([0-9a-f]{12})</th>')
_AUDIT = re.compile(r'<span data-audit="([0-9a-f]{64})">([0-9a-f]{12})</span>')


@dataclass(frozen=True)
class Page:
    """A page, its version (equal as long as it is), and the name of the file that it is to be saved as, if it is."""

    html: bytes
    version: str
    file: str = ""


class Pages:
    """The pages of one store. May be used from several threads."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.watch = Watch(store, folder)
        self._store, self._where = store, str(folder)
        self._kept = _Kept()

    def overview(self) -> Page:
        """What the store holds."""
        from tombola.serving import overview

        seen = self.watch.look()
        begun, unread = overview.begun(self._where)
        # Studies are files of their own, which change without the catalogue.
        studies = tuple((one.name, one.quick, one.updated, one.runs) for one in begun)
        runs = [run.id for run in (*seen.under_way, *seen.alone)]
        key = ("overview", studies, unread, seen.state(seen.draws, runs))
        return self._kept.get(key, lambda: self._overview(seen, begun, unread))

    def draws(self, draw_ids: Sequence[str], *, saved: bool = False) -> Page:
        """One draw with its other seeds, or several of them compared; ``saved`` is the file that needs no server.

        Raises ``InputError`` for a draw that the store doesn't have.
        """
        seen = self.watch.look()
        found: dict[str, DrawRecord] = {}
        for draw_id in draw_ids:
            group = seen.search(draw_id)
            if not group:
                raise InputError(f"the store has no draw {draw_id[:16]}")
            found |= {draw.id: draw for draw in group}
        query = "&".join(f"draw={draw_id}" for draw_id in draw_ids)
        link = f"/draws/{draw_ids[0]}/page.html" if len(draw_ids) == 1 else f"/compare/page.html?{query}"
        return self._findings(seen, list(found.values()), [], link, saved=saved)

    def run(self, run_id: str, *, saved: bool = False) -> Page:
        """One run. Raises ``InputError`` for one that the store doesn't have."""
        seen = self.watch.look()
        if run_id not in seen.runs:
            raise InputError(f"the store has no run {run_id[:16]}")
        return self._findings(seen, [], [run_id], f"/runs/{run_id}/page.html", saved=saved)

    def audit(self, audit_id: str, *, saved: bool = False) -> Page:
        """One audit, with the draws that it rests on.

        Raises ``InputError`` for one that the store doesn't have, ``StoreError`` for one that can't be read.
        """
        from tombola.report.audited import read_audit

        seen = self.watch.look()
        record = next((one for one in seen.audits if one.id == audit_id), None)
        if record is None:
            raise InputError(f"the store has no audit {audit_id[:16]}")
        try:
            told = read_audit(record)
        except InputError as error:
            raise StoreError(str(error)) from error
        draws = {draw.id: draw for draw in seen.draws}
        if gone := [name for name in told.draws if name not in draws]:
            raise StoreError(f"audit {audit_id[:12]} rests on draw {gone[0][:16]}, which the store doesn't have")
        own = [draws[name] for name in told.draws]
        return self._findings(seen, own, [], f"/audits/{audit_id}/page.html", saved=saved, judgement=told.judgement)

    def _findings(
        self,
        seen: Seen,
        draws: Sequence[DrawRecord],
        runs: Sequence[str],
        link: str,
        *,
        saved: bool,
        judgement: Judgement | None = None,
    ) -> Page:
        key = (link, saved, seen.state(draws, runs))
        return self._kept.get(key, lambda: self._made(draws, runs, link, saved=saved, judgement=judgement))

    def _made(
        self,
        draws: Sequence[DrawRecord],
        runs: Sequence[str],
        link: str,
        *,
        saved: bool,
        judgement: Judgement | None = None,
    ) -> Page:
        from markupsafe import Markup

        from tombola.findings import findings_of
        from tombola.report.page.sections import sections, slug
        from tombola.report.page.whole import page

        found = findings_of(self._store, [draw.id for draw in draws], runs, judgement=judgement)
        if saved:
            html = page(found).encode()
            return Page(html, _digest(html), f"{slug(found.title)}.html")
        parts = [(part.id, part.heading, Markup(_linked(part.html))) for part in sections(found)]
        every = BUSY_SECONDS if _busy(found) else IDLE_SECONDS
        return self._page("findings.html.j2", found.title, charts=True, every=every, sections=parts, link=link)

    def _overview(self, seen: Seen, begun: Sequence[Begun], unread: str) -> Page:
        from tombola.serving import overview

        studies, more = overview.studies(self._store, begun)
        lines = {"searches": overview.searches(seen), "under_way": overview.under_way(seen), "studies": studies}
        lines["audits"] = overview.audits(seen)
        busy = any(line.status == "running" for found in lines.values() for line in found)
        values = {**lines, "alone": overview.alone(seen), "unread": f"{unread} {more}".strip()}
        title = f"Store {Path(self._where).name or self._where}"
        every = BUSY_SECONDS if busy else IDLE_SECONDS
        return self._page("overview.html.j2", title, charts=False, every=every, **values)

    def _page(self, template: str, title: str, *, charts: bool, every: int, **values: Any) -> Page:
        content = render(template, title=title, where=self._where, **values)
        version = _digest(f"{__version__}\n{every}\n{content}".encode())
        html = whole(content, title, charts=charts, version=version, every=every)
        return Page(html.encode(), version)


class _Kept:
    """The pages asked for last, by what they depend on."""

    def __init__(self) -> None:
        self._pages: OrderedDict[Hashable, Page] = OrderedDict()
        self._size = 0
        self._changing = threading.Lock()
        self._making = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Page]) -> Page:
        """The page, made where it isn't kept; one at a time, for altair's checks are left out in all threads."""
        if (found := self._known(key)) is not None:
            return found
        with self._making:
            found = self._known(key)
            if found is None:
                found = make()
                self._keep(key, found)
            return found

    def _known(self, key: Hashable) -> Page | None:
        with self._changing:
            if key in self._pages:
                self._pages.move_to_end(key)
            return self._pages.get(key)

    def _keep(self, key: Hashable, page: Page) -> None:
        with self._changing:
            self._pages[key] = page
            self._size += len(page.html)
            while self._size > KEPT_BYTES and len(self._pages) > 1:
                self._size -= len(self._pages.popitem(last=False)[1].html)


def problem(heading: str, words: str) -> bytes:
    """A page that says what went wrong."""
    content = render("problem.html.j2", title=heading, words=words)
    return whole(content, heading, charts=False, version="", every=0).encode()


def whole(content: str, title: str, *, charts: bool, version: str, every: int) -> str:
    """The content in a page, which asks for news ``every`` so many seconds; never where that is 0."""
    from markupsafe import Markup

    scripts = ["idiomorph.min.js", "sortable.min.js", *(["charts.js"] if charts else []), "page.js"]
    values = {"scripts": scripts, "version": version, "every": every, "program": __version__}
    return render("whole.html.j2", title=title, content=Markup(content), **values)


def render(template: str, **values: Any) -> str:
    """A template with these values, as HTML. A value that is missing is an error."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tombola.serving")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _linked(html: str) -> str:
    """A section with its runs and audits as links; names and texts can't look like that: their quotes are escaped."""
    runs = _RUN.sub(r'\1<a href="/runs/\2">\3</a></th>', html)
    return _AUDIT.sub(r'<a href="/audits/\1">\2</a>', runs)


def _busy(found: Findings) -> bool:
    return any(search.status == "running" for search in found.searches)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
