"""``tombola serve``: the pages of a store, live in a browser."""

from __future__ import annotations

import logging
import threading
import webbrowser
from pathlib import Path

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, option, store_option
from tombola.cli.places import opened
from tombola.errors import InputError

INTERRUPTED = 130


@click.command("serve", cls=Verb)
@store_option()
@option(
    "--host",
    section="Options",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="address to listen on; another than this machine's own is for everybody who reaches it  [default: 127.0.0.1]",
)
@option(
    "--port",
    section="Options",
    default=8421,
    type=click.IntRange(0, 65535),
    metavar="INTEGER",
    help="port to listen on, 0 for a free one  [default: 8421]",
)
@option("--open", "opens", section="Options", is_flag=True, help="open the first page in a browser")
@json_option()
@click.pass_context
def command(ctx: click.Context, store: str, host: str, port: int, opens: bool, as_json: bool) -> None:
    """Show a store as live pages: its draws, what is under way, every report.

    Pages of what is under way update themselves. Nothing can be changed by them. Ctrl-C ends the server. With --json
    the document with the address is printed when the server listens.
    """
    from tombola.serving.guard import is_loopback
    from tombola.serving.server import listening, serve, url_of

    if "://" in store:
        raise InputError(f"a store that is served must be a folder, but got {store!r}")
    folder = Path(store).expanduser().absolute()
    with opened(store) as found, listening(host, port) as socket:
        url = url_of(host, socket)
        if as_json:
            output.document({"url": url, "host": host, "port": socket.getsockname()[1], "store": str(folder)})
        else:
            output.sentence(f"{output.inert(store)} at {url} (Ctrl-C ends it)")
        if not is_loopback(host):
            text = f"Warning: there is no password: who reaches {output.inert(host)} can read all of this store"
            click.echo(text, err=True)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        if opens:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        try:
            serve(found, folder, host, socket)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(INTERRUPTED)
