"""What changes a training between two steps: updates of its mask, and its end when channel masks have settled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tombola.criteria.base import untouched
from tombola.criteria.gradients import loss_of
from tombola.early_bird import channel_mask, scales, settled
from tombola.engines import Session
from tombola.engines.masked import epoch_order
from tombola.errors import InputError
from tombola.recipe import Recipe
from tombola.seeds import stream
from tombola.tasks.task import Examples, Task
from tombola.training.checkpoint import Progress
from tombola.updates.base import Moment
from tombola.updates.registry import make_rule


class Changes:
    """The changes that a recipe asks for. What they depend on is kept in the training's ``Progress``.

    Raises ``InputError`` for a rule that is not known, for settings that it hasn't or that are out of range, and where
    no update would ever come.
    """

    def __init__(
        self, recipe: Recipe, task: Task, train: Examples, seed: int, session: Session, progress: Progress
    ) -> None:
        self._recipe, self._task, self._train, self._seed = recipe, task, train, seed
        self._session, self._progress = session, progress
        self._per_epoch = recipe.steps_per_epoch(len(train))
        self._first, self._last = recipe.start.steps(self._per_epoch), recipe.steps.steps(self._per_epoch)
        self._settles = recipe.until_settled
        self._every = self._until = 0
        if recipe.updates is not None:
            asked = recipe.updates
            spread = {} if asked.allocation is None else {"allocation": asked.allocation}
            self._rule = make_rule(asked.rule, {**asked.settings, **spread})
            self._every = max(1, asked.every.steps(self._per_epoch))
            self._until = min(asked.until.steps(self._per_epoch), self._last)
            if self.next_after(self._first) is None:
                raise InputError(
                    f"the mask must be updated at least once, but updates every {self._every} steps that end before "
                    f"step {self._until} never come: update more often, or train longer"
                )

    @property
    def updates(self) -> bool:
        """Whether the mask changes."""
        return bool(self._every)

    @property
    def settled(self) -> bool:
        """Whether channel masks have settled, which ends the training."""
        asked = self._settles
        return asked is not None and settled(self._progress.channels, asked.window, asked.distance)

    def next_after(self, step: int) -> int | None:
        """The next step before which there is something to do."""
        found = []
        if self._every and (following := (step // self._every + 1) * self._every) < self._until:
            found.append(following)
        if self._settles is not None:
            found.append((step // self._per_epoch + 1) * self._per_epoch)
        return min(found, default=None)

    def look(self) -> None:
        """Note the channel mask where an epoch is over. To be done once at a step, after the steps before it."""
        session = self._session
        if self._settles is not None and session.step > self._first and session.step % self._per_epoch == 0:
            self._progress.channels.append(channel_mask(scales(session.model), self._settles.density))

    def update(self) -> int:
        """Update the mask if that is due before the next step; how many examples the rule took dense gradients on.

        To be done once at a step, after an evaluation there.
        """
        session, step = self._session, self._session.step
        if not self._every or step <= self._first or step % self._every or step >= self._until:
            return 0
        gradients = _DenseGradients(self._gradients)
        parameters = session.mask.parameters(session.model)
        moment = Moment(
            step=step,
            steps=self._last,
            every=self._every,
            until=self._until,
            rate=self._recipe.lr_at(step, self._per_epoch),
            mask=session.mask,
            weights={name: p.detach().cpu() for name, p in parameters.items()},
            gradients=gradients,
            generator=stream(self._seed, "updates", self._recipe.order, step),
            memory=self._progress.memory,
        )
        change = self._rule.update(moment)
        session.remask(change.mask, change.values)
        self._progress.memory = dict(change.memory)
        self._progress.mask = change.mask
        if change.replaces_step:
            session.skip()
        return min(self._recipe.batch, len(self._train)) if gradients.taken else 0

    def _gradients(self) -> dict[str, Tensor]:
        """Of the loss on the batch of the next step, for every covered weight, kept or not."""
        session, batch = self._session, self._recipe.batch
        model = session.model
        epoch, position = divmod(session.step, self._per_epoch)
        order = epoch_order(self._seed, epoch, self._train, self._recipe.order)
        examples = self._train.take(order[position * batch : (position + 1) * batch].to(self._recipe.device))
        with untouched(model, "train"):
            covered = session.mask.parameters(model)
            loss = loss_of(self._task.loss, model, examples)
            found = torch.autograd.grad(loss, list(covered.values()), allow_unused=True)
        return {
            name: torch.zeros(parameter.shape) if gradient is None else gradient.detach().cpu()
            for (name, parameter), gradient in zip(covered.items(), found, strict=True)
        }


class _DenseGradients:
    """Gradients that are taken when they are asked for."""

    def __init__(self, take: Callable[[], dict[str, Tensor]]) -> None:
        self._take, self.taken = take, False

    def __call__(self) -> dict[str, Tensor]:
        self.taken = True
        return self._take()
