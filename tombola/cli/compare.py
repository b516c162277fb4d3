"""``tombola compare``: several methods in one table, at equal density and at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
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
from tombola.cli.places import check_writable, plain, writing
from tombola.errors import InputError
from tombola.recipe import DrawRecipe, Recipe

if TYPE_CHECKING:
    from tombola.comparing import LeftOut, Outcome
    from tombola.report.comparison import Comparison
    from tombola.tasks import Task

COMPARED, TRAINING, RUNNING, OUTPUT = "What is compared", "Training of each net", "Running", "Output"
_FIELDS = ("rate", "allocation", "unpruned", "score_per_class")
_DEFAULTS = {"allocation": "the method's, or the task's", "unpruned": "the task's", "score_per_class": "the method's"}
_FIGURES = ("equal_density", "equal_cost")
_KINDS = ("svg", "png", "pdf")


def _methods(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    from tombola.comparing import methods_named

    try:
        return methods_named([part.strip() for text in texts for part in text.split(",")])
    except InputError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@click.command("compare", cls=Verb)
@click.argument("task")
@option(
    *("--method", "methods"),
    section=COMPARED,
    multiple=True,
    callback=_methods,
    metavar="TEXT,...",
    help="methods, or all (repeatable); see tombola draw --list-methods",
)
@densities_option("--densities", COMPARED, "densities at which methods are compared  [default: 0.1,0.05,0.02,0.01]")
@densities_option("--channel-densities", COMPARED, "shares of channels that early_bird keeps  [default: the method's]")
@seeds_option(COMPARED)
@recipe_options(
    DrawRecipe,
    section=COMPARED,
    defaults=_DEFAULTS,
    skip=tuple(name for name in DrawRecipe.model_fields if name not in _FIELDS),
)
@recipe_options(Recipe, section=TRAINING, defaults="the task's", skip=("start", *OF_METHODS))
@jobs_option(RUNNING)
@store_option(RUNNING)
@data_root_option(RUNNING)
@option(
    "--at",
    section=OUTPUT,
    default="end",
    type=click.Choice(["end", "stop"]),
    help="read the metric at the end of training, or at early stop  [default: end]",
)
@option(
    "--cost-at",
    section=OUTPUT,
    type=float,
    metavar="NUMBER",
    help="which of the densities costs are shown at  [default: the middle one]",
)
@path_option(
    "--out",
    section=OUTPUT,
    metavar="FOLDER",
    help="folder for tables and figures  [default: tombola-out/TASK-compare]",
)
@option("--figures/--no-figures", section=OUTPUT, default=True, help="draw the figures  [default: yes]")
@tracker_option(OUTPUT)
@json_option(OUTPUT)
def command(task: str, **options: Any) -> None:
    """Compare methods on TASK: what they reach at the same densities, and what it costs to find, train and store.

    A method whose rounds build on each other goes down a ladder that meets every density, the others go straight
    there. Every training is kept in the store and shared with tombola draw, so the same command after an interruption
    goes on where it stopped. DURATION is steps (50000it) or epochs (160ep).
    """
    from tombola import comparing
    from tombola.cli.progress import Show
    from tombola.engines import check_device
    from tombola.methods.base import STRAIGHT
    from tombola.tasks import get_task
    from tombola.tracking import EVENTS, Tracking, trackers_for

    known = get_task(task)
    densities = options["densities"] or list(STRAIGHT)
    cost_at = _cost_at(options["cost_at"], densities)
    recipes, refused = _recipes(known, densities, options)
    out = options["out"] or Path("tombola-out") / f"{plain(known.name)}-compare"
    check_device(recipes[0].training)
    figures = [f"{name}.{kind}" for name in _FIGURES for kind in _KINDS] if options["figures"] else []
    check_writable(out, ("comparison.csv", "comparison.md", EVENTS, *figures))
    trackers = trackers_for(out, options["trackers"])
    with Show(known.metric) as show, Tracking(trackers, beside=show) as watcher:
        outcomes = comparing.carry_out_each(
            recipes, store=options["store"], data_root=options["data_root"], jobs=options["jobs"], watcher=watcher
        )
    refused += comparing.left_out(recipes, outcomes)
    rows = comparing.rows(recipes, outcomes, densities)
    found = _comparison(rows, outcomes, known, densities, cost_at, options["at"])
    with writing(out):
        _report(found, refused, task, out, figures=options["figures"], as_json=options["as_json"])


def _cost_at(asked: float | None, densities: Sequence[float]) -> float:
    if asked is None:
        return densities[(len(densities) - 1) // 2]
    if asked not in densities:
        listed = ", ".join(f"{density:g}" for density in densities)
        raise InputError(f"--cost-at must be one of the densities {listed}, but got {asked:g}")
    return asked


def _recipes(task: Task, densities: Sequence[float], options: dict[str, Any]) -> tuple[list[DrawRecipe], list[LeftOut]]:
    from tombola.comparing import recipes
    from tombola.methods import get_method

    names, channels = options["methods"], options["channel_densities"]
    if channels and not any(get_method(name).of_channels for name in names):
        raise InputError("--channel-densities are those of early_bird: name that method too, or leave them out")
    chosen = {name: value for name, value in given(options, DrawRecipe).items() if name in _FIELDS}
    return recipes(
        task,
        names,
        seeds=options["seed_list"] or [0],
        densities=densities,
        channel_densities=channels,
        options={**chosen, "training": given(options, Recipe)},
    )


def _comparison(
    rows: Sequence[dict[str, Any]],
    outcomes: Sequence[Outcome],
    task: Task,
    densities: Sequence[float],
    cost_at: float,
    at: Any,
) -> Comparison:
    from tombola.report.comparison import Comparison

    one = next(outcome for outcome in outcomes if not isinstance(outcome, InputError))
    data = "test" if one.tested else "validation"
    return Comparison(rows, task.metric, densities, cost_at, at, data, not task.higher_is_better)


def _report(
    found: Comparison, refused: Sequence[LeftOut], task: str, out: Path, *, figures: bool, as_json: bool
) -> None:
    from tombola.report import comparison
    from tombola.report.tables import save_rows

    notes = [_left_out(one, found.seeds) for one in refused]
    out.mkdir(parents=True, exist_ok=True)
    files = [save_rows(out / "comparison.csv", found.rows, comparison.COLUMNS), out / "comparison.md"]
    files[-1].write_text(comparison.markdown(found, notes), encoding="utf-8")
    if figures:
        from tombola.report.comparison_figures import comparison_figures
        from tombola.report.figures import save_figures

        files += save_figures(out, comparison_figures(found, title=task))
    if as_json:
        about: dict[str, Any] = {
            "task": task,
            "metric": found.metric,
            "data": found.data,
            "at": found.at,
            "seeds": found.seeds,
        }
        about |= {
            "densities": list(found.densities),
            "cost_at": found.cost_at,
            "left_out": [asdict(one) for one in refused],
        }
        paths = [str(path) for path in files]
        output.document({**about, "table": comparison.numbers(found), "runs": list(found.rows), "files": paths})
        return
    for caption, (header, lines) in (
        (found.caption(), comparison.metric_lines(found)),
        (found.cost_caption(), comparison.cost_lines(found)),
    ):
        output.sentence(caption)
        output.table(comparison.terminal_table(header, lines))
        click.echo()
    for note in filter(None, (found.gaps(), *notes)):
        output.sentence(note)
    shown = [path for path in files if path.suffix in (".csv", ".md", ".png")]
    also = " (figures also as SVG and PDF)" if figures else ""
    click.echo(f"Written: {', '.join(output.inert(path) for path in shown)}{also}")


def _left_out(refused: LeftOut, seeds: Sequence[int]) -> str:
    """``early_bird is left out: ...``, and for which seeds where it isn't all."""
    some = "" if len(refused.seeds) == len(seeds) else f" for seed {', '.join(map(str, refused.seeds))}"
    return f"{refused.method} is left out{some}: {refused.reason}."
