"""What a person sees while nets train: live bars on a terminal, plain lines in a log. All of it on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tombola.cli.output import inert
from tombola.report.tables import is_share, metric_name

if TYPE_CHECKING:
    from tombola.events import Event

QUIET_SECONDS = 30.0  # a log hears of runs and downloads under way when it has been silent for so long
_MEGABYTE = 1e6


def _columns(width: int) -> list[ProgressColumn]:
    """What a bar shows: at the least its name and how far it is."""
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False)]
    if width >= 60:
        columns.append(BarColumn(bar_width=24 if width >= 100 else 8))
    columns.append(MofNCompleteColumn())
    if width >= 60:
        columns += [TextColumn("{task.fields[note]}", markup=False), TimeRemainingColumn(compact=True)]
    return columns


class Show:
    """A watcher of labs. Use as a context manager.

    A line for each finished run. Between them, bars on a terminal; in a log a line at most every ``QUIET_SECONDS``,
    so that a log of long runs isn't silent.
    """

    def __init__(
        self, metric: str, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.metric, self.clock = metric, clock
        self.console = Console(stderr=True, highlight=False) if console is None else console
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.bars = Progress(*_columns(self.console.width), console=self.console, transient=True)
        self._bars: dict[str, TaskID] = {}
        self._waiting: set[str] = set()
        self._found = 0
        self._compiling = False
        self._spoke = self.clock()

    def __enter__(self) -> Show:
        if self.live:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.bars.stop()
        if self._found and kind is None:
            self._say(f"{self._found} {'net was' if self._found == 1 else 'nets were'} in the store already")

    def __call__(self, event: Event) -> None:
        """Show one event."""
        key = event.run
        name = f"seed {event.seed} · {event.arm} · {event.density:.2%} kept"
        if event.kind == "download":
            self._download(event)
        elif event.kind == "compile":
            if not self._compiling:
                self._say("compiling the sparse engine's kernels: once on this machine, some seconds")
            self._compiling = True
        elif event.kind == "start":
            self._bar(key, name)
        elif event.kind == "step":
            self._under_way(key, name, event)
        elif event.kind == "done":
            self._drop(key)
            self._say(f"{name}: {self._result(event.row or {})}")
        elif event.kind == "found":
            self._found += 1
        elif key not in self._waiting:
            self._waiting.add(key)
            self._say(f"{name}: under way in another process, waiting for it")

    def _bar(self, key: str, name: str) -> TaskID | None:
        """The bar of a run, made where there is none yet."""
        if self.live and key not in self._bars:
            self._bars[key] = self.bars.add_task(name, total=None, note="")
        return self._bars.get(key)

    def _drop(self, key: str) -> None:
        if key in self._bars:
            self.bars.remove_task(self._bars.pop(key))

    def _under_way(self, key: str, name: str, event: Event) -> None:
        value = self._value((event.row or {}).get(f"validation_{self.metric}"))
        if key in self._bars:
            self.bars.update(self._bars[key], completed=event.done, total=event.total, note=value)
        else:
            self._say_at_times(f"{name}: step {event.done:,} of {event.total:,}" + (value and f", validation {value}"))

    def _download(self, event: Event) -> None:
        key = f"download of {event.arm}"
        done, total = event.done / _MEGABYTE, event.total / _MEGABYTE or None
        size = f"{done:,.1f} MB" if total is None else f"{done:,.1f} of {total:,.1f} MB"
        bar = self._bar(key, "")
        over = event.done == event.total
        if over:
            self._drop(key)
            self._say(f"{event.arm}: downloaded, {done:,.1f} MB")
        elif bar is not None:
            self.bars.update(bar, description=event.arm, completed=done, total=total, note="MB")
        else:
            self._say_at_times(f"{event.arm}: downloading, {size}")

    def _value(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{metric_name(self.metric)} " + (f"{value:.2%}" if is_share(self.metric) else f"{value:.4g}")

    def _result(self, summary: Mapping[str, Any]) -> str:
        """What a finished run came to, from its summary."""
        seconds = f"{summary['seconds']:.1f} s"
        if summary["end"] is None:
            return f"diverged after {summary['steps']:,} steps, {seconds}"
        value = self._value((summary["stop"] or {}).get(f"validation_{self.metric}"))
        best = f"{value and f'validation {value} '}at step {summary['stop_step']:,}"
        return f"{best}, {seconds}"

    def _say_at_times(self, line: str) -> None:
        if not self.live and self.clock() - self._spoke >= QUIET_SECONDS:
            self._say(line)

    def _say(self, line: str) -> None:
        self._spoke = self.clock()
        self.console.print(Text(inert(line)), soft_wrap=not self.live)
