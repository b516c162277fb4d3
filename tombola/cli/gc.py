"""``tombola gc``: remove what a store no longer needs."""

from __future__ import annotations

import math
from dataclasses import asdict

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, option, store_option
from tombola.cli.places import opened


def _finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"must be a finite number, but got {value}", ctx, param)
    return value


@click.command("gc", cls=Verb)
@store_option()
@option("--runs", "forget", section="Options", is_flag=True, help="also forget finished runs that no draw refers to")
@option("--dry-run", section="Options", is_flag=True, help="say what would go, and keep it")
@option(
    "--grace",
    section="Options",
    default=3600.0,
    type=click.FloatRange(0),
    callback=_finite,
    metavar="SECONDS",
    help="keep what is younger than this  [default: 3600]",
)
@json_option()
def command(store: str, forget: bool, dry_run: bool, grace: float, as_json: bool) -> None:
    """Remove leftovers of killed processes, old checkpoints and blobs that nothing refers to."""
    with opened(store) as found:
        report = found.gc(dry_run=dry_run, keep_runs=not forget, grace_seconds=grace)
    if as_json:
        output.document(asdict(report))
        return
    counts = {
        "run": report.runs,
        "blob": report.blobs,
        "checkpoint": report.checkpoints,
        "leftover of a killed process": report.leftovers,
    }
    gone = [f"{count:,} {_plural(name, count)}" for name, count in counts.items() if count]
    verb = "Would remove" if dry_run else "Removed"
    click.echo(f"{verb} {', '.join(gone)}: {report.bytes / 1e6:,.1f} MB" if gone else "There is nothing to remove")


def _plural(name: str, count: int) -> str:
    first, _, rest = name.partition(" ")
    return f"{first}{'s' * (count != 1)} {rest}".rstrip()
