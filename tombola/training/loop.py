"""Trainings, from their starting values to their summaries, in stretches that an engine carries out.

Validation data are evaluated at the beginning, every ``evaluate_every`` steps and at the end. The early-stop step is
the one of minimum validation loss over the whole run, found after the fact. Test data are read once, when the run is
over: at the early-stop step and at the end. All of this is the same for one training by itself and for each of several
in one pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tombola.engines import Plan, begin, check_device, evaluate
from tombola.engines.replicates import Place, Replicate, ReplicatedSession
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.task import Examples, Splits, State, Task
from tombola.training.changes import Changes
from tombola.training.checkpoint import Progress, Saved, Slot
from tombola.training.costs import flops_of_steps, training_cost


@dataclass(frozen=True)
class Outcome:
    """What a finished training leaves behind."""

    status: str
    """``finished``, or ``diverged`` when loss or weights stopped being finite."""
    final: State
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    mask: Mask
    """What is kept at the end."""
    kept: dict[int, State] = field(default_factory=dict)
    """The state_dict at the steps asked for, before that step is taken."""


Watch = Callable[[int, int, Mapping[str, Any]], None]
"""Called after each evaluation with the steps done, the steps in all, and the newest row of the history."""


class RefusedError(InputError):
    """These nets can't be trained in one pass; each by itself may still be."""


@dataclass(frozen=True)
class Training:
    """A training to be carried out: what it starts from, and what is wanted of it beside its outcome."""

    splits: Splits
    seed: int
    model: nn.Module
    """Holds the starting values, and belongs to the training from now on."""
    mask: Mask
    slot: Slot | None = None
    """Where checkpoints are kept and looked for."""
    keep: frozenset[int] = frozenset()
    """Steps, in the recipe's count, whose state is wanted."""
    watch: Watch | None = None

    @property
    def saved(self) -> Saved | None:
        """The checkpoint to go on from."""
        return None if self.slot is None else self.slot.saved


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
    place: Place | None = None,
) -> Outcome:
    """Train ``model``, which holds the starting values, under ``mask``.

    ``slot`` is where checkpoints are kept and looked for; a resume uses the engine planned when the run began. ``keep``
    are steps, in the recipe's count, whose state is wanted. ``plan`` and ``place`` are the engine of a run that is
    trained again, and its place where it was trained in a pass. The result has the same bits whether or not the run was
    interrupted, and whatever ``keep`` asks for.
    """
    training = Training(splits, seed, model, mask, slot, frozenset(keep), watch)
    saved = training.saved
    if saved is not None:
        plan, place = saved.plan, saved.progress.place
        mask = mask if saved.progress.mask is None else saved.progress.mask
    if place is not None:
        return dict(train_together(task, recipe, {place.number: training}, place.of))[place.number]
    with _threads(recipe.threads):
        check_device(recipe)
        training = replace(training, splits=splits.to(recipe.device))
        mask = _in_order(mask, model)
        plan, session = begin(model, mask, task, training.splits.train, recipe, seed, plan)
        if saved is not None:
            session.load(saved.state)
        course = _Course(task, recipe, training, plan, session)
        if recipe.updates is not None or recipe.until_settled is not None:
            course.changes = Changes(recipe, task, training.splits.train, seed, session, course.progress)
        return dict(_carry_out({0: course}, lambda steps: [session.stretch(steps)]))[0]


def train_together(
    task: Task, recipe: Recipe, trainings: Mapping[int, Training], places: int
) -> Generator[tuple[int, Outcome], None, None]:
    """Train several nets in one pass, each at its place from 0; the outcome of each as soon as it is there.

    They have equally many training examples and the same ``keep``, and those that go on from a checkpoint do so all at
    one step. Places that nobody takes are filled with copies: so a training has the same bits whoever the others are,
    and as many of them as are left after a kill.

    Raises ``RefusedError``, before anything is trained, for nets that can't be trained so.
    """
    with _threads(recipe.threads):
        check_device(recipe)
        trainings = {n: replace(t, splits=t.splits.to(recipe.device)) for n, t in trainings.items()}
        first = next(iter(trainings.values()))
        filled = [trainings.get(number, first) for number in range(places)]
        session = _open_pass(task, recipe, filled)
        plan = Plan("masked", f"replicated: {places} nets in one pass")
        states = [t.saved.state for t in filled if t.saved is not None]
        if states:
            session.load(states)
        courses = {
            n: _Course(task, recipe, t, plan, Replicate(session, n), Place(n, places)) for n, t in trainings.items()
        }
        yield from _carry_out(courses, session.stretch)


def _open_pass(task: Task, recipe: Recipe, trainings: Sequence[Training]) -> ReplicatedSession:
    data = [t.splits.train for t in trainings]
    try:
        return ReplicatedSession(
            [t.model for t in trainings], [t.mask for t in trainings], task, data, recipe, [t.seed for t in trainings]
        )
    except InputError as error:
        raise RefusedError(str(error)) from error


class _View(Protocol):
    """A training under way, as far as it is looked at and not moved on."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def step(self) -> int: ...

    @property
    def mask(self) -> Mask: ...

    @property
    def seen(self) -> Mapping[str, float]: ...

    def evaluate(self, data: Examples, state: Mapping[str, Tensor] | None = None) -> dict[str, float]: ...

    def state(self) -> dict[str, Tensor]: ...


def _carry_out(
    courses: Mapping[int, _Course], stretch: Callable[[int], Sequence[float]]
) -> Iterator[tuple[int, Outcome]]:
    """Train courses that are at one step to their ends. ``stretch`` moves them all on and gives their mean losses.

    A course that has diverged is over at once, and is none of the others' business. The time is shared equally.
    """
    began, worked = time.perf_counter(), time.process_time()
    for course in courses.values():
        course.begin()
    under_way = dict(courses)
    while True:
        for number in [n for n, course in under_way.items() if course.over]:
            yield number, under_way.pop(number).outcome()
        if not under_way:
            return
        losses = _train_to_evaluation(under_way, stretch)
        for number, course in under_way.items():
            course.evaluate(losses[number])
        now, work = time.perf_counter(), time.process_time()
        for course in under_way.values():
            course.progress.seconds += (now - began) / len(under_way)
            course.progress.processor_seconds += (work - worked) / len(under_way)
        began, worked = now, work
        going_on = [course for course in under_way.values() if not course.over]
        if any(course.saving_is_due for course in going_on):  # all at one step, so that they can go on together
            for course in going_on:
                course.save()


def _train_to_evaluation(
    courses: Mapping[int, _Course], stretch: Callable[[int], Sequence[float]]
) -> dict[int, float | None]:
    """Train to the next multiple of ``evaluate_every``, or to where a course is over; the mean losses.

    In one stretch but for the steps to keep and those before which something changes. None where nothing was trained,
    as updates took the place of every step.
    """
    lead = next(iter(courses.values()))
    target, trained = lead.next_evaluation, 0
    losses = dict.fromkeys(courses, 0.0)
    while (step := lead.session.step) < target and not lead.over:
        lead.update_mask()
        if lead.session.step > step:  # the update took the step's place
            lead.note(0)
            continue
        stops = [*(k for k in lead.training.keep if k > step), lead.next_change or target, target]
        steps = min(stops) - step
        means = stretch(steps)
        trained += steps
        for number, course in courses.items():
            losses[number] += means[number] * steps
            course.note(steps)
    return {number: loss / trained if trained else None for number, loss in losses.items()}


class _Course:
    """What one training keeps of its way: evaluations, the early stop, states, checkpoints, and at last the outcome."""

    def __init__(
        self, task: Task, recipe: Recipe, training: Training, plan: Plan, session: _View, place: Place | None = None
    ) -> None:
        self.task, self.recipe, self.training, self.plan, self.session = task, recipe, training, plan, session
        per_epoch = recipe.steps_per_epoch(len(training.splits.train))
        self.first, self.last = recipe.start.steps(per_epoch), recipe.steps.steps(per_epoch)
        self.every = max(1, recipe.evaluate_every.steps(per_epoch))
        self.progress = Progress(place=place) if training.saved is None else training.saved.progress
        self.changes: Changes | None = None
        mask = training.mask if self.progress.mask is None else self.progress.mask
        self.cost = training_cost(training.model, mask, training.splits.train)

    @property
    def over(self) -> bool:
        settled = self.changes is not None and self.changes.settled
        return self.session.step >= self.last or self.progress.diverged or settled

    @property
    def next_evaluation(self) -> int:
        return min((self.session.step // self.every + 1) * self.every, self.last)

    @property
    def next_change(self) -> int | None:
        return None if self.changes is None else self.changes.next_after(self.session.step)

    def update_mask(self) -> None:
        """Update the mask where that is due before the next step."""
        if self.changes is None:
            return
        before, examples = self.progress.mask, self.changes.update()
        if self.cost is not None and (now := self.progress.mask) is not None:
            self.cost = self.cost if now is before else self.cost.under(now)
            # The gradients of the kept weights' net, and of its inputs, but those of all weights (Evci et al. 2020).
            self.progress.flops += (2 * self.cost.kept_flops + self.cost.flops) * examples

    def note(self, steps: int) -> None:
        """Take note of so many steps just taken, and of the state after them where that is wanted."""
        if self.cost is not None:
            done = self.session.step - self.first - steps
            train = self.training.splits.train
            self.progress.flops += flops_of_steps(self.cost, train, self.recipe, done, steps)
        self.keep_state()
        if self.changes is not None:
            self.changes.look()

    def begin(self) -> None:
        """Look at the starting values; a training that goes on has done so."""
        if self.training.saved is None:
            self.keep_state()
            self.evaluate(train_loss=None)

    def keep_state(self) -> None:
        if self.session.step in self.training.keep:
            self.progress.kept[self.session.step] = _copy(self.session.model)

    def evaluate(self, train_loss: float | None) -> None:
        values = self.session.evaluate(self.training.splits.validation)
        row: dict[str, Any] = {"step": self.session.step, "train_loss": train_loss}
        row |= {f"validation_{name}": value for name, value in values.items()}
        row |= {f"train_{name}": value for name, value in self.session.seen.items()}
        progress, loss = self.progress, values["loss"]
        progress.diverged = not math.isfinite(loss) or not math.isfinite(train_loss or 0.0)
        if self.changes is not None and self.changes.updates:
            row["density"] = self.session.mask.density
            self._forget_denser()
        if not progress.diverged and (progress.best_loss is None or loss < progress.best_loss):
            progress.best_loss, progress.best_step, progress.best = loss, self.session.step, _copy(self.session.model)
        progress.history.append({k: v if v is None or math.isfinite(v) else None for k, v in row.items()})
        if self.training.watch is not None:
            self.training.watch(self.session.step - self.first, self.last - self.first, progress.history[-1])

    def _forget_denser(self) -> None:
        """The early stop of a net that is pruned on its way is that of the net as sparse as it gets."""
        progress, kept = self.progress, self.session.mask.kept
        if progress.best_kept is None or kept < progress.best_kept:
            progress.best_kept, progress.best_loss, progress.best_step, progress.best = kept, None, None, None

    @property
    def saving_is_due(self) -> bool:
        return self.training.slot is not None and self.training.slot.due

    def save(self) -> None:
        if self.training.slot is not None:
            self.training.slot.save(self.plan, self.progress, self.session.state())

    def outcome(self) -> Outcome:
        progress, final = self.progress, _copy(self.session.model)
        summary: dict[str, Any] = {
            "steps": self.session.step - self.first,
            "seconds": round(progress.seconds, 3),
            "processor_seconds": round(progress.processor_seconds, 3),
            "engine": self.plan.engine,
            "engine_reason": self.plan.reason,
            "engine_layers": self.plan.layers,
            "stop_step": progress.best_step,
            "stop": self._judge(progress.best_step, progress.best),
            "end": None if progress.diverged else self._judge(self.session.step, final),
        }
        if progress.place is not None:
            summary["engine_place"] = [progress.place.number, progress.place.of]
        if self.cost is not None:
            summary["flops"] = progress.flops
        if self.changes is not None and self.changes.settles:
            summary["settled"] = self.changes.settled
        status = "diverged" if progress.diverged else "finished"
        return Outcome(status, final, progress.history, summary, self.session.mask, progress.kept)

    def _judge(self, step: int | None, state: State | None) -> dict[str, float] | None:
        """Validation and test metrics of one state, the validation ones as they were measured at that step."""
        if state is None:
            return None
        row = next(r for r in self.progress.history if r["step"] == step)
        judged = {name: value for name, value in row.items() if name.startswith("validation_")}
        if self.training.splits.test is not None:
            test = self.training.splits.test
            if self.changes is None:
                values = self.session.evaluate(test, state)
            else:  # an engine knows the net under its present mask, which isn't the state's
                values = evaluate(self.task, self.session.model, test, state)
            judged |= {f"test_{name}": value for name, value in values.items()}
        return judged


def _in_order(mask: Mask, model: nn.Module) -> Mask:
    """The mask in the model's order, by which random draws go, in whatever order it came or was read."""
    own = [name for name, _ in model.named_parameters() if name in mask]
    return Mask({name: mask[name] for name in dict.fromkeys([*own, *mask])})


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
