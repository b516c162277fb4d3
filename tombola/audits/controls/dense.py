"""The dense net with other learning rates: a ticket that beats an untuned dense net has shown little."""

from __future__ import annotations

from collections.abc import Sequence

from tombola.audits.controls.base import Control, Subject
from tombola.lab import Run

DENSE_RATE = "dense_rate"
"""What runs of it are called in rows; ``draw`` is the place of the rate among those asked for."""


def dense_rate(rates: Sequence[float]) -> Control:
    """The dense net of the seed, trained with the learning rate that a draw's number stands for."""

    def train(subject: Subject, draw: int) -> Run:
        run = subject.round.run
        recipe = run.recipe.model_copy(update={"lr": rates[draw]})
        return run.lab.train(run.seed, start=run.start, mask=run.mask, recipe=recipe, arm=DENSE_RATE, draw=draw)

    return Control(DENSE_RATE, "The dense net with another learning rate.", "recipe", train, draws=False)
