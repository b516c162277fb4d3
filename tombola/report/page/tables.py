"""The tables of a page: sorted by a click, saved as CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tombola.findings import Search
from tombola.grouping import flat
from tombola.report.tables import (
    DASH,
    Group,
    Row,
    Spread,
    groups,
    is_share,
    metric_name,
    of_metric,
    percent,
    present,
)

MOST_ROWS = 24
"""Of a table that is shown whole."""


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, what it is sorted by (the text where that is None), and what it is in a CSV file."""

    text: str
    sort: float | str | None = None
    saved: float | int | str | None = None
    """The text where this is None."""


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first column names what a line is about."""

    name: str
    """Of its CSV file."""
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int]
    """The columns that stand to the right."""
    marked: frozenset[int] = frozenset()
    """The lines that stand out."""
    facts: bool = False
    """Whether it has names and values, some of them long, in place of numbers."""

    @property
    def long(self) -> bool:
        """Whether it is shown in part, to be scrolled."""
        return len(self.rows) > MOST_ROWS and not self.facts


def number(value: Any, form: Callable[[float], str]) -> Cell:
    """A number as ``form`` writes it; a dash, sorted last, where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not present(value):
        return Cell(DASH, "", "")
    return Cell(form(value), value, value)


def spread(found: Spread | None, form: Callable[[float], str], missing: str = DASH) -> Cell:
    """A mean with lowest and highest where there are several; it is sorted by the mean."""
    if found is None:
        return Cell(missing, "", "")
    if found.count == 1:
        return number(found.mean, form)
    return Cell(f"{form(found.mean)} ({form(found.low)}{DASH}{form(found.high)})", found.mean)


def count(value: float) -> str:
    """``1,234``."""
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float) -> str:
    """A multiple: ``21x``, ``3.4x``."""
    return f"{value:,.0f}x" if value >= 20 else f"{value:.2g}x"


def kilobytes(value: float) -> str:
    """Bytes in thousands."""
    return f"{value / 1000:,.1f}"


def _density(group: Group) -> Cell:
    return Cell(percent(group.density), group.density, group.density)


def rounds(search: Search, name: str) -> Table:
    """Each round with its arms: means over seeds and draws, lowest to highest."""
    form, unit = of_metric(search.metric), " %" if is_share(search.metric) else ""
    metric = metric_name(search.metric)
    header = ["round", "arm", "density", "runs", "early-stop step"]
    header += [f"{metric} at early stop{unit}", f"{metric} at the end{unit}", "seconds"]
    found = groups(search.rounds)
    lines = tuple(
        (
            *(number(g.round, count), Cell(g.arm), _density(g), _finished(g)),
            spread(g.spread("stop_step"), count, _lost(g)),
            spread(g.spread("stop_metric"), form, _lost(g)),
            spread(g.spread("end_metric"), form, _lost(g)),
            number(s.mean if (s := g.spread("seconds")) else None, seconds),
        )
        for g in found
    )
    marked = frozenset(i for i, g in enumerate(found) if g.arm == "ticket" and g.round == search.chosen)
    many = any(len(g.rows) > 1 for g in found)
    caption = f"Every round{': means (lowest to highest) over seeds and draws' if many else ''}."
    star = " The chosen round is marked." if marked else ""
    return Table(name, caption + star, tuple(header), lines, frozenset({0, *range(2, 8)}), marked)


def _finished(group: Group) -> Cell:
    lost = group.incomplete("stop_metric", "end_metric")
    done = len(group.rows) - lost
    return Cell(f"{done} of {len(group.rows)}" if lost else str(done), done)


def _lost(group: Group) -> str:
    return "diverged" if group.diverged else DASH


def runs(search: Search, name: str) -> Table:
    """Every run with its numbers."""
    form, unit = of_metric(search.metric), " %" if is_share(search.metric) else ""
    header = ["run", "seed", "arm", "draw", "round", "density", "status", "early-stop step"]
    header += [f"at early stop{unit}", f"at the end{unit}", f"validation{unit}", "seconds"]
    lines = tuple(
        (
            Cell(str(row["run"])[:12], None, str(row["run"])),
            *(number(row["seed"], count), Cell(str(row["arm"])), number(row["draw"], count)),
            *(number(row["round"], count), number(row["density"], percent), Cell(str(row["status"]))),
            number(row["stop_step"], count),
            *(number(row[field], form) for field in ("stop_metric", "end_metric", "validation_metric")),
            number(row["seconds"], seconds),
        )
        for row in search.rounds
    )
    caption = f"Every run: {metric_name(search.metric)} on {search.data} data. Files hold the numbers in full."
    numeric = frozenset({1, 3, 4, 5, *range(7, 12)})
    return Table(name, caption, tuple(header), lines, numeric)


def layers(search: Search, name: str) -> Table | None:
    """What each layer keeps in the round that is shown; None where its masks aren't known."""
    members: dict[str, list[Row]] = {}
    for row in search.layers:
        if row["round"] == search.shown:
            members.setdefault(row["layer"], []).append(row)
    if not members:
        return None
    lines = []
    for layer, rows in members.items():
        shares = Spread.of(row["layer_density"] for row in rows)
        kept = Spread.of(row["kept"] for row in rows)
        lines.append((Cell(layer), number(rows[0]["total"], count), spread(kept, count), spread(shares, percent)))
    many = f", means over {len(search.seeds)} seeds" if len(search.seeds) > 1 else ""
    title = f"What each layer keeps in round {search.shown}{many}."
    return Table(name, title, ("layer", "weights", "kept", "density"), tuple(lines), frozenset({1, 2, 3}))


def costs(search: Search, name: str) -> Table | None:
    """What the mask of each round cost to find and to train; None where no cost is known."""
    found = [group for group in groups(search.rounds) if group.arm == "ticket"]
    if not any(group.spread("find_seconds") for group in found):
        return None
    dense = {row["seed"]: row["train_flops"] for row in search.rounds if row["arm"] == "ticket" and row["round"] == 0}
    header = ("round", "density", "find, s", "find, x", "train, s", "train, x", "kB to store", "smaller")
    whole = next((s.mean for g in found if g.round == 0 and (s := g.spread("bytes"))), None)
    lines = []
    for group in found:
        stored = group.spread("bytes")
        lines.append(
            (
                *(number(group.round, count), _density(group)),
                number(s.mean if (s := group.spread("find_seconds")) else None, seconds),
                number(in_trainings(group.rows, "find_flops", dense), _multiple),
                number(s.mean if (s := group.spread("train_seconds")) else None, seconds),
                number(in_trainings(group.rows, "train_flops", dense), _multiple),
                number(stored.mean if stored else None, kilobytes),
                number(whole / stored.mean if stored and whole and stored.mean else None, times),
            )
        )
    caption = (
        "What each ticket cost: seconds of processor time, and operations as multiples of one dense training (x), to "
        "find its mask and to train under it; the size of its file."
    )
    return Table(name, caption, header, tuple(lines), frozenset(range(8)))


def _multiple(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def in_trainings(rows: Sequence[Row], flops: str, dense: Mapping[Any, Any]) -> float | None:
    """The mean of operations over seeds as multiples of each seed's dense training; None where one isn't known."""
    found = [row[flops] / dense[row["seed"]] for row in rows if present(row[flops]) and dense.get(row["seed"])]
    return sum(found) / len(found) if found and len(found) == len(rows) else None


def facts(name: str, caption: str, header: tuple[str, str], found: Mapping[str, Any]) -> Table:
    """Names and values, nested ones with dotted names."""
    lines = tuple((Cell(key), Cell(value)) for key, value in flat(found).items())
    return Table(name, caption, header, lines, frozenset(), facts=True)


def plain(name: str, caption: str, rows: Sequence[Row]) -> Table:
    """Rows as they are, with a column for each of their fields."""
    header = tuple(dict.fromkeys(str(field) for row in rows for field in row))
    lines = tuple(tuple(_plain(row.get(field)) for field in header) for row in rows)
    numeric = [i for i in range(len(header)) if all(isinstance(line[i].saved, int | float) for line in lines)]
    return Table(name, caption, tuple(h.replace("_", " ") for h in header), lines, frozenset(numeric))


def _plain(value: Any) -> Cell:
    if value is None or (isinstance(value, float | int) and not isinstance(value, bool)):
        return number(value, lambda v: f"{v:,}" if isinstance(v, int) else f"{v:.4g}")
    return Cell(str(value))
