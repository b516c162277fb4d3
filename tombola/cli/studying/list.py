"""``tombola study list``: the studies that come with Tombola."""

from __future__ import annotations

from typing import Any

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, store_option
from tombola.cli.studying import asked


@click.command("list", cls=Verb)
@store_option()
@json_option()
def command(store: str, as_json: bool) -> None:
    """List the studies that come with Tombola: their size, and what they took where the store has all of one."""
    from tombola.studies.library import load, shipped

    found = [_about(load(name), store) for name in shipped()]
    if as_json:
        output.document(found)
        return
    heads = {"study": "left", "size": "left", "draws": "right", "runs": "right", "seconds of training": "right"}
    lines = []
    for study in found:
        for size in ("quick", "full"):
            own = study[size]
            took = "" if own["seconds"] is None else f"{own['seconds']:,.0f}"
            name = study["name"] if size == "quick" else ""
            lines.append([name, size, f"{own['draws']:,}", f"{own['runs']:,}", took])
    output.table(output.columns(heads, lines))
    for study in found:
        click.echo()
        output.sentence(f"{study['name']}: {study['description']}")


def _about(study: Any, store: str) -> dict[str, Any]:
    from tombola.store import is_there
    from tombola.studies.plan import plan

    found: dict[str, Any] = {"name": study.name, "description": study.description}
    for size in ("quick", "full"):
        planned = plan(study, size == "quick")
        seconds = None
        if is_there(store):
            there = asked.states(planned, None, store)
            if all(state.state == "done" for state in there):
                runs = {row["run"]: row["seconds"] for state in there for row in state.rows}
                seconds = sum(runs.values())
        found[size] = {"draws": len(planned.draws), "runs": planned.runs, "seconds": seconds}
    return found
