"""Training data that come of acting: games that the net itself plays, so that every batch depends on the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

from torch import Tensor, nn

from tombola.recipe import Recipe
from tombola.tasks.task import Examples


class Play(Protocol):
    """The games of one training, under way."""

    def batch(self, model: nn.Module) -> Any:
        """The batch of the next step, played with the net as it is now, on the net's device.

        The net is in training mode and comes back in it. Whatever is drawn at random comes from torch's global state,
        which is seeded for each step, or from streams of the training's seed: so a training has the same bits whether
        it was interrupted or not.
        """
        ...

    @property
    def seen(self) -> Mapping[str, float]:
        """What the training data say of themselves by now, for the history: the mean return of the last games, say."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next batch depends on beside the net, as named tensors."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` handed out."""
        ...


class Acting(Examples, Protocol):
    """Training data that come of acting.

    As ``Examples`` they are what a net is tried on before it acts: ``take`` gives batches that depend on the index
    alone, of games played by a policy that knows nothing. Their number is that of an epoch.
    """

    def play(self, seed: int, recipe: Recipe) -> Play:
        """Games for a training of a seed, from their beginning, on the recipe's device and in its batches.

        Another ``order`` of the recipe has other games of the same seed. ``InputError`` for a recipe that it can't
        play by.
        """
        ...

    def forward_passes(self, steps: int, recipe: Recipe) -> int:
        """Forward passes, of one example each, that playing takes for the first so many steps of a training: what it
        costs beside the steps themselves."""
        ...


def acts(train: Examples) -> TypeGuard[Acting]:
    """Whether training data come of acting."""
    return hasattr(train, "play")
