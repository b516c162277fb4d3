"""``tombola diagnose collapse``: at which compression a method empties a layer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.diagnosing import asked
from tombola.cli.options import Verb, option

if TYPE_CHECKING:
    from tombola.lab import Lab
    from tombola.mask import Mask
    from tombola.recipe import DrawRecipe

METHODS = ("snip", "grasp", "synflow", "magnitude_at_init", "random_at_init")


@click.command("collapse", cls=Verb)
@click.argument("task")
@asked.mask_options(METHODS, trained=False)
@option(
    "--points",
    section=asked.SEARCH,
    default=13,
    type=click.IntRange(2, 1000),
    metavar="INTEGER",
    help="compressions from 1 to the maximal one, evenly on a log axis  [default: 13]",
)
@option(
    "--bisections",
    section=asked.SEARCH,
    default=4,
    type=click.IntRange(0, 60),
    metavar="INTEGER",
    help="how many times the critical compression is then closed in on  [default: 4]",
)
@asked.output_options("collapse")
def command(task: str, **options: Any) -> None:
    """Find at which compression methods empty a layer of TASK's net before it is trained.

    The compression ratio is all weights / those kept; at the maximal one a weight is left in each layer. The critical
    one is the largest found at which no layer is empty. Data are loaded for methods that score by gradients of a loss.
    """
    from tombola.diagnostics.masks import check_untrained, whole_mask
    from tombola.lab import Lab
    from tombola.report.mask_figures import collapse_figure
    from tombola.store import Store
    from tombola.tasks import get_task

    known, methods = get_task(task), options["methods"] or METHODS
    for method in methods:
        check_untrained(method)
    recipes = asked.recipes(known, methods, options)
    out = asked.folder_for("collapse", known.name, options)
    with TemporaryDirectory() as folder, Store(folder) as store:  # a lab has a store, though nothing is trained
        lab = Lab(known, store, recipe=recipes[0].training, data_root=options["data_root"])
        whole = whole_mask(lab, recipes[0])
        rows = [row for recipe in recipes for row in _explored(lab, recipe, whole, options)]
    document = _document(known.name, whole, recipes, rows)
    most = document["maximal_compression"]
    figure = partial(collapse_figure, rows, most, title=known.name) if options["figures"] else None
    files = asked.save(out, "collapse", rows, figure)
    if options["as_json"]:
        output.document({**document, "rows": rows, "files": [str(path) for path in files]})
        return
    _print(document)
    asked.name_files(files)


def _explored(lab: Lab, recipe: DrawRecipe, whole: Mask, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a method and seed, each with a line on standard error when it is found."""
    from tombola.diagnostics.collapse import collapse_rows, compressions
    from tombola.diagnostics.masks import masks_at
    from tombola.report.mask_figures import ratio

    def find(density: float) -> Mask:
        (found,) = masks_at(lab, recipe, [density])
        return found.mask

    grid, begun = compressions(whole, options["points"]), time.monotonic()
    for number, row in enumerate(collapse_rows(find, whole, grid, options["bisections"]), start=1):
        seconds, begun = time.monotonic() - begun, time.monotonic()
        left = (
            f"{row['emptied']} layer{'s' * (row['emptied'] > 1)} empty"
            if row["emptied"]
            else f"{row['fewest']:,} left in {row['fewest_in']}"
        )
        place = f"{number} of {len(grid)}" if number <= len(grid) else f"bisection {number - len(grid)}"
        name = f"seed {recipe.seed} · {recipe.method} · {place}"
        asked.say(f"{name} · compression {ratio(row['compression'])}: {left}, {seconds:.1f} s")
        yield {"method": recipe.method, "seed": recipe.seed, **row}


def _document(task: str, whole: Mask, recipes: list[DrawRecipe], rows: list[dict[str, Any]]) -> dict[str, Any]:
    from tombola.diagnostics.collapse import critical_compression, maximal_compression

    critical = []
    for recipe in recipes:
        own = [row for row in rows if (row["method"], row["seed"]) == (recipe.method, recipe.seed)]
        found = critical_compression(own)
        empty = [row for row in own if row["emptied"] and row["compression"] > found]
        first = min(empty, key=lambda row: row["compression"], default=None)
        critical.append(
            {
                "method": recipe.method,
                "seed": recipe.seed,
                "critical_compression": found,
                "next_compression": None if first is None else first["compression"],
                "emptied_there": "" if first is None else first["emptied_layers"],
            }
        )
    return {
        "task": task,
        "weights": whole.total,
        "layers": len(whole),
        "maximal_compression": maximal_compression(whole),
        "critical": critical,
    }


def _print(document: dict[str, Any]) -> None:
    from tombola.report.mask_figures import ratio

    most = document["maximal_compression"]
    click.echo(
        f"{document['task']}: {document['weights']:,} weights in {document['layers']} layers, "
        f"maximal compression {ratio(most)}"
    )
    header = {"method": "left", "seed": "right", "critical compression": "right", "of the maximal %": "right"}
    header |= {"collapses at": "right", "empty there": "left"}
    rows = [
        [
            one["method"],
            str(one["seed"]),
            ratio(one["critical_compression"]),
            f"{100 * one['critical_compression'] / most:.3g}",
            "" if one["next_compression"] is None else ratio(one["next_compression"]),
            _few(one["emptied_there"].split()),
        ]
        for one in document["critical"]
    ]
    output.table(output.columns(header, rows))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
