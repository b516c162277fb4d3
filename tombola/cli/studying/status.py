"""``tombola study status``: what is done, running and left of a study, and how long that takes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from tombola.cli import output
from tombola.cli.options import Verb, json_option, option, store_option
from tombola.cli.studying import asked
from tombola.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from tombola.studies.state import DrawState

EVERY_SECONDS = 2.0


@click.command("status", cls=Verb)
@click.argument("what", metavar="NAME|FILE", required=False)
@asked.size_option()
@option("--watch", section="Options", is_flag=True, help="go on showing it until the study is over")
@store_option()
@json_option()
def command(what: str | None, quick: bool | None, watch: bool, store: str, as_json: bool) -> None:
    """Say what is done, running and left of a study, and how long it takes by the runs that are finished.

    NAME is a study that was begun in the store or that comes with Tombola; by default it is the one begun last.
    """
    if watch and as_json:
        raise InputError("--json is one document, and --watch goes on: leave one of them out")
    look = _Look(what, quick, store)
    if as_json:
        output.document(look.document())
    elif not watch:
        look.show()
    elif sys.stdout.isatty():
        _watch_live(look)
    else:
        _watch_lines(look)


class _Look:
    """A look at a study in a store. Whether it runs is known before what it has done, so that nothing is missed."""

    def __init__(self, what: str | None, quick: bool | None, store: str) -> None:
        from tombola.studies.pace import Pace, seconds_left, works

        self.what, self.quick, self.store = what, quick, store
        self.plan, self.begun = asked.meant(what, quick, store)
        self.runs = self.begun is not None and self.begun.runs
        self.jobs = self.begun.jobs if self.begun else asked.cores()
        self.states = asked.states(self.plan, self.begun, store)
        from tombola.cli.places import opened

        with opened(store) as there:
            pace = Pace.of(there)
        self.left = seconds_left(list(works(self.states).values()), pace, self.jobs)

    def again(self) -> _Look:
        """Another look at the same study."""
        return _Look(self.plan.study.name if self.begun else self.what, self.plan.quick, self.store)

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        about = {"study": self.plan.study.name, "size": self.plan.size, "running": self.runs, "jobs": self.jobs}
        about |= {"begun": self.begun.begun if self.begun else None, **asked.numbers(self.states)}
        return {**about, "seconds_left": self.left, "draws": asked.each_draw(self.plan, self.states)}

    def sentence(self) -> str:
        """All of it in one sentence."""
        from tombola.store import minute

        count = asked.numbers(self.states)
        when = f", begun {minute(self.begun.begun)}" if self.begun else ""
        ready = count["states"]["done"]
        done = f"{ready:,} of {asked.counted(len(self.states), 'draw')} done"
        said = (
            f"{asked.title(self.plan)}{when}: {done}, {count['runs_done']:,} of {asked.counted(count['runs'], 'run')}"
        )
        if ready == len(self.states):
            return said
        time = asked.UNKNOWN if self.left is None else f"about {asked.roughly(self.left)}"
        how = f"with {asked.counted(self.jobs, 'process', 'processes')}"
        if self.runs:
            return f"{said}; running {how}, left: {time}"
        return f"{said}; not running, left: {time} {how}" + ("; tombola study resume goes on" if self.begun else "")

    def table(self) -> Table:
        """Draws by task and method."""
        groups: dict[tuple[str, ...], list[DrawState]] = {}
        for state in self.states:
            groups.setdefault(self._name(state), []).append(state)
        heads = {"task": "left", "method": "left", "options": "left"}
        heads |= dict.fromkeys(("draws", *asked.STATES, "runs done", "runs"), "right")
        lines = []
        for name, there in groups.items():
            count = asked.numbers(there)
            cells = (len(there), *count["states"].values(), count["runs_done"], count["runs"])
            lines.append([*name, *(f"{cell:,}" for cell in cells)])
        if all(not line[2] for line in lines):
            del heads["options"]
            lines = [[*line[:2], *line[3:]] for line in lines]
        return output.columns(heads, lines)

    def _name(self, state: DrawState) -> tuple[str, ...]:
        task, method, _, *options = self.plan.label(state.draw).split(" · ")
        return task, method, ", ".join(options)

    def lines(self) -> list[str]:
        """What failed, and what runs."""
        running = [self.plan.label(state.draw) for state in self.states if state.state == "running"]
        now = [f"Running: {name}" for name in running]
        return [*now, *asked.failures(self.plan, self.states)]

    def show(self) -> None:
        """Print it."""
        output.sentence(self.sentence())
        output.table(self.table())
        for line in self.lines():
            output.sentence(output.inert(line))


def _watch_live(look: _Look) -> None:
    def shown(look: _Look) -> Group:
        texts = [Text(output.inert(line)) for line in (look.sentence(), *look.lines())]
        return Group(texts[0], look.table(), *texts[1:])

    with Live(shown(look), auto_refresh=False) as live:
        while look.runs:
            time.sleep(EVERY_SECONDS)
            look = look.again()
            live.update(shown(look), refresh=True)


def _watch_lines(look: _Look) -> None:
    said = look.sentence()
    output.sentence(said)
    while look.runs:
        time.sleep(EVERY_SECONDS)
        look = look.again()
        if look.sentence() != said:
            said = look.sentence()
            output.sentence(said)
    for line in look.lines():
        output.sentence(output.inert(line))
