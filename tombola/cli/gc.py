"""``tombola gc``: remove what a store no longer needs."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command("gc")
@click.option("--store", default="runs", envvar="TOMBOLA_STORE", show_default=True, help="folder of the store of runs")
@click.option("--runs", "forget", is_flag=True, help="also forget finished runs that no draw refers to")
@click.option("--dry-run", is_flag=True, help="say what would go, and keep it")
@click.option(
    "--grace",
    default=3600.0,
    type=click.FloatRange(0),
    show_default=True,
    help="keep what is younger than this many seconds",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else")
def command(store: str, forget: bool, dry_run: bool, grace: float, as_json: bool) -> None:
    """Remove leftovers of killed processes, old checkpoints and blobs that nothing refers to."""
    from tombola.cli.show import opened

    with opened(store) as found:
        report = found.gc(dry_run=dry_run, keep_runs=not forget, grace_seconds=grace)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2, default=str))
        return
    click.echo(("Would remove " if dry_run else "Removed ") + str(report))
