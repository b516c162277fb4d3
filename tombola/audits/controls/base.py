"""What a control is, what it is given, and what it can't be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tombola.durations import Duration
from tombola.errors import InputError
from tombola.lab import Lab, Run
from tombola.mask import Mask
from tombola.methods import Method, Round, Search
from tombola.methods.given import Given
from tombola.recipe import DrawRecipe
from tombola.tasks.task import Examples, State, Task

Changed = Literal[
    "positions",
    "layer densities",
    "values",
    "positions and values",
    "values and steps",
    "positions, values and steps",
    "signs",
    "magnitudes",
    "scores",
    "data of the scores",
    "recipe",
    "architecture",
]


@dataclass(frozen=True)
class Subject:
    """What a control is trained beside: a round with its ticket, and how it was found, where that is known."""

    round: Round
    search: Search | None = None
    method: Method | None = None

    def found_by(self, control: str) -> tuple[Search, Method]:
        """The search and its method. ``InputError`` where the ticket comes without."""
        if self.search is None or self.method is None or isinstance(self.method, Given):
            raise InputError(
                f"control {control!r} changes how the ticket was found, but this one comes without its search: "
                "draw it anew with the control, or leave the control out"
            )
        return self.search, self.method

    def weights(self) -> list[str]:
        """The layers whose weights the mask covers: all that it covers, but scales and shifts of channels."""
        task = self.round.run.lab.task
        known = task.prunable(task.build(self.round.run.seed))
        return [name for name in self.round.mask if name in known]


@dataclass(frozen=True)
class Asked:
    """A draw that is asked for with controls, before anything of it is trained; ``data`` gives what it trains on, where
    that can be had already."""

    task: Task
    method: Method
    recipe: DrawRecipe
    data: Callable[[], Examples] | None = None

    @property
    def who(self) -> str:
        """The method, in a sentence."""
        return f"method {self.recipe.method!r}"

    @property
    def criterion(self) -> str:
        """The name of the criterion that scores weights."""
        return self.method.criterion or self.recipe.criterion


def nothing(asked: Asked) -> None:
    """No reason against a control."""


@dataclass(frozen=True)
class Control:
    """A training beside a ticket's with exactly one thing changed. Data order, recipe, seed and all else are its own.

    ``description`` is one line; ``changes`` names the one thing. ``draws`` says whether it is random, so that several
    draws of it make sense; ``channels`` whether it goes with masks of whole channels. ``reason`` gives the reason why
    a draw can't have it, as the rest of a sentence that begins with its name, or None.
    """

    name: str
    description: str
    changes: Changed
    training: Callable[[Subject, int], Run]
    draws: bool = True
    channels: bool = False
    reason: Callable[[Asked], str | None] = nothing

    def train(self, subject: Subject, draw: int = 0) -> Run:
        """The control's run; random ones differ from draw to draw, and all of them are in the lab's store.

        Raises ``InputError`` for a ticket that the search for it has trained itself, so that there is no training to
        repeat, and for one that the control can't be made of.
        """
        if not subject.round.run.recipe.is_plain:
            raise InputError(
                "a control trains a ticket's net again with one thing changed, but this ticket is what the search for "
                "it has trained: train it anew from initial values (survivors 'reset'), where the method can"
            )
        if not self.channels and len(subject.weights()) < len(subject.round.mask):
            raise InputError(f"control {self.name!r} {_SINGLE}, but this mask is of whole channels: leave it out")
        return self.training(subject, draw)

    def refusal(
        self, task: Task, method: Method, recipe: DrawRecipe, data: Callable[[], Examples] | None = None
    ) -> str | None:
        """Why a draw can't have this control; None where it can, as far as can be told before it begins: of built-in
        tasks, whose data are not at hand before they are loaded, all only with ``data``. That gives what is trained on,
        and is called by what asks for it alone."""
        asked = Asked(task, method, recipe, data)
        if method.of_channels and not self.channels:
            reason: str | None = f"{_SINGLE}, but {asked.who} prunes whole channels"
        else:
            reason = self.reason(asked)
        return None if reason is None else f"control {self.name!r} {reason}: leave it out"

    def check(self, task: Task, method: Method, recipe: DrawRecipe, data: Callable[[], Examples] | None = None) -> None:
        """``InputError`` where a draw can't have this control."""
        if (refusal := self.refusal(task, method, recipe, data)) is not None:
            raise InputError(refusal)


_SINGLE = "is made for masks of single weights"


def trained(
    subject: Subject,
    arm: str,
    draw: int,
    *,
    start: State | None = None,
    mask: Mask | None = None,
    first: Duration | None = None,
) -> Run:
    """The ticket's training, from other values, under another mask or from another ``first`` step of the recipe on;
    ``arm`` is what people know it by.

    Under another mask it begins with the values that the ticket's weights had before masking.
    """
    round, run = subject.round, subject.round.run
    start, mask = round.values if start is None else start, round.mask if mask is None else mask
    recipe = run.recipe if first is None else run.recipe.model_copy(update={"start": first})
    return run.lab.train(run.seed, start=start, mask=mask, recipe=recipe, arm=arm, draw=draw)


def own_stream(run: Run, name: str, draw: int) -> tuple[str | int, ...]:
    """The words of the stream that a control of a run draws from: another one for each draw, and where a ticket is
    trained in several data orders of one seed, for each of them."""
    order = run.recipe.order
    return ("control", name, draw, *(("order", order) if order else ()))


def lab_of(lab: Lab, task: Task) -> Lab:
    """A lab for another task, with all else of a lab: store, recipe, watcher, trainer."""
    return Lab(
        task,
        lab.store,
        recipe=lab.recipe,
        data_root=lab.data_root,
        watcher=lab.watcher,
        checkpoint_every=lab.checkpoint_every,
        trainer=lab.trainer,
    )
