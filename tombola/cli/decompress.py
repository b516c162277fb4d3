"""``tombola decompress``: an ordinary ticket from a compressed file, and how well its net does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tombola.cli import output
from tombola.cli.options import Verb, data_root_option, json_option, option, path_option
from tombola.errors import InputError

if TYPE_CHECKING:
    from tombola.ticket import Ticket


@click.command("decompress", cls=Verb)
@click.argument("file", type=click.Path(path_type=Path))
@path_option(
    *("-o", "--output", "path"),
    section="Options",
    metavar="TICKET",
    help="the ticket's file  [default: FILE with the ending .decompressed.ticket]",
)
@option(
    "--evaluate",
    section="Options",
    is_flag=True,
    help="also give loss and metrics of the net, with the values it has, on the test data of its task",
)
@data_root_option()
@json_option()
def command(file: Path, path: Path | None, evaluate: bool, data_root: Path | None, as_json: bool) -> None:
    """Write the ticket in the compressed FILE as an ordinary ticket file, which any verb takes."""
    from tombola.shipping.compressed import decompress

    ticket = decompress(file)
    found = _evaluated(ticket, data_root) if evaluate else None
    path = ticket.save(file.with_suffix(".decompressed.ticket") if path is None else path)
    if as_json:
        about = {"file": str(path), "bytes": path.stat().st_size, "digest": ticket.digest, "density": ticket.density}
        output.document(about | ({} if found is None else {"test": found}))
        return
    kept = f"{ticket.mask.kept:,} of {ticket.mask.total:,} weights kept ({ticket.density:.2%})"
    click.echo(f"{output.inert(path)}: {kept}, {path.stat().st_size:,} bytes")
    if found is not None:
        values = ", ".join(f"{output.inert(name).replace('_', ' ')} {value:.4f}" for name, value in found.items())
        click.echo(f"test data of {output.inert(ticket.origin['task'])}: {values}")


def _evaluated(ticket: Ticket, data_root: Path | None) -> dict[str, float]:
    """Loss and metrics on the test data of the task that the ticket names."""
    from tombola.engines.evaluation import evaluate
    from tombola.tasks import get_task

    net = ticket.model()  # a ticket without a task, or of another net, is refused here
    task = get_task(str(ticket.origin["task"]))
    test = task.splits(0, data_root).test  # the seed decides what is held out for validation, not the test data
    if test is None:
        raise InputError(f"the task {task.name!r} has no test data to evaluate on")
    return evaluate(task, net, test)
