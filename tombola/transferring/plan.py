"""What is carried where: sources, which are tickets or searches for them, targets, seeds, densities and controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tombola.asked import draw_recipe
from tombola.auditing.claims import claim_of_record
from tombola.comparing import ladder
from tombola.diagnostics.origin import told_seed
from tombola.durations import Duration
from tombola.errors import InputError
from tombola.methods import get_method
from tombola.methods.base import STRAIGHT
from tombola.recipe import DrawRecipe, Recipe
from tombola.report.transfer import RANDOM
from tombola.store import DrawRecord, Store, is_there, only
from tombola.tasks import Task, get_task, in_net_of
from tombola.ticket import Ticket

CONTROLS = ("reinit", "shuffled", RANDOM)
_OF_A_SEARCH = (
    *("method", "rounds", "density", "densities", "rate", "allocation", "schedule", "criterion", "score_mode"),
    *("score_per_class", "score_rounds", "survivors", "back_to", "fine_tune", "update_every", "update_until"),
    *("settings", "strategy", "margin", "stop_at_margin"),
)
"""Fields of a recipe that say how a search goes, whatever the task."""


@dataclass(frozen=True)
class Source:
    """Where tickets come from: a ticket that is there, or a search for them, whose seed is each seed in turn."""

    label: str
    task: Task
    ticket: Ticket | None = None
    recipe: DrawRecipe | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the recipe was made of, for a search of the same kind on another task."""
    densities: tuple[float, ...] | None = None
    """Those that its tickets are wanted at; None for all there are."""
    only: str | None = None
    """The one target that it is for; None for all."""
    draw: str | None = None
    """The draw that was named, by the first letters of its id."""

    @property
    def training(self) -> Mapping[str, Any]:
        """The recipe that its nets were trained by, as far as it says."""
        if self.recipe is not None:
            return self.recipe.training.model_dump(mode="json")
        told = (self.ticket.origin if self.ticket is not None else {}).get("recipe")
        training = told.get("training") if isinstance(told, Mapping) else None
        default = Recipe().model_dump(mode="json")
        return default | dict(training) if isinstance(training, Mapping) else {}


@dataclass(frozen=True)
class Plan:
    """What is carried where: see ``transfer``."""

    sources: tuple[Source, ...]
    targets: tuple[Task, ...]
    seeds: tuple[int, ...]
    training: Mapping[str, Any]
    controls: tuple[str, ...] = CONTROLS
    control_draws: int = 1

    @cached_property
    def pairs(self) -> list[tuple[Source, Task, Task]]:
        """Every source with each target, and the target in the source's net."""
        every = ((source, target) for source in self.sources for target in self.targets)
        return [(s, t, in_net_of(s.task, t)) for s, t in every if s.only in (None, t.name)]

    def own_search(self, source: Source, task: Task) -> DrawRecipe | None:
        """The search for tickets of a target in a source's net, as those of the source were found but with the training
        of targets; None where the source says no search."""
        if source.recipe is None:
            return None
        return draw_recipe(task, {**source.fields, "training": dict(self.training)})

    def own_ticket(self, source: Source, task: Task) -> str | None:
        """The label of the source that has these tickets; None where there is none."""
        search = self.own_search(source, task)
        return next((s.label for s in self.sources if search is not None and s.recipe == search), None)

    def recipe(self, task: Task, seed: int, address: str) -> DrawRecipe:
        """The recipe of a cell, whose ticket has this address in the store."""
        fields: dict[str, Any] = {"method": "given", "ticket": address, "seed": seed, "training": dict(self.training)}
        return draw_recipe(task, {**fields, "controls": self.controls, "control_draws": self.control_draws})


def plan_of(
    named: Sequence[str | Path | Task | Ticket],
    to: Sequence[str | Task],
    *,
    seeds: Sequence[int] | None,
    densities: Sequence[float] | None,
    training: Mapping[str, Any],
    controls: Sequence[str],
    control_draws: int,
    own: bool,
    search: Mapping[str, Any],
    store: str,
) -> Plan:
    """What is carried where; nothing is trained. ``InputError`` for what is wrong with it."""
    if not named or not to:
        raise InputError("a transfer needs a source and a target: name tasks, draws or ticket files, and tasks")
    targets = [known if isinstance(known, Task) else get_task(known) for known in to]
    for place, target in enumerate(targets):
        if any(other.name == target.name for other in targets[:place]):
            raise InputError(f"targets must be named once each, but {target.name!r} is there again: leave it out")
    if seeds is not None and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
        raise InputError(f"seeds must be whole numbers, 0 or more, each once, but got {list(seeds)}")
    sources: list[Source] = []
    counted: list[int] = []
    wanted = None if densities is None else tuple(sorted(set(densities), reverse=True))
    for one in named:
        source, seed = _source(one, store, wanted, search)
        if all(source.recipe is None or source.recipe != other.recipe for other in sources):
            sources.append(source)
        counted += [] if seed is None else [seed]
    plan = Plan(
        sources=tuple(sources),
        targets=tuple(targets),
        seeds=tuple(seeds or sorted(set(counted)) or (0,)),
        training=training,
        controls=tuple(controls),
        control_draws=control_draws,
    )
    for _, _, task in plan.pairs:  # what can't be is refused before anything is trained
        plan.recipe(task, plan.seeds[0], "")
    every = (*sources, *(_own(plan) if own else ()))
    return replace(plan, sources=tuple(_labelled(every)))


def _source(
    one: str | Path | Task | Ticket, store: str, densities: tuple[float, ...] | None, search: Mapping[str, Any]
) -> tuple[Source, int | None]:
    """What a source is, and the seed that it names, if it does."""
    if isinstance(one, Path) or (isinstance(one, str) and (one.endswith(".ticket") or Path(one).is_file())):
        return _of_ticket(Ticket.load(one), Path(one).stem, densities)
    if isinstance(one, Ticket):
        return _of_ticket(one, f"ticket {one.digest[:8]}", densities)
    if isinstance(one, Task):
        return _of_task(one, densities, search), None
    try:
        return _of_task(get_task(one), densities, search), None
    except InputError:
        if not set(one.lower()) <= set("0123456789abcdef") or len(one) < 4:
            if Path(one).name != one and ":" not in one:
                raise InputError(
                    f"there is no file {one}; a source is a task, the id of a draw or a ticket file"
                ) from None
            raise
    return _of_draw(one, store, densities)


def _of_task(task: Task, densities: tuple[float, ...] | None, search: Mapping[str, Any]) -> Source:
    """A search on a task down to the densities: by default late reset to the values after an epoch."""
    method = get_method(str(search.get("method", "imp")))
    if method.given or method.of_channels or (method.straight and not method.densities):
        raise InputError(
            f"tickets are drawn at densities of weights, which method {search['method']!r} isn't asked for: choose "
            "another, e.g. imp, or name a draw of it"
        )
    fields = dict(search)
    if "survivors" not in fields and "rewind" in method.survivors:
        fields["survivors"] = "rewind"
    if fields.get("survivors") == "rewind":
        fields.setdefault("back_to", Duration(1, "ep"))
    asked = densities or STRAIGHT
    if method.cumulative and not method.straight:
        fields["densities"] = tuple(ladder(asked, fields.get("rate", DrawRecipe.model_fields["rate"].default)))
    else:
        fields = {name: value for name, value in fields.items() if name != "rate"} | {"densities": asked}
    return Source(task.name, task, recipe=draw_recipe(task, fields), fields=fields, densities=asked)


def _of_ticket(ticket: Ticket, label: str, densities: tuple[float, ...] | None) -> tuple[Source, int | None]:
    task = ticket.origin.get("task")
    if not isinstance(task, str):
        raise InputError(f"{label}: a ticket is carried from the task of its origin, but it names none: draw it anew")
    return Source(label, get_task(task), ticket=ticket, densities=densities), told_seed(ticket)


def _of_draw(prefix: str, store: str, densities: tuple[float, ...] | None) -> tuple[Source, int | None]:
    """The search of a draw in the store, without its controls."""
    found: list[DrawRecord] = []
    if is_there(store):
        with Store(store) as opened:
            found = [record for record in opened.find(prefix) if isinstance(record, DrawRecord)]
    draw = only(found, prefix, "transfer wants a task, a ticket file, or the beginning of one draw's id", store)
    claim = claim_of_record(draw, (), 1)
    bare: dict[str, Any] = {"controls": (), "control_rounds": None, "dense_rates": ()}
    recipe = draw_recipe(claim.task, {**claim.recipe.model_dump(), **bare, "seed": 0})
    fields = {name: value for name, value in recipe.model_dump().items() if name in _OF_A_SEARCH}
    source = Source(claim.task.name, claim.task, None, recipe, fields, densities, draw=draw.id[:8])
    return source, claim.recipe.seed


def _own(plan: Plan) -> Iterator[Source]:
    """The searches for the targets' own tickets, in the sources' nets, that are not among the sources."""
    known = [source.recipe for source in plan.sources]
    for source, target, task in plan.pairs:
        recipe = plan.own_search(source, task)
        if recipe is not None and recipe not in known:
            known.append(recipe)
            yield Source(task.name, task, None, recipe, source.fields, source.densities, only=target.name)


def _labelled(sources: Sequence[Source]) -> Iterator[Source]:
    """The sources with labels that differ: with the optimiser, with the draw and numbered, where names alone don't."""

    def trained(source: Source) -> str:
        told = source.training
        return f"{source.label} ({told['optimizer']} {told['lr']:g})" if told else source.label

    def drawn(source: Source) -> str:
        return " ".join(filter(None, (trained(source), source.draw)))

    def alone(label: Callable[[Source], str], source: Source) -> bool:
        return sum(label(other) == label(source) for other in sources) == 1

    for place, source in enumerate(sources):
        forms = (form for form in (lambda s: s.label, trained, drawn) if alone(form, source))
        label = next((form(source) for form in forms), f"{drawn(source)}, {place + 1}")
        yield replace(source, label=label)
