"""Replicates trained in one pass against the masked engine, one seed after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import same, toy_task

import tombola as tb
from tombola.engines.masked import MaskedSession
from tombola.engines.replicates import ReplicatedSession
from tombola.mask import Mask
from tombola.tasks.task import Examples, examples

SEEDS = (3, 0, 11)
DENSITIES = (0.2, 0.6, 1.0)
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.1},
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "warmup": "3it"},
    {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "betas": (0.5, 0.9), "lr_schedule": "cosine"},
    {"optimizer": "rmsprop", "lr": 0.01, "weight_decay": 0.01},
]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))


def conv() -> nn.Module:
    body = (nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(8, 3))


class Tied(nn.Module):
    """Two layers of one weight, and a bias that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.second.weight = self.first.weight
        self.out.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.second(self.first(x).tanh()).tanh())
        return out


def doubled(net: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: net().double()


def task_of(net: Callable[[], nn.Module], recipe: dict[str, Any], *, double: bool = True, **changes: Any) -> tb.Task:
    plain = toy_task(recipe=recipe)
    if not double:
        return toy_task(model=net, recipe=recipe, **changes)
    x, y = plain.train
    return toy_task(model=doubled(net), train=(x.double(), y), recipe=recipe, **changes)


def starts(task: tb.Task) -> tuple[list[nn.Module], list[Mask], list[Examples]]:
    models = [task.build(seed) for seed in SEEDS]
    scores = [tb.score(model, "magnitude") for model in models]
    masks = [
        tb.prune(s, density) if density < 1 else Mask.full(model)
        for s, density, model in zip(scores, DENSITIES, models, strict=True)
    ]
    return models, masks, [task.splits(seed).train for seed in SEEDS]


def both(task: tb.Task) -> tuple[ReplicatedSession, list[MaskedSession]]:
    models, masks, train = starts(task)
    together = ReplicatedSession(models, masks, task, train, task.recipe, SEEDS)
    models, masks, train = starts(task)
    alone = [
        MaskedSession(model, mask, task, data, task.recipe, seed)
        for model, mask, data, seed in zip(models, masks, train, SEEDS, strict=True)
    ]
    return together, alone


def check_close(got: dict[str, Tensor], wanted: dict[str, Tensor], **tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype
        torch.testing.assert_close(got[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


# In double precision the two may differ by nothing but the order of a sum.
@pytest.mark.parametrize("net", [mlp, normalised, conv, Tied])
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_every_replicate_is_step_by_step_what_it_is_alone(
    net: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    together, alone = both(task_of(net, options))
    for _ in range(17):  # 225 examples in batches of 32: two epochs and the small batches at their ends
        losses = together.stretch(1)
        assert losses == pytest.approx([session.stretch(1) for session in alone], rel=1e-9)
        for replicate, session in enumerate(alone):
            check_close(together.state(replicate), session.state(), rtol=1e-7, atol=1e-9)
    assert together.step == 17


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_in_single_precision_they_agree_to_its_rounding(options: dict[str, Any]) -> None:
    together, alone = both(task_of(mlp, options, double=False))
    losses = together.stretch(10)
    assert losses == pytest.approx([session.stretch(10) for session in alone], rel=1e-5)
    for replicate, session in enumerate(alone):
        check_close(together.state(replicate), session.state(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_pruned_weights_and_their_moments_are_zero_after_every_step(options: dict[str, Any]) -> None:
    task = task_of(conv, options, double=False)
    models, masks, train = starts(task)
    together = ReplicatedSession(models, masks, task, train, task.recipe, SEEDS)
    for _ in range(10):
        together.stretch(1)
        for replicate, mask in enumerate(masks):
            state = together.state(replicate)
            for name, kept in mask.items():
                about = [value for key, value in state.items() if f".{name}" in key and value.shape == kept.shape]
                assert about
                assert all(bool((value[~kept] == 0).all()) for value in about)


def test_data_may_be_shared_and_orders_still_differ() -> None:
    task = task_of(mlp, {})
    shared = examples(task.train)
    models, masks, _ = starts(task)
    together = ReplicatedSession(models, masks, task, shared, task.recipe, SEEDS)
    models, masks, _ = starts(task)
    losses = together.stretch(9)
    assert len(set(losses)) == 3
    for replicate, seed in enumerate(SEEDS):
        session = MaskedSession(models[replicate], masks[replicate], task, shared, task.recipe, seed)
        assert losses[replicate] == pytest.approx(session.stretch(9), rel=1e-9)


def test_the_length_of_a_stretch_and_evaluation_between_change_no_bit() -> None:
    task = task_of(normalised, {})
    straight, broken = both(task)[0], both(task)[0]
    straight.stretch(14)
    for steps in (1, 9, 4):
        broken.stretch(steps)
        with torch.no_grad():
            broken.model(0).eval()(torch.ones(5, 12, dtype=torch.float64))
    for replicate in range(3):
        assert same(straight.state(replicate), broken.state(replicate))


@pytest.mark.parametrize("net", [normalised, Tied])
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_states_go_on_with_the_same_bits_even_in_a_used_session(
    net: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    task = task_of(net, options)
    straight, fresh, used = both(task)[0], both(task)[0], both(task)[0]
    straight.stretch(9)
    states = [straight.state(replicate) for replicate in range(3)]
    straight.stretch(6)
    used.stretch(2)
    for session in (fresh, used):
        session.load(states)
        session.stretch(6)
        assert session.step == 15
        for replicate in range(3):
            assert same(straight.state(replicate), session.state(replicate))


def test_a_used_session_can_go_back_to_the_beginning() -> None:
    task = task_of(normalised, {})
    straight, used = both(task)[0], both(task)[0]
    start = [straight.state(replicate) for replicate in range(3)]
    straight.stretch(5)
    used.stretch(8)
    used.load(start)
    used.stretch(5)
    assert same(straight.state(1), used.state(1))


def test_the_masked_engine_goes_on_from_the_state_of_a_replicate() -> None:
    together, alone = both(task_of(normalised, {}))
    together.stretch(6)
    for replicate, session in enumerate(alone):
        session.load(together.state(replicate))
    losses = together.stretch(6)
    for replicate, session in enumerate(alone):
        assert session.stretch(6) == pytest.approx(losses[replicate], rel=1e-9)
        check_close(together.state(replicate), session.state(), rtol=1e-7, atol=1e-9)


def test_a_replicate_that_diverges_leaves_the_others_alone() -> None:
    task = task_of(mlp, {})
    together, alone = both(task)
    models, masks, train = starts(task)
    with torch.no_grad():
        models[1][2].bias[0] = math.inf
    together = ReplicatedSession(models, masks, task, train, task.recipe, SEEDS)
    losses = together.stretch(5)
    assert math.isnan(losses[1])
    for replicate in (0, 2):
        assert losses[replicate] == pytest.approx(alone[replicate].stretch(5), rel=1e-9)


def test_a_weight_that_leaves_zero_is_a_loud_defect_beside_one_that_diverged() -> None:
    task = task_of(mlp, {})
    models, masks, train = starts(task)
    with torch.no_grad():
        models[1][2].bias[0] = math.inf
    together = ReplicatedSession(models, masks, task, train, task.recipe, SEEDS)
    together.stretch(1)
    with torch.no_grad():
        together._parameters["0.weight"][0] += 1
    with pytest.raises(tb.TombolaError, match=r"'0\.weight' moved away from zero"):
        together.stretch(1)


def test_the_loss_finds_a_replicates_own_weights_in_the_net() -> None:
    def decayed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(batch["x"]), batch["y"]) + 0.01 * penalty

    class Named(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __init__(self, x: Tensor, y: Tensor) -> None:
            self.x, self.y = x, y

        def __len__(self) -> int:
            return len(self.y)

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            return {"x": self.x[i], "y": self.y[i]}

    task = task_of(mlp, {}, loss=decayed)
    together, alone = both(toy_task(model=task.model, loss=decayed, train=Named(*task.train)))
    assert together.stretch(3) == pytest.approx([session.stretch(3) for session in alone], rel=1e-9)


def test_opening_and_training_leave_the_global_random_state_alone() -> None:
    task = task_of(mlp, {})
    models, masks, train = starts(task)
    before = torch.get_rng_state()
    ReplicatedSession(models, masks, task, train, task.recipe, SEEDS).stretch(2)
    assert torch.equal(torch.get_rng_state(), before)


def refused(task: tb.Task, match: str) -> None:
    models, masks, train = starts(task)
    with pytest.raises(tb.InputError, match=match):
        ReplicatedSession(models, masks, task, train, task.recipe, SEEDS)


def test_what_cant_be_one_pass_is_refused_before_the_training() -> None:
    refused(task_of(lambda: nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.1)), {}), "random numbers .dropout")
    cumulative = lambda: nn.Sequential(nn.Linear(12, 3), nn.BatchNorm1d(3, momentum=None))  # noqa: E731
    refused(task_of(cumulative, {}), "in one pass: .*item")
    per_example = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none")  # noqa: E731
    refused(task_of(mlp, {}, loss=per_example), r"scalar, but has shape \(32,\)")


def test_a_dropout_that_drops_nothing_is_welcome() -> None:
    together, alone = both(task_of(lambda: nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.0)), {}))
    assert together.stretch(2) == pytest.approx([session.stretch(2) for session in alone], rel=1e-9)


def test_replicates_that_dont_fit_together_are_refused() -> None:
    task = task_of(mlp, {})
    models, masks, train = starts(task)
    with pytest.raises(tb.InputError, match="3 models, 3 masks, 3 training sets, 2 seeds"):
        ReplicatedSession(models, masks, task, train, task.recipe, (0, 1))
    with pytest.raises(tb.InputError, match="0 models"):
        ReplicatedSession([], [], task, [], task.recipe, ())
    with pytest.raises(tb.InputError, match=r"equally many examples, but got \[225, 225, 250\]"):
        ReplicatedSession(models, masks, task, [*train[:2], examples(task.train)], task.recipe, SEEDS)
    other = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    with pytest.raises(tb.InputError, match="net 2 differs from net 0"):
        ReplicatedSession([*models[:2], other], masks, task, train, task.recipe, SEEDS)
    with pytest.raises(tb.InputError, match="the mask"):
        ReplicatedSession(models, [*masks[:2], Mask.full(nn.Linear(2, 2))], task, train, task.recipe, SEEDS)


def test_states_of_different_steps_are_refused() -> None:
    together, _ = both(task_of(mlp, {}))
    first = [together.state(replicate) for replicate in range(3)]
    together.stretch(1)
    with pytest.raises(tb.InputError, match=r"3 replicates .* one step, but got \[1, 0, 0\]"):
        together.load([together.state(0), *first[1:]])
