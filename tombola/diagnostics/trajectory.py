"""A training looked at on its way: its states at chosen steps, and the training examples it is looked at with."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import nn

from tombola.batches import moved
from tombola.durations import Duration
from tombola.errors import InputError
from tombola.lab import Lab, Run
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.seeds import stream
from tombola.tasks.balance import balanced
from tombola.tasks.task import State

PER_CLASS = 50
"""Examples of each class that gradients and curvature are taken on by default."""
AT_ONCE = 250
"""Examples that go through a net at once, at most."""
_SHARES = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1)


def fixed_batches(lab: Lab, seed: int, per_class: int = PER_CLASS) -> list[Any]:
    """The same training examples for every net of a seed: ``per_class`` of each class, in equal batches, as they are
    and not augmented, on the recipe's device. Stream ``diagnostics`` of the seed."""
    if per_class < 1:
        raise InputError(f"there must be 1 example of each class or more, but got {per_class!r}")
    train = lab.splits(seed).train
    index = balanced(train, per_class, stream(seed, "diagnostics"))
    # Equal batches, as none must be too small for batch statistics.
    parts = index.tensor_split(math.ceil(len(index) / AT_ONCE))
    return [moved(train.take(part), lab.recipe.device) for part in parts]


def chosen_steps(lab: Lab, seed: int, recipe: Recipe, at: Sequence[Duration] | None = None) -> list[int]:
    """The steps of these durations, each once and in order; by default ten from first to last, the early ones closer.

    Raises ``InputError`` for a step outside of the recipe's training.
    """
    per_epoch = lab.steps_per_epoch(seed, recipe)
    first, last = recipe.start.steps(per_epoch), recipe.steps.steps(per_epoch)
    if at is None:
        return sorted({first + round(share * (last - first)) for share in _SHARES})
    if not at:
        raise InputError("name one step of the training or more, like 0it,100it")
    for when in at:
        if not first <= when.steps(per_epoch) <= last:
            raise InputError(f"the training goes from step {first} to step {last}, so it has no step {when}")
    return sorted({when.steps(per_epoch) for when in at})


def states(run: Run, steps: Iterable[int]) -> dict[int, State]:
    """The state_dicts of a run at those of the steps that it came to, by step.

    A run that diverged has none from there on, and one that was rewound none before its start. What the store lacks is
    trained up to again, all of it in one training, which gives the same bits, and kept from then on.
    """
    first = run.recipe.start.steps(run.lab.steps_per_epoch(run.seed, run.recipe))
    end = first + int(run.summary["steps"])
    wanted = sorted({step for step in steps if first <= step <= end - run.diverged})
    missing = [step for step in wanted if first < step < end and f"at-{step}" not in run.record.blobs]
    if missing:
        run.record = run.lab.keep(run, *missing)
    return {step: run.final if step == end else run.at(Duration(step)) for step in wanted}


class KeepingLab(Lab):
    """A lab whose trainings keep their states at some steps: those of the dense net, and of nets of one density.

    So whatever a method trains can be looked at on its way without training it twice.
    """

    _steps: Sequence[Duration] = ()
    _density = 1.0

    def keep_steps(self, steps: Sequence[int], density: float) -> None:
        """Which steps, and of which nets beside the dense one."""
        self._steps, self._density = [Duration(step) for step in steps], density

    def train(
        self,
        seed: int,
        *,
        start: State | None = None,
        mask: Mask | None = None,
        recipe: Recipe | None = None,
        arm: str = "ticket",
        draw: int | None = None,
        keep: Collection[Duration] = (),
    ) -> Run:
        """As any lab's."""
        if mask is None or mask.kept in (mask.total, round(self._density * mask.total)):
            keep = (*keep, *self._steps)
        return super().train(seed, start=start, mask=mask, recipe=recipe, arm=arm, draw=draw, keep=keep)


def holding(lab: Lab, seed: int, state: State) -> nn.Module:
    """A net of the lab's task with these values, on the recipe's device."""
    model = lab.task.build(seed)
    model.load_state_dict(state)
    return model.to(lab.recipe.device)
