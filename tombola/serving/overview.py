"""What a store holds, in lines of text: searches, audits, runs under way, studies, runs by themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tombola.errors import InputError, TombolaError
from tombola.grouping import differing, recipe_of
from tombola.serving.watching import Seen
from tombola.store import DrawRecord, RunRecord, Store, minute

if TYPE_CHECKING:
    from tombola.studies.begun import Begun

MOST_ALONE = 50
"""Runs that no draw has, at most."""


@dataclass(frozen=True)
class Line:
    """A line of a table: where it leads to, its cells, and by what those are sorted that aren't by their text."""

    link: str
    cells: Mapping[str, str]
    note: str = ""
    status: str = ""
    sorts: Mapping[str, float] = field(default_factory=dict)


def searches(seen: Seen) -> list[Line]:
    """A line for each recipe over its seeds, what was worked on last first."""
    groups = sorted(seen.searches, key=lambda group: max(draw.updated for draw in group), reverse=True)
    return [_search(group, note) for group, note in zip(groups, differing(groups), strict=True)]


def audits(seen: Seen) -> list[Line]:
    """A line for each audit, the last one carried out first."""
    from tombola.report.audited import in_a_line

    return [
        Line(f"/audits/{audit.id}", in_a_line(audit), sorts={"when": audit.created}) for audit in reversed(seen.audits)
    ]


def under_way(seen: Seen) -> list[Line]:
    """A line for each run that is being trained, the newest first."""
    return [_run(run, seconds=False) for run in reversed(seen.under_way)]


def alone(seen: Seen) -> list[Line]:
    """A line for each of the newest runs that no draw has."""
    return [_run(run, seconds=True) for run in seen.alone[:MOST_ALONE]]


def begun(where: str) -> tuple[list[Begun], str]:
    """The studies that were begun in a store, the newest first; and why they can't be read, in a sentence."""
    from tombola.studies.begun import all_begun

    try:
        return all_begun(where)[::-1], ""
    except TombolaError as error:
        return [], f"{error}."


def studies(store: Store, known: Sequence[Begun]) -> tuple[list[Line], str]:
    """A line for each of these studies; and which can't be read, in sentences."""
    from tombola.studies.plan import plan
    from tombola.studies.state import look

    lines, wrong = [], []
    for begun in known:
        try:
            states = look(plan(begun.study, begun.quick), store, begun.busy, begun.failures)
        except InputError as error:  # of another version of Tombola
            wrong.append(f"The study {begun.name} can't be read: {error}.")
            continue
        kinds = [state.state for state in states]
        total, left = sum(state.total for state in states), sum(state.left for state in states)
        failed = kinds.count("failed")
        status = "running" if begun.runs else "interrupted" if kinds.count("done") < len(kinds) else "finished"
        cells = {
            "study": f"{begun.name}{' (quick)' * begun.quick}",
            "status": f"{status}, {failed:,} failed" if failed else status,
            "draws done": f"{kinds.count('done'):,} of {len(kinds):,}",
            "runs done": f"{total - left:,} of {total:,}",
            "last change": minute(begun.updated),
        }
        lines.append(Line("", cells, status=status, sorts={"runs done": total - left, "last change": begun.updated}))
    return lines, " ".join(wrong)


def _search(draws: Sequence[DrawRecord], note: str) -> Line:
    from tombola.report.tables import DASH, is_share, metric_name, percent

    about = draws[0].about
    metric = str(about.get("metric", "accuracy"))
    form = percent if is_share(metric) else (lambda value: f"{value:.4g}")
    tickets = [row for draw in draws for row in draw.rounds if row.get("arm") == "ticket"]
    chosen = min((row["round"] for row in tickets if row.get("chosen")), default=None)
    own = [row for row in tickets if chosen and row["round"] == chosen]  # round 0 is the dense net, and no ticket
    density, reached = _mean(own, "density"), _mean(own, "stop_metric")
    dense = _mean([row for row in tickets if row["round"] == 0], "stop_metric")
    updated = max(draw.updated for draw in draws)
    status, progress = _status(draws), _progress(draws)
    cells = {
        "task": str(about.get("task", "")),
        "method": str(recipe_of(draws[0]).get("method", "draw")),
        "seeds": _listed([draw.about.get("seed") for draw in draws]),
        "status": f"{status}, {progress}" if progress else status,
        "round": DASH if chosen is None else str(chosen or "none"),
        "density": DASH if density is None else percent(density),
        "at early stop": DASH if reached is None else f"{metric_name(metric)} {form(reached)}",
        "dense": DASH if dense is None else form(dense),
        "last change": minute(updated),
    }
    sorts = {
        "round": chosen or None,
        "density": density,
        "at early stop": reached,
        "dense": dense,
        "last change": updated,
    }
    known = {name: float(value) for name, value in sorts.items() if value is not None}
    return Line(f"/draws/{draws[0].id}", cells, note, status, known)


def _run(run: RunRecord, *, seconds: bool) -> Line:
    from tombola.report.tables import DASH, percent

    task, density, taken = run.about.get("task"), _number(run.about.get("density")), _number(run.summary.get("seconds"))
    cells = {
        "run": run.id[:12],
        "task": str(task.get("name", "") if isinstance(task, Mapping) else task or ""),
        "arm": str(run.about.get("arm", "")),
        "density": DASH if density is None else percent(density),
        "seed": str(run.about.get("seed", DASH)),
        "status": run.status,
        **({"seconds": DASH if taken is None else f"{taken:,.1f}"} if seconds else {"process": run.owner or DASH}),
        "begun": minute(run.created),
    }
    sorts = {"density": density, "seconds": taken, "begun": run.created}
    known = {name: value for name, value in sorts.items() if value is not None}
    return Line(f"/runs/{run.id}", cells, status=run.status, sorts=known)


def _status(draws: Sequence[DrawRecord]) -> str:
    found = {draw.status for draw in draws}
    return next((status for status in ("running", "interrupted") if status in found), "finished")


def _progress(draws: Sequence[DrawRecord]) -> str:
    """How many of a search's runs are done, where some are still to come and that can be told."""
    from pydantic import ValidationError

    from tombola.recipe import DrawRecipe
    from tombola.studies.plan import Planned
    from tombola.studies.state import DrawState

    if all(draw.status == "finished" for draw in draws):
        return ""
    done = total = 0
    for draw in draws:
        try:
            state = DrawState(Planned(DrawRecipe.model_validate(draw.about.get("recipe")), ()), "running", draw)
            done, total = done + state.total - state.left, total + state.total
        except (ValidationError, InputError, KeyError):  # of a task that isn't known here, or of another version
            return f"{sum(len(draw.rounds) for draw in draws):,} runs done"
    return f"{done:,} of {total:,} runs done"


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [value for row in rows if (value := _number(row.get(name))) is not None]
    return math.fsum(values) / len(values) if values else None


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _listed(seeds: Sequence[Any]) -> str:
    """The first and the last of seeds without a gap, else all of them."""
    numbers = [seed for seed in seeds if isinstance(seed, int)]
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}\N{EN DASH}{numbers[-1]}"
    return ", ".join(map(str, numbers))
