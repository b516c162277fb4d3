"""``tombola transfer``: tickets of some tasks trained on others, in a matrix of sources and targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import (
    OF_METHODS,
    Verb,
    data_root_option,
    densities_option,
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
from tombola.cli.places import check_writable, writing
from tombola.errors import InputError
from tombola.recipe import DrawRecipe, Recipe

if TYPE_CHECKING:
    from tombola.report.transfer import Transfer

CARRIED, SEARCH, TRAINING = (
    "What is carried",
    "Search for tickets, of sources that are tasks",
    "Training on the targets",
)
RUNNING, OUTPUT = "Running", "Output"
_SEARCH = ("method", "rate", "allocation", "criterion", "survivors", "back_to")
_BESIDE = ("controls", "control_draws")
_DEFAULTS = {
    "controls": "reinit, shuffled, random_ticket",
    "allocation": "the method's, or the task's",
    "survivors": "rewind, where the method can",
    "back_to": "1ep",
}
_FILES = ("transfer.csv", "transfer.md")
_FIGURES = tuple(f"transfer.{kind}" for kind in ("svg", "png", "pdf"))


def _names(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",")]


@click.command("transfer", cls=Verb)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@option(
    *("--to", "targets"),
    section=CARRIED,
    multiple=True,
    callback=_names,
    metavar="TASK,...",
    help="tasks whose data the tickets are trained on (repeatable)",
)
@seeds_option(CARRIED, "those of the draws and tickets, else 0")
@densities_option(
    "--densities",
    CARRIED,
    "densities of the tickets  [default: 0.1,0.05,0.02,0.01 of a task, all there are of a draw or a file]",
)
@option(
    "--own/--no-own",
    section=CARRIED,
    default=True,
    help="also draw each target's own tickets, by the search of the source  [default: yes]",
)
@recipe_options(
    DrawRecipe,
    section=CARRIED,
    defaults=_DEFAULTS,
    skip=tuple(name for name in DrawRecipe.model_fields if name not in _BESIDE),
)
@recipe_options(
    DrawRecipe,
    section=SEARCH,
    defaults=_DEFAULTS,
    skip=tuple(name for name in DrawRecipe.model_fields if name not in _SEARCH),
)
@recipe_options(Recipe, section=TRAINING, defaults="the target's", skip=("start", *OF_METHODS))
@jobs_option(RUNNING)
@store_option(RUNNING)
@data_root_option(RUNNING)
@option(
    "--at",
    section=OUTPUT,
    default="stop",
    type=click.Choice(["stop", "end"]),
    help="read the metric at early stop, or at the end of training  [default: stop]",
)
@path_option(
    "--out", section=OUTPUT, metavar="FOLDER", help="folder for tables and figures  [default: tombola-out/transfer]"
)
@option("--figures/--no-figures", section=OUTPUT, default=True, help="draw the figures  [default: yes]")
@tracker_option(OUTPUT)
@json_option(OUTPUT)
def command(sources: tuple[str, ...], **options: Any) -> None:
    """Train the tickets of each SOURCE on other tasks, beside dense nets, controls and the targets' own tickets.

    SOURCE is a task, whose tickets are drawn first unless the store has them, the id of a draw, or a ticket file. The
    net is the source's; see docs/transfer.md for what is adapted. The same command after an interruption goes on where
    it stopped. DURATION is steps (50000it) or epochs (160ep).
    """
    from tombola.cli.progress import Show
    from tombola.engines import check_device
    from tombola.tracking import EVENTS, Tracking, trackers_for
    from tombola.transferring import CONTROLS, Runner, carry_out_transfer, plan_of

    if not sources or not options["targets"]:
        raise InputError("name sources and targets, e.g. tombola transfer mnist-lenet300 --to fashion-lenet300")
    beside = {name: value for name, value in given(options, DrawRecipe).items() if name in _BESIDE}
    plan = plan_of(
        sources,
        options["targets"],
        seeds=options["seed_list"],
        densities=options["densities"],
        training=given(options, Recipe),
        controls=beside.get("controls", CONTROLS),
        control_draws=beside.get("control_draws", 1),
        own=options["own"],
        search={name: value for name, value in given(options, DrawRecipe).items() if name in _SEARCH},
        store=options["store"],
    )
    out = options["out"] or Path("tombola-out") / "transfer"
    for _, _, task in plan.pairs:
        check_device(plan.recipe(task, plan.seeds[0], "").training)
    check_writable(out, (*_FILES, EVENTS, *(_FIGURES if options["figures"] else ())))
    trackers = trackers_for(out, options["trackers"])
    with Show(plan.targets[0].metric) as show, Tracking(trackers, beside=show) as watcher:
        run = Runner(options["store"], options["data_root"], options["jobs"], watcher)
        found = carry_out_transfer(plan, run, options["at"])
    with writing(out):
        _report(found, out, figures=options["figures"], as_json=options["as_json"])


def _report(found: Transfer, out: Path, *, figures: bool, as_json: bool) -> None:
    from tombola.report import transfer
    from tombola.report.tables import percent, save_rows

    out.mkdir(parents=True, exist_ok=True)
    files = [save_rows(out / "transfer.csv", found.rows, transfer.COLUMNS), out / "transfer.md"]
    files[-1].write_text(transfer.markdown(found), encoding="utf-8")
    if figures:
        from tombola.report.figures import save_figures
        from tombola.report.transfer_figures import transfer_figures

        files += save_figures(out, transfer_figures(found, title="Tickets carried over"))
    if as_json:
        output.document({**found.as_dict(), "files": [str(path) for path in files]})
        return
    output.sentence(found.caption())
    for density in found.densities:
        click.echo(f"\nDensity {percent(density)}:")
        output.table(transfer.terminal_table(*transfer.lines(found, density)))
    click.echo()
    if found.gaps():
        output.sentence(found.gaps())
    shown = [path for path in files if path.suffix in (".csv", ".md", ".png")]
    also = " (the figure also as SVG and PDF)" if figures else ""
    click.echo(f"Written: {', '.join(output.inert(path) for path in shown)}{also}")
