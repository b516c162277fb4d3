"""What an engine is to the training loop, and the choice between engines.

The loop asks for a **stretch** of steps, from one evaluation to the next. Within it the engine owns weights, optimiser
state and batch order; at its end it hands back the common state: names and shapes of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from tombola.engines.centroids import CentroidSession
from tombola.engines.compact import CompactSession
from tombola.engines.masked import MaskedSession
from tombola.engines.scores import ScoreSession
from tombola.engines.tracing import UnsupportedError
from tombola.errors import InputError, suggestion
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.acting import acts
from tombola.tasks.task import Examples, Task


class Session(Protocol):
    """One training under way on one engine."""

    @property
    def model(self) -> nn.Module:
        """The net with its current weights, in its own names and shapes, whenever no stretch is running."""
        ...

    @property
    def step(self) -> int:
        """The number of the next step in the recipe's schedule and data order."""
        ...

    @property
    def mask(self) -> Mask:
        """What is kept, whenever no stretch is running."""
        ...

    @property
    def layers(self) -> Mapping[str, str]:
        """By layer, how the engine carries it out, for people; empty where there is nothing to tell."""
        ...

    @property
    def seen(self) -> Mapping[str, float]:
        """What training data that come of acting say of themselves; else nothing."""
        ...

    def stretch(self, steps: int) -> float:
        """Train for that many steps and return the mean training loss over their examples (NaN when it diverged)."""
        ...

    def remask(self, mask: Mask, values: Mapping[str, Tensor] | None = None) -> None:
        """Go on under another mask of the same parameters; ``values`` are tensors of those that take on others.

        What the mask prunes is 0 from now on, and what is 0 begins anew: its moments are 0 too.
        """
        ...

    def skip(self) -> None:
        """Go past a step without training."""
        ...

    def evaluate(self, data: Examples, state: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """The task's loss and metrics over all examples, with the current weights or with another state_dict."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on from here with the same bits, as named tensors."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state handed out by ``state`` of a session of the same recipe and engine."""
        ...


@dataclass(frozen=True)
class Plan:
    """The engine chosen for a run, and why. Stored with the run; a resume uses it unchanged."""

    engine: str
    reason: str
    layers: dict[str, str] = field(default_factory=dict)
    """By layer, how the engine carries it out."""


Open = Callable[[nn.Module, Mask, Task, Examples, Recipe, int], Session]


def _sparse(model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int) -> Session:
    from tombola.engines.sparse.session import SparseSession  # numba is imported by those who use it

    return SparseSession(model, mask, task, train, recipe, seed)


SESSIONS: dict[str, Open] = {
    "weights": MaskedSession,
    "scores": ScoreSession,
    "top_scores": ScoreSession,
    "centroids": CentroidSession,
}
"""By what a recipe trains, the masked engine's session for it."""


def _masked(model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int) -> Session:
    return SESSIONS[recipe.trains](model, mask, task, train, recipe, seed)


ENGINES: dict[str, Open] = {"masked": _masked, "compact": CompactSession, "sparse": _sparse}


def check_device(recipe: Recipe) -> None:
    """Raise ``InputError`` where the recipe's device can't be used."""
    try:
        torch.zeros(1, device=recipe.device).item()
    except (RuntimeError, AssertionError) as error:  # torch says it either way
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(f"device {recipe.device!r} can't be used here: {reason}") from error


def check_batch(train: Examples, recipe: Recipe) -> None:
    """Raise ``InputError`` where the data can't be taken in the recipe's batches (data with ``check_batch(size)``)."""
    check: Callable[[int], None] | None = getattr(train, "check_batch", None)
    if check is not None:
        check(recipe.batch)


def open_session(
    plan: Plan, model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int
) -> Session:
    """A session on the planned engine; ``model`` holds the starting values and belongs to the session from now on.

    Raises ``UnsupportedError`` where that engine can't do it.
    """
    if plan.engine not in ENGINES:
        raise InputError(f"unknown engine {plan.engine!r}.{suggestion(plan.engine, ENGINES)}")
    if acts(train) and (plan.engine != "masked" or recipe.trains != "weights"):
        what = f"the {plan.engine} engine" if plan.engine != "masked" else f"a training of {recipe.trains}"
        raise UnsupportedError(f"{what} can't run this training: its data come of acting; use engine auto, and weights")
    try:
        return ENGINES[plan.engine](model, mask, task, train, recipe, seed)
    except UnsupportedError as error:
        raise UnsupportedError(f"the {plan.engine} engine can't run this training: {error}; use engine auto") from error
