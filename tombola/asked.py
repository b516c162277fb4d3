"""A draw's recipe: the task's and the method's defaults, overridden by what is asked; and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tombola.audits.controls import DENSE_RATE, get_control
from tombola.criteria import criterion
from tombola.errors import InputError
from tombola.methods import Method, get_method
from tombola.pruning import Allocation, Layerwise, Shapes
from tombola.recipe import DrawRecipe, checked
from tombola.schedules import geometric, to_target
from tombola.tasks import Task

MOST_ROUNDS = 60


def draw_recipe(task: Task, options: Mapping[str, Any]) -> DrawRecipe:
    """A draw's recipe: the task's defaults, overridden by ``options``. ``InputError`` for what is wrong with them."""
    training = {**task.recipe.model_dump(), **_mapping(options.get("training"), "training")}
    method = get_method(str(options.get("method", DrawRecipe.model_fields["method"].default)))
    allocation = options.get("allocation") or method.allocation or task.allocation
    defaults: dict[str, Any] = {"task": task.name, "allocation": allocation, "margin": task.margin}
    defaults |= {"unpruned": task.unpruned, "survivors": method.survivors[0], "score_per_class": method.per_class}
    if allocation == "layerwise":
        defaults["relative_rates"] = dict(task.relative_rates)
    if not any(options.get(ending) for ending in ("rounds", "density", "densities", "stop_at_margin")):
        defaults |= _ending(method, task)
    recipe = checked(DrawRecipe, {**defaults, **options, "training": training})
    _check(task, recipe)
    return recipe


def _ending(method: Method, task: Task) -> dict[str, Any]:
    """Where a search ends that isn't told."""
    if not method.straight:
        return {"rounds": task.rounds}
    return {"densities": method.densities} if method.densities else {"rounds": 1}


def _check(task: Task, recipe: DrawRecipe) -> None:
    """``InputError`` for what the training can't be, and for what doesn't go with the method or the task."""
    for name in ("updates", "until_settled", "score_density"):
        if getattr(recipe.training, name) is not None:
            raise InputError(f"training.{name} is the business of methods: leave it out, and name the method")
    if recipe.training.trains != "weights":
        raise InputError(
            f"a draw trains weights, and methods know when not to, but trains is {recipe.training.trains!r}"
        )
    method = get_method(recipe.method)
    method.check(recipe)
    criterion(recipe.criterion)
    for name in recipe.controls:
        get_control(name).check(task, method, recipe)


def allocation_of(recipe: DrawRecipe) -> Allocation:
    """How a draw spreads a density over layers: its name, or the rates of layers."""
    return Layerwise(recipe.rate, recipe.relative_rates) if recipe.allocation == "layerwise" else recipe.allocation


def densities(recipe: DrawRecipe, shapes: Shapes, allocation: Allocation) -> list[float]:
    """The ladder of densities of a recipe, dense left out. A geometric ladder to a density ends on it exactly."""
    if recipe.densities is not None:
        return list(recipe.densities)
    if recipe.density is not None and recipe.schedule == "geometric" and get_method(recipe.method).straight:
        return [recipe.density]
    if recipe.schedule != "geometric":
        return to_target(recipe.schedule, recipe.density or 0.0, recipe.rounds or 0)
    most = MOST_ROUNDS if recipe.rounds is None else recipe.rounds
    if isinstance(allocation, Layerwise):
        ladder = [allocation.density_after(k, shapes) for k in range(1, most + 1)]
    else:
        ladder = geometric(recipe.rate, most)
    if recipe.density is None:
        total = sum(math.prod(shape) for shape in shapes.values())
        return [d for d in ladder if round(d * total) > 0]
    above = [d for d in ladder if d > recipe.density]
    if len(above) == most:
        raise InputError(
            f"density {recipe.density:g} isn't reached in {most} rounds at rate {recipe.rate:g}: raise the rate"
        )
    return [*above, recipe.density]


def controls_of(recipe: DrawRecipe, rounds: Iterable[int]) -> list[tuple[str, int, int]]:
    """Arm, round and number of each training that ``controls`` adds to a draw with tickets of these rounds."""
    wanted = [number for number in rounds if recipe.control_rounds is None or number in recipe.control_rounds]
    draws = {arm: recipe.control_draws if get_control(arm).draws else 1 for arm in recipe.controls}
    found = [(arm, number, draw) for number in wanted for arm, count in draws.items() for draw in range(count)]
    return found + [(DENSE_RATE, 0, place) for place in range(len(recipe.dense_rates))]


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a mapping of fields to values, but got {value!r}")
    return dict(value)
