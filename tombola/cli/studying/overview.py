"""What a person sees while a study runs: live bars on a terminal, plain lines in a log. All of it on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tombola.cli.output import inert
from tombola.cli.progress import QUIET_SECONDS, Show
from tombola.cli.studying import asked
from tombola.errors import TombolaError
from tombola.events import Event
from tombola.studies.pace import Pace, Work, seconds_left, works
from tombola.studies.plan import Plan, Planned
from tombola.studies.running import Onlooker
from tombola.studies.state import DrawState

TICK_SECONDS = 1.0  # a terminal sees how much time is left as often as this


class Overview(Onlooker):
    """An onlooker of a study. Use as a context manager, and give its ``of`` to ``run_study``.

    A line for each draw that is over. Between them, on a terminal a bar for the study and one for each draw under way;
    in a log a line at most every ``QUIET_SECONDS``, so that a log of long runs isn't silent.
    """

    def __init__(
        self,
        plan: Plan,
        pace: Pace,
        jobs: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self.pace, self.jobs, self.clock = plan, pace, jobs, clock
        self.console = Console(stderr=True, highlight=False) if console is None else console
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        text = TextColumn("{task.description}", markup=False)
        note = TextColumn("{task.fields[note]}", markup=False)
        width = 24 if self.console.width >= 120 else 8
        self.bars = Progress(text, BarColumn(width), MofNCompleteColumn(), note, console=self.console, transient=True)
        self._others = Show("", console=self.console, clock=clock)  # says what isn't about a draw, such as downloads
        self._bars: dict[str, TaskID] = {}
        self._whole: TaskID | None = None
        self._left: dict[str, Work] = {}
        self._totals: dict[str, int] = {}
        self._shared: dict[str, int] = {}
        self._draws_done = 0
        self._spoke = self._looked = self.clock()

    def __enter__(self) -> Overview:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._whole is not None:
            self.bars.stop()

    def of(self, states: Sequence[DrawState]) -> Overview:
        """The same onlooker, told what there is before the work."""
        self._left = works(states)
        self._totals = {state.draw.key: state.total for state in states}
        self._shared = {state.draw.key: state.left - self._left[state.draw.key].left for state in states}
        self._draws_done = sum(state.state == "done" for state in states)
        if self._draws_done:
            self._say(f"{asked.counted(self._draws_done, 'draw')} of {len(states):,} in the store already")
        if self._draws_done < len(states):
            self._say(self._so_far())
            if self.live:
                self._whole = self.bars.add_task(asked.title(self.plan), total=sum(self._totals.values()), note="")
                self.bars.start()
                self._look()
        return self

    def begun(self, draw: Planned) -> None:
        """A bar for a draw."""
        if self.live:
            name, total = self.plan.label(draw), self._totals[draw.key]
            self._bars[draw.key] = self.bars.add_task(name, total=total, completed=self._done(draw.key), note="")

    def event(self, draw: Planned, event: Event) -> None:
        """How far it is, and what it does."""
        if event.kind in ("download", "compile"):
            self._others(event)
            return
        if event.kind == "done" and event.row is not None:
            self._left[draw.key].done(event.arm, event.density)
            self.pace.add(draw.recipe, event.density, event.row["seconds"])
        if draw.key in self._bars:
            note = f"{event.arm} at {event.density:.2%}"
            if event.kind == "step":
                note += f", step {event.done:,} of {event.total:,}"
            self.bars.update(self._bars[draw.key], completed=self._done(draw.key), note=note)
        self._look()
        if not self.live and self.clock() - self._spoke >= QUIET_SECONDS:
            self._say(self._so_far())

    def over(self, draw: Planned, error: TombolaError | None) -> None:
        """A line for a draw."""
        self._left[draw.key], self._shared[draw.key] = Work(draw.recipe), 0
        if draw.key in self._bars:
            self.bars.remove_task(self._bars.pop(draw.key))
        self._draws_done += error is None
        what = f"failed: {error}" if error else f"done, {asked.counted(self._totals[draw.key], 'run')}"
        self._say(f"{self.plan.label(draw)}: {what}")
        self._looked = -TICK_SECONDS
        self._look()

    def _look(self) -> None:
        """Show on a terminal how far the study is."""
        if self._whole is None or self.clock() - self._looked < TICK_SECONDS:
            return
        self._looked = self.clock()
        self.bars.update(self._whole, completed=sum(map(self._done, self._totals)), note=self._time())

    def _done(self, key: str) -> int:
        """How many runs of a draw are done; a dense net that another draw trains counts when this one is over."""
        return self._totals[key] - self._left[key].left - self._shared[key]

    def _so_far(self) -> str:
        done, total = sum(map(self._done, self._totals)), sum(self._totals.values())
        draws = f"{self._draws_done:,} of {asked.counted(len(self._totals), 'draw')}"
        return f"{asked.title(self.plan)}: {draws}, {done:,} of {asked.counted(total, 'run')}; {self._time()}"

    def _time(self) -> str:
        seconds = seconds_left(list(self._left.values()), self.pace, self.jobs)
        if seconds is None:
            return asked.UNKNOWN
        return f"about {asked.roughly(seconds)} left" if seconds else "nothing left"

    def _say(self, line: str) -> None:
        self._spoke = self.clock()
        self.console.print(Text(inert(line)), soft_wrap=not self.live)
