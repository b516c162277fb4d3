"""What is shown while nets train: a log that is neither silent nor flooded, and bars on a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from tombola.cli.progress import QUIET_SECONDS, Show
from tombola.events import Event

SUMMARY: dict[str, Any] = {"seconds": 12.34, "steps": 1500, "stop_step": 1200, "end": {"validation_accuracy": 0.9}}
SUMMARY |= {"stop": {"validation_accuracy": 0.9512, "validation_perplexity": 12.3456}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(*events: tuple[float, Event], metric: str = "accuracy", terminal: bool = False, width: int = 120) -> str:
    """What is written when these events come at these seconds."""
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, force_terminal=terminal, width=width, highlight=False, color_system=None)
    with Show(metric, console=console, clock=clock) as show:
        for seconds, event in events:
            clock.now = seconds
            show(event)
            if terminal:
                show.bars.refresh()
    return text.getvalue()


def event(kind: Any, **changes: Any) -> Event:
    return Event(**{"kind": kind, "arm": "ticket", "seed": 0, "density": 0.64, **changes})


def step(done: int, value: float | None = 0.5) -> Event:
    return event("step", done=done, total=3000, row={"validation_accuracy": value})


def test_a_log_has_one_line_for_a_short_run() -> None:
    events = [(0, event("start")), *((t, step(100 * t)) for t in range(12)), (12, event("done", row=SUMMARY))]
    assert shown(*events) == "seed 0 · ticket · 64.00% kept: validation accuracy 95.12% at step 1,200, 12.3 s\n"


def test_a_log_of_a_long_run_is_not_silent() -> None:
    events = [(0.0, event("start")), *((float(t), step(10 * t)) for t in range(300))]
    lines = shown(*events).splitlines()
    assert lines[0] == "seed 0 · ticket · 64.00% kept: step 300 of 3,000, validation accuracy 50.00%"
    assert len(lines) == 300 // QUIET_SECONDS - 1


def test_a_line_of_any_run_counts_against_the_silence() -> None:
    events = []
    for second in range(0, 300, 20):
        events.append((float(second), event("done", row=SUMMARY)))
        events += [(second + t, step(10)) for t in (1.0, 10.0, 19.0)]
    assert "step 10 of" not in shown(*events)


def test_other_metrics_are_no_percentages() -> None:
    assert "validation perplexity 12.35 at" in shown((0, event("done", row=SUMMARY)), metric="perplexity")
    assert "kept: at step 1,200, 12.3 s" in shown((0, event("done", row=SUMMARY)), metric="speed")


def test_a_run_that_diverged_says_so() -> None:
    lost = SUMMARY | {"end": None, "stop": None, "stop_step": None}
    assert shown((0, event("done", row=lost))) == "seed 0 · ticket · 64.00% kept: diverged after 1,500 steps, 12.3 s\n"
    assert "step 30 of 3,000\n" in shown((99, event("step", done=30, total=3000, row={"validation_accuracy": None})))


def test_waiting_is_said_once_for_a_run() -> None:
    waiting = event("waiting")
    text = shown((0, waiting), (1, waiting), (99, waiting), (100, event("waiting", seed=1, run="other")))
    assert text.count("seed 0 · ticket · 64.00% kept: under way in another process, waiting for it") == 1
    assert len(text.splitlines()) == 2


def test_what_the_store_had_is_counted_at_the_end() -> None:
    assert shown((0, event("found"))) == "1 net was in the store already\n"
    assert shown((0, event("found")), (1, event("found"))) == "2 nets were in the store already\n"


def test_a_download_is_shown_in_megabytes() -> None:
    name = "train-images.gz"
    parts = [(float(t), event("download", arm=name, done=t * 10**5, total=10**7)) for t in range(1, 101)]
    lines = shown(*parts).splitlines()
    assert lines[0] == f"{name}: downloading, 3.0 of 10.0 MB"
    assert lines[-1] == f"{name}: downloaded, 10.0 MB"
    assert len(lines) == 4
    assert shown((50, event("download", arm=name, done=3 * 10**6))) == f"{name}: downloading, 3.0 MB\n"
    assert name in shown(parts[0], terminal=True)


def test_bars_on_a_terminal_leave_only_the_lines_of_finished_runs() -> None:
    events = [(0, event("start")), (0, event("start", seed=1)), (50, step(1500)), (99, event("done", row=SUMMARY))]
    text = shown(*events, terminal=True)
    assert "1500/3000" in text
    assert "━" in text
    assert text.count("validation accuracy 95.12%") == 1
    assert "step 1,500 of" not in text


def test_bars_fit_a_narrow_terminal() -> None:
    text = shown((0, event("start")), (1, step(1500)), terminal=True, width=40)
    assert "seed 0 · ticket · 64.00% kept 1500/3000" in text


def test_runs_that_share_a_name_share_a_bar() -> None:
    """Draws of one control differ in nothing that an event says."""
    events = [event("start"), event("start"), event("done", row=SUMMARY), step(10), event("done", row=SUMMARY)]
    text = shown(*((0, e) for e in events), terminal=True)
    assert text.count("at step 1,200") == 2


def test_names_from_outside_are_inert() -> None:
    text = shown((99, event("download", arm="\x1b[2J[red]x", done=1, total=1)))
    assert text == "\\x1b[2J[red]x: downloaded, 0.0 MB\n"
