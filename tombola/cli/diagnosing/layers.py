"""``tombola diagnose layers``: what each layer keeps, by method."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from tombola.cli import output
from tombola.cli.diagnosing import asked
from tombola.cli.options import Verb

METHODS = ("snip", "grasp", "synflow")
DENSITY = 0.05


@click.command("layers", cls=Verb)
@click.argument("task")
@asked.mask_options(METHODS, densities=f"{DENSITY}")
@asked.output_options("layers")
def command(task: str, **options: Any) -> None:
    """Show what each layer of TASK's net keeps at a density, by method.

    Methods that prune before training need none; for the others the draw is carried out, or taken from the store. The
    masks are those that tombola draw finds with the same options.
    """
    from tombola.cli.progress import Show
    from tombola.diagnostics.layers import layer_rows
    from tombola.diagnostics.masks import masks_at
    from tombola.report.mask_figures import layers_figure
    from tombola.tasks import get_task

    known = get_task(task)
    densities = asked.asked_densities(options, [DENSITY])
    recipes = asked.recipes(known, options["methods"] or METHODS, options)
    out = asked.folder_for("layers", known.name, options)
    with Show(known.metric) as show:
        lab = asked.lab_for(known, recipes[0], options, watcher=show)
        rows = layer_rows(one for recipe in recipes for one in asked.told(masks_at(lab, recipe, densities)))
    figure = partial(layers_figure, rows, title=known.name) if options["figures"] else None
    files = asked.save(out, "layers", rows, figure)
    if options["as_json"]:
        output.document({"task": known.name, "layers": rows, "files": [str(path) for path in files]})
        return
    for density in densities:
        _print([row for row in rows if row["density"] == density])
    asked.name_files(files)


def _print(rows: list[dict[str, Any]]) -> None:
    """The table of one density: a line a layer, a column a method, shares in percent; the whole net last."""
    from tombola.report.tables import percent

    methods = list(dict.fromkeys(row["method"] for row in rows))
    layers = {row["layer"]: row["total"] for row in rows}
    header = {"layer": "left", "weights": "right", **{f"{method} %": "right" for method in methods}}
    lines = [
        [name, f"{total:,}", *(_share([r for r in rows if (r["layer"], r["method"]) == (name, m)]) for m in methods)]
        for name, total in layers.items()
    ]
    whole = [_whole([row for row in rows if row["method"] == method]) for method in methods]
    lines.append(["the net", f"{sum(layers.values()):,}", *whole])
    seeds = len({row["seed"] for row in rows})
    click.echo(f"density {percent(rows[0]['density'])}" + (f", mean (range) of {seeds} seeds" if seeds > 1 else ""))
    output.table(output.columns(header, lines))


def _share(rows: list[dict[str, Any]]) -> str:
    """What a method keeps of a layer: the mean over seeds, with the range."""
    from tombola.report.tables import DASH, Spread

    spread = Spread.of(100 * row["layer_density"] for row in rows)
    assert spread is not None
    span = f" ({spread.low:.3g}{DASH}{spread.high:.3g})" if spread.count > 1 else ""
    return f"{spread.mean:.3g}{span}"


def _whole(rows: list[dict[str, Any]]) -> str:
    return f"{100 * sum(row['kept'] for row in rows) / sum(row['total'] for row in rows):.3g}"
