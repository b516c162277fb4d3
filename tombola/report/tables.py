"""A draw in words and numbers: the table of its rounds, one sentence of what was found, and its CSV files.

Rows are plain mappings, one per run. A row of ``rounds`` has ``seed``, ``arm`` (``ticket``, or the name of a control),
``draw`` (which draw of a control, 0 for a ticket), ``round`` (0 is the dense net), ``density`` (0 to 1),
``stop_step``, ``stop_metric`` (test metric at early stop), ``end_metric``, ``validation_metric``, ``seconds`` and
``status`` (``finished`` or ``diverged``). A value that is None or NaN is missing: it is counted and said, not dropped.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from tombola.audits.pairing import ORDER
from tombola.errors import InputError
from tombola.grouping import heading_of

Row = Mapping[str, Any]

DASH = "\N{EN DASH}"  # between the ends of a range, and alone for what is missing

COLUMNS = {
    "rounds": (
        *("seed", "arm", "draw", "round", "density", "status"),
        *("stop_step", "stop_metric", "end_metric", "validation_metric", "seconds"),
    ),
    "curves": ("seed", "arm", "draw", "round", "density", "step", "train_loss", "validation_loss", "validation_metric"),
    "layers": ("seed", "round", "density", "layer", "layer_density", "kept", "total"),
}

# What a control is called in a sentence: for one mask, and for the masks of several seeds.
_CONTROLS = {
    "reinit": ("the same mask reinitialised", "the same masks reinitialised"),
    "random": ("a random mask of that density", "random masks of that density"),
    "shuffled": ("the mask shuffled inside its layers", "the masks shuffled inside their layers"),
    "random_uniform": ("a random mask, every layer as dense", "random masks, every layer as dense"),
    "random_erk": ("a random mask with ERK's layer densities", "random masks with ERK's layer densities"),
    "random_smart_ratio": (
        "a random mask with the smart ratio's layer densities",
        "random masks with the smart ratio's layer densities",
    ),
    "values_shuffled": ("the initial values shuffled inside the layers",) * 2,
    "signed_reinit": ("fresh magnitudes with the same signs",) * 2,
    "signed_constant": ("the same signs at one magnitude a layer",) * 2,
    "inverted": ("the mask of the lowest scores", "the masks of the lowest scores"),
    "random_labels": ("a mask found on random labels", "masks found on random labels"),
    "shuffled_pixels": ("a mask found on shuffled pixels", "masks found on shuffled pixels"),
    "random_ticket": ("a random ticket with the same layer densities", "random tickets with the same layer densities"),
    "reinit_whole": ("the same mask reinitialised, trained in whole", "the same masks reinitialised, trained in whole"),
    "random_ticket_whole": ("a random ticket trained in whole", "random tickets trained in whole"),
    "half_data": ("a mask found on half of the data", "masks found on half of the data"),
    "lr_rewind": ("the same mask after learning-rate rewinding", "the same masks after learning-rate rewinding"),
    "fine_tune": ("the same mask fine-tuned", "the same masks fine-tuned"),
    "small_dense": ("a small dense net with as many weights", "small dense nets with as many weights"),
}
_ARM_ORDER = tuple(dict.fromkeys(("ticket", "reinit", "random", "shuffled", *ORDER)))

MOST_DRAWN = 7
"""Arms in one figure: more can't be told apart."""
_DRAWN_FIRST = ("ticket", "reinit", "shuffled", "random_erk", "inverted", "small_dense", "lr_rewind")


def present(value: float | None) -> bool:
    """Whether there is a number: neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def arms(rows: Iterable[Row]) -> list[str]:
    """The arms in the order of every table and figure: ticket, reinit, shuffled, other controls, rivals, the rest."""
    return _ordered({row["arm"] for row in rows}, _ARM_ORDER)


def drawn_arms(rows: Iterable[Row]) -> list[str]:
    """The arms that a figure of a draw shows: all of them, or of more than ``MOST_DRAWN`` the ticket and six others.

    Those are, as far as they are there, one for each thing that a control changes: values, positions, layer densities,
    scores, architecture, recipe; then the others in the order of the tables. The other learning rates of a dense net
    are no arm of a draw's densities.
    """
    there = [arm for arm in arms(rows) if arm != "dense_rate"]
    return _ordered(_ordered(there, _DRAWN_FIRST + _ARM_ORDER)[:MOST_DRAWN], _ARM_ORDER)


def _ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """The names in the order of ``first``, then those that it hasn't, by name."""
    order = {name: place for place, name in reversed(list(enumerate(first)))}
    return sorted(names, key=lambda name: (order.get(name, len(first)), name))


def is_share(metric: str) -> bool:
    """Whether the metric is a fraction that is shown in percent: every kind of accuracy is."""
    return metric.endswith("accuracy")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one, judged by its name."""
    return any(word in metric for word in ("loss", "perplexity", "error"))


def is_perplexity(metric: str) -> bool:
    """Whether the metric is the exponential of a loss, judged by its name: it is shown on a log axis."""
    return metric.endswith("perplexity")


def of_metric(metric: str) -> Callable[[float], str]:
    """How a value of a metric stands in a table, where its unit is in the header."""
    return (lambda v: f"{100 * v:.2f}") if is_share(metric) else (lambda v: f"{v:.4g}")


_ABBREVIATIONS = {"bleu": "BLEU"}


def metric_name(metric: str) -> str:
    """The metric as it is written in prose: ``balanced_accuracy`` is balanced accuracy, ``bleu`` BLEU."""
    return " ".join(_ABBREVIATIONS.get(word, word) for word in metric.split("_"))


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, lowest and highest of ``count`` values."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of the values that are there; None where none is."""
        there = [float(v) for v in values if v is not None and present(v)]
        if not there:
            return None
        # A mean of equal values can differ from them in the last bit, and would then lie outside of its own range.
        mean = min(max(math.fsum(there) / len(there), min(there)), max(there))
        return cls(mean, min(there), max(there), len(there))


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one arm in one round, over all seeds and draws."""

    arm: str
    round: int
    rows: tuple[Row, ...]

    @property
    def density(self) -> float:
        """The mean density of the runs; seeds may differ by rounding."""
        return math.fsum(row["density"] for row in self.rows) / len(self.rows)

    @property
    def seeds(self) -> list[int]:
        """The seed of every run, in order: one of several draws repeats it."""
        return sorted(row["seed"] for row in self.rows)

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(row["status"] == "diverged" for row in self.rows)

    def incomplete(self, *fields: str) -> int:
        """How many runs diverged or miss one of the fields."""
        return sum(r["status"] == "diverged" or not all(present(r[f]) for f in fields) for r in self.rows)

    def spread(self, field: str) -> Spread | None:
        """Mean, lowest and highest of a field over the runs that have it."""
        return Spread.of(row[field] for row in self.rows)


def groups(rows: Sequence[Row]) -> list[Group]:
    """The runs by round and arm, controls right after the ticket of their round."""
    members: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        members.setdefault((row["round"], row["arm"]), []).append(row)
    rank = {arm: place for place, arm in enumerate(arms(rows))}
    return [
        Group(arm, number, tuple(members[number, arm]))
        for number, arm in sorted(members, key=lambda k: (k[0], rank[k[1]]))
    ]


def percent(share: float) -> str:
    """A share in percent for prose: one decimal, two significant digits below 1 %, and plainly 100 %."""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    return f"{value:.1f} %" if abs(value) >= 1 else f"{value:.2g} %"


def rounds_table(rows: Sequence[Row], metric: str, chosen: int | None = None) -> Table:
    """The rounds as a table for the terminal: mean (lowest to highest) over seeds and draws, mean seconds of a run.

    Controls stand dimmed below the ticket of their round. The ``chosen`` round is bold and starred.
    """
    header, lines = _cells(rows, metric)
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for name in header:
        table.add_column(name, justify="left" if name == "arm" else "right", vertical="bottom", overflow="fold")
    for group, cells in lines:
        marked = group.arm == "ticket" and group.round == chosen
        style = "bold" if marked else ("" if group.arm == "ticket" else "dim")
        table.add_row(f"* {cells[0]}" if marked else cells[0], *map(escape, cells[1:]), style=style)
    if chosen is not None:
        table.caption, table.caption_justify = "* the chosen round", "left"
    return table


def rounds_markdown(rows: Sequence[Row], metric: str) -> str:
    """The rounds as a GitHub Markdown table, with the columns of ``rounds_table``; ends with a newline."""
    header, lines = _cells(rows, metric)
    rule = [":---" if name == "arm" else "---:" for name in header]
    table = [header, rule, *(cells for _, cells in lines)]
    # A bar ends a cell, also where an arm's name has one.
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in table)


def _cells(rows: Sequence[Row], metric: str) -> tuple[list[str], list[tuple[Group, list[str]]]]:
    """Header and cells of the table. Arm and runs are columns only where they differ from one ticket per round."""
    found = groups(rows)
    unit = " %" if is_share(metric) else ""
    with_arms = any(g.arm != "ticket" for g in found)
    with_runs = any(len(g.rows) > 1 or g.incomplete("stop_metric", "end_metric") for g in found)
    columns: list[tuple[str, Callable[[Group], str]]] = [
        ("round", lambda g: str(g.round)),
        ("density %", lambda g: f"{100 * g.density:.2f}" if g.density >= 1e-3 else f"{100 * g.density:.2g}"),
        *([("arm", lambda g: g.arm)] if with_arms else []),
        *([("runs", _finished)] if with_runs else []),
        ("early-stop step", lambda g: _value(g, "stop_step", lambda v: f"{v:,.0f}")),
        (f"{metric_name(metric)} at early stop{unit}", lambda g: _value(g, "stop_metric", of_metric(metric))),
        (f"{metric_name(metric)} at the end{unit}", lambda g: _value(g, "end_metric", of_metric(metric))),
        ("seconds", _seconds),
    ]
    return [name for name, _ in columns], [(g, [cell(g) for _, cell in columns]) for g in found]


def _finished(group: Group) -> str:
    """How many runs there are, and of how many where some did not come to a result: ``3``, ``2 of 3``."""
    total, lost = len(group.rows), group.incomplete("stop_metric", "end_metric")
    return f"{total - lost} of {total}" if lost else str(total)


def _value(group: Group, field: str, form: Callable[[float], str]) -> str:
    spread = group.spread(field)
    if spread is None:
        return "diverged" if group.diverged else DASH
    mean = form(spread.mean)
    return f"{mean} ({form(spread.low)}{DASH}{form(spread.high)})" if spread.count > 1 else mean


def _seconds(group: Group) -> str:
    spread = group.spread("seconds")
    return DASH if spread is None else f"{spread.mean:,.1f}"


def sentence(rows: Sequence[Row], chosen: int, metric: str, task: str) -> str:
    """What the draw found, in one plain sentence with its numbers; ``chosen`` 0 means that no ticket was good enough.

    Several seeds or draws are given by their means. Raises ``InputError`` where there is no ticket of the chosen round.
    """
    found, task = groups(rows), heading_of(task)
    tickets = {g.round: g for g in found if g.arm == "ticket"}
    if chosen not in tickets:
        raise InputError(f"the chosen round must be one of the tickets' rounds {sorted(tickets)}, but got {chosen}")
    if chosen == 0:
        return _no_ticket(tickets, metric, task)
    ticket, many = tickets[chosen], _many(tickets[chosen])
    where = f"at {percent(ticket.density)} density (round {chosen}) the ticket{'s' * many} of {task}"
    where = f"On average over {len(set(ticket.seeds))} seeds, {where}" if many else f"A{where[1:]}"
    others = [(tickets[0], _dense(many))] if 0 in tickets else []
    others += [(g, _control(g.arm, many)) for g in found if g.round == chosen and g.arm != "ticket"]
    reached = [f"{_reading(g, ticket, metric)} for {name}" for g, name in others if g.spread("stop_metric")]
    failed = [f"; {name} {_failure(g)}" for g, name in others if not g.spread("stop_metric")]
    if ticket.spread("stop_metric") is None:
        was = f"; test {metric_name(metric)} at early stop was {_listed(reached)}" if reached else ""
        return f"{where} {_failure(ticket)}{was}{''.join(failed)}."
    against = f", against {_listed(reached)}" if reached else ""
    return f"{where} {_reach(ticket, metric)}{against}{''.join(failed)}."


def _no_ticket(tickets: Mapping[int, Group], metric: str, task: str) -> str:
    """The sentence for a draw from which nothing but the dense net was chosen."""
    dense, many = tickets[0], _many(tickets[0])
    average = f"on average over {len(set(dense.seeds))} seeds, " if many else ""
    shown = f"{average}{_dense(many)} {_reach(dense, metric) if dense.spread('stop_metric') else _failure(dense)}"
    if len(tickets) == 1:
        return f"No ticket of {task} was drawn: {shown}."
    sign = -1 if lower_is_better(metric) else 1
    drawn = [g for g in tickets.values() if g.round and g.spread("stop_metric")]
    if not drawn:
        return f"No ticket of {task} gave a result: {shown}."
    # By validation data, as the ticket that is saved: test data choose nothing.
    best = max(drawn, key=lambda g: sign * s.mean if (s := g.spread("validation_metric")) else -math.inf)
    return (
        f"No ticket of {task} stayed within the margin of the dense net: {shown}, and the best ticket{'s' * many}, "
        f"at {percent(best.density)} density (round {best.round}), {_reading(best, dense, metric)}."
    )


def _many(ticket: Group) -> bool:
    return len(set(ticket.seeds)) > 1


def _dense(many: bool) -> str:
    return "the dense nets" if many else "the dense net"


def _control(arm: str, many: bool) -> str:
    return _CONTROLS[arm][many] if arm in _CONTROLS else f"the control {arm!r}"


def _reach(group: Group, metric: str) -> str:
    """``reaches 96.3 % test accuracy at early stop (step 700)``."""
    amount, _, notes = _reading(group, group, metric).partition(" (")
    verb, name = "reach" if _many(group) else "reaches", metric_name(metric)
    shown = f"{amount} test {name}" if is_share(metric) else f"a test {name} of {amount}"
    return f"{verb} {shown} at early stop{notes and f' ({notes}'}"


def _reading(group: Group, ticket: Group, metric: str) -> str:
    """``96.0 % (step 1,200)``, with the number of draws where it isn't the ticket's of runs, and what went wrong."""
    mean, step, total = group.spread("stop_metric"), group.spread("stop_step"), len(group.rows)
    if mean is None:
        raise ValueError(f"no run of {group.arm!r} in round {group.round} has a test metric")
    notes = [f"step {step.mean:,.0f}"] if step else []
    if group.seeds != ticket.seeds:
        notes.append("1 draw" if mean.count == 1 else f"mean of {mean.count} draws")
    silent = sum(not present(r["stop_metric"]) and r["status"] != "diverged" for r in group.rows)
    for count, what in ((group.diverged, "diverged"), (silent, "without a value")):
        if count:
            notes.append(f"{count} of {total} {what}" if total > 1 else what)
    amount = percent(mean.mean) if is_share(metric) else f"{mean.mean:.4g}"
    return f"{amount} ({'; '.join(notes)})" if notes else amount


def _failure(group: Group) -> str:
    """What to say of an arm of which no run has a test metric."""
    total = len(group.rows)
    if group.diverged == total:
        return f"diverged in all {total} runs" if total > 1 else "diverged"
    return f"gave no value in any of {total} runs" if total > 1 else "gave no value"


def _listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def save_tables(folder: Path, rounds: Sequence[Row], curves: Sequence[Row], layers: Sequence[Row]) -> list[Path]:
    """Write ``rounds.csv``, ``curves.csv`` and ``layers.csv`` with every row, and give their paths.

    The columns always stand in the same order; fields beyond the known ones follow by name. None is an empty cell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, rows in (("rounds", rounds), ("curves", curves), ("layers", layers)):
        further = sorted({field for row in rows for field in row} - set(COLUMNS[name]))
        paths.append(save_rows(folder / f"{name}.csv", rows, [*COLUMNS[name], *further]))
    return paths


def save_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> Path:
    """Write rows as CSV, and give the path. By default the columns are those of the first row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
