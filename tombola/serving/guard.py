"""Who is answered, and how far an answer may go.

A server on this machine can be reached by every page that its owner's browser shows. So a request must name the address
that is served (a foreign name that was pointed at this machine does not: DNS rebinding), must not come from another
origin, must only read, and must have a plain path. What is answered may be used by its own pages alone.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LONGEST_PATH, LONGEST_QUERY = 256, 8192
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer."""

_METHODS = ("GET", "HEAD")
_PATH = re.compile(rb"/[A-Za-z0-9/._-]*")  # no path that is served has anything else, so nothing needs to be decoded


@dataclass(frozen=True)
class Refusal:
    """Why a request isn't answered."""

    status: int
    heading: str
    words: str


@dataclass(frozen=True)
class Hosts:
    """The names and addresses under which a server may be asked."""

    names: frozenset[str]
    port: int
    any_address: bool = False
    """Whether every address of this machine is served: then a request may name any, as no foreign name is one."""

    @classmethod
    def of(cls, host: str, port: int) -> Hosts:
        """Those of a server that listens on ``host``."""
        address = address_of(host)
        if address is not None and address.is_unspecified:
            return cls(frozenset({"localhost", socket.gethostname().lower()}), port, any_address=True)
        own = {host.lower() if address is None else str(address)}
        loopback = {"127.0.0.1", "::1", "localhost"} if is_loopback(host) else set()
        return cls(frozenset(own | loopback), port)

    def has(self, value: str) -> bool:
        """Whether a ``Host`` header names this server."""
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?", value)
        if found is None or int(found[2] or 80) != self.port:
            return False
        name = found[1].strip("[]").lower()
        address = address_of(name)
        return (self.any_address and address is not None) or (name if address is None else str(address)) in self.names


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is written as; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    address = address_of(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class Guard:
    """Answers in place of ``app`` what must not reach it, and adds ``HEADERS`` to every answer."""

    def __init__(self, app: App, hosts: Hosts, refuse: Callable[[Refusal], App]) -> None:
        self._app, self._hosts, self._refuse = app, hosts, refuse

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return  # there is nothing but HTTP here

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        refusal = refusal_of(scope, self._hosts)
        await (self._app if refusal is None else self._refuse(refusal))(scope, receive, guarded)


def refusal_of(scope: MutableMapping[str, Any], hosts: Hosts) -> Refusal | None:
    """Why a request is refused; None where it isn't."""
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]

    def of(wanted: str) -> list[str]:
        return [value for name, value in headers if name == wanted]

    host = of("host")
    if len(host) != 1 or not hosts.has(host[0]):
        words = "This server answers only under the address that it was started with. tombola serve has printed it."
        return Refusal(421, "Another address", words)
    if scope["method"] not in _METHODS:
        return Refusal(405, "Only reading", "These pages can be read, and nothing can be changed by them.")
    if any(origin != f"http://{host[0]}" for origin in of("origin")) or _foreign(of):
        return Refusal(403, "Another page asked", "These pages are for their own use: no other page may ask for them.")
    path = scope.get("raw_path") or scope["path"].encode()
    if not _PATH.fullmatch(path) or len(path) > LONGEST_PATH or len(scope["query_string"]) > LONGEST_QUERY:
        return NOTHING
    return None


NOTHING = Refusal(404, "There is no such page", "All draws and runs of the store are listed on the first page.")


def _foreign(of: Callable[[str], Iterable[str]]) -> bool:
    """Whether a browser says that another site's page has asked. Links to a page from elsewhere are no matter."""
    followed = of("sec-fetch-mode") == ["navigate"] and of("sec-fetch-dest") == ["document"]
    return not followed and any(site not in ("same-origin", "none") for site in of("sec-fetch-site"))
