"""``tombola diagnose gradients``: gradient flow over training, by method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from tombola.cli import output
from tombola.cli.diagnosing import asked, looking
from tombola.cli.options import Verb, given, option
from tombola.recipe import DrawRecipe, Recipe

METHODS = ("snip", "grasp", "synflow")
DENSITY = 0.05


@click.command("gradients", cls=Verb)
@click.argument("task")
@asked.mask_options(METHODS)
@option(
    "--density",
    section=asked.SEARCH,
    default=DENSITY,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="NUMBER",
    help=f"density of every method's net  [default: {DENSITY}]",
)
@looking.at_option("ten of them, the early ones closer")
@looking.examples_options
@asked.output_options("gradients")
def command(task: str, **options: Any) -> None:
    """Follow the gradient flow of TASK's nets while they train: the dense one, and one of each method.

    It is the squared norm of the gradient of the loss with respect to the kept weights, on the same training examples
    for all nets of a seed. Everything that is trained is kept in the store.
    """
    from tombola.cli.progress import Show
    from tombola.diagnostics.gradient_flow import gradient_flows
    from tombola.report.flow_figures import gradient_figure
    from tombola.store import Store
    from tombola.tasks import get_task

    known, methods = get_task(task), options["methods"] or METHODS
    found = {**given(options, DrawRecipe), "training": given(options, Recipe)}
    density = found.pop("density")
    asked.recipes(known, methods, {**options, "density": density})  # what can't be is refused before anything is made
    out = asked.folder_for("gradients", known.name, options)
    settings = {name: options[name] for name in ("at", "per_class", "mode", "data_root")}
    rows = []
    with Show(known.metric) as show, Store(options["store"]) as store:
        for seed in options["seed_list"] or [0]:
            rows += gradient_flows(known, methods, density, seed, store=store, watcher=show, **settings, **found)
    figure = (lambda: gradient_figure(rows, known.name)) if options["figures"] else None
    files = asked.save(out, "gradients", rows, figure)
    if options["as_json"]:
        output.document({"task": known.name, "gradients": rows, "files": [str(path) for path in files]})
        return
    _print(rows)
    asked.name_files(files)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """The table: a line a step, for each net the squared norm and the loss, means over seeds."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    header = {"step": "right"}
    for name in names:
        header |= {f"{name} |g|²": "right", f"{name} loss": "right"}
    lines = []
    for step in sorted({row["step"] for row in rows}):
        line = [f"{step:,}"]
        for name in names:
            own = [row for row in rows if (row["step"], row["method"]) == (step, name)]
            line += [looking.mean(row["squared_norm"] for row in own), looking.mean(row["loss"] for row in own)]
        lines.append(line)
    output.table(output.columns(header, lines))
    for name in dict.fromkeys(row["method"] for row in rows if row["status"] == "diverged"):
        click.echo(f"{name}: diverged, and has no values from there on")
