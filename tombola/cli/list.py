"""``tombola list``: what a store holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, store_option
from tombola.cli.places import opened

if TYPE_CHECKING:
    from rich.table import Table

    from tombola.store import AuditRecord, DrawRecord, RunRecord

_DASH = "\N{EN DASH}"


@click.command("list", cls=Verb)
@click.argument("what", type=click.Choice(["draws", "runs", "audits"]), default="draws")
@store_option()
@json_option()
def command(what: str, store: str, as_json: bool) -> None:
    """List the draws (default), the runs or the audits of a store, the newest last."""
    from tombola.store import as_seen

    with opened(store) as found:
        records: Sequence[Any]
        if what == "audits":
            records = found.audits()
        else:
            runs = found.runs()
            records = runs if what == "runs" else [as_seen(draw, runs) for draw in found.draws()]
    if as_json:
        output.document(records)
    elif not records:
        makes = "tombola audit" if what == "audits" else "tombola draw digits-mlp"
        click.echo(f"{output.inert(store)} holds no {what} yet: {makes} makes some")
    else:
        tables: Mapping[str, Callable[[Sequence[Any]], Table]] = {"draws": _draws, "runs": _runs, "audits": _audits}
        output.table(tables[what](records))


def _draws(records: Sequence[DrawRecord]) -> Table:
    from tombola.grouping import by_recipe, differing
    from tombola.store import minute, value_at

    right = ("seed", "rounds", "kept")
    header = ["draw", "task", "method", "seed", "rounds", "kept", "at early stop", "status", "begun"]
    groups = by_recipe(records)
    told = {d.id: words for group, words in zip(groups, differing(groups), strict=True) for d in group}
    rows = []
    for draw in records:
        tickets = [row for row in draw.rounds if row.get("arm") == "ticket"]
        chosen: Mapping[str, Any] = next((row for row in tickets if row.get("chosen")), {})
        about = (value_at(draw.about, "task"), value_at(draw.about, "recipe", "method"), value_at(draw.about, "seed"))
        rounds = str(sum(row.get("round") != 0 for row in tickets))
        value = _metric(chosen.get("stop_metric"), str(value_at(draw.about, "metric")))
        found = (rounds, _percent(chosen.get("density")), value)
        rows.append([draw.id[:12], *map(_cell, about), *found, draw.status, minute(draw.created)])
    if any(told.values()):
        header.append("where recipes differ")
        rows = [[*line, told[draw.id]] for line, draw in zip(rows, records, strict=True)]
    return output.columns({name: "right" if name in right else "left" for name in header}, rows)


def _runs(records: Sequence[RunRecord]) -> Table:
    from tombola.store import minute, value_at

    right = ("seed", "kept")
    header = ("run", "task", "arm", "seed", "kept", "status", "begun")
    rows = []
    for run in records:
        about = (value_at(run.about, "task", "name"), value_at(run.about, "arm"), value_at(run.about, "seed"))
        kept = _percent(value_at(run.about, "density"))
        rows.append([run.id[:12], *map(_cell, about), kept, run.status, minute(run.created)])
    return output.columns({name: "right" if name in right else "left" for name in header}, rows)


def _audits(records: Sequence[AuditRecord]) -> Table:
    from tombola.report.audited import in_a_line

    lines = [in_a_line(audit) for audit in records]
    right = ("round", "density")
    return output.columns(
        {name: "right" if name in right else "left" for name in lines[0]}, [list(line.values()) for line in lines]
    )


def _cell(value: Any) -> str:
    return _DASH if value is None else str(value)


def _percent(share: Any) -> str:
    return f"{share:.2%}" if isinstance(share, (int, float)) else _DASH


def _metric(value: Any, name: str) -> str:
    from tombola.report.tables import is_share, metric_name

    if not isinstance(value, (int, float)):
        return _DASH
    return f"{metric_name(name)} " + (f"{value:.2%}" if is_share(name) else f"{value:.4g}")
