"""What the diagnostics of masks share: their options, the draws these name, and where results go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tombola.cli import output
from tombola.cli.options import (
    OF_METHODS,
    all_of,
    data_root_option,
    given,
    json_option,
    option,
    path_option,
    recipe_options,
    seeds_option,
    store_option,
    validated,
)
from tombola.cli.places import check_writable, plain
from tombola.errors import InputError, TombolaError
from tombola.recipe import DrawRecipe, Recipe

if TYPE_CHECKING:
    from tombola.diagnostics.masks import FoundMask
    from tombola.lab import Lab
    from tombola.report.mask_figures import Figure
    from tombola.tasks import Task

Function = TypeVar("Function", bound=Callable[..., Any])

SEARCH, TRAINING, RUNNING, OUTPUT = "Masks", "Training, of methods that need it", "Running", "Output"
_KINDS = ("csv", "svg", "png", "pdf")

# What ends, judges and controls a draw says nothing about its masks.
_JUDGED = ("schedule", "margin", "stop_at_margin", "controls", "control_draws", "control_rounds")
_TRAINED = ("rounds", "rate", "relative_rates", "survivors", "back_to", "fine_tune", "strategy")


def mask_options(
    methods: Sequence[str], *, densities: str = "", rounds: bool = False, trained: bool = True
) -> Callable[[Function], Function]:
    """The options that name masks: methods, by default these, seeds, densities with their default (none: not asked
    for), ``rounds`` where asked for, and how masks are searched and nets ``trained``."""
    skip = {"task", "method", "seed", "training", "density", "densities", *_JUDGED, *(() if trained else _TRAINED)}
    skip |= set() if rounds else {"rounds"}
    defaults = dict.fromkeys(("rounds", "relative_rates", "unpruned"), "the task's")
    defaults["allocation"] = "the method's, or the task's"
    training = {"start", *OF_METHODS} if trained else set(Recipe.model_fields) - {"device"}
    parts = [
        option(
            *("--method", "methods"),
            section=SEARCH,
            multiple=True,
            metavar="TEXT",
            help=f"method that finds masks (repeatable)  [default: {', '.join(methods)}]",
        ),
        seeds_option(SEARCH),
        *(_density_options(densities) if densities else ()),
        recipe_options(DrawRecipe, section=SEARCH, defaults=defaults, skip=tuple(skip)),
        recipe_options(Recipe, section=TRAINING if trained else RUNNING, defaults="the task's", skip=tuple(training)),
        *((store_option(RUNNING),) if trained else ()),
        data_root_option(RUNNING),
    ]
    return all_of(parts)


def _density_options(default: str) -> Iterator[Callable[[Function], Function]]:
    for name, metavar, text in (
        ("density", "NUMBER", "density of the masks: kept / all weights"),
        ("densities", "NUMBER,...", "several densities"),
    ):
        yield option(
            f"--{name}", section=SEARCH, callback=_density, metavar=metavar, help=f"{text}  [default: {default}]"
        )


def _density(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    name = str(param.name)
    try:
        return validated(DrawRecipe, name, text.split(",") if name == "densities" else text)
    except InputError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def output_options(what: str) -> Callable[[Function], Function]:
    """``--out``, ``--figures`` and ``--json``."""

    def add(function: Function) -> Function:
        function = json_option(OUTPUT)(function)
        function = option("--figures/--no-figures", section=OUTPUT, default=True, help="draw it  [default: yes]")(
            function
        )
        return path_option(
            "--out",
            section=OUTPUT,
            metavar="FOLDER",
            help=f"folder for table and figure  [default: tombola-out/diagnose-{what}-TASK]",
        )(function)

    return add


def is_ticket(name: str) -> bool:
    """Whether a ticket file is meant and not a task."""
    return name.endswith(".ticket") or os.path.isfile(name)


def asked_densities(options: dict[str, Any], default: Sequence[float] = ()) -> list[float]:
    """The densities asked for, taken out of the options: the densest first, each once."""
    one, several = options.pop("density"), options.pop("densities")
    found = {*(several or ()), *(() if one is None else (one,))}
    return sorted(found or default, reverse=True)


def recipes(task: Task, methods: Sequence[str], options: Mapping[str, Any]) -> list[DrawRecipe]:
    """A recipe for each method and seed. ``InputError`` for what doesn't go together."""
    from tombola.asked import draw_recipe
    from tombola.engines import check_device

    chosen = {**given(options, DrawRecipe), "training": given(options, Recipe)}
    found = [
        draw_recipe(task, {**chosen, "method": method, "seed": seed})
        for method in dict.fromkeys(methods)
        for seed in options["seed_list"] or [0]
    ]
    check_device(found[0].training)
    return found


def folder_for(what: str, name: str, options: Mapping[str, Any]) -> Path:
    """The folder for results, which takes them: found out before the work."""
    out: Path = options["out"] or Path("tombola-out") / f"diagnose-{what}-{plain(name)}"
    kinds = _KINDS if options["figures"] else _KINDS[:1]
    check_writable(out, [f"{what}.{kind}" for kind in kinds])
    return out


def told(found: Iterator[FoundMask]) -> Iterator[FoundMask]:
    """The masks, each with a line on standard error when it is found."""
    begun = time.monotonic()
    for one in found:
        seconds, begun = time.monotonic() - begun, time.monotonic()
        say(f"seed {one.seed} · {one.method} · {one.density:.2%} kept: mask found, {seconds:.1f} s")
        yield one


def say(line: str) -> None:
    """A line on standard error."""
    click.echo(output.inert(line), err=True)


def save(out: Path, what: str, rows: Sequence[Mapping[str, Any]], draw: Callable[[], Figure] | None) -> list[Path]:
    """Write the rows as ``WHAT.csv`` and the figure, where there is to be one, as ``WHAT.svg``, ``.png``, ``.pdf``."""
    from tombola.report.tables import save_rows

    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [save_rows(out / f"{what}.csv", rows)]
        if draw is not None:
            from tombola.report.figures import save_figures

            files += save_figures(out, {what: draw()})
    except OSError as error:
        raise TombolaError(f"the results can't be written to {out}: {error.strerror or error}") from error
    return files


def name_files(files: Sequence[Path]) -> None:
    """Say where the results are."""
    shown = [path for path in files if path.suffix in (".csv", ".png")]
    click.echo(", ".join(output.inert(path) for path in shown) + (" (also SVG and PDF)" if len(shown) > 1 else ""))


def lab_for(task: Task, recipe: DrawRecipe, options: Mapping[str, Any], **more: Any) -> Lab:
    """A lab at the store, for draws with this recipe's training."""
    from tombola.lab import Lab
    from tombola.store import Store

    return Lab(task, Store(options["store"]), recipe=recipe.training, data_root=options["data_root"], **more)
