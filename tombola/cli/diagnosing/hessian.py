"""``tombola diagnose hessian``: the curvature of the loss at the kept weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.diagnosing import asked, looking
from tombola.cli.options import Verb, given, option
from tombola.errors import InputError, TombolaError
from tombola.recipe import Recipe

if TYPE_CHECKING:
    from tombola.lab import Lab
    from tombola.mask import Mask
    from tombola.tasks import Task
    from tombola.tasks.task import State
    from tombola.ticket import Ticket


@click.command("hessian", cls=Verb)
@click.argument("what")
@looking.training_options("0, or the ticket's", "the task's, or that of the ticket's draw", ("order",))
@looking.at_option("the first and the last")
@looking.examples_options
@option(
    "--count",
    section=looking.EXAMPLES,
    default=1,
    type=click.IntRange(1, 100),
    metavar="INTEGER",
    help="how many eigenvalues, the largest first  [default: 1]",
)
@option(
    "--tolerance",
    section=looking.EXAMPLES,
    default=1e-3,
    type=click.FloatRange(0, 1, min_open=True),
    metavar="NUMBER",
    help="residual to reach, relative to the largest eigenvalue  [default: 0.001]",
)
@option(
    "--products",
    "most",
    section=looking.EXAMPLES,
    default=300,
    type=click.IntRange(1, 1_000_000),
    metavar="INTEGER",
    help="products of the Hessian with a vector after which to give an eigenvalue up  [default: 300]",
)
@asked.output_options("hessian")
def command(what: str, **options: Any) -> None:
    """Look at the curvature of the loss around a net: the largest eigenvalues of the Hessian at its kept weights.

    WHAT is a task, for its dense net, or a ticket file, for the net that trains from the ticket. The Hessian is that of
    the mean loss on training examples; biases, normalisation and pruned weights stand still.
    """
    from tombola.cli.progress import Show
    from tombola.diagnostics.curvature import curvature_rows
    from tombola.diagnostics.origin import training_of
    from tombola.diagnostics.trajectory import chosen_steps, fixed_batches
    from tombola.engines import check_device
    from tombola.lab import Lab
    from tombola.report.flow_figures import curvature_figure
    from tombola.store import Store

    task, ticket = _named(what)
    name = task.name if ticket is None else Path(what).stem
    seed, recipe = (0, task.recipe) if ticket is None else training_of(ticket, task)
    recipe = looking.changed(recipe, given(options, Recipe))
    check_device(recipe)
    out = asked.folder_for("hessian", name, options)
    settings = {key: options[key] for key in ("count", "mode", "tolerance", "most")}
    rows = []
    with Show(task.metric) as show, Store(options["store"]) as store:
        lab = Lab(task, store, recipe=recipe, data_root=options["data_root"], watcher=show)
        for number in options["seed_list"] or [seed]:
            steps = chosen_steps(lab, number, recipe, options["at"] or [recipe.start, recipe.steps])
            mask, found = _states(lab, number, ticket, steps)
            batches = fixed_batches(lab, number, options["per_class"])
            about = {"seed": number, "density": mask.density}
            rows += [{**about, **row} for row in curvature_rows(lab, number, mask, found, batches, **settings)]
    if not rows:
        raise TombolaError("every net diverged before the steps that are asked for: name earlier ones with --at")
    figure = (lambda: curvature_figure(rows, name)) if options["figures"] else None
    files = asked.save(out, "hessian", rows, figure)
    if options["as_json"]:
        output.document({"task": task.name, "eigenvalues": rows, "files": [str(path) for path in files]})
        return
    _print(rows)
    asked.name_files(files)


def _named(what: str) -> tuple[Task, Ticket | None]:
    """The task of that name, or the ticket of that file and its task."""
    from tombola.tasks import TASKS, get_task
    from tombola.ticket import Ticket

    if what in TASKS or not (what.endswith(".ticket") or Path(what).is_file()):
        return get_task(what), None
    ticket = Ticket.load(what)
    named = ticket.origin.get("task")
    if not isinstance(named, str):
        raise InputError(f"{what} doesn't say which task it is of, and without its task it can't be trained")
    task = get_task(named)
    ticket.model(task.model)  # one that doesn't fit is refused here, with a clear message
    return task, ticket


def _states(lab: Lab, seed: int, ticket: Ticket | None, steps: list[int]) -> tuple[Mask, dict[int, State]]:
    """The mask, and the states at the steps; where the first is all that is wanted, nothing is trained."""
    from tombola.diagnostics.trajectory import states
    from tombola.durations import Duration
    from tombola.mask import Mask

    model = lab.task.build(seed)
    values = model.state_dict() if ticket is None else dict(ticket.values)
    mask = Mask.full(model) if ticket is None else ticket.mask
    if steps == [lab.recipe.start.steps(lab.steps_per_epoch(seed, lab.recipe))]:
        return mask, {steps[0]: values}
    keep, arm = [Duration(step) for step in steps], "dense" if ticket is None else "ticket"
    return mask, states(lab.train(seed, start=values, mask=mask, arm=arm, keep=keep), steps)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    header = {"seed": "right", "step": "right", "eigenvalue": "right", "residual": "right"}
    header |= {"products": "right", "converged": "left", "loss": "right"}
    lines = [
        [
            str(row["seed"]),
            f"{row['step']:,}",
            f"{row['eigenvalue']:.5g}",
            f"{row['residual']:.2g}",
            f"{row['products']:,}",
            "yes" if row["converged"] else "no",
            f"{row['loss']:.4g}",
        ]
        for row in rows
    ]
    output.table(output.columns(header, lines))
