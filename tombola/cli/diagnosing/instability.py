"""``tombola diagnose instability``: whether two trainings from one state end connected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from tombola.cli import output
from tombola.cli.diagnosing import asked, looking
from tombola.cli.options import Verb, given, option, path_option
from tombola.recipe import Recipe


@click.command("instability", cls=Verb)
@click.argument("task")
@path_option(
    "--ticket",
    section=looking.NET,
    metavar="FILE",
    help="the mask of this ticket  [default: the dense net]",
)
@option(
    "--rewind",
    section=looking.NET,
    default="0it",
    callback=looking.durations,
    metavar="DURATION,...",
    help="steps of the dense training from whose states two copies go on  [default: 0it]",
)
@looking.training_options("0, or the ticket's", "the task's, or that of the ticket's draw", ("start", "order"))
@option(
    "--points",
    section=looking.EXAMPLES,
    default=11,
    type=click.IntRange(2, 1000),
    metavar="INTEGER",
    help="nets on the line between two copies, both of them included  [default: 11]",
)
@option(
    "--statistics",
    section=looking.EXAMPLES,
    default="estimated",
    type=click.Choice(["estimated", "interpolated"]),
    help="statistics of batch normalisation at each point: estimated anew on training data, or interpolated  "
    "[default: estimated]",
)
@asked.output_options("instability")
def command(task: str, **options: Any) -> None:
    """Measure how far two trainings of TASK's net part ways that go on from one state with different data orders.

    The barrier is the highest error on the straight line between the two nets less the mean of their own errors: where
    it is about 0, training is stable from that state on (Frankle et al. 2020). Test data are not touched.
    """
    from tombola.cli.progress import Show
    from tombola.diagnostics.connectivity import barriers, instability
    from tombola.diagnostics.origin import training_of
    from tombola.lab import Lab
    from tombola.report.flow_figures import instability_figure
    from tombola.store import Store
    from tombola.tasks import get_task
    from tombola.ticket import Ticket

    known, mask, seed = get_task(task), None, 0
    recipe, name = known.recipe, known.name
    if options["ticket"] is not None:
        ticket = Ticket.load(options["ticket"])
        ticket.model(known.model)  # a ticket of another net is refused here, with a clear message
        mask, name = ticket.mask, options["ticket"].stem
        seed, recipe = training_of(ticket, known)
    recipe = looking.changed(recipe, given(options, Recipe))
    out = asked.folder_for("instability", name, options)
    settings = {"points": options["points"], "estimate": options["statistics"] == "estimated"}
    rows = []
    with Show(known.metric) as show, Store(options["store"]) as store:
        lab = Lab(known, store, recipe=recipe, data_root=options["data_root"], watcher=show)
        for number in options["seed_list"] or [seed]:
            rows += instability(lab, number, options["rewind"], mask, **settings)
    found = barriers(rows)
    figure = (lambda: instability_figure(rows, found, name, known.metric)) if options["figures"] else None
    files = asked.save(out, "instability", rows, figure)
    if options["as_json"]:
        document = {"task": known.name, "density": rows[0]["density"], "barriers": found, "paths": rows}
        output.document({**document, "files": [str(path) for path in files]})
        return
    _print(found, known.metric)
    asked.name_files(files)


def _print(barriers: Sequence[dict[str, Any]], metric: str) -> None:
    """The table: a line for each shared step and kind of data, means over seeds."""
    from tombola.report.tables import is_share

    scale, unit = (100, " %") if is_share(metric) else (1, "")
    header = {"shared steps": "right", "data": "left", f"error of the two{unit}": "right"}
    header |= {f"highest between{unit}": "right", f"barrier{unit}": "right", "barrier in loss": "right"}
    lines = []
    for step, data in sorted({(row["rewind"], row["data"]) for row in barriers}):
        own = [row for row in barriers if (row["rewind"], row["data"]) == (step, data)]
        fields = (("error_ends", scale), ("error_highest", scale), ("error_barrier", scale), ("loss_barrier", 1))
        values = [looking.mean(times * row[field] for row in own) for field, times in fields]
        lines.append([f"{step:,}", data, *values])
    output.table(output.columns(header, lines))
