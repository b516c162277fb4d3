"""``tombola study show``: what a study would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, store_option
from tombola.cli.studying import asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tombola.studies.plan import Plan
    from tombola.studies.state import DrawState


@click.command("show", cls=Verb)
@click.argument("what", metavar="NAME|FILE")
@asked.quick_option()
@store_option()
@json_option()
def command(what: str, quick: bool, store: str, as_json: bool) -> None:
    """Show what a study would do: every draw, the runs that it needs, and what the store has of them."""
    from tombola.store import is_there
    from tombola.studies.library import load
    from tombola.studies.pace import Pace, seconds_left, works
    from tombola.studies.plan import plan
    from tombola.studies.state import look

    found = plan(load(what), quick)
    pace = Pace()
    there = look(found, None)
    if is_there(store):
        from tombola.cli.places import opened

        there = asked.states(found, None, store)
        with opened(store) as known:
            pace = Pace.of(known)
    left = seconds_left(list(works(there).values()), pace, asked.cores())
    if as_json:
        about = {"study": found.study.name, "size": found.size, "description": found.study.description}
        refused = [{"draw": one.name, "reason": one.reason} for one in found.refused]
        draws = asked.each_draw(found, there)
        output.document({**about, "runs": found.runs, "seconds_left": left, "draws": draws, "left_out": refused})
        return
    _print(found, there, left)


def _print(found: Plan, there: Sequence[DrawState], left: float | None) -> None:
    output.sentence(f"{asked.title(found)}: {found.study.description}".rstrip(": "))
    heads = {"draw": "left", "rounds": "right", "controls": "right", "runs": "right", "in the store": "right"}
    lines = []
    for state in there:
        rounds, controls = len(state.draw.densities), state.draw.controls
        done = state.total - state.left
        lines.append([found.label(state.draw), f"{rounds}", f"{controls}", f"{state.total:,}", f"{done:,}"])
    output.table(output.columns(heads, lines))
    draws, runs = asked.counted(len(found.draws), "draw"), asked.counted(found.runs, "run")
    said = f"{draws}, {runs}; what draws share, such as the dense net of a seed, is trained once"
    done = sum(state.state == "done" for state in there)
    if done:
        said += f"; {asked.counted(done, 'draw')} done"
    if done < len(there):
        time = (
            asked.UNKNOWN if left is None else f"about {asked.roughly(left)} on {asked.counted(asked.cores(), 'core')}"
        )
        said += f"; left: {time}"
    output.sentence(said + ".")
    for one in found.refused:
        output.sentence(f"Left out: {one.name}: {one.reason}.")
