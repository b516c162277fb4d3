"""``tombola draw``: find a ticket, judge it beside its controls, save it with its table and figures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli.options import from_file, given, recipe_options, seeds
from tombola.errors import InputError
from tombola.recipe import DrawRecipe, Recipe

if TYPE_CHECKING:
    from tombola.draws import Draw


@click.command("draw")
@click.argument("task", required=False)
@click.option("--seed", "seed_list", default=None, metavar="SEEDS", help="seeds: 0, or 0,1,2, or 0-4 [0]")
@click.option("--jobs", default=1, type=click.IntRange(1), help="processes that work at once [1]")
@recipe_options(DrawRecipe, skip=("task", "seed", "training"))
@recipe_options(Recipe, skip=("start",))
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML file with a recipe; flags override it"
)
@click.option("--print-recipe", is_flag=True, help="write the full recipe as TOML and stop")
@click.option("--store", default="runs", envvar="TOMBOLA_STORE", show_default=True, help="folder of the store of runs")
@click.option("--data-root", type=click.Path(path_type=Path), help="folder of the data sets (or set TOMBOLA_DATA)")
@click.option("--out", type=click.Path(path_type=Path), help="folder for ticket, figures and tables [tombola-out/TASK]")
@click.option("--figures/--no-figures", default=True, help="draw the figures [yes]")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else")
@click.option("--list-tasks", is_flag=True, help="list the tasks and stop")
def command(task: str | None, **options: Any) -> None:
    """Find a winning ticket of TASK and judge it beside its controls.

    Every training is kept in the store, so the same command after an interruption goes on where it stopped, and a
    command that asks for more rounds, seeds or controls computes only those. DURATION is steps (50000it) or epochs
    (160ep).
    """
    if options["list_tasks"]:
        _list_tasks()
        return
    recipes = _recipes(task, options)
    if options["print_recipe"]:
        _print_recipe(recipes[0])
        return
    from tombola.cli.progress import Show
    from tombola.execution import carry_out
    from tombola.tasks import get_task

    quiet = options["as_json"] and not sys.stderr.isatty()
    with Show(get_task(recipes[0].task).metric, quiet=quiet) as show:
        draws = carry_out(
            recipes, store=options["store"], data_root=options["data_root"], jobs=options["jobs"], watcher=show
        )
    out = options["out"] or Path("tombola-out") / recipes[0].task
    _report(draws, Path(out), figures=options["figures"], as_json=options["as_json"])


def _recipes(task: str | None, options: dict[str, Any]) -> list[DrawRecipe]:
    found = from_file(options["recipe_file"], DrawRecipe)
    task = task or found.get("task")
    if task is None:
        raise InputError("name a task, e.g. tombola draw digits-mlp; tombola draw --list-tasks lists them")
    from tombola.draws import draw_recipe
    from tombola.tasks import get_task

    known = get_task(task)
    training = {**found.get("training", {}), **given(options, Recipe)}
    chosen = {**found, **given(options, DrawRecipe), "task": task, "training": training}
    wanted = seeds(options["seed_list"]) if options["seed_list"] is not None else [chosen.get("seed", 0)]
    return [draw_recipe(known, {**chosen, "seed": seed}) for seed in wanted]


def _report(draws: list[Draw], out: Path, *, figures: bool, as_json: bool) -> None:
    from tombola.report.tables import rounds_markdown, rounds_table, save_tables, sentence

    first = draws[0]
    task, metric = first.lab.task.name, first.lab.task.metric
    rows = [row for draw in draws for row in draw.rows()]
    curves = [row for draw in draws for row in draw.curves()]
    layers = [row for draw in draws for row in draw.layers()]
    # Of several seeds the densest choice, so that the sentence speaks of a round that every seed holds inside the
    # margin.
    chosen = min(draw.chosen.number for draw in draws)
    said = sentence(rows, chosen, metric, task)
    out.mkdir(parents=True, exist_ok=True)
    tickets = [draw.ticket().save(out / f"{task}-seed{draw.recipe.seed}.ticket") for draw in draws]
    files = save_tables(out, rows, curves, layers)
    files.append(out / "rounds.md")
    files[-1].write_text(rounds_markdown(rows, metric), encoding="utf-8")
    if figures:
        from tombola.report.figures import figures as charts
        from tombola.report.figures import save_figures

        files += save_figures(out, charts(rows, curves, layers, title=task, metric=metric))
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
        click.echo(json.dumps(document, indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(rounds_table(rows, metric, chosen))
    console.print(said, highlight=False)
    sizes = ", ".join(f"{path} ({os.path.getsize(path) / 1000:.1f} kB)" for path in tickets)
    click.echo(f"Ticket: {sizes}")
    if figures:
        click.echo(
            f"Figure: {out / 'overview.png'} (also SVG and PDF; the single figures and their CSV files beside it)"
        )


def _print_recipe(recipe: DrawRecipe) -> None:
    import tomli_w

    click.echo(tomli_w.dumps(_without_none(recipe.model_dump(mode="json"))), nl=False)


def _without_none(value: Any) -> Any:
    """TOML has no null: what is unset is left out."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return value


def _list_tasks() -> None:
    from tombola.tasks import TASKS

    width = max(map(len, TASKS))
    for name, task in TASKS.items():
        click.echo(f"{name:{width}}  {task.description}")
