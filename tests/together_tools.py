"""Draws and trainings together, for the tests of what they come to and of what may happen on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_replicates import doubled
from torch import nn
from toy import toy_data, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw, controls, rounds
from tombola.engines import Plan
from tombola.lab import Lab, Trainer, Wanted, train_alone
from tombola.sealed import content_hash
from tombola.store import RunRecord
from tombola.together import side_by_side
from tombola.training import loop

SEEDS = (3, 0, 11)
SHORT = {"steps": "24it", "evaluate_every": "6it", "lr": 0.01}


def single(net: Callable[[], nn.Module], **changes: Any) -> tb.Task:
    return toy_task(model=net, recipe=SHORT | changes)


def double(net: Callable[[], nn.Module], **changes: Any) -> tb.Task:
    """In double precision a training in a pass and one alone differ so little that no weight changes its rank."""
    x, y = toy_data()
    x = x.double()
    # SGD, as Adam would blow up the rounding of gradients that are zero: of biases before a normalisation.
    recipe = {**SHORT, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, **changes}
    return toy_task(model=doubled(net), train=(x[:250], y[:250]), test=(x[250:], y[250:]), recipe=recipe)


def masked_alone(wanted: Wanted) -> RunRecord:
    """Trains a net by itself on the engine of passes, whatever ``auto`` would choose."""
    claim = wanted.claim()
    assert claim is not None
    with claim:
        record = wanted.finish(claim, wanted.train(None, Plan("masked", "to compare with")))
    assert record is not None
    return record


def search(
    task: tb.Task,
    seed: int,
    store: tb.Store,
    options: dict[str, Any],
    watcher: Any = None,
    trainer: Trainer = train_alone,
) -> Draw:
    lab = Lab(task, store, watcher=watcher, checkpoint_every=0.0, trainer=trainer)
    found = Draw(draw_recipe(task, {"rounds": 2, "seed": seed, "margin": 0.9, **options}), lab)
    for _ in rounds(found):
        pass
    for _ in controls(found):
        pass
    return found


def together(
    task: tb.Task, store: tb.Store, seeds: Sequence[int] = SEEDS, watcher: Any = None, **options: Any
) -> list[Draw]:
    def work(seed: int) -> Callable[[Trainer], Draw]:
        return lambda trainer: search(task, seed, store, options, watcher, trainer)

    return side_by_side([work(seed) for seed in seeds])


def trained(task: tb.Task, store: tb.Store, wanted: Sequence[dict[str, Any]], watcher: Any = None) -> list[tb.Run]:
    """Single nets, one for each work."""

    def work(options: dict[str, Any]) -> Callable[[Trainer], tb.Run]:
        return lambda trainer: Lab(task, store, watcher=watcher, checkpoint_every=0.0, trainer=trainer).train(**options)

    return side_by_side([work(options) for options in wanted])


def all_runs(draws: Sequence[Draw]) -> list[tb.Run]:
    return [run for d in draws for run in (*(r.run for r in d.rounds), *(c.run for c in d.controls))]


def digest(run: tb.Run) -> str:
    summary = {k: v for k, v in run.summary.items() if "seconds" not in k}
    return content_hash("run", {"history": run.history, **summary}, run.final)


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """From now on, the seeds of each pass that is opened, copies included."""
    opened: list[tuple[int, ...]] = []

    class Counted(loop.ReplicatedSession):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self.seeds)

    monkeypatch.setattr(loop, "ReplicatedSession", Counted)
    return opened


def check_numbers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == (None if value is None else pytest.approx(value, rel=1e-5))


def check_close(ours: tb.Run, theirs: tb.Run) -> None:
    assert ours.id == theirs.id
    assert ours.record.about == theirs.record.about
    assert ours.record.blobs.keys() == theirs.record.blobs.keys()
    assert len(ours.history) == len(theirs.history)
    for a, b in zip(ours.history, theirs.history, strict=True):
        check_numbers(a, b)
    assert ours.record.status == theirs.record.status
    assert all(ours.summary[name] == theirs.summary[name] for name in ("steps", "stop_step"))
    for when in ("stop", "end"):
        check_numbers(ours.summary[when], theirs.summary[when])
    for name, value in theirs.final.items():
        torch.testing.assert_close(ours.final[name], value, rtol=1e-5, atol=1e-7)
