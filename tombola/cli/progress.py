"""What a person sees while nets train: live bars on a terminal, plain lines in a log. All of it on standard error."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tombola.lab import Event


class Show:
    """A watcher of labs. Use as a context manager; ``quiet`` shows nothing."""

    def __init__(self, metric: str, *, quiet: bool = False) -> None:
        self.metric = metric
        self.console = Console(stderr=True, quiet=quiet)
        self.live = self.console.is_terminal and not quiet
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self._bars: dict[tuple[int, str, float], TaskID] = {}
        self._waiting: set[tuple[int, str, float]] = set()

    def __enter__(self) -> Show:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        key = (event.seed, event.arm, event.density)
        name = f"seed {event.seed} · {event.arm} · {event.density:.2%} kept"
        if event.kind == "start" and self.live:
            self._bars[key] = self.bars.add_task(name, total=None, note="")
        elif event.kind == "step" and key in self._bars:
            self.bars.update(self._bars[key], completed=event.done, total=event.total, note=self._note(event))
        elif event.kind == "done":
            if key in self._bars:
                self.bars.remove_task(self._bars.pop(key))
            self._line(name, event)
        elif event.kind == "waiting" and key not in self._waiting:
            self._waiting.add(key)
            self.console.print(f"{name}: under way in another process, waiting for it", highlight=False)

    def _note(self, event: Event) -> str:
        value = (event.row or {}).get(f"validation_{self.metric}")
        return "" if value is None else f"{self.metric} {value:.2%}"

    def _line(self, name: str, event: Event) -> None:
        summary = event.row or {}
        value = (summary.get("stop") or {}).get(f"validation_{self.metric}")
        found = (
            "diverged"
            if summary.get("end") is None
            else ""
            if value is None
            else f"validation {self.metric} {value:.2%}"
        )
        self.console.print(
            f"{name}: {found} at step {summary.get('stop_step')}, {summary.get('seconds'):.1f} s", highlight=False
        )
