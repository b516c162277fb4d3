"""Transfer: does a ticket found on one task, with one optimiser, carry over to another (Morcos et al. 2019)?

Every cell of the answer, a source on a target at a density and a seed, is a draw by method ``given`` on the task
``TARGET@SOURCE``, beside its dense net and its controls: stores, resuming, audits and reports take it for what it is.
Each trains by the target's whole recipe, whatever step of the source's training the ticket's values are from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tombola.audits.pairing import DENSE, At
from tombola.errors import InputError
from tombola.events import Watcher
from tombola.recipe import DrawRecipe
from tombola.report.transfer import COLUMNS, Transfer
from tombola.tasks import Task
from tombola.tasks.adapting import AT
from tombola.ticket import Ticket
from tombola.transferring.plan import CONTROLS, Plan, Source, plan_of
from tombola.transferring.running import Runner
from tombola.transferring.tickets import carried, of_a_draw, of_a_file

__all__ = ["CONTROLS", "Plan", "Runner", "Source", "carry_out_transfer", "plan_of", "transfer"]


def transfer(
    sources: str | Path | Task | Ticket | Sequence[str | Path | Task | Ticket],
    to: str | Task | Sequence[str | Task],
    *,
    seeds: Sequence[int] | None = None,
    densities: Sequence[float] | None = None,
    training: Mapping[str, Any] | None = None,
    controls: Sequence[str] = CONTROLS,
    control_draws: int = 1,
    own: bool = True,
    at: At = "stop",
    store: str | Path = "runs",
    data_root: str | Path | None = None,
    jobs: int = 1,
    watcher: Watcher | None = None,
    **search: Any,
) -> Transfer:
    """Train tickets of some tasks on others, beside dense nets, controls and the targets' own tickets.

    :param sources: tasks or their names, whose tickets are drawn first unless the store has them; tickets or their
        files; ids of draws in the store, by their first letters. One of them, or several.
    :param to: the tasks, or their names, whose data the tickets are trained on.
    :param seeds: of searches, initial values and data orders; default: those of the draws that are named, else 0.
    :param densities: of the tickets; default: 0.1, 0.05, 0.02 and 0.01 of a task, all there are of a draw or a file.
    :param training: fields of the target's ``Recipe`` that differ from its task's.
    :param controls: what is trained beside each ticket; ``random_ticket`` is what differences are taken from.
    :param own: also draw each target's own tickets, by the search of the source in the source's net, with the target's
        training. A ticket that is there already says no search, so it has none.
    :param at: where the metric is read, at the early-stop step or at the end of training.
    :param search: fields of the ``DrawRecipe`` of searches: ``method`` (imp), ``rate``, ``allocation``, ``survivors``
        (rewind) and ``back_to`` (1ep), ...

    Raises ``InputError`` for what can't be carried, such as text to a net of images.
    """
    if not isinstance(store, (str, Path)):
        raise InputError(f"a transfer opens its store itself, in each process: give its folder, not {store!r}")
    named = [sources] if isinstance(sources, (str, Path, Task, Ticket)) else list(sources)
    targets = [to] if isinstance(to, (str, Task)) else list(to)
    plan = plan_of(
        named,
        targets,
        seeds=seeds,
        densities=densities,
        training=training or {},
        controls=controls,
        control_draws=control_draws,
        own=own,
        search=search,
        store=str(store),
    )
    return carry_out_transfer(plan, Runner(str(store), Path(data_root) if data_root else None, jobs, watcher), at)


def carry_out_transfer(plan: Plan, run: Runner, at: At = "stop") -> Transfer:
    """Draw the tickets that are missing, train them on their targets, and give all rows."""
    with run.store:
        return _carried_out(plan, run, at)


def _carried_out(plan: Plan, run: Runner, at: At) -> Transfer:
    cells = list(_cells(plan, run))
    run.fill([(task, recipe) for _, _, task, _, recipe in cells])
    own_tickets = {(s.label, task.name): plan.own_ticket(s, task) for s, _, task in plan.pairs}
    rows: list[dict[str, Any]] = []
    dense: set[tuple[str, int]] = set()
    draws = []
    for source, target, task, asked, recipe in cells:
        identity, found = run.finished(task, recipe)
        draws.append(identity)
        where = {"target": target.name, "task": task.name} | _trained("target", recipe.training.model_dump())
        of = {"source": source.label, "own": _is_own(source, target), "asked": asked}
        of |= _trained("source", source.training) | {"own_ticket": own_tickets[source.label, task.name]}
        for row in found:
            if row["round"]:
                rows.append(_row(row, where | of))
            elif (task.name, recipe.seed) not in dense:
                dense.add((task.name, recipe.seed))
                rows.append(_row(row | {"arm": DENSE}, where))
    first, (_, _, task, _, recipe) = plan.targets[0], cells[0]
    data = "validation" if run.lab(task, recipe.training).splits(recipe.seed).test is None else "test"
    named = tuple(source.label for source in plan.sources if source.only is None)
    return Transfer(tuple(rows), first.metric, first.higher_is_better, first.margin, data, at, tuple(draws), named)


def _cells(plan: Plan, run: Runner) -> Iterator[tuple[Source, Task, Task, float, DrawRecipe]]:
    """Each source, target, the target in the source's net, the ticket's density, and the recipe that trains it."""
    searches = [
        (source, source.recipe.model_copy(update={"seed": seed}))
        for source in plan.sources
        if source.recipe is not None
        for seed in plan.seeds
    ]
    run.fill([(source.task, recipe) for source, recipe in searches])
    drawn = {
        (source.label, recipe.seed): of_a_draw(run.searched(source.task, recipe), source.label, source.densities)
        for source, recipe in searches
    }
    for source, target, task in plan.pairs:
        for seed in plan.seeds:
            if source.ticket is not None:
                tickets = of_a_file(source.ticket, source.label, source.densities)
            else:
                tickets = drawn[source.label, seed]
            for asked, ticket in tickets:
                address = run.store.put(carried(ticket, task, seed).to_bytes())
                yield source, target, task, asked, plan.recipe(task, seed, address)


def _is_own(source: Source, target: Task) -> bool:
    """Whether a source's tickets were found on a target's own data."""
    return source.task.name.partition(AT)[0] == target.name


def _trained(side: str, training: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{side}_{name}": training.get(name) for name in ("optimizer", "lr")}


def _row(row: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    every = {**row, **about}
    return {name: every.get(name, False if name == "own" else None) for name in COLUMNS}
