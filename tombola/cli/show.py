"""``tombola show``: a ticket file, a draw or a run, in full."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.errors import InputError

if TYPE_CHECKING:
    from tombola.store import DrawRecord, RunRecord, Store


@click.command("show")
@click.argument("what")
@click.option("--store", default="runs", envvar="TOMBOLA_STORE", show_default=True, help="folder of the store of runs")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else")
def command(what: str, store: str, as_json: bool) -> None:
    """Show WHAT: a ticket file, or a draw or run by the first letters (4 or more) of its id."""
    if Path(what).suffix == ".ticket" or Path(what).exists():
        _show_ticket(Path(what), as_json)
        return
    with opened(store) as found:
        records = found.find(what)
    if len(records) != 1:
        number = f"{len(records)} have" if records else "none has"
        raise InputError(
            f"show wants a ticket file, or the beginning of one draw's or run's id, but {number} {what!r} in {store}"
        )
    if as_json:
        click.echo(json.dumps(asdict(records[0]), indent=2))
    else:
        _show_record(records[0])


def opened(store: str) -> Store:
    """The store, for reading: ``InputError`` where there is none, rather than a new one."""
    from tombola.store import Store

    if "://" not in store and not Path(store).exists():
        raise InputError(f"there is no store at {store}; give its folder with --store, or make one with tombola draw")
    return Store(store)


def _show_ticket(path: Path, as_json: bool) -> None:
    from tombola.ticket import Ticket

    ticket = Ticket.load(path)
    about: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "digest": ticket.digest,
        "density": ticket.mask.density,
        "kept": ticket.mask.kept,
        "total": ticket.mask.total,
        "layers": [
            {"name": x.name, "shape": list(x.shape), "kept": x.kept, "total": x.total, "density": x.density}
            for x in ticket.mask.layers()
        ],
        "collapsed": ticket.mask.collapsed(),
        "origin": dict(ticket.origin),
    }
    if as_json:
        click.echo(json.dumps(about, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    kept = f"{about['kept']:,} of {about['total']:,} weights kept ({ticket.mask.density:.2%})"
    click.echo(f"{path}: {kept}, {about['bytes']:,} bytes")
    table = Table(box=None, pad_edge=False)
    for column in ("layer", "shape", "kept", "of", "density"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in ticket.mask.layers():
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.name, shape, f"{layer.kept:,}", f"{layer.total:,}", f"{layer.density:.2%}")
    console.print(table)
    if about["collapsed"]:
        click.echo(f"Layer collapse: nothing is kept of {', '.join(about['collapsed'])}")
    _print_tree("origin", dict(ticket.origin))
    click.echo(f"content {ticket.digest}")


def _show_record(record: RunRecord | DrawRecord) -> None:
    rounds = getattr(record, "rounds", None)
    click.echo(f"{'run' if rounds is None else 'draw'} {record.id}: {record.status}")
    _print_tree("about", record.about)
    if rounds is None:
        _print_tree("summary", getattr(record, "summary", {}))
        _print_tree("blobs", getattr(record, "blobs", {}))
        return
    from rich.console import Console

    from tombola.report.tables import rounds_table

    chosen = next((row["round"] for row in rounds if row.get("chosen")), None)
    Console().print(rounds_table(rounds, record.about.get("metric", "accuracy"), chosen))


def _print_tree(name: str, value: Any, depth: int = 0) -> None:
    pad = "  " * depth
    if isinstance(value, dict) and value:
        click.echo(f"{pad}{name}:")
        for key, part in value.items():
            _print_tree(str(key), part, depth + 1)
    else:
        click.echo(f"{pad}{name}: {value}")
