"""``tombola audit``: judge a ticket against its dense net and its controls, over seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import (
    Verb,
    data_root_option,
    jobs_option,
    json_option,
    option,
    path_option,
    recipe_options,
    seeds_option,
    store_option,
)
from tombola.cli.places import check_id, check_writable, opened, plain, writing
from tombola.errors import InputError
from tombola.recipe import DrawRecipe

if TYPE_CHECKING:
    from tombola.auditing import Audit, Claim

JUDGED, ARMS, RUNNING, OUTPUT = "What is judged", "Beside what, and how strictly", "Running", "Output"
_FILES = ("audit.json", "arms.csv", "runs.csv", "audit.svg", "audit.png", "audit.pdf", "audit.html")


@click.command("audit", cls=Verb)
@click.argument("what", metavar="TICKET|ID")
@option("--round", "number", section=JUDGED, type=click.IntRange(1), help="round of a draw  [default: its chosen one]")
@seeds_option(JUDGED, "five, from the ticket's own")
@option("--as-it-is", section=JUDGED, is_flag=True, help="judge the file's mask and values over data orders, not seeds")
@option("--task", section=JUDGED, metavar="TASK", help="task of a ticket that doesn't say  [default: the one it names]")
@option(
    *("--control", "controls"),
    section=ARMS,
    multiple=True,
    metavar="NAME",
    help="control beside the ticket (repeatable; see tombola draw --list-methods)  [default: all that its method can "
    "have at little cost]",
)
@option(
    "--control-draws", section=ARMS, default=3, type=click.IntRange(1, 100), help="random draws of each  [default: 3]"
)
@recipe_options(DrawRecipe, section=ARMS, skip=tuple(name for name in DrawRecipe.model_fields if name != "dense_rates"))
@option("--margin", section=ARMS, type=float, help="smallest difference that matters  [default: the draw's margin]")
@option("--speed-margin", section=ARMS, default=0.1, help="the same of the early-stop step, as a share  [default: 0.1]")
@option("--alpha", section=ARMS, default=0.05, help="level of each one-sided test  [default: 0.05]")
@option(
    "--at",
    section=ARMS,
    default="stop",
    type=click.Choice(["stop", "end"]),
    help="judge at the early-stop step, or at the end of training  [default: stop]",
)
@jobs_option(RUNNING)
@store_option(RUNNING)
@data_root_option(RUNNING)
@path_option(
    "--out", section=OUTPUT, metavar="FOLDER", help="folder for what was found  [default: tombola-out/audit-TASK]"
)
@option("--figures/--no-figures", section=OUTPUT, default=True, help="draw the figure and the page  [default: yes]")
@json_option(OUTPUT)
def command(what: str, **options: Any) -> None:
    """Judge a ticket: does it win, against what, and how sure is that?

    TICKET is a file; ID names a draw or a run in the store by the beginning of its id. The draw is repeated on each
    seed beside its controls, each of which changes one thing (tombola draw --list-methods). A ticket that its recipe
    doesn't draw again bit for bit is judged as it is. Every training and the verdict are kept in the store.
    """
    from tombola.auditing import SEEDS, How, Runner, carry_out_audit, numbers
    from tombola.cli.progress import Show

    claim = _claim(what, options)
    how = How(
        controls=tuple(dict.fromkeys(options["controls"])) or None,
        control_draws=options["control_draws"],
        dense_rates=options["dense_rates"] or (),
        margin=options["margin"],
        speed_margin=options["speed_margin"],
        alpha=options["alpha"],
        at=options["at"],
        as_it_is=options["as_it_is"],
    )
    out: Path = options["out"] or Path("tombola-out") / f"audit-{plain(claim.task.name)}"
    check_writable(out, _FILES)
    seeds = numbers(claim, options["seed_list"] or SEEDS)
    with Show(claim.task.metric) as show:
        run = Runner(claim.task, options["store"], options["data_root"], options["jobs"], show)
        found = carry_out_audit(claim, seeds, how, run)
    with writing(out):
        _report(found, out, options)


def _claim(what: str, options: dict[str, Any]) -> Claim:
    from tombola.auditing import claim_of, claim_of_record
    from tombola.store import only
    from tombola.ticket import Ticket

    number = options["number"]
    if what.endswith(".ticket") or os.path.isfile(what):
        if number is not None:
            raise InputError("--round is of a draw in the store, but a file of one ticket is named: leave it out")
        return claim_of(Ticket.load(what), options["task"])
    if options["as_it_is"] or options["task"]:
        raise InputError(f"--as-it-is and --task are about the file of a ticket, but {what!r} isn't one")
    check_id(what)
    with opened(options["store"]) as store:
        found, draws = store.find(what), store.draws()
    rule = "audit wants a ticket file, or the beginning of one draw's or run's id"
    return claim_of_record(only(found, what, rule, options["store"]), draws, number)


def _report(found: Audit, out: Path, options: dict[str, Any]) -> None:
    from tombola.report.audited import arms_table, save_audit

    out.mkdir(parents=True, exist_ok=True)
    files = save_audit(found.verdict, found.as_dict(), found.rows, out)
    if options["figures"]:
        from tombola.report.audit_figures import audit_figures
        from tombola.report.figures import save_figures

        files += save_figures(out, {"audit": audit_figures(found.verdict, found.claim.task.name)["audit"]})
        files.append(_page(out, options["store"]))
    if options["as_json"]:
        output.document({**found.as_dict(), "files": [str(path) for path in files]})
        return
    for sentence in found.verdict.words:
        output.sentence(sentence)
    click.echo()
    output.table(arms_table(found.verdict))
    written = ", ".join(output.inert(path) for path in files if path.suffix != ".svg")
    click.echo(f"Written: {written}; in the store: audit {found.id[:12]}")


def _page(out: Path, store: str) -> Path:
    from tombola.cli.report import collect, write
    from tombola.store import Store

    path = out / "audit.html"
    with Store(store) as found:
        write(collect(found, [str(out)]), path)
    return path
