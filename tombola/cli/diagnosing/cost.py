"""``tombola diagnose cost``: parameters, operations and bytes, layer by layer."""

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
    from torch import Tensor, nn

    from tombola.costs import Cost
    from tombola.mask import Mask
    from tombola.tasks import Task


@click.command("cost", cls=Verb)
@click.argument("what", metavar="TASK | TICKET")
@asked.mask_options(("none: the dense net",), densities="none: the dense net")
@asked.output_options("cost")
def command(what: str, **options: Any) -> None:
    """Count parameters, floating-point operations and bytes of a net, layer by layer.

    The net is that of TASK, dense or under the mask of a method at a density, or that of a TICKET file. Operations are
    those of linear layers and convolutions in a forward pass of one example, two a multiply-add.
    """
    from tombola.costs import cost
    from tombola.report.mask_figures import cost_figure

    task, name, model, mask, out = (_ticket if asked.is_ticket(what) else _of_a_task)(what, options)
    found = cost(model, mask, example=_example(task, options))
    rows = _rows(found)
    figure = partial(cost_figure, found.rows()[:-1], title=name) if options["figures"] else None
    files = asked.save(out, "cost", rows, figure)
    if options["as_json"]:
        about = {"task": task.name, "net": name, "uncounted": list(found.uncounted)}
        output.document({**about, "layers": rows, "files": [str(path) for path in files]})
        return
    click.echo(output.inert(name))
    _print(rows)
    if found.uncounted:
        output.sentence(f"Not counted: the operations of {', '.join(found.uncounted)}")
    asked.name_files(files)


Found = tuple["Task", str, "nn.Module", "Mask | None", Path]


def _ticket(what: str, options: dict[str, Any]) -> Found:
    from tombola.tasks import get_task
    from tombola.ticket import Ticket

    if options["methods"] or options["seed_list"] or options["density"] or options["densities"]:
        raise InputError("a ticket has its own mask: leave out methods, seeds and densities")
    ticket = Ticket.load(what)
    model = ticket.model()  # a ticket without a task is refused here
    task = get_task(str(ticket.origin["task"]))
    path = Path(what)
    name = f"{task.name}, {path.stem} ({ticket.density:.2%} kept)"
    return task, name, model, ticket.mask, asked.folder_for("cost", path.stem, options)


def _of_a_task(what: str, options: dict[str, Any]) -> Found:
    from tombola.tasks import get_task

    task, densities = get_task(what), asked.asked_densities(options)
    methods, numbers = options["methods"], options["seed_list"] or [0]
    if len(methods) > 1 or len(densities) > 1 or len(numbers) > 1:
        raise InputError("cost is of one net: give one method, one density and one seed at most")
    if bool(methods) != bool(densities):
        raise InputError("give both a method and a density, for the net under that mask; or neither, for the dense one")
    out = asked.folder_for("cost", task.name, options)
    model = task.build(numbers[0])
    if not methods:
        return task, f"{task.name}, dense", model, None, out
    return task, f"{task.name}, {methods[0]} ({densities[0]:.2%} kept)", model, _mask(task, densities, options), out


def _mask(task: Task, densities: list[float], options: dict[str, Any]) -> Mask:
    from tombola.cli.progress import Show
    from tombola.diagnostics.masks import masks_at

    (recipe,) = asked.recipes(task, options["methods"], options)
    with Show(task.metric) as show:
        lab = asked.lab_for(task, recipe, options, watcher=show)
        (found,) = asked.told(masks_at(lab, recipe, densities))
    return found.mask


def _example(task: Task, options: dict[str, Any]) -> Tensor:
    """One input of the task; its data are loaded only where the shape isn't known."""
    import torch

    from tombola.batches import tensors

    if task.input_shape is not None:
        return torch.zeros(1, *task.input_shape)
    return tensors(task.splits(0, options["data_root"]).train.take(torch.tensor([0])))[0]


def _rows(found: Cost) -> list[dict[str, Any]]:
    """The rows of the layers, one for what no mask covers, and the total of everything."""
    *layers, total = found.rows()
    others = dict.fromkeys(total, 0) | {"name": "biases, normalisation", "kept": found.others, "weights": found.others}
    others |= dict.fromkeys(("bytes_dense", "bytes_sparse", "bytes_bitmask"), 4 * found.others)
    sums = {"kept": found.kept_parameters, "weights": found.parameters}
    return [*layers, others, total | sums]


def _print(rows: list[dict[str, Any]]) -> None:
    heads = {
        "name": "layer",
        "weights": "parameters",
        "kept": "kept",
        "flops": "FLOPs",
        "kept_flops": "FLOPs kept",
        "bytes_dense": "bytes dense",
        "bytes_sparse": "in rows",
        "bytes_bitmask": "with bit mask",
    }
    lines = [[row["name"], *(f"{row[key]:,}" for key in list(heads)[1:])] for row in rows]
    output.table(output.columns({head: "left" if head == "layer" else "right" for head in heads.values()}, lines))
