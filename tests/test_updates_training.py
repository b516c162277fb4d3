"""Trainings whose masks change on the way: budgets, zeros, bits that depend on nothing else, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from together_tools import trained
from torch import Tensor, nn
from toy import same, toy_task
from updating import (
    ENGINES,
    OPTIMIZERS,
    SETTINGS,
    Layers,
    changing,
    check_zeros,
    first_mask,
    go,
    spy,
    vector_task,
)

import tombola as tb
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.training.loop import RefusedError, Training, train_together
from tombola.updates.gradual import Gradual


def counts(mask: Mask) -> list[int]:
    return [layer.kept for layer in mask.layers()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", SETTINGS)
def test_budgets_are_exact_after_every_update_and_what_is_pruned_is_0_in_weights_and_moments(
    monkeypatch: pytest.MonkeyPatch, rule: str, engine: str, optimizer: str
) -> None:
    updates, looks = spy(monkeypatch, rule), check_zeros(monkeypatch)
    task = vector_task(recipe={"engine": engine, **OPTIMIZERS[optimizer], **changing(rule, "6it", "50it")})
    mask = first_mask(task, None, rule)
    outcome = go(task, mask)
    assert [update.step for update in updates] == list(range(6, 50, 6))
    assert set(looks) >= {*range(6, 50, 6), *range(10, 61, 10)}
    now = mask
    for update in updates:
        assert update.before == now, "the net goes on under what the rule made"
        now = update.change.mask
        if rule == "gradual":
            share = Gradual(0.1).density_at(update.step, 60, 6, 50)
            assert now.kept == round(share * mask.total)
            assert now <= update.before
        else:
            assert now.kept == mask.kept
            assert counts(now) == counts(mask) or rule == "dsr"
    assert len({update.change.mask for update in updates}) >= 6, "the mask should change, or this shows nothing"
    assert outcome.mask == now
    assert outcome.mask.kept == (round(0.1 * mask.total) if rule == "gradual" else mask.kept)
    assert outcome.summary["engine"] == engine
    assert outcome.status == "finished"
    for name, kept in outcome.mask.items():
        assert not bool(outcome.final[name][~kept].any())
        assert bool(outcome.final[name][kept].any())


class Noisy(Layers):
    """Draws random numbers of its own in training."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.3 * torch.randn(x.shape) if self.training else x)


def test_dense_gradients_are_the_same_whatever_was_drawn_before() -> None:
    finals = []
    for number in (1, 2):
        task = vector_task(model=Noisy, recipe=changing("rigl"))
        mask = first_mask(task, 0.3, "rigl")
        torch.manual_seed(number)
        finals.append(go(task, mask))
    assert finals[0].mask == finals[1].mask
    assert finals[0].history == finals[1].history


@pytest.mark.parametrize("rule", ["set", "dsr", "deep_r"])
def test_random_draws_go_by_the_models_order_whatever_order_the_mask_has(rule: str) -> None:
    task = vector_task(recipe=changing(rule))
    mask = first_mask(task, 0.3, rule)
    turned = Mask({name: mask[name] for name in reversed(list(mask))})
    assert list(turned) != list(mask)
    one, other = go(task, mask), go(task, turned)
    assert one.mask == other.mask
    assert list(one.mask) == list(other.mask) == list(mask)
    assert one.history == other.history


def test_where_a_rule_changes_nothing_the_training_is_the_plain_one() -> None:
    task = vector_task(recipe=changing("gradual", "10it", "50it", first=0.5))
    mask = first_mask(task, None, "gradual")
    plain, gradual = go(vector_task(), mask, keep=[40]), go(task, mask, keep=[40])
    assert same(gradual.kept[40], plain.kept[40]), "pruning begins after the update at step 30"
    assert not same(gradual.final, plain.final)


def test_a_training_that_diverges_between_updates_is_a_result() -> None:
    for rule in SETTINGS:
        for engine in ENGINES:
            task = vector_task(recipe={"engine": engine, "optimizer": "sgd", "lr": 1e30, **changing(rule, "4it")})
            outcome = go(task, first_mask(task, None, rule))
            assert outcome.status == "diverged"
            assert outcome.summary["end"] is None


def frozen() -> nn.Module:
    net = Layers()
    net.of.weight.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("changes", "recipe", "message"),
    [
        ({}, changing("sett"), "unknown rule 'sett'.*'set'"),
        ({}, changing("set", density=0.1), "set has no setting 'density'"),
        ({}, changing("set", fraction=2.0), "fraction must be a number, more than 0 and at most 1"),
        ({}, changing("set", "50it", "50it"), "updates every 50 steps that end before step 50 never come"),
        ({}, changing("set", "60it", "100it"), "updates every 60 steps that end before step 60 never come"),
        ({}, changing("set", "30it", "50it") | {"start": "30it"}, "updates every 30 steps .* never come"),
        ({"model": frozen}, changing("rigl"), "'of.weight' is frozen"),
    ],
)
def test_what_can_not_be_is_refused_with_a_reason(changes: dict[str, Any], recipe: Any, message: str) -> None:
    task = vector_task(recipe=recipe, **changes)
    with pytest.raises(tb.InputError, match=message):
        go(task, first_mask(task, 0.3, "set"))


def test_updates_that_never_come_are_refused_where_channels_settle_too() -> None:
    recipe = {**changing("set", "50it", "50it"), "until_settled": {"density": 0.5}}
    task = toy_task(recipe=recipe)
    with pytest.raises(tb.InputError, match="never come"):
        go(task, Mask.full(task.build(0)))


def test_nets_with_masks_of_their_own_are_not_trained_in_one_pass(store: tb.Store) -> None:
    for recipe in (changing("set"), {"until_settled": {"density": 0.5}}):
        task = toy_task(recipe=recipe)
        trainings = {n: Training(task.splits(n), n, task.build(n), Mask.full(task.build(n))) for n in (0, 1)}
        with pytest.raises(RefusedError, match="mask goes its own way"):
            next(train_together(task, task.recipe, trainings, 2))
    task = vector_task(recipe=changing("gradual"))
    with pytest.warns(UserWarning, match="trained one by one: each net's mask"):
        together = trained(task, store, [{"seed": 0}, {"seed": 1}])
    assert [run.final_mask.density for run in together] == pytest.approx([0.1, 0.1], abs=1e-3)
    alone = go(task, first_mask(task, None, "gradual"))
    assert together[0].history == alone.history


def test_recipes_with_updates_can_be_told_apart_and_put_in_sets() -> None:
    one, again, other = (tb.Recipe(**changing("set", fraction=share)) for share in (0.1, 0.1, 0.2))
    assert len({one, again}) == 1
    assert len({one, other}) == 2
    assert Recipe.model_validate(one.identity()) == one
