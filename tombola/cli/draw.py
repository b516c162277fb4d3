"""``tombola draw``: find a ticket, judge it beside its controls, save it with its table and figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output, recipe_file
from tombola.cli.options import (
    OF_METHODS,
    Verb,
    data_root_option,
    given,
    jobs_option,
    json_option,
    option,
    path_option,
    recipe_options,
    seeds_option,
    store_option,
    tracker_option,
)
from tombola.cli.places import check_writable, plain, writing
from tombola.errors import InputError
from tombola.recipe import DrawRecipe, Recipe

if TYPE_CHECKING:
    from tombola.draws import Draw
    from tombola.ticket import Ticket

SEARCH, TRAINING, RUNNING, OUTPUT = "Search", "Training of each net", "Running", "Output"
_DEFAULTS = {
    "method": f"{DrawRecipe.model_fields['method'].default}; see --list-methods",
    "criterion": f"{DrawRecipe.model_fields['criterion'].default}; see --list-methods",
    "rounds": "the task's, unless density or stop-at-margin ends the search",
    "allocation": "the task's",
    "relative_rates": "the task's",
    "unpruned": "the task's",
    "margin": "the task's",
    "score_per_class": f"{DrawRecipe.model_fields['score_per_class'].default}; 100 for obd, obs and mlprune",
    "survivors": "reset, or the method's own",
}
_TABLES = ("rounds.csv", "curves.csv", "layers.csv", "rounds.md")


@click.command("draw", cls=Verb)
@click.argument("task", required=False)
@seeds_option(SEARCH)
@recipe_options(DrawRecipe, section=SEARCH, defaults=_DEFAULTS, skip=("task", "seed", "training"))
@recipe_options(Recipe, section=TRAINING, defaults="the task's", skip=("start", *OF_METHODS))
@path_option(
    *("--recipe", "recipe_path"),
    section=RUNNING,
    metavar="FILE",
    help="TOML file with a recipe; flags override it  [default: none]",
)
@jobs_option(RUNNING)
@option(
    "--together", section=RUNNING, is_flag=True, help="train the nets of all seeds in one pass, for small nets on a GPU"
)
@store_option(RUNNING)
@data_root_option(RUNNING)
@path_option(
    "--out",
    section=OUTPUT,
    metavar="FOLDER",
    help="folder for tickets, tables, figures and events.jsonl  "
    "[default: tombola-out/TASK, or tombola-out/TASK-METHOD]",
)
@tracker_option(OUTPUT)
@option("--figures/--no-figures", section=OUTPUT, default=True, help="draw the figures  [default: yes]")
@json_option(OUTPUT)
@option("--print-recipe", section=OUTPUT, is_flag=True, help="write the whole recipe as TOML and stop")
@option("--list-tasks", section=OUTPUT, is_flag=True, help="list the tasks and stop")
@option("--list-methods", section=OUTPUT, is_flag=True, help="list methods, criteria and controls and stop")
def command(task: str | None, **options: Any) -> None:
    """Find a winning ticket of TASK and judge it beside its controls.

    Every training is kept in the store, so the same command after an interruption goes on where it stopped, and a
    command that asks for more rounds, seeds or controls computes only those. DURATION is steps (50000it) or epochs
    (160ep).
    """
    if options["list_tasks"] or options["list_methods"]:
        from tombola.cli import listing

        (listing.tasks if options["list_tasks"] else listing.methods)(options["as_json"])
        return
    recipes = _recipes(task, options)
    if options["print_recipe"]:
        _print_recipe(recipes, options["as_json"])
        return
    from tombola.cli.progress import Show
    from tombola.engines import check_device
    from tombola.execution import carry_out
    from tombola.tasks import get_task
    from tombola.tracking import EVENTS, Tracking, trackers_for

    name = recipes[0].task
    method = recipes[0].method
    out = options["out"] or Path("tombola-out") / (plain(name) + (f"-{method}" if method != "imp" else ""))
    check_device(recipes[0].training)  # a device that is not there is refused before anything else
    check_writable(out, (EVENTS, *_TABLES, *(_ticket_name(recipe) for recipe in recipes)))
    trackers = trackers_for(out, options["trackers"])
    with Show(get_task(name).metric) as show, Tracking(trackers, search=recipes[0], beside=show) as watcher:
        draws = carry_out(
            recipes,
            store=options["store"],
            data_root=options["data_root"],
            jobs=options["jobs"],
            together=options["together"],
            watcher=watcher,
        )
    with writing(out):
        _report(draws, out, figures=options["figures"], as_json=options["as_json"])


def _recipes(task: str | None, options: dict[str, Any]) -> list[DrawRecipe]:
    """The recipe of each seed: the task's defaults, overridden by the file, overridden by flags."""
    path = options["recipe_path"]
    found = {} if path is None else recipe_file.read(path)
    task = task or found.get("task")
    if task is None:
        raise InputError("name a task, e.g. tombola draw digits-mlp; tombola draw --list-tasks lists them")
    from tombola.asked import draw_recipe
    from tombola.tasks import get_task

    training = {**found.get("training", {}), **given(options, Recipe)}
    chosen = {**found, **given(options, DrawRecipe), "training": training}
    wanted = options["seed_list"] or [found.get("seed", 0)]
    try:
        known = get_task(task)
        return [draw_recipe(known, {**chosen, "task": known.name, "seed": seed}) for seed in wanted]
    except InputError as error:
        if path is None:
            raise
        raise InputError(f"{path} and the command line: {error}") from error


def _print_recipe(recipes: list[DrawRecipe], as_json: bool) -> None:
    if len(recipes) > 1:
        raise InputError("a recipe has one seed: give --print-recipe one, and several to the draw")
    recipe_file.show(recipes[0], as_json)


def _ticket_name(recipe: DrawRecipe) -> str:
    return f"{plain(recipe.task)}-seed{recipe.seed}.ticket"


def _other_round(ticket: Ticket, draw: Draw) -> str:
    """A word where the ticket isn't that of the chosen round, as none stayed inside the margin."""
    number = ticket.origin["round"]
    return "" if number == draw.chosen.number else f"; the best of those outside the margin, round {number}"


def _report(draws: list[Draw], out: Path, *, figures: bool, as_json: bool) -> None:
    from tombola.report.tables import rounds_markdown, rounds_table, save_tables, sentence

    task, metric = draws[0].recipe.task, draws[0].lab.task.metric
    rows = [row for draw in draws for row in draw.rows()]
    curves = [row for draw in draws for row in draw.curves()]
    layers = [row for draw in draws for row in draw.layers()]
    # Of several seeds the densest choice, so that the sentence speaks of a round that every seed holds inside the
    # margin.
    chosen = min(draw.chosen.number for draw in draws)
    said = sentence(rows, chosen, metric, task)
    out.mkdir(parents=True, exist_ok=True)
    saved = [draw.ticket() for draw in draws]
    tickets = [ticket.save(out / _ticket_name(draw.recipe)) for ticket, draw in zip(saved, draws, strict=True)]
    files = save_tables(out, rows, curves, layers)
    files.append(out / "rounds.md")
    files[-1].write_text(rounds_markdown(rows, metric), encoding="utf-8")
    if figures:
        method = draws[0].recipe.method
        title = task if method == "imp" else f"{task}, {method}"
        from tombola.report.figures import figures as charts
        from tombola.report.figures import save_figures

        files += save_figures(out, charts(rows, curves, layers, title=title, metric=metric))
    if as_json:
        document = {
            "task": task,
            "found": said,
            "chosen_round": chosen,
            "draws": [{"id": d.id, "seed": d.recipe.seed, "recipe": d.recipe.model_dump(mode="json")} for d in draws],
            "rounds": rows,
            "tickets": [str(path) for path in tickets],
            "files": [str(path) for path in files],
        }
        output.document(document)
        return
    output.table(rounds_table(rows, metric, chosen))
    output.sentence(said)
    told = [
        f"{path} ({os.path.getsize(path) / 1000:.1f} kB{_other_round(ticket, draw)})"
        for path, ticket, draw in zip(tickets, saved, draws, strict=True)
    ]
    click.echo(f"Ticket{'s' * (len(tickets) > 1)}: {', '.join(told)}")
    if figures:
        click.echo(
            f"Figure: {out / 'overview.png'} (also SVG and PDF; the single figures and their CSV files beside it)"
        )
