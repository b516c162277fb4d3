"""What commands of ``tombola study`` have in common: their options, the study that is meant, how long things take."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from tombola.cli.options import Function, option
from tombola.errors import InputError

if TYPE_CHECKING:
    from tombola.studies.begun import Begun
    from tombola.studies.plan import Plan
    from tombola.studies.state import DrawState

_UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
STATES = ("done", "running", "begun", "failed", "waiting")
UNKNOWN = "nothing tells yet how long it takes"


def quick_option(section: str = "Options") -> Callable[[Function], Function]:
    """``--quick``: the small size of a study."""
    return option("--quick", section=section, is_flag=True, help="the quick size of the study  [default: the full one]")


def size_option(section: str = "Options") -> Callable[[Function], Function]:
    """``--quick/--full``: the size that is meant of a study that was begun."""
    return option(
        "--quick/--full", section=section, default=None, help="the size of the study  [default: the one begun last]"
    )


def jobs_option(section: str, default: str = "the number of cores") -> Callable[[Function], Function]:
    """``-j``, ``--jobs``."""
    return option(
        *("-j", "--jobs"),
        section=section,
        type=click.IntRange(1, 1024),
        metavar="INTEGER",
        help=f"processes that work at once, each with one thread  [default: {default}]",
    )


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def meant(what: str | None, quick: bool | None, store: str) -> tuple[Plan, Begun | None]:
    """The study that is meant, and how it was begun in the store, if it was.

    Without a name it is the one begun last; a name is looked up among those begun, then among those that come with
    Tombola. Without a size it is the one begun last.
    """
    from tombola.store import is_there
    from tombola.studies.begun import all_begun
    from tombola.studies.library import is_file, load
    from tombola.studies.plan import plan

    known = [one for one in (all_begun(store) if is_there(store) else []) if quick in (None, one.quick)]
    if what is None:
        if not known:
            raise InputError(f"no study was begun in {store} yet: name one; tombola study list lists some")
        return plan(known[-1].study, known[-1].quick), known[-1]
    loaded = load(what) if is_file(what) else None
    name = what if loaded is None else loaded.name
    begun = next((one for one in reversed(known) if one.name == name), None)
    if loaded is None and begun is not None:
        return plan(begun.study, begun.quick), begun
    size = bool(begun and begun.quick) if quick is None else quick
    return plan(loaded or load(name), size), begun


def states(found: Plan, begun: Begun | None, store: str) -> list[DrawState]:
    """How far each draw is, as the store has it."""
    from tombola.cli.places import opened
    from tombola.studies.state import look

    with opened(store) as there:
        return look(found, there, begun.busy if begun else (), begun.failures if begun else None)


def title(found: Plan) -> str:
    """``lenet-tickets (quick)``."""
    return f"{found.study.name} ({found.size})"


def counted(count: int, word: str, several: str = "") -> str:
    """``1 draw``, ``1,200 draws``."""
    return f"{count:,} {word if count == 1 else several or word + 's'}"


def roughly(seconds: float) -> str:
    """Two digits and a unit: ``12 minutes``, ``2.5 hours``."""
    if seconds < 1.5:
        return "a second"
    size, unit = next((pair for pair in _UNITS if seconds >= 2 * pair[0]), _UNITS[-1])
    amount = seconds / size
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "seconds" else f"{amount:.1f} {unit}"


def failures(found: Plan, there: Sequence[DrawState]) -> list[str]:
    """A line for each reason that draws failed for, with those draws."""
    reasons: dict[str, list[str]] = {}
    for state in there:
        if state.state == "failed":
            reasons.setdefault(state.error, []).append(found.label(state.draw))
    lines = []
    for reason, names in reasons.items():
        who = names[0] if len(names) == 1 else f"{len(names)} draws ({names[0]}, ...)"
        lines.append(f"{who} failed: {reason}")
    return lines


def numbers(there: Sequence[DrawState]) -> dict[str, Any]:
    """How many draws and runs there are, and how many draws of each state."""
    states = {kind: sum(state.state == kind for state in there) for kind in STATES}
    total = sum(state.total for state in there)
    return {"states": states, "runs": total, "runs_done": total - sum(state.left for state in there)}


def each_draw(found: Plan, there: Sequence[DrawState]) -> list[dict[str, Any]]:
    """Every draw with how far it is, as JSON."""
    return [
        {
            "draw": found.label(state.draw),
            "state": state.state,
            "error": state.error or None,
            "runs_done": state.total - state.left,
            "runs": state.total,
            "id": state.record.id if state.record else None,
            "densities": list(state.draw.densities),
            "recipe": state.draw.recipe.model_dump(mode="json"),
        }
        for state in there
    ]
