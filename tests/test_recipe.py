"""Recipes: identity, validation, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from tombola.durations import Duration
from tombola.recipe import DrawRecipe, Recipe

# Identity.

# Stored results leave these values out of their identity: a default that changes would give old results to new recipes.
DEFAULTS = {
    "steps": "10000it",
    "batch": 60,
    "optimizer": "adam",
    "lr": 0.0012,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "betas": [0.9, 0.999],
    "eps": 1e-08,
    "lr_schedule": "constant",
    "milestones": [],
    "gamma": 0.1,
    "warmup": "0it",
    "start": "0it",
    "evaluate_every": "100it",
    "engine": "auto",
    "threads": 1,
    "device": "cpu",
}
DRAW_DEFAULTS = {
    "task": "digits-mlp",
    "method": "imp",
    "seed": 0,
    "rounds": None,
    "density": None,
    "rate": 0.2,
    "relative_rates": {},
    "allocation": "layerwise",
    "schedule": "geometric",
    "criterion": "magnitude",
    "survivors": "reset",
    "back_to": "0it",
    "fine_tune": None,
    "strategy": 1,
    "margin": 0.005,
    "stop_at_margin": False,
    "controls": [],
    "control_draws": 1,
    "control_rounds": None,
    "training": DEFAULTS,
}


def test_defaults_are_those_that_stored_results_leave_out() -> None:
    assert Recipe().model_dump(mode="json").items() >= DEFAULTS.items()
    draw = DrawRecipe().model_dump(mode="json")
    assert draw.pop("training").items() >= DEFAULTS.items()
    assert draw.items() >= {n: v for n, v in DRAW_DEFAULTS.items() if n != "training"}.items()


def test_identity_leaves_defaults_out() -> None:
    assert Recipe().identity() == {}
    assert DrawRecipe().identity() == {}
    assert Recipe.model_validate(DEFAULTS).identity() == {}
    assert DrawRecipe.model_validate(DRAW_DEFAULTS).identity() == {}
    assert Recipe(steps=Duration(10_000.0), lr=0.0012, batch=61).identity() == {"batch": 61}


def test_identity_is_json_of_what_differs_at_every_level() -> None:
    recipe = DrawRecipe(
        rounds=3,
        relative_rates={"fc3.weight": 0.5},
        training=Recipe(steps=Duration(0.5, "ep"), lr_schedule="steps", milestones=(Duration(1), Duration(2, "ep"))),
    )
    assert recipe.identity() == {
        "rounds": 3,
        "relative_rates": {"fc3.weight": 0.5},
        "training": {"steps": "0.5ep", "lr_schedule": "steps", "milestones": ["1it", "2ep"]},
    }
    assert DrawRecipe.model_validate(recipe.identity()) == recipe


def test_identities_of_lengths_that_differ_differ() -> None:
    lengths = [Duration(0.1234567, "ep"), Duration(0.1234568, "ep"), Duration(1_000_001), Duration(1_000_002)]
    assert len({str(Recipe(steps=length).identity()) for length in lengths}) == 4


def test_a_new_option_with_a_default_changes_no_identity() -> None:
    class Tomorrow(Recipe):
        label_smoothing: float = Field(0.0, ge=0)

    class DrawTomorrow(DrawRecipe):
        training: Recipe = Field(Tomorrow())
        explain: bool = False

    changed = {"lr": 0.1, "optimizer": "sgd", "momentum": 0.9}
    assert Tomorrow.model_validate(changed).identity() == Recipe.model_validate(changed).identity()
    assert DrawTomorrow(seed=4).identity() == DrawRecipe(seed=4).identity()
    assert Tomorrow(label_smoothing=0.1).identity() == {"label_smoothing": 0.1}


def test_recipes_are_values() -> None:
    assert Recipe(lr=0.1) == Recipe.model_validate({"lr": 0.1})
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().lr = 0.1  # type: ignore[misc]


# Validation.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nesterov": True}, "nesterov needs optimizer 'sgd' with momentum above 0"),
        ({"nesterov": True, "optimizer": "sgd"}, "nesterov needs optimizer 'sgd' with momentum above 0"),
        ({"momentum": 0.9}, "momentum belongs to optimizer 'sgd', but the optimizer is 'adam': set betas"),
        ({"lr_schedule": "steps"}, "lr_schedule 'steps' and milestones go together: give both or neither"),
        ({"milestones": ["5it"]}, "lr_schedule 'steps' and milestones go together: give both or neither"),
        ({"steps": 0}, "steps and evaluate_every must be more than 0"),
        ({"evaluate_every": "0ep"}, "steps and evaluate_every must be more than 0"),
        ({"steps": "5"}, "a duration must be a number with 'it'"),
        ({"lr": 0}, "greater than 0"),
        ({"lr": math.inf}, "finite number"),
        ({"weight_decay": math.inf}, "finite number"),
        ({"weight_decay": -1}, "greater than or equal to 0"),
        ({"momentum": 1.0, "optimizer": "sgd"}, "less than 1"),
        ({"betas": [0.9, math.nan]}, "less than 1"),
        ({"batch": 0}, "greater than 0"),
        ({"optimizer": "lbfgs"}, "'sgd', 'adam', 'adamw' or 'rmsprop'"),
        ({"device": "tpu"}, "should match pattern"),
        ({"learning_rate": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "cubic", "rounds": 3}, "schedule 'cubic' needs both density .* and rounds"),
        ({"schedule": "linear", "density": 0.1}, "schedule 'linear' needs both density .* and rounds"),
        ({"rounds": 3, "density": 0.1}, "with the geometric schedule give rounds or density, not both"),
        ({"survivors": "rewind"}, "survivors 'rewind' needs back_to above 0, e.g. 500it; back to 0 is 'reset'"),
        ({"back_to": 5}, "back_to belongs to survivors 'rewind' or 'lr-rewind', but survivors is 'reset'"),
        ({"fine_tune": 5}, "fine_tune belongs to survivors 'fine-tune', but survivors is 'reset'"),
        (
            {"relative_rates": {"fc": 0.5}, "allocation": "erk"},
            "relative_rates belong to allocation 'layerwise', but the allocation is 'erk'",
        ),
        (
            {"strategy": 2, "survivors": "fine-tune"},
            "strategy 2 resets or rewinds at the end: survivors must be 'reset'",
        ),
        ({"density": 1.0}, "less than 1"),
        ({"rate": 0.0}, "greater than 0"),
        ({"margin": math.nan}, "finite number"),
        ({"margin": -0.1}, "greater than or equal to 0"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"training": {"lr": -1}}, "greater than 0"),
        ({"controls": ["dense"]}, "'reinit', 'shuffled', .* or 'fine_tune'"),
    ],
)
def test_draw_recipes_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DrawRecipe.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "cubic", "rounds": 3, "density": 0.1},
        {"density": 0.1},
        {"survivors": "rewind", "back_to": "500it"},
        {"survivors": "lr-rewind"},
        {"survivors": "lr-rewind", "back_to": "1ep"},
        {"survivors": "fine-tune", "fine_tune": "1ep"},
        {"strategy": 2, "survivors": "rewind", "back_to": 5},
        {"training": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True}},
    ],
)
def test_draw_recipes_that_make_sense_come_back_from_their_identity(fields: dict[str, Any]) -> None:
    recipe = DrawRecipe.model_validate(fields)
    assert DrawRecipe.model_validate(recipe.identity()) == recipe
    assert DrawRecipe.model_validate_json(recipe.model_dump_json()) == recipe


# The learning rate.


def rates(recipe: Recipe, steps: int, per_epoch: int = 10) -> list[float]:
    return [recipe.lr_at(step, per_epoch) for step in range(steps)]


def by_torch(make: Any, lr: float, steps: int, **options: Any) -> list[float]:
    """The rates that one of torch's own schedulers gives, stepped after every step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def test_constant_rate() -> None:
    assert rates(Recipe(lr=0.3), 5) == [0.3] * 5


def test_steps_by_hand_and_as_torchs() -> None:
    recipe = Recipe(
        lr=1.0, lr_schedule="steps", milestones=(Duration(3), Duration(0.5, "ep"), Duration(5), Duration(7)), gamma=0.5
    )
    assert rates(recipe, 9) == [1, 1, 1, 0.5, 0.5, 0.125, 0.125, 0.0625, 0.0625]
    milestones = [3, 5, 5, 7]
    torchs = by_torch(torch.optim.lr_scheduler.MultiStepLR, 1.0, 9, milestones=milestones, gamma=0.5)
    assert rates(recipe, 9) == pytest.approx(torchs, rel=1e-12)


def test_cosine_by_hand_and_as_torchs() -> None:
    recipe = Recipe(lr=2.0, lr_schedule="cosine", steps=Duration(4))
    assert rates(recipe, 6) == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0, 0.0], abs=1e-15)
    long = Recipe(lr=0.1, lr_schedule="cosine", steps=Duration(3, "ep"))
    torchs = by_torch(torch.optim.lr_scheduler.CosineAnnealingLR, 0.1, 30, T_max=30)
    assert rates(long, 30) == pytest.approx(torchs, rel=1e-9, abs=1e-12)


def test_linear_by_hand_and_as_torchs() -> None:
    recipe = Recipe(lr=2.0, lr_schedule="linear", steps=Duration(4))
    assert rates(recipe, 6) == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    torchs = by_torch(torch.optim.lr_scheduler.LinearLR, 0.1, 30, start_factor=1.0, end_factor=0.0, total_iters=30)
    long = Recipe(lr=0.1, lr_schedule="linear", steps=Duration(3, "ep"))
    assert rates(long, 30) == pytest.approx(torchs, rel=1e-9, abs=1e-12)


def test_warmup_rises_from_0_and_multiplies_the_schedule() -> None:
    assert rates(Recipe(lr=1.0, warmup=Duration(4)), 6) == [0, 0.25, 0.5, 0.75, 1, 1]
    steps = Recipe(lr=1.0, warmup=Duration(4), lr_schedule="steps", milestones=(Duration(2),), gamma=0.5)
    assert rates(steps, 6) == [0, 0.25, 0.25, 0.375, 0.5, 0.5]
    assert rates(Recipe(lr=1.0, warmup=Duration(0.4, "ep")), 6) == [0, 0.25, 0.5, 0.75, 1, 1]


@settings(deadline=None)
@given(st.sampled_from(["constant", "cosine", "linear"]), st.integers(1, 200), st.integers(0, 50), st.integers(0, 250))
def test_rates_lie_between_0_and_the_full_rate(schedule: Any, steps: int, warmup: int, step: int) -> None:
    recipe = Recipe(lr=0.5, lr_schedule=schedule, steps=Duration(steps), warmup=Duration(warmup))
    assert 0 <= recipe.lr_at(step, 10) <= 0.5


def test_a_length_that_rounds_to_no_step_has_a_rate() -> None:
    assert Recipe(lr=1.0, lr_schedule="cosine", steps=Duration(0.001, "ep")).lr_at(0, 10) == 1.0


@pytest.mark.parametrize(
    ("examples", "batch", "steps"), [(250, 32, 8), (256, 32, 8), (257, 32, 8), (258, 32, 9), (1, 32, 1), (5, 1, 5)]
)
def test_steps_per_epoch_leave_a_lone_last_example_out(examples: int, batch: int, steps: int) -> None:
    assert Recipe(batch=batch).steps_per_epoch(examples) == steps
