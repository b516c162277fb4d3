"""``tombola show``: a ticket file, a draw, an audit or a run, in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, store_option
from tombola.cli.places import check_id, is_ticket_file, opened

if TYPE_CHECKING:
    from tombola.store import AuditRecord, DrawRecord, RunRecord

_FATES = {
    "running": "by {owner}",
    "interrupted": "the command that began it goes on from its last checkpoint",
    "diverged": "loss or weights stopped being finite",
}


@click.command("show", cls=Verb)
@click.argument("what")
@store_option()
@json_option()
def command(what: str, store: str, as_json: bool) -> None:
    """Show WHAT: a ticket file, or a draw, audit or run by the first letters (4 or more) of its id."""
    if is_ticket_file(what):
        _show_ticket(Path(what), as_json)
        return
    check_id(what)
    from tombola.store import AuditRecord, DrawRecord, as_seen, only

    with opened(store) as found:
        runs = found.runs()
        records = [as_seen(r, runs) if isinstance(r, DrawRecord) else r for r in found.find(what)]
    rule = "show wants a ticket file, or the beginning of one draw's, audit's or run's id"
    record = only(records, what, rule, store)
    if as_json:
        output.document(record)
    elif isinstance(record, AuditRecord):
        _show_audit(record)
    elif isinstance(record, DrawRecord):
        _show_draw(record)
    else:
        _show_run(record)


def _show_ticket(path: Path, as_json: bool) -> None:
    from tombola.ticket import Ticket

    ticket = Ticket.load(path)
    about: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "digest": ticket.digest,
        "density": ticket.mask.density,
        "kept": ticket.mask.kept,
        "total": ticket.mask.total,
        "layers": [
            {"name": x.name, "shape": list(x.shape), "kept": x.kept, "total": x.total, "density": x.density}
            for x in ticket.mask.layers()
        ],
        "collapsed": ticket.mask.collapsed(),
        "origin": dict(ticket.origin),
    }
    if as_json:
        output.document(about)
        return
    kept = f"{about['kept']:,} of {about['total']:,} weights kept ({about['density']:.2%})"
    click.echo(f"{output.inert(path)}: {kept}, {about['bytes']:,} bytes")
    header = {"layer": "left", "shape": "right", "kept": "right", "of": "right", "density": "right"}
    rows = [
        [x["name"], "x".join(map(str, x["shape"])), f"{x['kept']:,}", f"{x['total']:,}", f"{x['density']:.2%}"]
        for x in about["layers"]
    ]
    output.table(output.columns(header, rows))
    if about["collapsed"]:
        click.echo(f"Layer collapse: nothing is kept of {', '.join(map(output.inert, about['collapsed']))}")
    output.tree("origin", about["origin"])
    click.echo(f"content {ticket.digest}")


def _show_draw(draw: DrawRecord) -> None:
    from tombola.report.tables import COLUMNS, rounds_table, sentence

    _show_head(draw)
    rows: list[dict[str, Any]] = [
        {key: output.inert(v) if isinstance(v, str) else v for key, v in row.items()} for row in draw.rounds
    ]
    if rows and all(row.keys() >= set(COLUMNS["rounds"]) for row in rows):
        chosen = next((row["round"] for row in rows if row.get("chosen")), None)
        metric = output.inert(draw.about.get("metric", "accuracy"))
        output.table(rounds_table(rows, metric, chosen))
        if chosen is not None and draw.status == "finished":
            output.sentence(sentence(rows, chosen, metric, output.inert(draw.about.get("task"))))
    else:
        output.tree("rounds", draw.rounds)
    output.tree("about", draw.about)


def _show_run(run: RunRecord) -> None:
    _show_head(run, owner=output.inert(run.owner))
    output.tree("about", run.about)
    output.tree("summary", run.summary)
    output.tree("blobs", run.blobs)


def _show_audit(audit: AuditRecord) -> None:
    from tombola.report.audited import arms_table, read_audit
    from tombola.store import kind_of, minute

    told = read_audit(audit)
    click.echo(f"{kind_of(audit)} {audit.id}: carried out {minute(audit.created)}")
    for words in told.verdict.words:
        output.sentence(output.inert(words))
    click.echo()
    arms = tuple(replace(one, arm=output.inert(one.arm)) for one in told.verdict.arms)
    output.table(arms_table(replace(told.verdict, metric=output.inert(told.verdict.metric), arms=arms)))
    about = {"task": told.task, told.replicates: list(told.numbers), "ticket": told.ticket, "draws": list(told.draws)}
    output.tree("about", {**about, "recipe": told.recipe})


def _show_head(record: RunRecord | DrawRecord, **facts: str) -> None:
    from tombola.store import kind_of, minute

    fate = _FATES.get(record.status, "").format(**facts) if facts else ""
    status = output.inert(record.status) + (fate and f", {fate}")
    click.echo(f"{kind_of(record)} {record.id}: {status}; begun {minute(record.created)}")
