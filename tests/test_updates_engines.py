"""Trainings whose masks change on the way: engines agree, those that can't are passed over."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from updating import (
    ENGINES,
    OPTIMIZERS,
    SETTINGS,
    Update,
    changing,
    first_mask,
    go,
    image_task,
    on,
    spy,
    vector_task,
)

import tombola as tb
from tombola.engines import begin
from tombola.engines.sparse import session as sparse_session
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.task import Task
from tombola.training.loop import Outcome

SMOOTH: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam", "lr": 0.01, "eps": 1e-2},
    "adam-decay": {"optimizer": "adam", "lr": 0.01, "eps": 1e-2, "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "eps": 1e-2, "weight_decay": 0.1, "lr_schedule": "cosine"},
    "momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
}
"""A large eps: Adam divides by the size of a gradient, and would make a step of the rounding of a gradient of 0."""


def both(monkeypatch: pytest.MonkeyPatch, task: Task, mask: Mask, rule: str) -> list[tuple[Outcome, list[Update]]]:
    """The training and its updates on each engine."""
    found = []
    for engine in ENGINES:
        with monkeypatch.context() as context:
            updates = spy(context, rule)
            found.append((go(on(task, engine), mask), updates))
    return found


def assert_agree(masked: Outcome, sparse: Outcome) -> None:
    for a, b in zip(masked.history, sparse.history, strict=True):
        assert a["step"] == b["step"]
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-4, abs=1e-5)
        assert (b["train_loss"] or 0) == pytest.approx(a["train_loss"] or 0, rel=1e-4, abs=1e-5)
    assert masked.mask == sparse.mask
    for name, value in masked.final.items():
        torch.testing.assert_close(sparse.final[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("optimizer", SMOOTH)
@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("rule", SETTINGS)
def test_engines_agree_over_a_whole_training(
    monkeypatch: pytest.MonkeyPatch, rule: str, images: bool, optimizer: str
) -> None:
    recipe = SMOOTH[optimizer] | changing(rule, "6it", "36it") | {"steps": "40it"}
    task = (image_task if images else vector_task)(recipe=recipe)
    mask = first_mask(task, 0.2, rule)
    (masked, its), (sparse, ours) = both(monkeypatch, task, mask, rule)
    assert [u.step for u in its] == [u.step for u in ours] == list(range(6, 36, 6))
    assert [u.change.mask for u in its] == [u.change.mask for u in ours]
    assert_agree(masked, sparse)


def dead(mask: Mask, name: str, following: str) -> Tensor:
    """The kept weights of a layer whose outputs nobody reads."""
    return mask[name] & ~mask[following].any(dim=0)[:, None]


@pytest.mark.parametrize("optimizer", [{"lr": 0.01, "eps": 1e-2}, OPTIMIZERS["momentum"], SMOOTH["adam-decay"]])
def test_units_that_die_at_an_update_go_on_by_their_moments_on_both_engines(
    monkeypatch: pytest.MonkeyPatch, optimizer: dict[str, Any]
) -> None:
    task = vector_task(recipe=optimizer | changing("set", "4it", "56it", fraction=0.5))
    mask = first_mask(task, 0.1, "set")
    (masked, its), (sparse, ours) = both(monkeypatch, task, mask, "set")
    assert [u.change.mask for u in its] == [u.change.mask for u in ours]
    assert_agree(masked, sparse)
    moved = 0
    for before, after in itertools.pairwise(ours):
        for name, following in (("one.weight", "of.weight"), ("of.weight", "last.weight")):
            stays = before.before[name] & (before.weights[name] != 0)
            died = dead(before.change.mask, name, following) & ~dead(before.before, name, following)
            moved += int((before.weights[name] != after.weights[name])[stays & died].sum())
    assert moved > 0, "units should die with moments left, or this shows nothing"
    if task.recipe.weight_decay == 0:  # with it, compaction keeps what it drops, as that decays
        plain: Any = sparse_session._translated
        fixed = {"updates": None}
        monkeypatch.setattr(
            sparse_session, "_translated", lambda *args: plain(*args[:-1], args[-1].model_copy(update=fixed))
        )
        with pytest.raises(AssertionError):
            assert_agree(masked, go(on(task, "sparse"), mask))


def test_the_compact_engine_refuses_and_auto_passes_it_over() -> None:
    task = vector_task(recipe={"engine": "compact", **changing("set")})
    with pytest.raises(tb.InputError, match=r"compact engine can't run this training: the mask is updated"):
        go(task, first_mask(task, 0.05, "set"))
    wide = vector_task(metrics=lambda model, batch: {"accuracy": torch.tensor(0.5)})
    for updates, engine in ((changing("set"), "masked"), ({}, "compact")):
        model, recipe = wide.build(0), Recipe(**updates)
        mask = Mask({**Mask.full(model), "of.weight": torch.arange(24).expand(16, 24) < 4})
        plan, _ = begin(model, mask, wide, wide.splits(0).train, recipe, 0)
        assert plan.engine == engine, plan.reason


@pytest.mark.parametrize(
    ("every", "engine"), [("9it", "masked"), ("10it", "sparse"), ("1ep", "masked"), ("2ep", "sparse")]
)
def test_auto_takes_the_sparse_engine_where_updates_are_far_enough_apart(every: str, engine: str) -> None:
    task = vector_task(recipe=changing("set", every))
    plan, _ = begin(task.build(0), first_mask(task, 0.3, "set"), task, task.splits(0).train, task.recipe, 0)
    assert plan.engine == engine, plan.reason
    assert ("updated every" in plan.reason) == (engine == "masked")
