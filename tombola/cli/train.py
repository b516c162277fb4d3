"""``tombola train``: one training, dense or of a ticket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output, recipe_file
from tombola.cli.options import (
    Verb,
    data_root_option,
    given,
    json_option,
    option,
    path_option,
    recipe_options,
    store_option,
    tracker_option,
)
from tombola.cli.places import check_writable, plain, writing
from tombola.recipe import Recipe

if TYPE_CHECKING:
    from tombola.lab import Run

RUNNING = "Running"


@click.command("train", cls=Verb)
@click.argument("task")
@path_option(
    "--ticket",
    section="What is trained",
    metavar="FILE",
    help="train this ticket  [default: the dense net]",
)
@option(
    "--seed",
    section="What is trained",
    default=0,
    type=click.IntRange(0),
    metavar="INTEGER",
    help="seed of weights, data split and data order  [default: 0]",
)
@recipe_options(Recipe, section="Training", defaults="the task's")
@path_option(
    *("--recipe", "recipe_path"),
    section=RUNNING,
    metavar="FILE",
    help="TOML file with a recipe, of which [training] counts here; flags override it  [default: none]",
)
@store_option(RUNNING)
@data_root_option(RUNNING)
@path_option(
    "--out",
    section=RUNNING,
    metavar="FOLDER",
    help="write the trained net there: model.safetensors or, where the net is one of Transformers, a checkpoint in "
    "FOLDER/transformers  [default: it is kept in the store alone]",
)
@path_option(
    "--log",
    section=RUNNING,
    metavar="FILE",
    help="add the training's events to this file, a line of JSON for each  [default: none]",
)
@tracker_option(RUNNING)
@json_option(RUNNING)
@option("--print-recipe", section=RUNNING, is_flag=True, help="write the whole recipe as TOML and stop")
def command(task: str, **options: Any) -> None:
    """Train one net of TASK: dense, or a ticket from a file. The result is kept in the store."""
    from tombola.asked import draw_recipe
    from tombola.cli.progress import Show
    from tombola.engines import check_device
    from tombola.lab import Lab
    from tombola.store import Store
    from tombola.tasks import get_task
    from tombola.ticket import Ticket
    from tombola.tracking import JsonLines, Tracker, Tracking, get_tracker

    known, path = get_task(task), options["recipe_path"]
    found = {} if path is None else recipe_file.read(path)["training"]
    whole = draw_recipe(known, {"seed": options["seed"], "training": {**found, **given(options, Recipe)}})
    if options["print_recipe"]:
        recipe_file.show(whole, options["as_json"])
        return
    recipe = whole.training
    check_device(recipe)
    if options["out"] is not None:
        check_writable(options["out"], ())
    start, mask, arm = None, None, "dense"
    if options["ticket"] is not None:
        ticket = Ticket.load(options["ticket"])
        ticket.model(known.model)  # a ticket of another net is refused here, with a clear message
        start, mask, arm = dict(ticket.values), ticket.mask, "ticket"
    trackers: list[Tracker] = [] if options["log"] is None else [JsonLines(options["log"])]
    trackers += [get_tracker(tracker, Path("tombola-out") / plain(known.name)) for tracker in options["trackers"]]
    with Show(known.metric) as show, Tracking(trackers, beside=show) as watcher, Store(options["store"]) as store:
        lab = Lab(known, store, recipe=recipe, data_root=options["data_root"], watcher=watcher)
        run = lab.train(options["seed"], start=start, mask=mask, arm=arm)
        written = None
        if options["out"] is not None:
            with writing(options["out"]):
                written = known.export(run.model(), options["out"], options["data_root"])
        if options["as_json"]:
            about = {"run": run.id, "status": run.record.status, "density": run.mask.density}
            output.document({**about, **run.summary, **({} if written is None else {"net": str(written)})})
        else:
            _report(run, f"{arm} net of {known.name}, seed {options['seed']}")
            if written is not None:
                click.echo(f"  net: {output.inert(written)}")


def _report(run: Run, name: str) -> None:
    summary = run.summary
    click.echo(f"{name}, {run.mask.density:.2%} kept: {run.record.status}")
    for when, label in (("stop", f"early stop (step {summary['stop_step']})"), ("end", "end")):
        values = summary[when] or {}
        found = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
        click.echo(f"  {label}: {found or 'nothing, it diverged'}")
    click.echo(f"  {summary['seconds']:.1f} s on engine {summary['engine']}; run {run.id[:12]}")
