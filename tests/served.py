"""Asks the served pages without a network: as a browser does, and as none would."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store_tools import folder_of

from tombola.serving.app import app
from tombola.serving.guard import App, Hosts
from tombola.store import Store

PORT = 8421
ADDRESS = f"127.0.0.1:{PORT}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes
    raised: Exception | None
    """What the server's log would have."""

    @property
    def text(self) -> str:
        return self.content.decode()


def ask(
    app: App, path: bytes, *, method: str = "GET", query: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = ()
) -> Answer:
    """The answer to a request that is sent as it is, with no other headers than these."""
    sent: list[Any] = []
    scope = {
        **{"type": "http", "http_version": "1.1", "method": method, "scheme": "http", "root_path": ""},
        **{"path": path.decode("utf-8", "replace"), "raw_path": path, "query_string": query, "headers": list(headers)},
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    raised = None
    try:
        asyncio.run(app(scope, receive, send))
    except RuntimeError as error:
        raised = error
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], fields, b"".join(part.get("body", b"") for part in sent[1:]), raised)


class Client:
    """Asks the pages of a store under their own address."""

    def __init__(self, store: Store) -> None:
        self.app = app(store, folder_of(store), Hosts.of("127.0.0.1", PORT))

    def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        plain, _, query = path.partition("?")
        fields = {"Host": ADDRESS, **(headers or {})}
        sent = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
        return ask(self.app, plain.encode(), method=method, query=query.encode(), headers=sent)
