"""``tombola diagnose masks``: distances and overlaps of masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.diagnosing import asked
from tombola.cli.options import Verb
from tombola.errors import InputError

if TYPE_CHECKING:
    from tombola.diagnostics.masks import FoundMask
    from tombola.mask import Mask

METHODS = ("imp",)


@click.command("masks", cls=Verb)
@click.argument("what", nargs=-1, required=True, metavar="TASK | TICKET TICKET...")
@asked.mask_options(METHODS, densities="the rounds of a draw", rounds=True)
@asked.output_options("masks")
def command(what: tuple[str, ...], **options: Any) -> None:
    """Compare masks: those of TASK by method, seed and round or density, or those of ticket files.

    For each pair, the normalised Hamming distance and the Jaccard overlap, beside what is expected of random masks that
    keep as much of each layer.
    """
    from tombola.diagnostics.overlap import overlap_rows
    from tombola.report.mask_figures import overlap_figure

    if all(asked.is_ticket(name) for name in what):
        name, masks, out = _tickets(what, options)
    elif len(what) == 1:
        name, masks, out = _of_a_task(what[0], options)
    else:
        wrong = next(name for name in what if not asked.is_ticket(name))
        raise InputError(f"masks wants one task, or ticket files, but there is no ticket file {wrong!r}")
    rows = overlap_rows(masks)
    names = list(masks)
    figure = partial(overlap_figure, names, rows, title=name) if options["figures"] else None
    files = asked.save(out, "masks", rows, figure)
    if options["as_json"]:
        kept = [{"name": name, "kept": mask.kept, "density": mask.density} for name, mask in masks.items()]
        output.document({"of": name, "masks": kept, "pairs": rows, "files": [str(path) for path in files]})
        return
    _print(masks, rows)
    asked.name_files(files)


def _tickets(what: tuple[str, ...], options: dict[str, Any]) -> tuple[str, dict[str, Mask], Path]:
    from tombola.recipe import DrawRecipe, Recipe
    from tombola.ticket import Ticket

    of_a_search = ("methods", "seed_list", *DrawRecipe.model_fields, *Recipe.model_fields)
    if any(options.get(name) not in (None, ()) for name in of_a_search):
        raise InputError(
            "methods, densities and the like name masks of a task, but tickets have their own: leave them out"
        )
    if len(what) < 2:
        raise InputError(f"masks are compared two at a time, but {what[0]} is one ticket: give more")
    out = asked.folder_for("masks", "tickets", options)
    paths = [Path(name) for name in what]
    short = len({path.stem for path in paths}) == len(paths)
    return "tickets", {path.stem if short else str(path): Ticket.load(path).mask for path in paths}, out


def _of_a_task(task: str, options: dict[str, Any]) -> tuple[str, dict[str, Mask], Path]:
    from tombola.cli.progress import Show
    from tombola.diagnostics.masks import masks_at, masks_of
    from tombola.tasks import get_task

    known = get_task(task)
    densities = asked.asked_densities(options)
    if densities and options["rounds"] is not None:
        raise InputError("masks are those at densities, or those of a number of rounds: give one of the two")
    recipes = asked.recipes(known, options["methods"] or METHODS, options)
    out = asked.folder_for("masks", known.name, options)
    with Show(known.metric) as show:
        lab = asked.lab_for(known, recipes[0], options, watcher=show)
        found = [
            one
            for recipe in recipes
            for one in asked.told(masks_at(lab, recipe, densities) if densities else masks_of(lab, recipe))
        ]
    return known.name, _named(found), out


def _named(found: list[FoundMask]) -> dict[str, Mask]:
    """The masks by names that say in what they differ."""
    from tombola.report.tables import percent

    parts: list[tuple[list[Any], str]] = [
        ([one.method for one in found], "{}"),
        ([one.seed for one in found], "seed {}"),
        ([percent(one.density) for one in found], "{}"),
    ]
    telling = [[form.format(value) for value in values] for values, form in parts if len(set(values)) > 1]
    names = [", ".join(words) for words in zip(*telling, strict=True)] if telling else [found[0].method] * len(found)
    unique = len(set(names)) == len(names)
    return {name if unique else f"{name}, round {one.round}": one.mask for name, one in zip(names, found, strict=True)}


def _print(masks: dict[str, Mask], rows: list[dict[str, Any]]) -> None:
    """Two matrices, each cell with what is expected of random masks beside it; in percent."""
    numbers = {name: str(number) for number, name in enumerate(masks, start=1)}
    pairs = {(row["one"], row["other"]): row for row in rows}
    headings = {
        "overlap": "overlap in percent: kept by both / kept by either (expected of random masks)",
        "distance": "distance in percent: entries on which they differ / all entries (expected of random masks)",
    }
    for field, heading in headings.items():
        click.echo(heading)
        header = {" ": "right", "mask": "left", "kept": "right", **dict.fromkeys(numbers.values(), "right")}
        lines = []
        for name, mask in masks.items():
            cells = [_cell(pairs.get((other, name)), field) for other in masks]
            lines.append([numbers[name], name, f"{mask.kept:,}", *cells])
        output.table(output.columns(header, lines))


def _cell(row: dict[str, Any] | None, field: str) -> str:
    return "" if row is None else f"{100 * row[field]:.3g} ({100 * row[f'chance_{field}']:.3g})"
