"""``tombola translate``: what a trained net makes of a task's sentences by beam search, and its BLEU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import Verb, data_root_option, json_option, option, store_option
from tombola.cli.places import check_id, is_ticket_file, opened
from tombola.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from tombola.tasks import Task

_SECTION = "Translation"


def _penalty(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not 0 <= value < math.inf:
        raise click.BadParameter(f"must be a number of 0 or more, but got {value:g}", ctx, param)
    return value


@click.command("translate", cls=Verb)
@click.argument("what")
@option(
    "--beam",
    section=_SECTION,
    default=4,
    type=click.IntRange(1, 100),
    metavar="INTEGER",
    help="translations of a sentence that are under way at once; 1 is the greedy one  [default: 4]",
)
@option(
    "--length-penalty",
    "penalty",
    section=_SECTION,
    default=1.0,
    type=float,
    callback=_penalty,
    metavar="NUMBER",
    help="power of the number of tokens that log-probabilities are divided by: more favours long ones  [default: 1]",
)
@option(
    "--data",
    section=_SECTION,
    default="test",
    type=click.Choice(["test", "validation"]),
    help="which part is translated  [default: test]",
)
@option("--translations", section=_SECTION, is_flag=True, help="also print the translations, one in a line")
@store_option()
@data_root_option()
@json_option()
def command(
    what: str,
    beam: int,
    penalty: float,
    data: str,
    translations: bool,
    store: str,
    data_root: Path | None,
    as_json: bool,
) -> None:
    """Translate with WHAT: a run by the first letters (4 or more) of its id, or a ticket file.

    The net of a run is that at its end; that of a ticket has the values which the ticket holds.
    """
    from tombola.tasks.language.pairs import Pairs
    from tombola.tasks.language.translation import translate, translates

    about, task, net = _of_ticket(Path(what)) if is_ticket_file(what) else _of_run(what, store)
    if not translates(task):
        raise InputError(f"a net can translate that was trained to, but the task {task.name!r} is no translator's")
    splits = task.splits(0, data_root)  # a translator's parts are the data set's own, whatever the seed
    chosen = splits.test if data == "test" else splits.validation
    assert isinstance(chosen, Pairs)
    found = translate(net, chosen, beam=beam, penalty=penalty)
    if as_json:
        about |= {"task": task.name, "data": data, "sentences": len(chosen), "beam": beam, "length_penalty": penalty}
        about |= {"bleu": found.bleu, "signature": found.signature}
        output.document(about | ({"translations": list(found.texts)} if translations else {}))
        return
    if translations:
        for text in found.texts:
            click.echo(output.inert(text))
    of = f"{len(chosen):,} sentences of {output.inert(task.name)}, {data} data, beam {beam}, length penalty {penalty:g}"
    click.echo(f"BLEU {found.bleu:.2f}: {of}; {found.signature}")


def _of_ticket(path: Path) -> tuple[dict[str, Any], Task, nn.Module]:
    from tombola.tasks import get_task
    from tombola.ticket import Ticket

    ticket = Ticket.load(path)
    net = ticket.model()  # a ticket without a task, or of another net, is refused here
    return {"ticket": str(path)}, get_task(str(ticket.origin["task"])), net


def _of_run(what: str, store: str) -> tuple[dict[str, Any], Task, nn.Module]:
    from tombola.store import RunRecord, only
    from tombola.tasks import get_task
    from tombola.ticket import Ticket

    check_id(what)
    with opened(store) as there:
        runs = [record for record in there.find(what) if isinstance(record, RunRecord)]
        run = only(runs, what, "translate wants a ticket file, or the beginning of one run's id", store)
        if run.status != "finished":
            raise InputError(f"only a finished run has a net that can translate, but run {run.id[:16]} is {run.status}")
        values = Ticket.from_bytes(there.read(run, "final")).values
    task = get_task(str(run.about["task"]["name"]))
    net = task.build(int(run.about["seed"]))
    net.load_state_dict(dict(values))
    return {"run": run.id}, task, net
