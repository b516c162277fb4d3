"""One training, from its starting values to its summary, in stretches that an engine carries out.

Validation data are evaluated at the beginning, every ``evaluate_every`` steps and at the end. The early-stop step is
the one of minimum validation loss over the whole run, found after the fact. Test data are read once, when the run is
over: at the early-stop step and at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tombola.engines import Plan, begin, check_device
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.task import Splits, State, Task
from tombola.training.checkpoint import Progress, Slot


@dataclass(frozen=True)
class Outcome:
    """What a finished training leaves behind."""

    status: str
    """``finished``, or ``diverged`` when loss or weights stopped being finite."""
    final: State
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    kept: dict[int, State] = field(default_factory=dict)
    """The state_dict at the steps asked for, before that step is taken."""


Watch = Callable[[int, int, Mapping[str, Any]], None]
"""Called after each evaluation with the steps done, the steps in all, and the newest row of the history."""


def train(
    task: Task,
    splits: Splits,
    recipe: Recipe,
    seed: int,
    model: nn.Module,
    mask: Mask,
    *,
    slot: Slot | None = None,
    keep: Collection[int] = (),
    watch: Watch | None = None,
    plan: Plan | None = None,
) -> Outcome:
    """Train ``model``, which holds the starting values, under ``mask``.

    ``slot`` is where checkpoints are kept and looked for; a resume uses the engine planned when the run began. ``keep``
    are steps, in the recipe's count, whose state is wanted. ``plan`` is the engine of a run that is trained again. The
    result has the same bits whether or not the run was interrupted, and whatever ``keep`` asks for.
    """
    with _threads(recipe.threads):
        return _Training(task, splits, recipe, seed, model, mask, slot, set(keep), watch, plan).run()


class _Training:
    def __init__(
        self,
        task: Task,
        splits: Splits,
        recipe: Recipe,
        seed: int,
        model: nn.Module,
        mask: Mask,
        slot: Slot | None,
        keep: set[int],
        watch: Watch | None,
        plan: Plan | None,
    ) -> None:
        self.task, self.recipe, self.slot, self.keep, self.watch = task, recipe, slot, keep, watch
        self.saved = None if slot is None else slot.load()
        check_device(recipe)
        self.splits = splits.to(recipe.device)
        per_epoch = recipe.steps_per_epoch(len(splits.train))
        self.first, self.last = recipe.start.steps(per_epoch), recipe.steps.steps(per_epoch)
        self.every = max(1, recipe.evaluate_every.steps(per_epoch))
        planned = plan if self.saved is None else self.saved.plan
        self.plan, self.session = begin(model, mask, task, self.splits.train, recipe, seed, planned)
        self.progress = Progress() if self.saved is None else self.saved.progress

    def run(self) -> Outcome:
        began, earlier = time.perf_counter(), self.progress.seconds
        if self.saved is not None:
            self.session.load(self.saved.state)
        else:
            self._keep_state()
            self._evaluate(train_loss=None)
        while self.session.step < self.last and not self.progress.diverged:
            self._evaluate(train_loss=self._train_to_evaluation())
            self.progress.seconds = earlier + time.perf_counter() - began
            if self.slot is not None and self.session.step < self.last and not self.progress.diverged:
                self.slot.save_if_due(self.plan, self.progress, self.session.state)
        return self._outcome()

    def _train_to_evaluation(self) -> float:
        """Train to the next multiple of ``evaluate_every``, in one stretch but for the steps to keep; the mean loss."""
        begun, loss = self.session.step, 0.0
        target = min((begun // self.every + 1) * self.every, self.last)
        while self.session.step < target:
            stop = min((k for k in self.keep if k > self.session.step), default=target)
            steps = min(stop, target) - self.session.step
            loss += self.session.stretch(steps) * steps
            self._keep_state()
        return loss / (target - begun)

    def _keep_state(self) -> None:
        if self.session.step in self.keep:
            self.progress.kept[self.session.step] = _copy(self.session.model)

    def _evaluate(self, train_loss: float | None) -> None:
        values = self.session.evaluate(self.splits.validation)
        row: dict[str, Any] = {"step": self.session.step, "train_loss": train_loss}
        row |= {f"validation_{name}": value for name, value in values.items()}
        progress, loss = self.progress, values["loss"]
        progress.diverged = not math.isfinite(loss) or not math.isfinite(train_loss or 0.0)
        if not progress.diverged and (progress.best_loss is None or loss < progress.best_loss):
            progress.best_loss, progress.best_step, progress.best = loss, self.session.step, _copy(self.session.model)
        progress.history.append({k: v if v is None or math.isfinite(v) else None for k, v in row.items()})
        if self.watch is not None:
            self.watch(self.session.step - self.first, self.last - self.first, progress.history[-1])

    def _outcome(self) -> Outcome:
        progress, final = self.progress, _copy(self.session.model)
        summary: dict[str, Any] = {
            "steps": self.session.step - self.first,
            "seconds": round(progress.seconds, 3),
            "engine": self.plan.engine,
            "engine_reason": self.plan.reason,
            "engine_layers": self.plan.layers,
            "stop_step": progress.best_step,
            "stop": self._judge(progress.best_step, progress.best),
            "end": None if progress.diverged else self._judge(self.session.step, final),
        }
        return Outcome("diverged" if progress.diverged else "finished", final, progress.history, summary, progress.kept)

    def _judge(self, step: int | None, state: State | None) -> dict[str, float] | None:
        """Validation and test metrics of one state, the validation ones as they were measured at that step."""
        if state is None:
            return None
        row = next(r for r in self.progress.history if r["step"] == step)
        judged = {name: value for name, value in row.items() if name.startswith("validation_")}
        if self.splits.test is not None:
            values = self.session.evaluate(self.splits.test, state)
            judged |= {f"test_{name}": value for name, value in values.items()}
        return judged


def _copy(model: nn.Module) -> State:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
