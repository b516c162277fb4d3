"""``tombola list``: what a store holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

import click


@click.command("list")
@click.argument("what", type=click.Choice(["draws", "runs"]), default="draws")
@click.option("--store", default="runs", envvar="TOMBOLA_STORE", show_default=True, help="folder of the store of runs")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else")
def command(what: str, store: str, as_json: bool) -> None:
    """List the draws (default) or the runs of a store, the newest last."""
    from rich.console import Console
    from rich.table import Table

    from tombola.cli.show import opened

    with opened(store) as found:
        records = found.draws() if what == "draws" else found.runs()
    if as_json:
        click.echo(json.dumps([asdict(record) for record in records], indent=2))
        return
    if not records:
        click.echo(f"{store} holds no {what} yet: tombola draw digits-mlp makes some")
        return
    table = Table(box=None, pad_edge=False)
    columns = ("draw", "task", "method", "seed", "rounds", "status", "begun")
    if what == "runs":
        columns = ("run", "task", "arm", "seed", "density", "status", "begun")
    for column in columns:
        table.add_column(column, justify="right" if column in ("seed", "rounds", "density") else "left")
    for record in records:
        begun = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M")
        about = record.about
        if what == "draws":
            rounds = sum(row["arm"] == "ticket" and row["round"] > 0 for row in getattr(record, "rounds", ()))
            cells = (about["task"], about["recipe"]["method"], str(about["seed"]), str(rounds))
        else:
            cells = (about["task"]["name"], about["arm"], str(about["seed"]), f"{about['density']:.2%}")
        table.add_row(record.id[:12], *cells, record.status, begun)
    Console().print(table)
