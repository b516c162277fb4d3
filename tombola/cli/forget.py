"""``tombola forget``: take draws and audits out of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, store_option
from tombola.cli.places import check_id, opened
from tombola.errors import InputError

if TYPE_CHECKING:
    from tombola.store import AuditRecord, DrawRecord, Store


@click.command("forget", cls=Verb)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@store_option()
@json_option()
def command(ids: tuple[str, ...], store: str, as_json: bool) -> None:
    """Take draws and audits, each ID the first letters (4 or more) of one's id, out of a store.

    Their runs stay: the same command would find them again, and "tombola gc --runs" removes those that nothing else
    refers to. A draw that an audit is of goes with that audit only.
    """
    from tombola.store import DrawRecord, as_seen, kind_of

    for word in ids:
        check_id(word, "draw or audit")
    with opened(store) as found:
        named = {(kind_of(record), record.id): record for record in (_record(found, word, store) for word in ids)}
        runs = found.runs()
        for record in named.values():
            if isinstance(record, DrawRecord) and as_seen(record, runs).status == "running":
                raise InputError(f"draw {record.id[:12]} is being carried out: interrupt it first")
        found.forget(*named.values())
    if as_json:
        output.document([{"kind": kind, "id": name} for kind, name in named])
        return
    click.echo(f"Forgot {', '.join(f'{kind} {name[:12]}' for kind, name in named)}")
    click.echo("Their runs are kept: tombola gc --runs removes those that nothing else refers to")


def _record(store: Store, word: str, where: str) -> DrawRecord | AuditRecord:
    from tombola.store import RunRecord, only

    records = [record for record in store.find(word) if not isinstance(record, RunRecord)]
    rule = "forget wants the beginning of one draw's or audit's id (runs go by tombola gc --runs)"
    return only(records, word, rule, where)
