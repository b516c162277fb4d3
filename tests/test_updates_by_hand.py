"""Small trainings whose masks change on the way, written out in plain torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from updating import (
    ENGINES,
    changing,
    first_mask,
    go,
    vector_task,
)

from tombola.engines import begin
from tombola.mask import Mask
from tombola.seeds import stream
from tombola.tasks.task import Task
from tombola.training.loop import Outcome
from tombola.updates.base import regrown


class ByHand:
    """A training in plain torch."""

    def __init__(self, task: Task, mask: Mask, make: Any) -> None:
        self.net: Any = task.build(0)
        self.x, self.y = next(task.splits(0).train.batches(1000))
        self.kept = {name: kept.clone() for name, kept in mask.items()}
        self.weights = {name: p for name, p in self.net.named_parameters() if name in mask}
        self.optimizer = make(self.net.parameters())
        self.prune()

    def prune(self) -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.mul_(self.kept[name])
                for moment in self.optimizer.state.get(weight, {}).values():
                    if isinstance(moment, Tensor) and moment.dim():
                        moment.mul_(weight != 0)

    def gradients(self, step: int) -> None:
        epoch, position = divmod(step, 7)
        order = torch.randperm(225, generator=stream(0, "order", epoch))[32 * position : 32 * (position + 1)]
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.x[order]), self.y[order]).backward()  # type: ignore[no-untyped-call]

    def step(self, step: int, rate: float) -> None:
        self.gradients(step)
        for name, weight in self.weights.items():
            assert weight.grad is not None
            weight.grad.mul_(self.kept[name])
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()

    def assert_equal(self, outcome: Outcome) -> None:
        for name, kept in self.kept.items():
            assert torch.equal(outcome.mask[name], kept)
        for name, value in self.net.state_dict().items():
            torch.testing.assert_close(outcome.final[name], value, rtol=1e-4, atol=1e-6)


def flat_mask(shape: torch.Size, places: Tensor) -> Tensor:
    kept = torch.zeros(shape.numel(), dtype=torch.bool)
    kept[places] = True
    return kept.reshape(shape)


@pytest.mark.parametrize("engine", ENGINES)
def test_rigl_written_out_by_hand(engine: str) -> None:
    recipe = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "lr_schedule": "cosine", "warmup": "5it"}
    task = vector_task(recipe={"engine": engine, **recipe, **changing("rigl", "8it", "45it", fraction=0.4)})
    mask = first_mask(task, 0.3, "rigl")
    hand = ByHand(task, mask, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    for step in range(60):
        if step in (8, 16, 24, 32, 40):
            hand.gradients(step)
            for name, weight in hand.weights.items():
                kept, count = hand.kept[name], int(hand.kept[name].sum())
                traded = math.floor(0.4 / 2 * (1 + math.cos(math.pi * step / 45)) * count)
                size = torch.where(kept, weight.detach().abs(), -1.0).flatten()
                stays = flat_mask(weight.shape, size.topk(count - traded).indices)
                assert weight.grad is not None
                found = torch.where(stays, -1.0, weight.grad.abs()).flatten()
                hand.kept[name] = stays | flat_mask(weight.shape, found.topk(traded).indices)
            hand.prune()
        else:
            hand.step(step, 0.1 * 0.5 * (1 + math.cos(math.pi * step / 60)) * min(1.0, step / 5))
    outcome = go(task, mask)
    assert outcome.mask != mask
    hand.assert_equal(outcome)


def test_an_update_that_takes_a_steps_place_is_no_step_of_the_optimiser() -> None:
    for engine in ENGINES:
        task = vector_task(recipe={"engine": engine, **changing("rigl", "8it", "45it")})
        _, session = begin(task.build(0), first_mask(task, 0.3, "rigl"), task, task.splits(0).train, task.recipe, 0)
        session.stretch(8)
        before = session.state()
        session.skip()
        assert session.step == 9
        after = session.state()
        assert int(after.pop("step")) == int(before.pop("step")) + 1
        assert all(torch.equal(after[name], value) for name, value in before.items())
        session.stretch(2)
        assert int(session.state()["optimizer.one.weight.step"]) == 10


@pytest.mark.parametrize("engine", ENGINES)
def test_set_written_out_by_hand(engine: str) -> None:
    recipe = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}
    task = vector_task(recipe={"engine": engine, **recipe, **changing("set", "1ep", "60it", fraction=0.3)})
    mask = first_mask(task, 0.3, "set")
    hand = ByHand(task, mask, lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1))
    for step in range(60):
        if step and step % 7 == 0:
            generator = stream(0, "updates", 0, step)
            for name, weight in hand.weights.items():
                values, stays = weight.detach().flatten(), torch.zeros(weight.numel(), dtype=torch.bool)
                for sign in (1, -1):
                    own = (sign * values > 0).sum()
                    places = (sign * values).topk(int(own - round(0.3 * int(own)))).indices
                    stays[places] = True
                missing = int(hand.kept[name].sum() - stays.sum())
                hand.kept[name] = regrown(stays, missing, generator).reshape(weight.shape)
                with torch.no_grad():
                    weight.mul_(stays.reshape(weight.shape))
            hand.prune()
        hand.step(step, 0.01)
    hand.assert_equal(go(task, mask))


@pytest.mark.parametrize("engine", ENGINES)
def test_gradual_pruning_written_out_by_hand(engine: str) -> None:
    recipe = {"optimizer": "adam", "lr": 0.01, "lr_schedule": "steps", "milestones": ("33it",)}
    task = vector_task(recipe={"engine": engine, **recipe, **changing("gradual", "5it", "43it", density=0.1)})
    mask = first_mask(task, None, "gradual")
    hand = ByHand(task, mask, lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    for step in range(60):
        if step and step % 5 == 0 and step < 43:
            density = 0.1 + 0.9 * (1 - step / 40) ** 3
            shares = {name: density * weight.numel() for name, weight in hand.weights.items()}
            keep = {name: math.floor(share) for name, share in shares.items()}
            left = round(density * mask.total) - sum(keep.values())
            for name in sorted(shares, key=lambda n: keep[n] - shares[n])[:left]:  # the largest remainders
                keep[name] += 1
            for name, weight in hand.weights.items():
                hand.kept[name] = flat_mask(weight.shape, weight.detach().abs().flatten().topk(keep[name]).indices)
            hand.prune()
        hand.step(step, 0.01 if step < 33 else 0.001)
    hand.assert_equal(go(task, mask))
