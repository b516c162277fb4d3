"""The masked engine against a torch loop written out by hand, and its promises about pruned weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import same, toy_data, toy_task

import tombola as tb
from tombola.engines import Plan, open_session
from tombola.engines.masked import MaskedSession, make_optimizer
from tombola.mask import Mask
from tombola.seeds import stream
from tombola.tasks.task import examples

OPTIMIZERS = [
    {"optimizer": "sgd", "lr": 0.1},
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "betas": (0.5, 0.9)},
    {"optimizer": "rmsprop", "lr": 0.01, "weight_decay": 0.01, "beta": 0.9, "eps": 1e-6},
]


def plain_net() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))


def half_mask(model: nn.Module) -> Mask:
    return tb.prune(tb.score(model, "magnitude"), 0.4)


def session(recipe: tb.Recipe, model: nn.Module, mask: Mask) -> MaskedSession:
    task = toy_task()
    opened = open_session(Plan("masked", "test"), model, mask, task, examples(task.train), recipe, seed=3)
    assert isinstance(opened, MaskedSession)
    return opened


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_a_stretch_equals_the_loop_written_by_hand(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    recipe = tb.Recipe(batch=32, **options)
    ours, theirs = plain_net(), plain_net()
    theirs.load_state_dict(ours.state_dict())
    mask = half_mask(ours)
    running = session(recipe, ours, mask)
    running.stretch(20)

    x, y = (t[:250] for t in toy_data())
    weights = [(theirs.get_parameter(name), kept) for name, kept in mask.items()]
    for weight, kept in weights:
        weight.data.mul_(kept)
    optimizer = make_optimizer(theirs, recipe)
    for step in range(20):
        epoch, position = divmod(step, 8)  # 250 examples in batches of 32: seven whole ones and one of 26
        order = torch.randperm(250, generator=stream(3, "order", epoch))
        batch = order[position * 32 : (position + 1) * 32]
        optimizer.zero_grad()
        F.cross_entropy(theirs(x[batch]), y[batch]).backward()
        for weight, kept in weights:
            weight.grad.mul_(kept)
        optimizer.step()
    assert same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step_and_negative_ones_train(options: dict[str, object]) -> None:
    task = toy_task(recipe=options)
    model = task.build(0)
    mask = half_mask(model)
    before = {name: model.get_parameter(name).detach().clone() for name in mask}
    running = session(task.recipe, model, mask)
    for _ in range(12):
        running.stretch(1)
        for name, kept in mask.items():
            assert bool((model.get_parameter(name)[~kept] == 0).all())
    for name, kept in mask.items():
        moved = model.get_parameter(name).detach() != before[name]
        negative = kept & (before[name] < 0)
        assert moved[negative].float().mean() > 0.8  # a unit with no way out has no gradient


def test_moments_of_pruned_weights_stay_zero() -> None:
    task = toy_task()
    model = task.build(0)
    mask = half_mask(model)
    running = session(task.recipe, model, mask)
    running.stretch(15)
    for name, kept in mask.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            value = running.optimizer.state[model.get_parameter(name)][moment]
            assert bool((value[~kept] == 0).all())
            assert bool((value[kept] != 0).any())


def test_a_weight_that_leaves_zero_is_a_loud_defect() -> None:
    task = toy_task()
    model = task.build(0)
    mask = half_mask(model)
    running = session(task.recipe, model, mask)
    keep = running._keep
    running._keep = [torch.ones_like(k) for k in keep]  # an engine that forgets to mask ...
    running._train_on(running.train.take(torch.arange(32)))
    running._keep = keep  # ... and is checked
    with pytest.raises(tb.TombolaError, match="moved away from zero"):
        running.stretch(2)


def test_one_long_stretch_equals_many_short_ones_with_dropout() -> None:
    task = toy_task()
    models = [task.build(0), task.build(0)]
    sessions = [session(task.recipe, model, half_mask(model)) for model in models]
    sessions[0].stretch(21)
    for steps in (1, 13, 7):
        sessions[1].stretch(steps)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_state_goes_on_with_the_same_bits() -> None:
    for options in OPTIMIZERS:
        task = toy_task(recipe=options)
        straight, broken = task.build(0), task.build(0)
        mask = half_mask(straight)
        first = session(task.recipe, straight, mask)
        first.stretch(9)
        state = first.state()
        first.stretch(11)
        second = session(task.recipe, broken, mask)
        second.load(state)
        second.stretch(11)
        assert second.step == 20
        assert same(first.state(), second.state())


def test_a_stretch_leaves_the_global_random_state_alone() -> None:
    task = toy_task()
    model = task.build(0)
    before = torch.get_rng_state()
    session(task.recipe, model, Mask.full(model)).stretch(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_rate_follows_the_schedule() -> None:
    recipe = tb.Recipe(optimizer="sgd", lr=1.0, batch=250, lr_schedule="steps", milestones=("2it",), warmup="2it")
    model = plain_net()
    running = session(recipe, model, Mask.full(model))
    seen = []
    for _ in range(4):
        running.stretch(1)
        seen.append(running.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.0, 0.5, 0.1, 0.1])


def test_a_mask_of_another_net_is_refused() -> None:
    model = plain_net()
    with pytest.raises(tb.InputError, match="the mask"):
        session(tb.Recipe(), model, Mask.full(nn.Sequential(nn.Linear(12, 21))))
