"""``tombola diagnose settling``: when the channel masks of a net stop changing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from tombola.cli import output
from tombola.cli.diagnosing import asked, looking
from tombola.cli.options import Verb, given, option, recipe_options, validated
from tombola.errors import InputError
from tombola.recipe import DrawRecipe, Recipe

DENSITIES = (0.7, 0.5, 0.3)
SCALE_L1 = 1e-4
RULE = "The rule that draws"
_ALL_BUT_THE_PENALTY = tuple(name for name in Recipe.model_fields if name != "scale_l1")


def _densities(ctx: click.Context, param: click.Parameter, text: str) -> list[float]:
    """The densities asked for: the densest first, each once."""
    try:
        return sorted(set(validated(DrawRecipe, "densities", text.split(","))), reverse=True)
    except InputError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@click.command("settling", cls=Verb)
@click.argument("task")
@option(
    *("--density", "--densities", "densities"),
    section=RULE,
    default=",".join(map(str, DENSITIES)),
    callback=_densities,
    metavar="NUMBER,...",
    help=f"shares of the channels that masks keep  [default: {','.join(map(str, DENSITIES))}]",
)
@option(
    "--window",
    section=RULE,
    default=5,
    type=click.IntRange(2, 1000),
    metavar="INTEGER",
    help="epochs whose masks are compared  [default: 5]",
)
@option(
    "--distance",
    section=RULE,
    default=0.1,
    type=click.FloatRange(0, 1),
    metavar="NUMBER",
    help="normalised Hamming distance that none of them may exceed  [default: 0.1]",
)
@looking.training_options("0", "the task's", ("start", "scale_l1"))
@recipe_options(Recipe, section=looking.TRAINING, defaults=f"{SCALE_L1:g}", skip=_ALL_BUT_THE_PENALTY)
@asked.output_options("settling")
def command(task: str, **options: Any) -> None:
    """Watch how the channel masks of TASK's net settle while it trains, dense.

    After every epoch the channels are ranked by the scales of their batch normalisation, and the mask is compared with
    those before: an Early-Bird ticket is drawn where it is near all of the last few (You et al. 2020). The state after
    each epoch is kept in the store.
    """
    from tombola.cli.progress import Show
    from tombola.diagnostics.settling import recent_rows, settling, settling_rows
    from tombola.lab import Lab
    from tombola.report.settling_figure import settling_figure
    from tombola.store import Store
    from tombola.tasks import get_task

    known = get_task(task)
    recipe = looking.changed(known.recipe, {"scale_l1": SCALE_L1, **given(options, Recipe)})
    out = asked.folder_for("settling", known.name, options)
    rule = {"window": options["window"], "distance": options["distance"]}
    found = []
    with Show(known.metric) as show, Store(options["store"]) as store:
        lab = Lab(known, store, recipe=recipe, data_root=options["data_root"], watcher=show)
        for seed in options["seed_list"] or [0]:
            found += settling(lab, seed, options["densities"], **rule)
    rows, recent = settling_rows(found), recent_rows(found)
    figure = partial(settling_figure, rows, **rule, title=known.name) if options["figures"] else None
    files = asked.save(out, "settling", rows, figure)
    if options["as_json"]:
        drawn = [{"seed": looks.seed, "density": looks.density, "epoch": looks.drawn} for looks in found]
        document = {"task": known.name, **rule, "drawn": drawn, "epochs": recent, "distances": rows}
        output.document({**document, "files": [str(path) for path in files]})
        return
    _print(recent)
    asked.name_files(files)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """A table for each seed: a line an epoch, for each density the distance to the mask before and the furthest."""
    from tombola.report.tables import DASH, percent

    densities = list(dict.fromkeys(row["density"] for row in rows))
    for seed in dict.fromkeys(row["seed"] for row in rows):
        click.echo(
            f"seed {seed}: distance in percent to the mask before, and the largest in the window; * ticket drawn"
        )
        header = {"epoch": "right"}
        for density in densities:
            header |= {f"{percent(density)}: last": "right", f"{percent(density)}: furthest": "right"}
        lines = []
        own = [row for row in rows if row["seed"] == seed]
        for epoch in sorted({row["epoch"] for row in own}):
            line = [str(epoch)]
            for row in (row for row in own if row["epoch"] == epoch):
                furthest = DASH if row["furthest"] is None else f"{100 * row['furthest']:.3g}{' *' * row['drawn']}"
                line += [f"{100 * row['last']:.3g}", furthest]
            lines.append(line)
        output.table(output.columns(header, lines))
