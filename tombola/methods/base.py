"""What methods are given and what they yield."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tombola.batches import moved
from tombola.criteria import Criterion, criterion, score, traits
from tombola.durations import Duration
from tombola.errors import InputError
from tombola.lab import Lab, Run
from tombola.mask import Mask, prunable
from tombola.pruning import Allocation, check_patterns, prune
from tombola.seeds import stream
from tombola.tasks.balance import balanced
from tombola.tasks.task import State

ZERO = Duration(0)
MOST_SCORED = 250
"""Examples that are scored at once."""


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
    =========== ================================ ==========================================================
    """

    kind: str = "reset"
    back_to: Duration = ZERO
    length: Duration | None = None

    def train(self, lab: Lab, dense: Run, last: Run, mask: Mask) -> tuple[State, Run]:
        """The values before masking, and the net trained from them; ``last`` is the net that was pruned."""
        recipe = lab.recipe
        values = dense.at(self.back_to) if self.kind in ("reset", "rewind") else last.final
        if self.kind in ("rewind", "lr-rewind"):
            recipe = recipe.model_copy(update={"start": self.back_to})
        elif self.kind == "fine-tune":
            per_epoch = lab.steps_per_epoch(dense.seed, recipe)
            changes = {
                "steps": self.length or recipe.steps,
                "lr": recipe.lr_at(recipe.steps.steps(per_epoch) - 1, per_epoch),
                "lr_schedule": "constant",
                "milestones": (),
                "warmup": ZERO,
            }
            recipe = recipe.model_copy(update=changes)
        return values, lab.train(dense.seed, start=values, mask=mask, recipe=recipe)


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

    def whole(self, model: nn.Module) -> Mask:
        """The mask of the dense net: every prunable parameter but those left unpruned.

        ``InputError`` for a pattern that fits no layer, and where nothing is left to prune.
        """
        names = prunable(model)
        check_patterns(self.unpruned, names)
        kept = {n: p for n, p in names.items() if not any(fnmatch.fnmatchcase(n, u) for u in self.unpruned)}
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

    def pruned(self, run: Run, density: float, number: int, initial: State, within: Mask) -> Mask:
        """The mask of this density by the scores of a trained net. ``number`` tells rounds' random draws apart."""
        scores = score(
            run.model().to(self.lab.recipe.device),
            self.criterion,
            mask=within,
            initial=initial,
            generator=stream(self.seed, "criterion", number),
            **self.for_gradients(self.criterion),
        )
        return prune(scores, density, self.allocation, within=within)

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
    """One round: a mask, the values its survivors start from (before masking), and the net trained from them."""

    number: int
    mask: Mask
    values: State
    run: Run
