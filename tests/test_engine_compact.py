"""The compact engine is the masked engine: losses, states, resuming; and it says when it can't be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import random_mask, random_net
from torch import Tensor, nn
from toy import same, toy_task

import tombola as tb
from tombola.engines.compact import CompactSession, supports
from tombola.engines.evaluation import evaluate
from tombola.engines.masked import MaskedSession
from tombola.engines.tracing import UnsupportedError
from tombola.mask import Mask
from tombola.tasks.task import Examples, Task, cross_entropy, examples

EPS = 1e-4
"""A bias before batch normalisation has no gradient but rounding's, which a small eps would make whole steps of."""
RECIPES: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"optimizer": "sgd", "lr": 0.05, "weight_decay": 0.1},
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01, "eps": EPS},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "lr_schedule": "cosine", "warmup": "2it", "eps": EPS},
    {"optimizer": "rmsprop", "lr": 0.01, "weight_decay": 0.01, "eps": EPS},
]


def metrics(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"accuracy": (model(batch[0])[:, 0] > 0).double().mean()}


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    """Smooth everywhere, so that rounding stays rounding."""
    x, y = batch
    return F.softplus(model(x) * y[:, None]).mean()


def setting(seed: int, recipe: dict[str, Any]) -> tuple[nn.Module, Mask, Task, Examples, tb.Recipe]:
    net, x = random_net(seed)
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(20, *x.shape[1:], generator=g, dtype=torch.float64)
    targets = torch.randn(20, generator=g, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    task = Task(model=lambda: net, train=(inputs, targets), loss=mean_loss, metrics=metrics, name="random")
    return net, random_mask(net, seed), task, examples(task.train), tb.Recipe(batch=8, steps="10it", **recipe)


def pair(seed: int, recipe: dict[str, Any]) -> tuple[MaskedSession, CompactSession]:
    first, mask, task, train, whole = setting(seed, recipe)
    second = random_net(seed)[0]
    second.load_state_dict(first.state_dict())
    return (
        MaskedSession(first, mask, task, train, whole, seed),
        CompactSession(second, mask, task, train, whole, seed),
    )


def assert_agree(masked: dict[str, Tensor], compact: dict[str, Tensor], kept: dict[str, Any]) -> None:
    """Equal states, but for the running statistics of channels that were dropped."""
    assert masked.keys() == compact.keys()
    for name, value in masked.items():
        other, buffer = compact[name], name.removeprefix("model.")
        if "running_" in name and kept[buffer][0] is not None:
            value, other = value[kept[buffer][0]], other[kept[buffer][0]]
        torch.testing.assert_close(other, value, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@given(st.integers(0, 2**31), st.sampled_from(RECIPES))
@settings(max_examples=60, deadline=None)
def test_losses_and_whole_states_are_the_masked_engines_step_by_step(seed: int, recipe: dict[str, Any]) -> None:
    masked, compact = pair(seed, recipe)
    assert_agree(masked.state(), compact.state(), compact._compaction.kept)
    for steps in (1, 1, 3):
        assert compact.stretch(steps) == pytest.approx(masked.stretch(steps), rel=1e-6, abs=1e-9)
        assert compact.step == masked.step
        assert_agree(masked.state(), compact.state(), compact._compaction.kept)
        for name, value in compact.state().items():
            if name.startswith("model."):
                assert torch.equal(compact.model.state_dict()[name.removeprefix("model.")], value)


@given(st.integers(0, 2**31), st.sampled_from(RECIPES))
@settings(max_examples=25, deadline=None)
def test_a_resumed_training_has_the_same_bits_and_may_change_engine(seed: int, recipe: dict[str, Any]) -> None:
    masked, straight = pair(seed, recipe)
    other, resumed = pair(seed, recipe)
    straight.stretch(2)
    state = straight.state()
    straight.stretch(3)
    resumed.stretch(1)  # what it did before is forgotten
    resumed.load(state)
    resumed.stretch(3)
    assert same(resumed.state(), straight.state())
    masked.load(state)
    masked.stretch(3)
    other.stretch(2)
    resumed.load(other.state())
    resumed.stretch(3)
    assert_agree(masked.state(), straight.state(), straight._compaction.kept)
    assert_agree(masked.state(), resumed.state(), resumed._compaction.kept)


def relu_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3))


@given(st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_it_evaluates_the_current_weights_or_other_ones(seed: int) -> None:
    _, compact = pair(seed, RECIPES[0])
    start = {name: value.clone() for name, value in compact.model.state_dict().items()}
    task, train = compact._task, examples(compact._task.train)
    compact.stretch(3)
    now = compact.evaluate(train)
    assert now == pytest.approx(evaluate(task, compact.model, train), rel=1e-6)
    earlier = compact.evaluate(train, start)
    assert now == compact.evaluate(train)
    compact.model.load_state_dict(start)
    assert earlier == pytest.approx(evaluate(task, compact.model, train), rel=1e-6)


def test_it_tells_what_became_of_each_layer() -> None:
    task = toy_task()
    mask = Mask({"0.weight": (torch.arange(40) < 10)[:, None].expand(40, 12), "2.weight": torch.ones(20, 40).bool()})
    mask = Mask({**mask, "2.weight": mask["2.weight"] & (torch.arange(40) < 8)})
    session = CompactSession(relu_net(), mask, task, examples(task.train), task.recipe, 0)
    assert session.layers == {
        "0.weight": "8x12 of 40x12",
        "2.weight": "20x8 of 20x40",
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_in_single_precision_too_with_dead_weights_that_decay(recipe: dict[str, Any]) -> None:
    task = toy_task(recipe=recipe)
    train = examples(task.train)
    mask = tb.prune(tb.score(relu_net(), "magnitude"), 0.03)
    masked, compact = (kind(relu_net(), mask, task, train, task.recipe, 3) for kind in (MaskedSession, CompactSession))
    before = compact._compaction.dropped(compact.model.state_dict())
    assert sum(len(values) for values in before.values()) > 20
    for steps in (1, 4):
        assert compact.stretch(steps) == pytest.approx(masked.stretch(steps), rel=1e-4)
    for name, value in masked.model.state_dict().items():
        torch.testing.assert_close(compact.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    after = compact._compaction.dropped(compact.model.state_dict())
    moved = any(not torch.equal(after[name], values) for name, values in before.items())
    assert moved == (task.recipe.weight_decay > 0)
    for name, kept in mask.items():
        assert bool((compact.model.get_parameter(name)[~kept] == 0).all())


def test_frozen_and_unused_parameters_do_not_decay() -> None:
    def net() -> nn.Module:
        made = relu_net()
        made[0].bias.requires_grad_(False)
        made.extra = nn.Linear(2, 2)  # never called, as its forward is replaced
        made.extra.forward = lambda x: x
        return Only(made)

    task = toy_task(recipe=RECIPES[4])
    nets = [net(), net()]
    nets[1].load_state_dict(nets[0].state_dict())
    mask = tb.prune(tb.score(nets[0], "magnitude"), 0.03)
    before = {name: value.clone() for name, value in nets[0].state_dict().items()}
    train = examples(task.train)
    masked = MaskedSession(nets[0], mask, task, train, task.recipe, 1)
    compact = CompactSession(nets[1], mask, task, train, task.recipe, 1)
    masked.stretch(4), compact.stretch(4)
    assert masked.state().keys() == compact.state().keys()
    assert len(compact._compaction.kept["net.0.bias"][0]) < 40
    for name in ("net.0.bias", "net.extra.bias"):
        assert torch.equal(nets[1].state_dict()[name], before[name])
    for name, value in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], value, rtol=1e-4, atol=1e-5)


class Only(nn.Module):
    """A net whose last child is not called."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.net.children())[:-1]:
            x = layer(x)
        return x


class Noisy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        out = self.fc(x)
        if self.kind == "noise":
            return out + torch.randn(3)
        return (out, x) if self.kind == "pair" else out.detach() + out


def penalised(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) + sum(p.abs().sum() for p in model.parameters())


def first_of(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x)[0], y)


def nothing(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {}


def norm(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"norm": model.fc.weight.norm()}


@pytest.mark.parametrize(
    ("net", "changes", "reason"),
    [
        (nn.Sequential(nn.Linear(12, 9), nn.Dropout(0.2), nn.Linear(9, 3)), {}, "dropout '1' is active"),
        (Noisy("noise"), {}, "draws random numbers"),
        (Noisy("pair"), {"loss": first_of, "metrics": nothing}, "output is a tuple"),
        (relu_net(), {"loss": penalised}, "a metric looks at more than the net's output: 'parameters'"),
        (Noisy("plain"), {"metrics": norm}, "a metric looks at more than the net's output: 'fc'"),
        (
            relu_net(),
            {"loss": lambda model, batch: torch.zeros((), requires_grad=True), "metrics": nothing},
            "doesn't call the net",
        ),
    ],
)
def test_what_it_cannot_train_is_refused_with_a_reason(net: nn.Module, changes: dict[str, Any], reason: str) -> None:
    task = toy_task(**changes)
    train = examples(task.train)
    assert reason in (supports(net, task, train) or "")
    with pytest.raises(UnsupportedError, match=reason):
        CompactSession(net, Mask.full(net), task, train, task.recipe, 0)


def test_what_it_can_train_is_supported_and_trying_leaves_no_trace() -> None:
    task = toy_task()
    train = examples(task.train)
    net = nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Dropout(0.0), nn.ReLU(), nn.Linear(9, 3)).eval()
    plain = Noisy("plain")
    before, state = {n: v.clone() for n, v in net.state_dict().items()}, torch.get_rng_state()
    assert supports(net, task, train) is None
    assert supports(plain, task, train) is None
    assert same(net.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert all(p.grad is None for p in net.parameters())
