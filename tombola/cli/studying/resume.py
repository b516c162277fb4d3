"""``tombola study resume``: go on with a study that was begun, without its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tombola.cli.options import Verb, data_root_option, json_option, path_option, store_option, tracker_option
from tombola.cli.studying import asked
from tombola.errors import InputError


@click.command("resume", cls=Verb)
@click.argument("name", required=False)
@asked.size_option()
@asked.jobs_option("Options", "as many as it was begun with")
@store_option()
@data_root_option()
@path_option("--out", section="Options", metavar="FOLDER", help="folder for the results  [default: as it was begun]")
@tracker_option("Options")
@json_option()
def command(name: str | None, quick: bool | None, **options: Any) -> int:
    """Go on with the study that was begun last in the store, or with the one of that NAME.

    It is carried out as it was begun, whatever has become of its file since. What failed is tried again.
    """
    from tombola.cli.studying.run import carry_out
    from tombola.studies.running import Setting

    found, begun = asked.meant(name, quick, options["store"])
    if begun is None:
        raise InputError(f"no study {name!r} was begun in {options['store']}: tombola study run begins one")
    if begun.runs:
        raise InputError(f"study {begun.name!r} is running; tombola study status --watch shows how far it is")
    root = None if begun.data_root is None else Path(begun.data_root)
    setting = Setting(options["store"], Path(begun.out), begun.jobs, root)
    changes = {key: options[key] for key in ("out", "jobs", "data_root") if options[key] is not None}
    return carry_out(found, replace(setting, **changes), options["as_json"], options["trackers"])
