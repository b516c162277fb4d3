"""What methods are given and what they yield."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from tombola.batches import moved
from tombola.criteria import Criterion, compensated, criterion, score, traits
from tombola.durations import Duration
from tombola.errors import InputError, suggestion
from tombola.lab import Lab, Run
from tombola.mask import Mask, left_to_prune
from tombola.methods.work import Work, measured
from tombola.pruning import Allocation, check_patterns, prune
from tombola.recipe import DrawRecipe, Recipe
from tombola.seeds import stream
from tombola.tasks.balance import balanced
from tombola.tasks.task import State

ZERO = Duration(0)
MOST_SCORED = 250
"""Examples that are scored at once."""
STRAIGHT = (0.1, 0.05, 0.02, 0.01)
"""The densities of a method without a ladder, where none are asked for."""
SURVIVORS = ("reset", "rewind", "lr-rewind", "fine-tune")


@dataclass(frozen=True)
class Method:
    """A way to find a ticket, with the defaults of its draws.

    ``criterion`` is the one it goes by, None for the one that the search names; ``allocation`` None is the task's.
    ``survivors`` are the kinds it can train from, the first by default. A ``straight`` method goes to the densities
    asked for, ``densities`` by default (none where it finds its own); another goes down a ladder to them.
    ``per_class`` examples of each class are scored on by default.
    """

    description: str
    criterion: str | None = None
    allocation: str | None = None
    survivors: tuple[str, ...] = SURVIVORS
    straight: bool = False
    densities: tuple[float, ...] = STRAIGHT
    per_class: int = 10

    prunes: ClassVar[Literal["before", "during", "after"]] = "after"
    """When it prunes, seen from the training."""
    cumulative: ClassVar[bool] = False
    """Whether a round prunes what the one before has left."""
    updates: ClassVar[bool] = False
    """Whether the mask is updated during training."""
    scores: ClassVar[bool] = True
    """Whether a criterion scores weights."""
    of_channels: ClassVar[bool] = False
    """Whether densities are shares of channels, so that those of weights come out of them."""
    given: ClassVar[bool] = False
    """Whether the ticket is there already."""
    spreads: ClassVar[bool] = True
    """Whether a density can be spread over layers in other ways than ``allocation``."""

    @property
    def settings(self) -> Mapping[str, float]:
        """Numbers of the method's own, with their defaults."""
        return {}

    def chosen(self, given: Mapping[str, float]) -> dict[str, float]:
        """The settings: those given, and the defaults of the others."""
        return {**self.settings, **given}

    def trains_tickets(self, survivors: str) -> bool:
        """Whether the net of a round is trained from its ticket's values, so that a control can change one thing."""
        return survivors != "keep"

    def check(self, recipe: DrawRecipe) -> None:
        """``InputError`` for what doesn't go with the method."""
        who, default = f"method {recipe.method!r}", DrawRecipe.model_fields["criterion"].default
        if recipe.criterion != default and not self.scores:
            raise InputError(f"{who} scores no weights, but criterion {recipe.criterion!r} is asked for: leave it out")
        if recipe.criterion != default and self.criterion is not None:
            raise InputError(
                f"{who} goes by its own criterion, {self.criterion!r}, but criterion {recipe.criterion!r} is asked "
                f"for: method {'at_init' if self.prunes == 'before' else 'imp'!r} takes any"
            )
        if recipe.allocation != self.allocation and not self.spreads:
            raise InputError(
                f"{who} spreads a density in its own way, {self.allocation!r}, "
                f"but allocation is {recipe.allocation!r}: leave it out"
            )
        if self.straight and not self.densities and (recipe.rounds != 1 or recipe.stop_at_margin):
            raise InputError(
                f"{who} finds a density of its own: leave out density, densities, rounds and stop_at_margin"
            )
        if recipe.survivors not in self.survivors:
            raise InputError(
                f"{who} takes survivors {' or '.join(self.survivors)}, but survivors is {recipe.survivors!r}"
            )
        if recipe.strategy == 2 and not self.cumulative:
            raise InputError(f"{who} has no rounds that build on each other, which strategy 2 is about: leave it out")
        if recipe.controls and not self.trains_tickets(recipe.survivors):
            others = [kind for kind in self.survivors if self.trains_tickets(kind)]
            raise InputError(
                f"a control trains a ticket's net again with one thing changed, but {who} with survivors "
                f"{recipe.survivors!r} trains nothing from its ticket: "
                + (f"give survivors {' or '.join(others)}, or no controls" if others else "leave controls out")
            )
        if recipe.ticket is not None and not self.given:
            raise InputError(f"{who} finds its ticket by itself, but a ticket is given: name method 'given'")
        if (recipe.update_every is not None or recipe.update_until is not None) and not self.updates:
            raise InputError(f"{who} updates no mask during training: leave out update_every and update_until")
        for name in recipe.settings:
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise InputError(f"{who} has no setting {name!r}, but these: {known}.{suggestion(name, self.settings)}")
        self.check_settings(recipe)

    def check_settings(self, recipe: DrawRecipe) -> None:
        """``InputError`` for values of settings that the method can't take."""

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds; round 0 is the dense net."""
        raise NotImplementedError

    def masks(self, search: Search) -> Iterator[Mask]:
        """The mask of each round but the dense one; a method that prunes before training gives them without any."""
        return (round.mask for round in self(search) if round.number)


@dataclass(frozen=True)
class Survivors:
    """What surviving weights train from after a pruning, and by which part of the recipe.

    =========== ================================ ==========================================================
    kind        values                           recipe
    =========== ================================ ==========================================================
    reset       initial (Frankle & Carbin 2019)  whole
    rewind      at step ``back_to``              from ``back_to`` on (Frankle et al. 2020)
    lr-rewind   final                            from ``back_to`` on (Renda et al. 2020)
    fine-tune   final                            ``length`` steps at the last learning rate (Han et al. 2015)
    keep        final                            none: the net is judged as it is
    continue    those it was pruned with         the rest of it (You et al. 2020)
    =========== ================================ ==========================================================

    Cosine and linear schedules end at a rate of 0, at which nothing would train: there it is a hundredth of the full
    rate, where the usual schedule of two steps ends.
    """

    kind: str = "reset"
    back_to: Duration = ZERO
    length: Duration | None = None

    def train(self, lab: Lab, dense: Run, trained: State, mask: Mask) -> tuple[State, Run]:
        """The values before masking, and the net trained from them; ``trained`` are those of the net that was pruned,
        compensated for that where the criterion does so."""
        values = dense.at(self.back_to) if self.kind in ("reset", "rewind") else trained
        return values, lab.train(dense.seed, start=values, mask=mask, recipe=self.recipe(lab, dense.seed))

    def recipe(self, lab: Lab, seed: int) -> Recipe:
        """The part of the lab's recipe that they are trained by."""
        recipe = lab.recipe
        if self.kind in ("rewind", "lr-rewind"):
            return recipe.model_copy(update={"start": self.back_to})
        if self.kind != "fine-tune":
            return recipe
        changes = {
            "steps": self.length or recipe.steps,
            "lr": _last_rate(recipe, lab.steps_per_epoch(seed, recipe)),
            "lr_schedule": "constant",
            "milestones": (),
            "warmup": ZERO,
        }
        return recipe.model_copy(update=changes)


def any_engine(recipe: Recipe) -> Literal["auto", "masked"]:
    """The engine of a training that the engine asked for may not be made for: left to choice, or the reference."""
    return "auto" if recipe.engine == "auto" else "masked"


def _last_rate(recipe: Recipe, per_epoch: int) -> float:
    last = recipe.lr_at(recipe.steps.steps(per_epoch) - 1, per_epoch)
    return max(last, recipe.lr / 100) if recipe.lr_schedule in ("cosine", "linear") else last


@dataclass(frozen=True)
class Scoring:
    """How criteria with gradients score: examples of each class, the mode of batch normalisation, and rounds at
    initialisation (None: the criterion's own)."""

    per_class: int = 10
    mode: str | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Search:
    """What a method works with: the lab, a seed, the ladder of densities (dense left out), and how to prune."""

    lab: Lab
    seed: int
    densities: Sequence[float]
    criterion: str | Criterion = "magnitude"
    allocation: Allocation = "global"
    survivors: Survivors = Survivors()
    strategy: int = 1
    unpruned: tuple[str, ...] = ()
    scoring: Scoring = Scoring()
    settings: Mapping[str, float] = field(default_factory=dict)
    update_every: Duration | None = None
    update_until: Duration | None = None
    ticket: str | None = None

    def whole(self, model: nn.Module) -> Mask:
        """The mask of the dense net: every prunable parameter but those left unpruned.

        ``InputError`` for a pattern that fits no layer, and where nothing is left to prune.
        """
        names = self.lab.task.prunable(model)
        check_patterns(self.unpruned, names)
        kept = {name: names[name] for name in left_to_prune(names, self.unpruned)}
        if not kept:
            raise InputError(f"unpruned leaves nothing to prune: {', '.join(self.unpruned)} fit every layer")
        return Mask({n: torch.ones(p.shape, dtype=torch.bool) for n, p in kept.items()})

    @cached_property
    def batches(self) -> list[Any]:
        """The training examples that criteria with gradients score on: the same ones in every round."""
        train = self.lab.splits(self.seed).train
        index = balanced(train, self.scoring.per_class, stream(self.seed, "scoring"))
        return [moved(train.take(part), self.lab.recipe.device) for part in torch.split(index, MOST_SCORED)]

    def dense(self) -> Run:
        """The dense net of this seed: shared by every method and control."""
        keep = (self.survivors.back_to,) if self.survivors.kind == "rewind" else ()
        return self.lab.train(self.seed, arm="dense", keep=keep)

    def pruned(self, run: Run, density: float, number: int, initial: State, within: Mask) -> Pruned:
        """A trained net pruned to this density. ``number`` tells rounds' random draws apart."""
        model, given = run.model().to(self.lab.recipe.device), self.for_gradients(self.criterion)
        with measured() as work:
            generator = stream(self.seed, "criterion", number)
            scores = score(model, self.criterion, mask=within, initial=initial, generator=generator, **given)
            mask = prune(scores, density, self.allocation, within=within)
            values = compensated(model, self.criterion, mask, mask=within, **given)
        return Pruned(mask, {**run.final, **(values or {})}, work)

    def judged(self, number: int, dense: Run, found: Run, mask: Mask) -> Round:
        """The round of a mask that a training has found: that training's own, or another one's of what survives."""
        if self.survivors.kind == "keep":
            return Round(number, mask, found.final, found)
        values, run = self.survivors.train(self.lab, dense, found.final, mask)
        return Round(number, mask, values, run, (found,))

    def for_gradients(self, by: str | Criterion) -> dict[str, Any]:
        """What criteria with gradients are given; a criterion without is not made to wait for the data."""
        shape = self.lab.task.input_shape
        batches: Iterable[Any] = _Later(lambda: self.batches)
        if shape is not None and traits(criterion(by)).data_free:
            batches = [torch.empty(1, *shape)]
        return {"batches": batches, "loss": self.lab.task.loss, "mode": self.scoring.mode}


class _Later:
    """Batches that are taken when they are first gone through."""

    def __init__(self, take: Callable[[], list[Any]]) -> None:
        self._take = take

    def __iter__(self) -> Iterator[Any]:
        return iter(self._take())


@dataclass(frozen=True)
class Round:
    """One round: a mask, the values its survivors start from (before masking), and the net trained from them.

    ``search`` are the trainings that it took to find the mask, and ``scoring`` the work of scoring weights.
    """

    number: int
    mask: Mask
    values: State
    run: Run
    search: tuple[Run, ...] = ()
    scoring: Work = field(default_factory=Work)


@dataclass(frozen=True)
class Pruned:
    """A pruned net: its mask, its trained values before masking, and what it took to score its weights."""

    mask: Mask
    values: State
    work: Work
