"""What changes a training between two steps: updates of its mask, and its end when channel masks have settled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tombola.criteria.base import untouched
from tombola.criteria.gradients import loss_of
from tombola.early_bird import channel_mask, scales, settled
from tombola.engines import Session
from tombola.engines.masked import epoch_order, seed_noise
from tombola.errors import InputError
from tombola.recipe import Recipe
from tombola.seeds import stream
from tombola.tasks.acting import acts
from tombola.tasks.task import Examples, Task
from tombola.training.checkpoint import Progress
from tombola.updates.base import Moment, all_finite
from tombola.updates.registry import make_rule


class Changes:
    """The changes that a recipe asks for. What they depend on is kept in the training's ``Progress``.

    Raises ``InputError`` for a rule that is not known, for settings that it hasn't or that are out of range, where no
    update would ever come, where the mask covers weights that aren't trained, and where no channels could settle.
    """

    def __init__(
        self, recipe: Recipe, task: Task, train: Examples, seed: int, session: Session, progress: Progress
    ) -> None:
        self._recipe, self._task, self._train, self._seed = recipe, task, train, seed
        self._session, self._progress = session, progress
        self._per_epoch = recipe.steps_per_epoch(len(train))
        self._first, self._last = recipe.start.steps(self._per_epoch), recipe.steps.steps(self._per_epoch)
        self._settles = recipe.until_settled
        self._every, self._until = recipe.updating(self._per_epoch)
        if recipe.updates is not None:
            asked = recipe.updates
            spread = {} if asked.allocation is None else {"allocation": asked.allocation}
            self._rule = make_rule(asked.rule, {**asked.settings, **spread})
            if self._rule.asks_gradients and acts(train):
                raise InputError(
                    f"updates by {asked.rule} need the gradients of a batch before it is trained on, and where data "
                    "come of acting there is none yet: take set, dsr, deep_r or gradual"
                )
            frozen = [name for name, p in session.mask.parameters(session.model).items() if not p.requires_grad]
            if frozen:
                raise InputError(
                    f"updates of a mask need weights that are trained, but {frozen[0]!r} is frozen (requires_grad is "
                    "False): leave it out of the mask"
                )
        if self._settles is not None and not progress.channels:
            channel_mask(scales(session.model), self._settles.density)  # what it refuses is refused at once

    @property
    def updates(self) -> bool:
        """Whether the mask changes."""
        return bool(self._every)

    @property
    def settles(self) -> bool:
        """Whether channel masks are looked at."""
        return self._settles is not None

    @property
    def settled(self) -> bool:
        """Whether channel masks have settled, which ends the training."""
        asked = self._settles
        return asked is not None and settled(self._progress.channels, asked.window, asked.distance)

    def next_after(self, step: int) -> int | None:
        """The next step before which there is something to do."""
        update, epoch = self._next_update(step), (step // self._per_epoch + 1) * self._per_epoch
        found = [update] if update is not None else []
        return min([*found, epoch] if self.settles else found, default=None)

    def _next_update(self, step: int) -> int | None:
        following = (step // self._every + 1) * self._every if self._every else self._until
        return following if following < self._until else None

    def look(self) -> None:
        """Note the channel mask where an epoch is over. To be done once at a step, after the steps before it."""
        session = self._session
        if self._settles is None or session.step == self._first or session.step % self._per_epoch:
            return
        found = scales(session.model)
        if all_finite(found):  # else it has diverged, which the next evaluation sees
            self._progress.channels.append(channel_mask(found, self._settles.density))

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
        if change.mask is not session.mask or change.values:
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
            # Dropout is off, but the net may draw other random numbers.
            seed_noise(self._seed, session.step, self._recipe.device)
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
