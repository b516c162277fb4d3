"""The server: an address to listen on, and pages given out there until it is stopped."""

from __future__ import annotations

import errno
import socket
import threading
from pathlib import Path

from tombola.errors import InputError, TombolaError
from tombola.serving.guard import Hosts
from tombola.store import Store

_AT_ONCE = 1  # seconds that a request under way has left when the server is stopped


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on a host; port 0 stands for a free one.

    Raises ``InputError`` for a host that this machine doesn't have, ``TombolaError`` for a port that can't be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host must be an address of this machine, like 127.0.0.1, but got {host!r}") from error
    made = socket.socket(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            words = f"port {port} of {host} is in use: give another with --port, or --port 0 for a free one"
        elif error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"--host must be an address of this machine, but {host} is another's") from error
        else:
            words = f"port {port} of {host} can't be listened on: {error.strerror}; give another with --port"
        raise TombolaError(words) from error
    return made


def url_of(host: str, opened: socket.socket) -> str:
    """The address of the first page, as this machine's browser takes it."""
    port = opened.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def serve(store: Store, folder: Path, host: str, opened: socket.socket) -> None:
    """Give out the pages of a store until an interrupt, which it raises in the end."""
    import uvicorn

    from tombola.serving.app import app

    made = app(store, folder, Hosts.of(host, opened.getsockname()[1]))
    settings = uvicorn.Config(
        made,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http="h11",
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=_AT_ONCE,
    )
    threading.Thread(target=_warm, name="warm", daemon=True).start()
    uvicorn.Server(settings).run(sockets=[opened])


def _warm() -> None:
    """Load what the first page of a draw needs while the reader looks at the overview."""
    from tombola.report.page import sections  # noqa: F401 - it takes torch and altair with it
    from tombola.serving.app import ASSETS

    ASSETS["charts.js"]()
