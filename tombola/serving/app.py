"""The answers to requests: pages of the store, the files that those need, and problems as pages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tombola.errors import InputError, StoreError
from tombola.serving.guard import NOTHING, App, Guard, Hosts, Refusal
from tombola.serving.pages import Page, Pages, problem
from tombola.store import Store

MOST_COMPARED = 40
"""Draws on one page; each comes with its other seeds."""

_DRAW_ID = re.compile(r"[0-9a-f]{8,64}")
_RUN_ID = re.compile(r"[0-9a-f]{64}")
_HTML = "text/html; charset=utf-8"


def app(store: Store, folder: Path, hosts: Hosts) -> App:
    """The pages of a store in a folder, as an ASGI application for these hosts."""
    pages = Pages(store, folder)
    routes: dict[str, Callable[[Request], Page]] = {
        "/": lambda request: pages.overview(),
        "/draws/{id}": lambda request: pages.draws([_id(request, _DRAW_ID)]),
        "/draws/{id}/page.html": lambda request: pages.draws([_id(request, _DRAW_ID)], saved=True),
        "/runs/{id}": lambda request: pages.run(_id(request, _RUN_ID)),
        "/runs/{id}/page.html": lambda request: pages.run(_id(request, _RUN_ID), saved=True),
        "/audits/{id}": lambda request: pages.audit(_id(request, _RUN_ID)),
        "/audits/{id}/page.html": lambda request: pages.audit(_id(request, _RUN_ID), saved=True),
        "/compare": lambda request: pages.draws(_chosen(request)),
        "/compare/page.html": lambda request: pages.draws(_chosen(request), saved=True),
    }
    inner = Starlette(
        routes=[
            *(Route(path, partial(_answer, make)) for path, make in routes.items()),
            Route("/assets/{name}", _asset),
        ],
        exception_handlers={
            HTTPException: _http,
            _Refused: lambda request, error: _problem(error.refusal),
            InputError: lambda request, error: _problem(Refusal(404, "Not in the store", f"{_upper(error)}.")),
            StoreError: lambda request, error: _problem(Refusal(503, "The store can't be read", f"{_upper(error)}.")),
            Exception: lambda request, error: _problem(_BROKEN),
        },
    )
    inner.router.redirect_slashes = False
    return Guard(inner, hosts, _problem)


class _Refused(Exception):  # noqa: N818 - it says what happened
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


_BROKEN = Refusal(500, "Something went wrong", "This page can't be shown. The log of tombola serve says why.")


def _id(request: Request, form: re.Pattern[str]) -> str:
    found: str = request.path_params["id"]
    if not form.fullmatch(found):
        raise _Refused(NOTHING)
    return found


def _chosen(request: Request) -> list[str]:
    """The draws that are to be compared, each once."""
    found = list(dict.fromkeys(value for name, value in request.query_params.multi_items() if name == "draw"))
    if not 0 < len(found) <= MOST_COMPARED:
        words = (
            f"A comparison is of 1 to {MOST_COMPARED} draws, but {len(found)} are chosen: tick those on the first page."
        )
        raise _Refused(Refusal(400, "Nothing to compare" if not found else "Too many draws", words))
    if not all(_DRAW_ID.fullmatch(draw_id) for draw_id in found):
        raise _Refused(NOTHING)
    return found


def _answer(make: Callable[[Request], Page], request: Request) -> Response:
    """A page, or that it is the one that the asker has."""
    page = make(request)
    headers = {"ETag": f'"{page.version}"', "Cache-Control": "no-cache"}
    if page.file:
        headers["Content-Disposition"] = f'attachment; filename="{page.file}"'
    return _unless_known(request, page.html, _HTML, headers)


def _unless_known(request: Request, body: bytes, media_type: str, headers: dict[str, str]) -> Response:
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)


def _asset(request: Request) -> Response:
    """A file that pages need. There are no others: nothing is looked up by what a request says."""
    make = ASSETS.get(request.path_params["name"])
    if make is None:
        raise _Refused(NOTHING)
    body, tag = make()
    kind = _KINDS[request.path_params["name"].rpartition(".")[2]]
    return _unless_known(request, body, kind, {"ETag": tag, "Cache-Control": "no-cache"})


_KINDS = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


def _reports(name: str) -> str:
    from tombola.report.page.templates import asset

    return asset(name)


def _own(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _charts(name: str) -> str:
    from tombola.report.page.whole import charts_library

    return charts_library()


def _licences(name: str) -> str:
    return _reports(name) + _own(name)


@cache
def _made(make: Callable[[str], str], name: str) -> tuple[bytes, str]:
    """A file and its tag."""
    body = make(name).encode()
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


ASSETS: dict[str, Callable[[], tuple[bytes, str]]] = {
    name: partial(_made, make, name)
    for make, names in (
        (_reports, ("page.css", "page.js", "sortable.min.js")),
        (_own, ("live.css", "live.js", "idiomorph.min.js", "icon.svg")),
        (_charts, ("charts.js",)),
        (_licences, ("licences.txt",)),
    )
    for name in names
}
"""The files that pages need: bytes and tag by name."""


def _http(request: Request, error: Any) -> Response:
    return _problem(NOTHING if error.status_code == 404 else Refusal(error.status_code, error.detail, error.detail))


def _problem(refusal: Refusal) -> Response:
    headers = {"Cache-Control": "no-store"} | ({"Allow": "GET, HEAD"} if refusal.status == 405 else {})
    return Response(problem(refusal.heading, refusal.words), refusal.status, headers, _HTML)


def _upper(error: object) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
