"""``tombola study results``: a study's runs as a tidy table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, option, path_option, store_option
from tombola.cli.places import writing
from tombola.cli.studying import asked
from tombola.errors import InputError

_KINDS = ("csv", "parquet", "json")


@click.command("results", cls=Verb)
@click.argument("what", metavar="NAME|FILE", required=False)
@asked.size_option()
@option("--format", "kind", section="Options", type=click.Choice(_KINDS), help="the format  [default: csv]")
@path_option(
    *("-o", "--output", "path"), section="Options", metavar="FILE", help="the file  [default: standard output]"
)
@store_option()
@json_option()
def command(
    what: str | None, quick: bool | None, kind: str | None, path: Path | None, store: str, as_json: bool
) -> None:
    """Write a row for each run that the store has of a study, finished or not; nothing is trained.

    NAME is a study that was begun in the store or that comes with Tombola; by default it is the one begun last.
    """
    if as_json and kind not in (None, "json"):
        raise InputError(f"--json and --format {kind} don't go together: give one of them")
    found, begun = asked.meant(what, quick, store)
    from tombola.studies.results import rows

    table = rows(found, asked.states(found, begun, store))
    _write(found, table, "json" if as_json else kind or "csv", path)


def _write(found: Any, table: list[dict[str, Any]], kind: Any, path: Path | None) -> None:
    from tombola.studies.results import as_csv, document, save

    chosen: Literal["csv", "parquet", "json"] = kind
    if path is not None:
        with writing(path):
            save(path, chosen, found, table)
        click.echo(f"{output.inert(path)}: {asked.counted(len(table), 'run')} of {asked.title(found)}", err=True)
    elif chosen == "parquet":
        raise InputError("Parquet is no text: name a file with -o")
    elif chosen == "json":
        output.document(document(found, table))
    else:
        click.echo(as_csv(found, table), nl=False)
