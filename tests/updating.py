"""Small trainings whose masks change on the way, and spies on what changes them: for the tests of such trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import toy_data

import tombola as tb
from tombola.engines.masked import MaskedSession
from tombola.engines.sparse.session import SparseSession
from tombola.mask import Mask
from tombola.pruning import ALLOCATIONS
from tombola.seeds import stream
from tombola.tasks.task import State, Task
from tombola.training.checkpoint import Slot
from tombola.training.loop import Outcome, train
from tombola.updates.base import Change, Moment
from tombola.updates.registry import RULES

ENGINES = ("masked", "sparse")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "momentum": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9},
    "nesterov": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}
SETTINGS: dict[str, dict[str, float]] = {
    "set": {},
    "rigl": {"fraction": 0.5},
    "dsr": {"threshold": 0.05},
    "deep_r": {"l1": 0.01, "temperature": 1e-3},
    "gradual": {"density": 0.1},
}
"""Such that plenty happens in a short training."""


class Layers(nn.Module):
    """Layers whose names are not in the order of the alphabet: checkpoints don't keep an order."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.of, self.last = nn.Linear(12, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.of(torch.relu(self.one(x)))))
        return out


def image_net() -> nn.Module:
    """Shifts are not 0: at a channel without inputs, rounding would decide on which side of a ReLU it is."""
    layers = (nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3))
    net = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    for name in ("1.bias", "5.bias"):
        nn.init.normal_(net.get_parameter(name), std=0.5)
    return net


def vector_task(**changes: Any) -> Task:
    """225 examples to train on: epochs of 7 steps of 32."""
    x, y = toy_data()
    recipe = {"steps": "60it", "batch": 32, "evaluate_every": "10it", "lr": 0.01, **changes.pop("recipe", {})}
    fields: dict[str, Any] = {"model": Layers, "recipe": tb.Recipe(**recipe), "name": "vectors"}
    fields |= {"train": (x[:250], y[:250]), "test": (x[250:], y[250:])}
    return Task(**(fields | changes))


def image_task(**changes: Any) -> Task:
    """Images of 2 x 8 x 8 in three classes."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(160, 2, 8, 8, generator=g)
    y = (x.flatten(1) @ torch.randn(128, 3, generator=g)).argmax(1)
    return vector_task(model=image_net, train=(x[:100], y[:100]), test=(x[100:], y[100:]), name="images", **changes)


def on(task: Task, engine: str) -> Task:
    """The task with an engine asked for."""
    return replace(task, recipe=task.recipe.model_copy(update={"engine": engine}))


def changing(rule: str, every: str = "10it", until: str = "50it", **settings: float) -> dict[str, Any]:
    """The part of a recipe that has a rule update the mask."""
    return {"updates": {"rule": rule, "every": every, "until": until, "settings": SETTINGS.get(rule, {}) | settings}}


def first_mask(task: Task, density: float | None, rule: str) -> Mask:
    """What a training with this rule begins with; None is the usual density."""
    model = task.build(0)
    if rule == "gradual":
        return Mask.full(model)
    allocation = RULES[rule].allocation if rule in RULES else "uniform"
    assert allocation in ALLOCATIONS
    return tb.prune(
        tb.score(model, "random", generator=stream(0, "first")), 0.3 if density is None else density, allocation
    )


def go(task: Task, mask: Mask, **options: Any) -> Outcome:
    """Train the net of seed 0 by itself."""
    return train(task, task.splits(0), task.recipe, 0, task.build(0), mask, **options)


@dataclass
class Update:
    """What a rule saw and did."""

    step: int
    before: Mask
    weights: State
    memory: State
    change: Change


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Update]:
    """Every update by a rule from now on."""
    updates: list[Update] = []
    kind: Any = RULES[name]

    @dataclass(frozen=True)
    class Spied(kind):  # type: ignore[misc]
        def update(self, moment: Moment) -> Change:
            weights = {layer: value.clone() for layer, value in moment.weights.items()}
            change: Change = kind.update(self, moment)
            updates.append(Update(moment.step, moment.mask, weights, dict(moment.memory), change))
            return change

    monkeypatch.setitem(RULES, name, Spied)
    return updates


def assert_pruned_is_zero(state: State, mask: Mask) -> None:
    """Weights and moments."""
    for name, kept in mask.items():
        assert not bool(state[f"model.{name}"][~kept].any()), name
        moments = [v for n, v in state.items() if n.startswith(f"optimizer.{name}.") and v.dim()]
        assert not any(bool(moment[~kept].any()) for moment in moments), name


def check_zeros(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on look at pruned weights and moments after every stretch and every update; the steps of the looks."""
    looks: list[int] = []

    def checked(plain: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *args: Any) -> Any:
            result = plain(self, *args)
            assert_pruned_is_zero(self.state(), self.mask)
            looks.append(self.step)
            return result

        return method

    for kind in (MaskedSession, SparseSession):
        monkeypatch.setattr(kind, "stretch", checked(kind.stretch))
        monkeypatch.setattr(kind, "remask", checked(kind.remask))
    return looks


class StoppedError(Exception):
    """A training is stopped from outside."""


@dataclass
class Memory:
    """Keeps a checkpoint in memory."""

    data: bytes | None = None
    steps: list[int] = field(default_factory=list)

    def save(self, data: bytes) -> None:
        self.data = data

    def load(self) -> bytes | None:
        return self.data

    def slot(self) -> Slot:
        return Slot(self, "a run", every=0.0)


def stopped(task: Task, mask: Mask, step: int, keep: Sequence[int] = ()) -> Memory:
    """The checkpoint of a training that was stopped at the evaluation of a step, before it could be saved."""
    memory = Memory()

    def watch(done: int, total: int, row: Any) -> None:
        if row["step"] == step:
            raise StoppedError

    with pytest.raises(StoppedError):
        go(task, mask, slot=memory.slot(), keep=keep, watch=watch)
    return memory


def without_time(outcome: Outcome) -> dict[str, Any]:
    """The summary but for how long it took."""
    return {name: value for name, value in outcome.summary.items() if "seconds" not in name}
