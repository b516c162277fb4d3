"""Several searches on one task, compared at the densities that they have in common."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tombola.findings import Search
from tombola.report.comparison import DENSE, Comparison, cost_lines, metric_lines
from tombola.report.page.tables import Cell, Table, in_trainings
from tombola.report.tables import lower_is_better, metric_name, percent

DENSITIES = 8
"""Of a comparison, at most: the sparsest of them are left out."""
_NEAR = 2e-3
_COPIED = ("run", "status", "density", "stop_step", "stop_metric", "end_metric", "validation_metric")
_SPENT = ("find_seconds", "find_flops", "train_seconds", "train_flops", "bytes")


def comparison(searches: Sequence[Search]) -> Comparison | None:
    """The searches on one task as a comparison; None where no two of them reached one density, or read one metric.

    The densities are those at which at least half as many searches have tickets as at the most common one.
    """
    known = [search for search in searches if search.method]
    if len(known) < 2 or len({(search.task, search.metric, search.data) for search in known}) > 1:
        return None
    asked = _in_common(known)
    if not asked:
        return None
    rows = _rows(known, asked)
    metric = known[0].metric
    cost_at = asked[(len(asked) - 1) // 2]
    return Comparison(rows, metric, asked, cost_at, "stop", known[0].data, lower_is_better(metric))


def _ladder(search: Search) -> dict[int, float]:
    """The mean density of the tickets of each round, the dense net left out."""
    found: dict[int, list[float]] = {}
    for row in search.rounds:
        if row["arm"] == "ticket" and row["round"]:
            found.setdefault(row["round"], []).append(row["density"])
    return {number: statistics.fmean(densities) for number, densities in found.items()}


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= _NEAR * other


def _in_common(searches: Sequence[Search]) -> list[float]:
    """The densities of the comparison, the densest first."""
    counts: dict[float, int] = {}
    for search in searches:
        for density in _ladder(search).values():
            place = next((known for known in counts if _same(density, known)), float(f"{density:.4g}"))
            counts[place] = counts.get(place, 0) + 1
    least = max(2, max(counts.values(), default=0) / 2)
    return sorted((density for density, number in counts.items() if number >= least), reverse=True)[:DENSITIES]


def _rows(searches: Sequence[Search], asked: Sequence[float]) -> list[dict[str, Any]]:
    """Rows as those of ``tombola.comparing.rows``."""
    dense: dict[Any, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    for search in searches:
        prunes, ladder = _prunes(search.method), _ladder(search)
        trained = {r["seed"]: r["train_flops"] for r in search.rounds if r["arm"] == "ticket" and not r["round"]}
        for row in search.rounds:
            if row["arm"] != "ticket":
                continue
            times = {f"{part}_times": in_trainings([row], f"{part}_flops", trained) for part in ("find", "train")}
            made = {"seed": row["seed"], "channels": None, **{name: row[name] for name in (*_COPIED, *_SPENT)}, **times}
            if not row["round"]:
                known = dense.get(row["seed"])
                if known is None or known["train_flops"] is None:  # older draws don't know what they cost
                    dense[row["seed"]] = {"method": DENSE, "prunes": "", "asked": None, **made}
                continue
            at = next((density for density in asked if _same(ladder[row["round"]], density)), None)
            if at is not None or len(ladder) == 1:  # a method with a density of its own has that alone
                found.append({"method": search.label, "prunes": prunes, "asked": at, **made})
    return [*dense.values(), *found]


def _prunes(method: str) -> str:
    """When a method prunes; one that isn't known any more counts as one that prunes after training."""
    from tombola.methods import METHODS

    return METHODS[method].prunes if method in METHODS else "after"


def best(found: Comparison) -> list[str]:
    """What comes first where methods are compared: the best mean at the density of costs, then those at the others."""
    cells = {density: cell for density in found.densities if (cell := found.best(density)) is not None}
    values = {
        density: percent(cell.mean or 0.0) if found.unit else f"{cell.mean:.4g}" for density, cell in cells.items()
    }
    if found.cost_at not in cells:
        return []
    name = f"{found.data} {metric_name(found.metric)} at early stop"
    many = len({cell.label for cell in found.cells if cell.prunes and cell.asked == found.cost_at})
    first = (
        f"At {percent(found.cost_at)} density {cells[found.cost_at].label} has the best mean {name} of {many} searches"
    )
    others = [f"{cells[d].label} at {percent(d)} density ({values[d]})" for d in cells if d != found.cost_at]
    return [f"{first}: {values[found.cost_at]}.", *([f"Elsewhere: {'; '.join(others)}."] if others else [])]


def tables(found: Comparison, name: str) -> list[Table]:
    """What methods reach, and what that cost, with the best at each density marked in its cell."""
    made = []
    for kind, caption, (header, lines) in (
        ("metric", found.caption().replace("is bold", "has a star"), metric_lines(found)),
        ("cost", found.cost_caption(), cost_lines(found)),
    ):
        rows = tuple(
            tuple(
                Cell(f"{text} ★" if place in line.bold else text, _leading(text) if place > 1 else None, text)
                for place, text in enumerate(line.texts)
            )
            for line in lines
        )
        made.append(Table(f"{name}-{kind}", caption, tuple(header), rows, frozenset(range(2, len(header)))))
    return made


def _leading(text: str) -> float | str:
    """The number that a text begins with; nothing, which is sorted last, where it begins with none."""
    word = text.replace(",", "").removeprefix("< ").partition(" ")[0]
    try:
        return float(word)
    except ValueError:
        return ""


def missing(found: Comparison, searches: Sequence[Search]) -> str:
    """Which searches have no place in the comparison, in a sentence."""
    there: set[str] = {str(row["method"]) for row in found.rows}
    gone = [search.label for search in searches if search.label not in there]
    return f"Without a ticket at these densities: {', '.join(gone)}." if gone else ""
