"""Trainings whose masks change on the way: stopped and gone on with, kept on the way, judged at the early stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import same
from updating import (
    ENGINES,
    SETTINGS,
    changing,
    first_mask,
    go,
    image_task,
    on,
    spy,
    stopped,
    vector_task,
    without_time,
)

import tombola as tb
from tombola.engines import evaluate
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.tasks.task import Task
from tombola.training.loop import Outcome


def assert_same(one: Outcome, other: Outcome) -> None:
    assert same(one.final, other.final)
    assert one.history == other.history
    assert without_time(one) == without_time(other)
    assert one.mask == other.mask
    assert list(one.mask) == list(other.mask)
    assert one.kept.keys() == other.kept.keys()
    assert all(same(state, other.kept[step]) for step, state in one.kept.items())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", SETTINGS)
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, rule: str, engine: str
) -> None:
    # Evaluations, and so checkpoints, just before an update's step, at it and just after it.
    recipe = {"engine": engine, "steps": "26it", "evaluate_every": "1it", **changing(rule, "8it", "25it")}
    task, keep = vector_task(recipe=recipe), [5, 9, 17, 26]
    mask, updates = first_mask(task, None, rule), spy(monkeypatch, rule)
    calm = go(task, mask, keep=keep)
    seen = list(updates)
    assert [update.step for update in seen] == [8, 16, 24]
    assert any(update.memory for update in seen) == (rule in ("dsr", "deep_r"))
    for step in (15, 16, 17):
        memory = stopped(task, mask, step + 1, keep)
        saved = memory.slot().saved
        assert saved is not None
        assert saved.step == step
        assert saved.progress.mask is not None
        assert list(saved.progress.mask) != list(mask), "a file has an order of its own, or this shows nothing"
        updates.clear()
        assert_same(go(task, mask, slot=memory.slot(), keep=keep), calm)
        assert [update.step for update in updates] == [past.step for past in seen if past.step >= step]
        for past, again in zip(reversed(seen), reversed(updates), strict=False):
            assert again.change.mask == past.change.mask
            assert list(again.change.mask) == list(mask)
            assert same(again.memory, past.memory)
            assert same(dict(again.change.memory), dict(past.change.memory))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_net_with_batch_statistics_goes_on_too(engine: str) -> None:
    task = on(image_task(recipe={"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, **changing("rigl", "6it")}), engine)
    mask = first_mask(task, 0.3, "rigl")
    calm = go(task, mask)
    for step in (20, 40):
        assert_same(go(task, mask, slot=stopped(task, mask, step).slot()), calm)


def test_it_takes_the_engine_that_was_planned_when_it_began() -> None:
    """Pruned on the way, a net might get another engine if it were asked again."""
    task = vector_task(recipe={**changing("gradual"), "engine": "auto"})
    mask = first_mask(task, None, "gradual")
    memory = stopped(task, mask, 40)
    outcome = go(on(task, "masked"), mask, slot=memory.slot())
    assert outcome.summary["engine"] == "sparse"
    assert outcome.summary["engine_layers"]["one"].startswith("24x12, 288 kept"), "as it was at the beginning"


OVERFIT: dict[str, Any] = {"lr": 0.03, "steps": "300it", "evaluate_every": "10it"}


def judged(task: Task, state: dict[str, torch.Tensor]) -> dict[str, float]:
    test = task.splits(0).test
    assert test is not None
    return {f"test_{name}": value for name, value in evaluate(task, task.build(0), test, state).items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_early_stop_is_among_the_evaluations_of_the_net_as_sparse_as_it_gets(engine: str) -> None:
    recipe = {"engine": engine, **OVERFIT, **changing("gradual", "20it", "150it", density=0.3)}
    task = vector_task(recipe=recipe)
    mask = first_mask(task, None, "gradual")
    outcome = go(task, mask)
    densities = [row["density"] for row in outcome.history]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] == 1.0
    losses = {row["step"]: row["validation_loss"] for row in outcome.history}
    sparsest = [row["step"] for row in outcome.history if row["density"] == densities[-1]]
    assert sparsest == list(range(150, 301, 10)), "the evaluation at the last update's step is before it"
    best = min(sparsest, key=lambda step: losses[step])
    assert best != min(losses, key=lambda step: losses[step]), "a denser net was better, or this shows nothing"
    assert outcome.summary["stop_step"] == best
    assert outcome.summary["stop"]["validation_loss"] == losses[best]
    assert best < 270
    assert_same(go(task, mask, slot=stopped(task, mask, 280).slot()), outcome)
    kept = go(task, mask, keep=[best]).kept[best]
    assert outcome.summary["stop"].items() >= judged(task, kept).items()
    assert outcome.summary["end"].items() >= judged(task, outcome.final).items()


@pytest.mark.parametrize("engine", ENGINES)
def test_test_metrics_at_the_early_stop_are_those_of_its_state_whatever_the_mask_is_by_then(engine: str) -> None:
    task = vector_task(recipe={"engine": engine, **OVERFIT, **changing("set", "20it", "290it", fraction=0.5)})
    mask = first_mask(task, 0.5, "set")
    outcome = go(task, mask)
    best = outcome.summary["stop_step"]
    assert best < 200
    losses = {row["step"]: row["validation_loss"] for row in outcome.history}
    assert losses[best] == min(losses.values())
    kept = go(task, mask, keep=[best]).kept[best]
    assert any(bool(kept[name][~own].any()) for name, own in outcome.mask.items()), "the mask has changed since"
    assert outcome.summary["stop"].items() >= judged(task, kept).items()


def test_a_row_tells_the_density_only_where_it_changes() -> None:
    task = vector_task()
    assert all("density" not in row for row in go(task, Mask.full(task.build(0))).history)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", ["set", "rigl", "gradual"])
def test_states_on_the_way_are_whole(store: tb.Store, other: tb.Store, rule: str, engine: str) -> None:
    task = vector_task(recipe={"engine": engine, **changing(rule, "8it", "45it")})
    mask = first_mask(task, None, rule)
    kept = go(task, mask, keep=[0, 9, 16, 25, 37, 60])
    assert same(kept.final, go(task, mask).final), "keeping changes no bit"
    asked = Lab(task, store).train(0, mask=mask, keep=[tb.Duration(step) for step in (9, 16, 25)])
    later = Lab(task, other).train(0, mask=mask)
    for run in (asked, later):  # 9 and 25 follow upon a step that RigL's update takes the place of
        for step in (0, 9, 16, 25, 37, 60):
            state = run.at(tb.Duration(step))
            cut = {name: value * mask[name] if name in mask else value for name, value in kept.kept[0].items()}
            assert same(state, cut if step == 0 else kept.kept[step]), step
        assert same(run.final, kept.final)
        assert run.final_mask == kept.mask
        assert same(run.model().state_dict(), kept.final)
    outside = [bool(kept.kept[37][name][~own].any()) for name, own in mask.items()]
    assert any(outside) == (rule != "gradual"), "values outside the first mask, or this shows nothing"
    assert Lab(task, store).train(0, mask=mask).final_mask == kept.mask, "read from the store"


def test_an_evaluation_of_which_nothing_was_trained_has_no_training_loss() -> None:
    task = vector_task(recipe={"evaluate_every": "1it", "steps": "20it", **changing("rigl", "8it", "20it")})
    outcome = go(task, first_mask(task, 0.3, "rigl"))
    assert [row["step"] for row in outcome.history] == list(range(21))
    assert [row["step"] for row in outcome.history if row["train_loss"] is None] == [0, 9, 17]
