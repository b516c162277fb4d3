"""What methods are given and what they yield."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tombola.criteria import Criterion, score
from tombola.durations import Duration
from tombola.lab import Lab, Run
from tombola.mask import Mask
from tombola.pruning import Allocation, prune
from tombola.seeds import stream
from tombola.tasks.task import State

ZERO = Duration(0)


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
class Search:
    """What a method works with: the lab, a seed, the ladder of densities (dense left out), and how to prune."""

    lab: Lab
    seed: int
    densities: Sequence[float]
    criterion: str | Criterion = "magnitude"
    allocation: Allocation = "global"
    survivors: Survivors = Survivors()
    strategy: int = 1

    def dense(self) -> Run:
        """The dense net of this seed: shared by every method and control."""
        keep = (self.survivors.back_to,) if self.survivors.kind == "rewind" else ()
        return self.lab.train(self.seed, arm="dense", keep=keep)

    def pruned(self, run: Run, density: float, number: int, initial: State, within: Mask | None = None) -> Mask:
        """The mask of this density by the scores of a trained net. ``number`` tells rounds' random draws apart."""
        scores = score(
            run.model(),
            self.criterion,
            mask=run.mask,
            initial=initial,
            generator=stream(self.seed, "criterion", number),
        )
        return prune(scores, density, self.allocation, within=within)


@dataclass(frozen=True)
class Round:
    """One round: a mask, the values its survivors start from (before masking), and the net trained from them."""

    number: int
    mask: Mask
    values: State
    run: Run
