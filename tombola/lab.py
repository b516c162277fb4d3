"""The lab: trains nets for a task and remembers what it has trained.

Methods and controls are plain functions over a lab. It alone knows of files, processes and progress, so every training
is shared, cached, resumed and watched in one place. A run's identity is a hash of its recipe, with defaults left out,
and of the content it starts from: task, data, seed, starting values, mask.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tombola.batches import tensors
from tombola.durations import Duration
from tombola.engines import Plan, compiles_first
from tombola.engines.replicates import Place
from tombola.errors import InputError, StoreError
from tombola.events import Event, Kind, Watcher
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.sealed import content_hash, json_hash
from tombola.shipping import compressed
from tombola.store import Claim, ClaimLost, RunRecord, Store
from tombola.tasks.task import Splits, State, Task
from tombola.ticket import Ticket
from tombola.training.checkpoint import Keeper, Slot
from tombola.training.costs import flops_of_steps, training_cost
from tombola.training.loop import Outcome, Training, train
from tombola.version import versions

POLL_SECONDS = 0.5


class Run:
    """A finished training, read from the store as needed."""

    def __init__(self, lab: Lab, record: RunRecord, seed: int, recipe: Recipe, start: State, mask: Mask) -> None:
        self.lab, self.record, self.seed, self.recipe, self.start, self.mask = lab, record, seed, recipe, start, mask

    @property
    def id(self) -> str:
        """The run's identity, 64 hexadecimal digits."""
        return self.record.id

    @property
    def diverged(self) -> bool:
        """Whether loss or weights stopped being finite."""
        return self.record.status == "diverged"

    @property
    def summary(self) -> dict[str, Any]:
        """Early-stop step, metrics there and at the end, seconds, engine."""
        return dict(self.record.summary)

    @property
    def seconds(self) -> float:
        """Seconds that the processor worked on it, or that went by, in runs of versions that knew nothing else."""
        return float(self.summary.get("processor_seconds", self.summary["seconds"]))

    @cached_property
    def flops(self) -> int | None:
        """Operations of the training, those of kept weights alone; None where the shape of inputs can't be told."""
        if "flops" in self.summary:
            return int(self.summary["flops"])
        return self.lab.training_flops(self)

    @cached_property
    def bytes(self) -> int:
        """The size of its result: the file of a ticket with its final mask and values, compressed where weights share
        their values."""
        if self.recipe.trains == "centroids" and not self.diverged:
            return len(compressed.to_bytes(self._end)[0])
        return len(self.lab.store.read(self.record, "final"))

    @cached_property
    def _end(self) -> Ticket:
        return Ticket.from_bytes(self.lab.store.read(self.record, "final"))

    @property
    def final(self) -> State:
        """The state_dict at the end."""
        return dict(self._end.values)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One row for each evaluation: step, training loss since the last, validation loss and metrics."""
        lines = self.lab.store.read(self.record, "history").decode().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def final_mask(self) -> Mask:
        """What is kept at the end: ``mask``, but where the training changed it."""
        return self.mask if self.recipe.is_plain else self._end.mask

    def model(self) -> nn.Module:
        """A new net with the final values."""
        model = self.lab.task.build(self.seed)
        model.load_state_dict(self.final)
        return model

    def metric(self, when: Literal["stop", "end"], data: Literal["validation", "test"]) -> float | None:
        """The task's metric at the early-stop step or at the end; None where it diverged or there is no test."""
        found = (self.summary[when] or {}).get(f"{data}_{self.lab.task.metric}")
        return None if found is None or not math.isfinite(found) else float(found)

    def at(self, when: Duration) -> State:
        """The state_dict at a step of the training, for rewinding: step 0 gives the starting values.

        A step that the run did not keep is trained up to again, which gives the same bits, and kept from then on.
        """
        step = when.steps(self.lab.steps_per_epoch(self.seed, self.recipe))
        if step == self.recipe.start.steps(self.lab.steps_per_epoch(self.seed, self.recipe)):
            return self.start
        if _kept(step) not in self.record.blobs:
            self.record = self.lab.keep(self, step)
        return dict(Ticket.from_bytes(self.lab.store.read(self.record, _kept(step))).values)


@dataclass(frozen=True)
class Wanted:
    """A run that a lab is asked for and that its store doesn't have."""

    lab: Lab
    id: str
    about: Mapping[str, Any]
    seed: int
    start: State
    mask: Mask
    recipe: Recipe
    keep: frozenset[int]
    event: Event

    def tell(self, kind: Kind, **changes: Any) -> None:
        """Tell the lab's watcher."""
        self.lab.tell(replace(self.event, kind=kind, **changes))

    def stored(self) -> RunRecord | None:
        """The run, if it is in the store by now."""
        return self.lab.stored(self.id)

    def claim(self) -> Claim | None:
        """The right to compute it; None where another process has it."""
        return self.lab.store.claim(self.id, self.about)

    def slot(self, keeper: Keeper) -> Slot:
        """Its checkpoint, at its claim's or another keeper."""
        return Slot(keeper, self.id, self.lab.checkpoint_every)

    def training(self, slot: Slot | None) -> Training:
        """What is to be carried out."""
        model = self.lab.task.build(self.seed)
        model.load_state_dict(self.start)
        return Training(self.lab.splits(self.seed), self.seed, model, self.mask, slot, self.keep, self._evaluated)

    def _evaluated(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        self.tell("step", done=done, total=total, row=row)

    def train(self, slot: Slot | None, plan: Plan | None = None, place: Place | None = None) -> Outcome:
        """Carry it out by itself."""
        if place is None and compiles_first(self.recipe):
            self.tell("compile")
        t = self.training(slot)
        return train(
            *(self.lab.task, t.splits, self.recipe, t.seed, t.model, t.mask),
            slot=t.slot,
            keep=t.keep,
            watch=t.watch,
            plan=plan,
            place=place,
        )

    def _blobs(self, outcome: Outcome) -> dict[str, bytes]:
        blobs = {"final": Ticket(outcome.mask, outcome.final, {}).to_bytes()}
        blobs["history"] = "".join(json.dumps(row) + "\n" for row in outcome.history).encode()
        return blobs | {_kept(step): self.on_the_way(state) for step, state in outcome.kept.items()}

    def on_the_way(self, state: State) -> bytes:
        """A state that is kept, as a blob: under the mask of the start, where that holds all the time."""
        return Ticket(self.mask if self.recipe.is_plain else Mask({}), state, {}).to_bytes()

    def finish(self, claim: Claim, outcome: Outcome) -> RunRecord | None:
        """Enter the result in the store; None where the claim was lost meanwhile to another process."""
        summary = {**outcome.summary, "versions": versions()}
        try:
            record = claim.finish(summary, self._blobs(outcome), status=outcome.status)
        except ClaimLost:
            return None
        self.tell("done", row=summary)
        return record


Trainer = Callable[[Wanted], RunRecord]
"""What a lab has its nets trained by."""


def train_alone(wanted: Wanted) -> RunRecord:
    """Train a net by itself, or wait for the process that is at it."""
    while True:
        claim = wanted.claim()
        if claim is not None:
            with claim:
                wanted.tell("start")
                record = train_claimed(wanted, claim, wanted.slot(claim.checkpoint))
            if record is not None:
                return record
        wanted.tell("waiting")
        time.sleep(POLL_SECONDS)
        if (record := wanted.stored()) is not None:
            return record


def train_claimed(wanted: Wanted, claim: Claim, slot: Slot) -> RunRecord | None:
    """Train a net by itself under a claim; None where it was lost, as this process was stopped for so long."""
    try:
        outcome = wanted.train(slot)
    except ClaimLost:
        return None
    return wanted.finish(claim, outcome)


class Lab:
    """Trains nets of one task with one default recipe, and remembers them in a store.

    ``like`` is another lab of the same task, whose data it shares.
    """

    def __init__(
        self,
        task: Task,
        store: Store,
        *,
        recipe: Recipe | None = None,
        data_root: Path | None = None,
        watcher: Watcher | None = None,
        checkpoint_every: float = 20.0,
        trainer: Trainer = train_alone,
        like: Lab | None = None,
    ) -> None:
        self.task, self.store, self.data_root = task, store, data_root
        self.recipe = task.recipe if recipe is None else recipe
        self.watcher, self.checkpoint_every, self.trainer = watcher, checkpoint_every, trainer
        self._splits: dict[int, tuple[Splits, str]] = {} if like is None else like._splits

    def splits(self, seed: int) -> Splits:
        """The task's data for a seed, loaded once."""
        return self._data(seed)[0]

    def data_digest(self, seed: int) -> str:
        """The checksum of the data of a seed."""
        return self._data(seed)[1]

    def _data(self, seed: int) -> tuple[Splits, str]:
        if seed not in self._splits:
            splits = self.task.splits(seed, self.data_root, self._downloading)
            self._splits[seed] = (splits, splits.digest)
        return self._splits[seed]

    def _downloading(self, name: str, done: int, total: int | None) -> None:
        self.tell(Event("download", name, 0, 0.0, done, total or 0))

    def steps_per_epoch(self, seed: int, recipe: Recipe) -> int:
        """Optimiser steps in one pass over the training data of a seed."""
        return recipe.steps_per_epoch(len(self.splits(seed).train))

    def training_flops(self, run: Run) -> int | None:
        """Operations of a training under one mask (see ``Run.flops``)."""
        found = training_cost(self.task.build(run.seed), run.mask, train := self.splits(run.seed).train)
        return None if found is None else flops_of_steps(found, train, run.recipe, 0, run.summary["steps"])

    def example(self, seed: int) -> Tensor:
        """The first part of a batch of two training examples of a seed: what a net is tried on."""
        return tensors(self.splits(seed).train.take(torch.zeros(2, dtype=torch.int64)))[0]

    def span(self, seed: int, recipe: Recipe) -> tuple[int, int]:
        """The first and the last step of a training, in the recipe's count."""
        per_epoch = self.steps_per_epoch(seed, recipe)
        return recipe.start.steps(per_epoch), recipe.steps.steps(per_epoch)

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
        """A finished training from ``start`` (default: the seed's initial values) under ``mask`` (default: dense).

        It is computed unless the store has it, or another process is at it, which is then waited for. ``keep`` names
        steps whose values will be asked for by ``Run.at``. ``arm`` says what the run is for, and ``draw`` the number of
        a control's random draw, to people only.
        """
        recipe = self.recipe if recipe is None else recipe
        first, last = self.span(seed, recipe)
        if first >= last:
            raise InputError(f"training must begin before its end, but begins at step {first} and ends at step {last}")
        about, start, mask = self._about(seed, start, mask, recipe)
        run_id = json_hash(about)
        about |= {"arm": arm, "draw": draw, "density": mask.density, "full_recipe": recipe.model_dump(mode="json")}
        steps = {d.steps(self.steps_per_epoch(seed, recipe)) for d in keep}
        event = Event("found", arm, seed, mask.density, run=run_id, about=about)
        record = self.stored(run_id)
        if record is None:
            wanted = Wanted(self, run_id, about, seed, start, mask, recipe, frozenset(steps), event)
            record = self.trainer(wanted)
        else:
            self.tell(event)
        return Run(self, record, seed, recipe, start, mask)

    def dense_id(self, seed: int) -> str:
        """The identity of a seed's dense net, whether it is trained or not."""
        return json_hash(self._about(seed, None, None, self.recipe)[0])

    def _about(
        self, seed: int, start: State | None, mask: Mask | None, recipe: Recipe
    ) -> tuple[dict[str, Any], State, Mask]:
        """What decides a run, and the values that it starts from under its mask."""
        model = self.task.build(seed)
        start = {n: v.detach().clone() for n, v in model.state_dict().items()} if start is None else start
        mask = Mask.full(model, embeddings=self.task.embeddings) if mask is None else mask
        start = dict(Ticket(mask, start, {}).values)
        about = {
            "task": self.task.identity(),
            "data": self.data_digest(seed),
            "seed": seed,
            "recipe": recipe.identity(),
            "start": content_hash("start", {}, start),
            "mask": mask.digest,
        }
        return about, start, mask

    def stored(self, run_id: str) -> RunRecord | None:
        """The run with all its blobs sound, or None; a damaged one is forgotten, with a warning."""
        record = self.store.run(run_id)
        if record is None:
            return None
        try:
            for name in record.blobs:
                self.store.read(record, name)
        except StoreError as error:
            warnings.warn(f"a stored result is damaged and will be computed again: {error}", stacklevel=3)
            self.store.discard(record)
            return None
        return record

    def keep(self, run: Run, *steps: int) -> RunRecord:
        """Train again and add the values at each of ``steps`` to the stored run."""
        first, _ = self.span(run.seed, run.recipe)
        last = first + run.summary["steps"]  # earlier than planned where it diverged, or its channels settled
        for step in steps:
            if not first <= step <= last:
                raise InputError(f"the training goes from step {first} to {last}, so it has no values at step {step}")
        event = Event("step", "again, for its values on the way", run.seed, run.mask.density, run=run.id)
        keep = frozenset(steps)
        again = Wanted(self, run.id, run.record.about, run.seed, run.start, run.mask, run.recipe, keep, event)
        # On the engine of that time, and at its place in a pass: another would give other bits.
        plan, place = Plan(run.summary["engine"], run.summary["engine_reason"]), run.summary.get("engine_place")
        again.tell("start")
        outcome = again.train(None, plan, None if place is None else Place(*place))
        again.tell("done", row=outcome.summary)
        for step in steps:
            self.store.attach(run.id, _kept(step), again.on_the_way(outcome.kept[step]))
        record = self.store.run(run.id)
        assert record is not None
        return record

    def tell(self, event: Event) -> None:
        """Tell the watcher, if there is one."""
        if self.watcher is not None:
            self.watcher(event)


def _kept(step: int) -> str:
    return f"at-{step}"
