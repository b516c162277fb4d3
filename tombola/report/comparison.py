"""Methods compared in words and numbers: a table of what they reach at equal density, and one of what that cost.

Rows are those of ``tombola.comparing.rows``: one for each run, with ``method``, ``prunes``, ``seed``, ``asked``,
``channels``, ``density``, ``status``, ``stop_metric``, ``end_metric`` and the costs. A value that is None or NaN is
missing: it is counted and said, not dropped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from tombola.report.tables import DASH, Row, is_share, metric_name, of_metric, percent, present

At = Literal["end", "stop"]

READINGS: dict[At, str] = {"end": "at the end of training", "stop": "at early stop"}
ORDER = ("", "before", "during", "after")  # the dense nets, then methods by when they prune
COLUMNS = (
    *("method", "prunes", "seed", "asked", "channels", "density", "status", "stop_step"),
    *("stop_metric", "end_metric", "validation_metric", "find_seconds", "find_flops", "find_times"),
    *("train_seconds", "train_flops", "train_times", "bytes", "run"),
)
DENSE = "dense"  # what stands for the method in the rows of dense nets
OWN = "own density"


@dataclass(frozen=True)
class Cell:
    """The runs of one method at one density, over the seeds; ``field`` is the metric that is read."""

    rows: tuple[Row, ...]
    field: str

    @property
    def method(self) -> str:
        """The method's name, or ``DENSE``."""
        return str(self.rows[0]["method"])

    @property
    def prunes(self) -> str:
        """When the method prunes; empty for the dense nets."""
        return str(self.rows[0]["prunes"])

    @property
    def asked(self) -> float | None:
        """The density asked for; None where the method has its own."""
        asked: float | None = self.rows[0]["asked"]
        return asked

    @property
    def label(self) -> str:
        """The method, with the share of channels where it was asked for that."""
        channels = self.rows[0]["channels"]
        return self.method if channels is None else f"{self.method} ({percent(channels)} of channels)"

    @property
    def density(self) -> float | None:
        """The mean density of the nets; None where there are none."""
        return self.mean_of("density")

    @cached_property
    def values(self) -> list[float]:
        """The metric of each run that came to a result."""
        return [float(row[self.field]) for row in self.rows if not _lost(row, self.field)]

    @property
    def mean(self) -> float | None:
        """The mean of ``values``; None where there are none."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Their standard deviation, with n - 1; None below two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(row["status"] == "diverged" for row in self.rows)

    @property
    def missing(self) -> int:
        """How many runs gave no value and did not diverge."""
        return len(self.rows) - len(self.values) - self.diverged

    def mean_of(self, name: str) -> float | None:
        """The mean of another field over the runs that came to a result and have it; None where there are none."""
        there = [float(row[name]) for row in self.rows if row["status"] == "finished" and present(row[name])]
        return statistics.fmean(there) if there else None

    @property
    def total(self) -> float | None:
        """What finding and training took, in dense trainings; None where either isn't known."""
        find, train = self.mean_of("find_times"), self.mean_of("train_times")
        return None if find is None or train is None else find + train


def _lost(row: Row, field: str) -> bool:
    return row["status"] != "finished" or not present(row[field])


@dataclass(frozen=True)
class Comparison:
    """Methods on one task, read at one time: what tables and figures show."""

    rows: Sequence[Row]
    metric: str
    densities: Sequence[float]
    """Those asked for, the densest first."""
    cost_at: float
    """The one of them at which costs are shown."""
    at: At = "end"
    data: str = "test"
    """What the metric was read on: test, or validation where a task has no test data."""
    lower_is_better: bool = False

    @cached_property
    def cells(self) -> list[Cell]:
        """All there is, in the order of every table: dense, then by when methods prune, by name, by density."""
        members: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            place = ORDER.index(row["prunes"]), row["method"], -(row["asked"] or 0), -(row["channels"] or 0)
            members.setdefault(place, []).append(row)
        return [Cell(tuple(members[place]), f"{self.at}_metric") for place in sorted(members)]

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return sorted({row["seed"] for row in self.rows})

    def best(self, density: float) -> Cell | None:
        """The method with the best mean at a density asked for; the first of equal ones, None where none has any."""
        sign = -1 if self.lower_is_better else 1
        there = [(sign * cell.mean, cell) for cell in self.cells if cell.asked == density and cell.mean is not None]
        return max(there, key=lambda pair: pair[0])[1] if there else None

    @property
    def at_cost(self) -> list[Cell]:
        """The cells whose costs are shown: those at ``cost_at``, and what has a density of its own."""
        return [cell for cell in self.cells if cell.asked in (self.cost_at, None)]

    @property
    def unit(self) -> str:
        """Of the metric, with a space before it: `` %`` or nothing."""
        return " %" if is_share(self.metric) else ""

    def caption(self) -> str:
        """What the first table shows, in a sentence."""
        count = len(self.seeds)
        over = f"mean ± standard deviation over {count} seeds" if count > 1 else f"seed {self.seeds[0]}"
        shown = f"{self.data.capitalize()} {metric_name(self.metric)}{' in percent' if self.unit else ''}"
        return f"{shown} {READINGS[self.at]}, by density: {over}. The best mean at a density is bold."

    def cost_caption(self) -> str:
        """What the second table shows, in a sentence."""
        return (
            f"What it cost at {percent(self.cost_at)} density: processor seconds to find the mask and to train under "
            "it, and operations as multiples of one dense training (x)" + ("; means." if len(self.seeds) > 1 else ".")
        )

    def gaps(self) -> str:
        """Every cell with runs that diverged or are missing, in a sentence; empty where there is none."""
        notes = []
        for cell in self.cells:
            where = cell.label if cell.asked is None else f"{cell.label} at {percent(cell.asked)}"
            counts = ((cell.diverged, "diverged"), (cell.missing, "missing"))
            said = ", ".join(f"{count} {what}" for count, what in counts if count)
            if said:
                notes.append(f"{where} ({said} of {len(cell.rows)})")
        return f"Without a result: {'; '.join(notes)}." if notes else ""


@dataclass(frozen=True)
class Line:
    """A line of a table: its cells as text, and which of them is bold."""

    texts: tuple[str, ...]
    bold: frozenset[int] = frozenset()


def metric_lines(found: Comparison) -> tuple[list[str], list[Line]]:
    """Header and lines of the first table: a line for each method, a column for each density asked for, and one for
    nets with a density of their own, the dense one first."""
    header = ["method", "prunes", *map(percent, found.densities), OWN]
    best = {density: found.best(density) for density in found.densities}
    lines = []
    for cells in _by_method(found.cells):
        at = {cell.asked: cell for cell in cells}
        bold = frozenset(2 + i for i, d in enumerate(found.densities) if d in at and at[d] is best[d])
        texts = [_value(at[d], found.metric) if d in at else "" for d in (*found.densities, None)]
        if None in at and at[None].density is not None:
            texts[-1] += f" at {percent(at[None].density or 0.0)}"
        lines.append(Line((cells[0].label, cells[0].prunes, *texts), bold))
    return header, lines


def _by_method(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """The cells of each line: those at the densities asked for together, each of another density by itself."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.label, []).append(cell)
    yield from groups.values()


def _value(cell: Cell, metric: str) -> str:
    """``97.78 ± 0.16``, with how many of the runs came to a result where some did not."""
    if cell.mean is None:
        return "diverged" if cell.diverged else DASH
    form = of_metric(metric)
    spread = "" if cell.deviation is None else f" ± {form(cell.deviation)}"
    lost = len(cell.rows) - len(cell.values)
    return f"{form(cell.mean)}{spread}" + (f" ({len(cell.values)} of {len(cell.rows)})" if lost else "")


def cost_lines(found: Comparison) -> tuple[list[str], list[Line]]:
    """Header and lines of the second table, a line for each method."""
    header = ["method", "prunes", "density", f"{metric_name(found.metric)}{found.unit}"]
    header += ["find, s", "find, x", "train, s", "train, x", "both, x", "kB to store"]
    return header, [Line(tuple(_costs(cell, found.metric))) for cell in found.at_cost]


def _costs(cell: Cell, metric: str) -> list[str]:
    def shown(value: float | None, form: Callable[[float], str]) -> str:
        return DASH if value is None else form(value)

    stored = cell.mean_of("bytes")
    return [
        *(cell.label, cell.prunes, shown(cell.density, percent), _value(cell, metric)),
        *(shown(cell.mean_of("find_seconds"), _seconds), shown(cell.mean_of("find_times"), _times)),
        *(shown(cell.mean_of("train_seconds"), _seconds), shown(cell.mean_of("train_times"), _times)),
        *(shown(cell.total, _times), shown(stored, lambda v: f"{v / 1000:,.1f}")),
    ]


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(value: float) -> str:
    """Three digits that count, and ``< 0.001`` for what is nothing beside a training."""
    if value >= 100:
        return f"{value:,.0f}"
    if 0 < value < 1e-3:
        return "< 0.001"
    return f"{value:.{2 if value == 0 else max(0, min(4, 2 - math.floor(math.log10(value))))}f}"


def terminal_table(header: Sequence[str], lines: Sequence[Line]) -> Table:
    """A table for the terminal."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        made.add_column(name, justify="left" if name in ("method", "prunes") else "right", overflow="fold")
    for line in lines:
        made.add_row(*(Text(text, style="bold" if i in line.bold else "") for i, text in enumerate(line.texts)))
    return made


def markdown(found: Comparison, notes: Sequence[str] = ()) -> str:
    """Both tables with their captions as GitHub Markdown, and the notes; ends with a newline."""
    parts = []
    for caption, (header, lines) in (
        (found.caption(), metric_lines(found)),
        (found.cost_caption(), cost_lines(found)),
    ):
        rule = [":---" if name in ("method", "prunes") else "---:" for name in header]
        texts = [[f"**{t}**" if i in line.bold else t for i, t in enumerate(line.texts)] for line in lines]
        table = [f"| {' | '.join(row)} |\n" for row in (header, rule, *texts)]
        parts.append(f"{caption}\n\n{''.join(table)}")
    return "\n".join([*parts, *(f"{note}\n" for note in (found.gaps(), *notes) if note)])


def numbers(found: Comparison) -> list[dict[str, Any]]:
    """The cells of both tables as numbers, a mapping for each."""
    return [
        {
            **{"method": c.method, "prunes": c.prunes, "asked": c.asked, "channels": c.rows[0]["channels"]},
            **{"density": c.density, "mean": c.mean, "standard_deviation": c.deviation, "runs": len(c.rows)},
            **{"diverged": c.diverged, "missing": c.missing, "best": c.asked is not None and c is found.best(c.asked)},
            **{name: c.mean_of(name) for name in ("find_seconds", "find_times", "train_seconds", "train_times")},
            **{"total_times": c.total, "bytes": c.mean_of("bytes")},
        }
        for c in found.cells
    ]
