"""Tickets carried from task to task, in numbers and words: a matrix of sources and targets at each density.

Rows are those of ``tombola.transferring``: one for each run, with ``source``, ``target``, ``task`` (the target's data
in the source's net), ``own_ticket`` (which source holds the target's own tickets in that net), ``asked`` (the density
that the ticket was found at), ``arm`` (``dense``, ``ticket`` or a control's name) and the fields of ``Draw.rows``.
Nothing is dropped: a run that diverged counts as in an audit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.table import Table
from rich.text import Text

from tombola.audits.pairing import DENSE, TICKET, Arm, At, Compared, Quantity, arms, compare
from tombola.audits.statistics import deviation, mean
from tombola.errors import InputError
from tombola.report.tables import DASH, is_share, metric_name, of_metric, percent

RANDOM, OWN = "random_ticket", "own ticket"
READINGS: dict[At, str] = {"stop": "at early stop", "end": "at the end of training"}
ENOUGH = 5
"""Seeds from which an interval is more than the lowest and the highest difference."""
BELOW = {RANDOM: "  ahead of random ticket", OWN: "  ahead of own ticket", DENSE: "  ahead of dense net"}
"""What a ticket is held against, in the lines below its own."""
COLUMNS = (
    *(
        "source",
        "source_optimizer",
        "source_lr",
        "target",
        "target_optimizer",
        "target_lr",
        "task",
        "own",
        "own_ticket",
    ),
    *("asked", "density", "arm", "draw", "seed", "status", "stop_step", "stop_metric", "end_metric"),
    *("validation_metric", "seconds", "run"),
)


@dataclass(frozen=True)
class Cell:
    """The runs of one source's ticket on one target, over the seeds, beside the dense net, the controls and, where the
    ticket isn't that itself, the target's own ticket."""

    source: str
    target: str
    task: str
    asked: float
    own: bool
    """Whether the ticket was found on the target's own data."""
    arms: Mapping[str, Arm]
    quantity: Quantity

    @property
    def seeds(self) -> int:
        """How many there are."""
        return len(self.arms[TICKET].values)

    def mean(self, arm: str = TICKET) -> float | None:
        """The mean of an arm over seeds, each the mean of its draws; None where there is no such arm."""
        found = self._by_seed(arm)
        return mean(found) if found else None

    def deviation(self, arm: str = TICKET) -> float | None:
        """The standard deviation over seeds, with n - 1; None below two."""
        found = self._by_seed(arm)
        return deviation(found) if found else None

    def diverged(self, arm: str = TICKET) -> int:
        """How many runs of an arm diverged; they count as 0 where the metric is a share."""
        return self.arms[arm].diverged if arm in self.arms else 0

    def ahead(self, arm: str = RANDOM) -> Compared | None:
        """The ticket minus an arm, paired by seed, turned so that more is better; None where there is no such arm."""
        return compare(self.arms[TICKET], self.arms[arm], self.quantity) if arm in self.arms else None

    def _by_seed(self, arm: str) -> list[float]:
        return [mean(values) for values in self.arms[arm].values.values()] if arm in self.arms else []


@dataclass(frozen=True)
class Transfer:
    """What came of carrying tickets from sources to targets: the result of ``tb.transfer``."""

    rows: tuple[dict[str, Any], ...]
    """One for each run; the dense net of a seed once for each net that it is of, with no source."""
    metric: str
    higher_is_better: bool
    margin: float
    data: str
    """What the metric was read on: test, or validation where a task has no test data."""
    at: At
    draws: tuple[str, ...]
    """The ids of the draws in the store, one for each source, target, density and seed."""
    named: tuple[str, ...] = ()
    """The sources that were asked for, all where it is empty; the others are the targets' own."""

    @property
    def densities(self) -> list[float]:
        """Those that tickets were found at, the densest first."""
        return sorted({row["asked"] for row in self.rows if row["asked"] is not None}, reverse=True)

    @property
    def sources(self) -> list[str]:
        """Where tickets come from, as asked for, then the targets' own."""
        return list(dict.fromkeys(row["source"] for row in self._tickets))

    @property
    def targets(self) -> list[str]:
        """The tasks whose data they are trained on."""
        return list(dict.fromkeys(row["target"] for row in self._tickets))

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return sorted({row["seed"] for row in self.rows})

    @property
    def controls(self) -> list[str]:
        """The controls."""
        return list(dict.fromkeys(r["arm"] for r in self.rows if r["arm"] not in (DENSE, TICKET)))

    @property
    def _tickets(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["arm"] == TICKET]

    @cached_property
    def cells(self) -> list[Cell]:
        """Every source on every target at every density, in the order of the rows."""
        fields = ("source", "target", "task", "asked", "own", "own_ticket")
        return [self._cell(*key) for key in dict.fromkeys(tuple(r[f] for f in fields) for r in self._tickets)]

    def _cell(self, source: str, target: str, task: str, asked: float, own: bool, own_ticket: str | None) -> Cell:
        quantity = Quantity(self.metric, f"{self.at}_metric", self.higher_is_better, self.margin, is_share(self.metric))
        mine = [r for r in self.rows if (r["source"], r["target"], r["asked"]) == (source, target, asked)]
        seeds = {row["seed"] for row in mine}
        dense = [r for r in self.rows if r["arm"] == DENSE and r["task"] == task and r["seed"] in seeds]
        every = [{**row, "round": 1} for row in mine] + [{**row, "arm": TICKET, "round": 0} for row in dense]
        if own_ticket != source:
            at_home = (own_ticket, target, asked)
            theirs = [r for r in self._tickets if (r["source"], r["target"], r["asked"]) == at_home]
            every += [{**row, "arm": OWN, "round": 1} for row in theirs if row["seed"] in seeds]
        return Cell(source, target, task, asked, own, arms(every, 1, quantity), quantity)

    def at_density(self, density: float) -> list[Cell]:
        """The cells of a density. ``InputError`` for one that no ticket was found at."""
        if density not in self.densities:
            listed = ", ".join(f"{d:g}" for d in self.densities)
            raise InputError(f"tickets were found at the densities {listed}, but {density:g} is asked for")
        return [cell for cell in self.cells if cell.asked == density]

    def table(self, density: float) -> list[dict[str, Any]]:
        """A row for each source and target at a density.

        ``mean`` and ``standard_deviation`` of the ticket over ``seeds``, the means of ``dense``, of the target's
        ``own_ticket`` and of each control, and ``ahead_of_random`` with ``low`` and ``high`` (95 % bootstrap interval),
        ``lowest`` and ``highest`` seed; None where there is no random ticket, or one seed only. ``own`` says that the
        ticket is the target's own.
        """
        return [self._numbers(cell) for cell in self.at_density(density)]

    def _numbers(self, cell: Cell) -> dict[str, Any]:
        ahead = {name: cell.ahead(arm) for name, arm in (("random", RANDOM), ("own", OWN), ("dense", DENSE))}
        between = None if ahead["random"] is None else ahead["random"].interval
        return {
            **{"source": cell.source, "target": cell.target, "own": cell.own, "density": cell.asked},
            **{"seeds": cell.seeds, "mean": cell.mean(), "standard_deviation": cell.deviation()},
            **{"diverged": cell.diverged(), DENSE: cell.mean(DENSE), "own_ticket": cell.mean(OWN)},
            **{name: cell.mean(name) for name in self.controls},
            **{f"ahead_of_{name}": None if one is None else one.interval.mean for name, one in ahead.items()},
            **{name: getattr(between, name, None) for name in ("low", "high", "lowest", "highest")},
        }

    def matrix(self, density: float, of: str = TICKET) -> dict[str, dict[str, float]]:
        """Source to target to the mean over seeds, of the tickets, of ``dense``, of the targets' ``own ticket`` or of a
        control; or what the ticket is ahead of one by: ``ahead of random_ticket``.

        ``InputError`` for an arm that there is none of.
        """
        arm = of.removeprefix("ahead of ")
        known = [TICKET, DENSE, OWN, *self.controls]
        if arm not in known:
            raise InputError(f"a matrix is of {', '.join(known)}, or ahead of one of them, but got {of!r}")
        found: dict[str, dict[str, float]] = {}
        for cell in self.at_density(density):
            ahead = cell.ahead(arm) if of != arm else None
            value = cell.mean(arm) if of == arm else None if ahead is None else ahead.interval.mean
            if value is not None:
                found.setdefault(cell.source, {})[cell.target] = value
        return found

    def caption(self) -> str:
        """What the tables show, in sentences."""
        count, share = len(self.seeds), is_share(self.metric)
        over = f"mean ± standard deviation over {count} seeds" if count > 1 else f"seed {self.seeds[0]} alone"
        text = f"{self.data.capitalize()} {metric_name(self.metric)}{' in percent' if share else ''} "
        text += f"{READINGS[self.at]}: {over}."
        text += f" Below: {'points ' if share else ''}ahead, paired by seed"
        kind = "the 95 % interval" if count >= ENOUGH else "the lowest and the highest seed"
        text += f", with {kind} (n = {count})." if count > 1 else " (n = 1: chance alone may do as much)."
        return f"{text} * is the target's own ticket."

    def gaps(self) -> str:
        """Every cell with runs that diverged, in a sentence; empty where there is none."""
        notes = []
        for cell in self.cells:
            for arm in cell.arms:
                if arm != OWN and cell.diverged(arm):
                    where = f"{cell.source} on {cell.target} at {percent(cell.asked)}"
                    notes.append(f"{cell.diverged(arm)} of {arm}, {where}")
        counted = " Counted as 0." if is_share(self.metric) else " Counted as worse than the worst."
        return f"Diverged: {'; '.join(dict.fromkeys(notes))}.{counted}" if notes else ""

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            **{"metric": self.metric, "data": self.data, "at": self.at, "seeds": self.seeds},
            **{"sources": self.sources, "targets": self.targets, "densities": self.densities},
            "table": [row for density in self.densities for row in self.table(density)],
            **{"runs": list(self.rows), "draws": list(self.draws)},
        }


def lines(found: Transfer, density: float) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of a density: each source that was asked for, its differences below it."""
    cells = {(cell.source, cell.target): cell for cell in shown(found, density)}
    targets = [target for target in found.targets if any(t == target for _, t in cells)]
    form, made = of_metric(found.metric), []
    for source in dict.fromkeys(source for source, _ in cells):
        line = [cells.get((source, target)) for target in targets]
        made.append([source, *("" if cell is None else _value(cell, TICKET, form) for cell in line)])
        for arm, name in BELOW.items():
            differences = ["" if cell is None else difference(cell, found.metric, arm) for cell in line]
            made += [[name, *differences]] if any(differences) else []
    return ["source", *targets], made


def shown(found: Transfer, density: float) -> list[Cell]:
    """The cells of a density whose sources were asked for."""
    return [cell for cell in found.at_density(density) if not found.named or cell.source in found.named]


def _value(cell: Cell, arm: str, form: Callable[[float], str]) -> str:
    found, around = cell.mean(arm), cell.deviation(arm)
    if found is None:
        return DASH
    shown = form(found) + ("" if around is None else f" ± {form(around)}")
    return shown + " *" * (cell.own and arm == TICKET)


def difference(cell: Cell, metric: str, arm: str = RANDOM) -> str:
    """``+1.20 (+0.40 to +2.00)``: ahead of an arm, with the interval, or with few seeds the lowest and the highest."""
    compared = cell.ahead(arm)
    if compared is None:
        return ""
    between, many = compared.interval, len(compared.seeds)
    ends = (between.low, between.high) if many >= ENOUGH else (between.lowest, between.highest)
    mean = signed(between.mean, metric)
    if many == 1 or ends[0] is None or ends[1] is None:
        return mean
    return f"{mean} ({signed(ends[0], metric)} to {signed(ends[1], metric)})"


def signed(value: float, metric: str) -> str:
    """A difference with its sign: ``+1.20`` points of a share, never ``-0.00``."""
    return f"{round(100 * value, 2) + 0.0:+.2f}" if is_share(metric) else f"{value:+.3g}"


def terminal_table(header: Sequence[str], made: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal; differences are dimmed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for line in made:
        table.add_row(*map(Text, line), style="dim" if line[0] in BELOW.values() else "")
    return table


def controls_lines(found: Transfer) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of all arms: a line for each source, target and density."""
    form = of_metric(found.metric)
    names = [TICKET, *([OWN] if any(OWN in cell.arms for cell in found.cells) else ()), DENSE, *found.controls]
    made = [
        [cell.source, cell.target, percent(cell.asked), *(_value(cell, name, form) for name in names)]
        for cell in found.cells
    ]
    return ["source", "target", "density", *names], made


def markdown(found: Transfer, notes: Sequence[str] = ()) -> str:
    """All tables with their captions as GitHub Markdown, and the notes; ends with a newline."""
    parts = [f"{found.caption()}\n"]
    for density in found.densities:
        header, made = lines(found, density)
        parts.append(f"Density {percent(density)}:\n\n{_markdown(header, made, 1)}")
    header, made = controls_lines(found)
    parts.append(f"Every arm:\n\n{_markdown(header, made, 2)}")
    return "\n".join([*parts, *(f"{note}\n" for note in (found.gaps(), *notes) if note)])


def _markdown(header: Sequence[str], made: Sequence[Sequence[str]], left: int) -> str:
    rule = [":---" if place < left else "---:" for place in range(len(header))]
    cells = [[text.replace("*", "\\*").replace("|", "\\|") for text in line] for line in (header, *made)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (cells[0], rule, *cells[1:]))
