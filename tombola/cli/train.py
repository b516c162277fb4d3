"""``tombola train``: one training, dense or of a ticket."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from tombola.cli.options import given, recipe_options
from tombola.errors import InputError
from tombola.recipe import Recipe


@click.command("train")
@click.argument("task")
@click.option("--ticket", type=click.Path(path_type=Path), help="train this ticket instead of the dense net")
@click.option("--seed", default=0, type=click.IntRange(0), show_default=True, help="seed")
@recipe_options(Recipe)
@click.option("--store", default="runs", envvar="TOMBOLA_STORE", show_default=True, help="folder of the store of runs")
@click.option("--data-root", type=click.Path(path_type=Path), help="folder of the data sets (or set TOMBOLA_DATA)")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else")
def command(task: str, **options: Any) -> None:
    """Train one net of TASK: dense, or a ticket from a file. The result is kept in the store."""
    from pydantic import ValidationError

    from tombola.cli.progress import Show
    from tombola.draws import explained
    from tombola.lab import Lab
    from tombola.store import Store
    from tombola.tasks import get_task
    from tombola.ticket import Ticket

    known = get_task(task)
    try:
        recipe = Recipe.model_validate({**known.recipe.model_dump(), **given(options, Recipe)})
    except ValidationError as error:
        raise InputError(explained(error)) from error
    ticket = None if options["ticket"] is None else Ticket.load(options["ticket"])
    start, mask = None, None
    if ticket is not None:
        ticket.model(known.model)  # a ticket of another net is refused here, with a clear message
        start, mask = dict(ticket.values), ticket.mask
    quiet = options["as_json"] and not sys.stderr.isatty()
    with Show(known.metric, quiet=quiet) as show, Store(options["store"]) as store:
        lab = Lab(known, store, recipe=recipe, data_root=options["data_root"], watcher=show)
        arm = "dense" if ticket is None else "ticket"
        run = lab.train(options["seed"], start=start, mask=mask, arm=arm)
        about = {"run": run.id, "status": run.record.status, "density": run.mask.density, **run.summary}
    if options["as_json"]:
        click.echo(json.dumps(about, indent=2))
        return
    click.echo(f"{arm} net of {task}, seed {options['seed']}, {run.mask.density:.2%} kept: {run.record.status}")
    for when, label in (("stop", f"early stop (step {run.summary['stop_step']})"), ("end", "end")):
        values = run.summary[when] or {}
        click.echo(f"  {label}: " + (", ".join(f"{k} {v:.4f}" for k, v in values.items()) or "nothing: it diverged"))
    click.echo(f"  {run.summary['seconds']:.1f} s on engine {run.summary['engine']}; run {run.id[:12]}")
