"""What a study comes to: the recipe of every draw of one of its sizes, in the file's order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from tombola import comparing
from tombola.asked import allocation_of, controls_of, densities, draw_recipe
from tombola.errors import InputError
from tombola.mask import left_to_prune
from tombola.methods import get_method
from tombola.recipe import DrawRecipe, Recipe
from tombola.sealed import canonical_json, json_hash
from tombola.studies.study import Block, Study, is_axis
from tombola.tasks import get_task

MOST_DRAWS = 10_000


@dataclass(frozen=True)
class Planned:
    """A draw of a study. ``asked`` are the densities that its block names; rungs of a ladder are none of them."""

    recipe: DrawRecipe
    asked: tuple[float, ...]

    @cached_property
    def key(self) -> str:
        """What tells its recipe from every other: 64 hexadecimal digits."""
        return key_of(self.recipe)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The recipe but for task, method and seed as JSON values, fields of the training as ``training.lr``."""
        found = self.recipe.model_dump(mode="json", exclude={"task", "method", "seed"})
        training = {f"training.{name}": value for name, value in found.pop("training").items()}
        return found | training

    @cached_property
    def densities(self) -> tuple[float, ...]:
        """The density of each round but the dense one; where the search ends early, of those that there may be."""
        return _densities(self.recipe)

    @property
    def controls(self) -> int:
        """How many trainings of controls go with its rounds."""
        return len(controls_of(self.recipe, range(1, len(self.densities) + 1)))


@dataclass(frozen=True)
class Refused:
    """A draw that can't be, and that its block leaves out."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """A study in one of its sizes."""

    study: Study
    quick: bool
    draws: tuple[Planned, ...]
    refused: tuple[Refused, ...]

    @property
    def size(self) -> str:
        """``quick`` or ``full``."""
        return "quick" if self.quick else "full"

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """Fields that tell draws of one task, method and seed apart; those of the training as ``training.lr``."""
        alike = self._alike.values()
        return tuple(
            n for n in self.draws[0].fields if any(any(d.fields[n] != s[0].fields[n] for d in s) for s in alike)
        )

    def label(self, draw: Planned) -> str:
        """A draw's name for people: ``digits-mlp · imp · seed 0 · survivors rewind``."""
        alike, own = self._alike[_names(draw.recipe)], draw.fields
        told = [n for n in own if any(other.fields[n] != own[n] for other in alike)]
        more = [f"{n.removeprefix('training.')} {_short(own[n])}" for n in told]
        return " · ".join([draw.recipe.task, draw.recipe.method, f"seed {draw.recipe.seed}", *more])

    @cached_property
    def _alike(self) -> dict[tuple[Any, ...], list[Planned]]:
        """The draws of each task, method and seed."""
        found: dict[tuple[Any, ...], list[Planned]] = {}
        for draw in self.draws:
            found.setdefault(_names(draw.recipe), []).append(draw)
        return found

    @property
    def runs(self) -> int:
        """The trainings of all draws; what draws share, such as the dense net of a seed, is counted with each."""
        return sum(1 + len(draw.densities) + draw.controls for draw in self.draws)

    def in_order(self) -> list[Planned]:
        """The draws as they are best begun: first one for each dense net, so that no process waits for another's.

        Of those that share one, a draw that rewinds comes first, as the dense net then keeps the values that it needs.
        """
        shared: dict[str, list[Planned]] = {}
        for draw in sorted(self.draws, key=lambda d: d.recipe.survivors != "rewind"):
            shared.setdefault(dense_of(draw.recipe), []).append(draw)
        return [draw for level in itertools.zip_longest(*shared.values()) for draw in level if draw is not None]


def plan(study: Study, quick: bool = False) -> Plan:
    """The draws of a study's full or quick size; one that several blocks have is there once.

    A method whose rounds build on each other goes down a ladder to the densities of its block, another straight there,
    as in ``tombola.comparing``; controls stand at those densities. Raises ``InputError`` with the file and the block
    for an unknown task or method, for a draw that can't be, unless its block has ``refused = "leave out"``, and for
    more than ``MOST_DRAWS``.
    """
    found: dict[str, Planned] = {}
    refused: list[Refused] = []
    for block in study.blocks(quick):
        where = f"{study.where}, [[draws]] {block.number}"
        _check(block, len(study.seeds(quick)), where)
        for chosen in _combinations(block):
            name = ", ".join(f"{key} {_short(value)}" for key, value in chosen.items())
            try:
                draws = _draws(block, chosen, study.seeds(quick))
            except InputError as error:
                if not block.leaves_out:
                    raise InputError(f'{where}: {name}: {error} (or give the block refused = "leave out")') from error
                refused.append(Refused(name, str(error)))
                continue
            found.update((draw.key, draw) for draw in draws if draw.key not in found)
    if not found:
        raise InputError(f"{study.where}: no draw is left: {refused[0].name}: {refused[0].reason}")
    return Plan(study, quick, tuple(found.values()), tuple(refused))


def _check(block: Block, seeds: int, where: str) -> None:
    """``InputError`` for a name that isn't known, and for too many draws."""
    for known, names in ((get_task, block.tasks), (get_method, block.methods)):
        for name in names:
            try:
                known(name)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
    axes = [*_axes(block.options, DrawRecipe).values(), *_axes(block.training, Recipe).values()]
    count = math.prod(len(values) for values in (block.tasks, block.methods, *axes)) * seeds
    if count > MOST_DRAWS:
        raise InputError(f"{where}: a block must be at most {MOST_DRAWS:,} draws, but its lists make {count:,}")


def _axes(given: Mapping[str, Any], model: type[DrawRecipe] | type[Recipe]) -> dict[str, Sequence[Any]]:
    return {name: value for name, value in given.items() if name in model.model_fields and is_axis(name, model)}


def _combinations(block: Block) -> Iterator[dict[str, Any]]:
    """Task, method and what else a block has a list of, one after the other."""
    axes: dict[str, Sequence[Any]] = {"task": block.tasks, "method": block.methods}
    axes |= {name: values for name, values in _axes(block.options, DrawRecipe).items() if len(values) > 1}
    axes |= {f"training.{n}": values for n, values in _axes(block.training, Recipe).items() if len(values) > 1}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _draws(block: Block, chosen: Mapping[str, Any], seeds: Sequence[int]) -> list[Planned]:
    """The draws of one combination, one for each seed."""
    single = {name: values[0] for name, values in _axes(block.options, DrawRecipe).items()}
    options: dict[str, Any] = {**block.options, **single}
    training: dict[str, Any] = dict(block.training) | {n: v[0] for n, v in _axes(block.training, Recipe).items()}
    for name, value in chosen.items():
        if name.startswith("training."):
            training[name.removeprefix("training.")] = value
        elif name not in ("task", "method"):
            options[name] = value
    asked, channels = options.pop("densities", None), options.pop("channel_densities", None)
    options["training"] = training
    task, method = get_task(chosen["task"]), chosen["method"]
    if asked is None and channels is None:
        recipes = [draw_recipe(task, {**options, "method": method, "seed": seed}) for seed in seeds]
        return [Planned(recipe, ()) for recipe in recipes]
    falling = sorted(set(asked or ()), reverse=True)
    recipes, _ = comparing.recipes(
        task, [method], seeds=seeds, densities=falling, channel_densities=channels, options=options
    )
    weights = () if get_method(method).of_channels else tuple(falling)
    return [Planned(_controlled(recipe, falling), weights) for recipe in recipes]


def _controlled(recipe: DrawRecipe, asked: Sequence[float]) -> DrawRecipe:
    """The recipe with controls at the densities that were asked for, and not on the rungs between them."""
    rungs = recipe.densities or ()
    if not recipe.controls or recipe.control_rounds is not None or set(rungs) <= set(asked):
        return recipe
    rounds = tuple(number for number, density in enumerate(rungs, start=1) if density in asked)
    return recipe.model_copy(update={"control_rounds": rounds})


def key_of(recipe: DrawRecipe) -> str:
    """What tells a draw's recipe from every other: 64 hexadecimal digits."""
    return json_hash(recipe.identity())


def dense_of(recipe: DrawRecipe) -> str:
    """What tells the dense net that a draw begins with from every other."""
    return canonical_json([recipe.task, recipe.seed, recipe.training.identity()])


def _names(recipe: DrawRecipe) -> tuple[Any, ...]:
    return recipe.task, recipe.method, recipe.seed


def _short(value: Any) -> str:
    """A value of a recipe in a word."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_short, value)) or "none"
    if isinstance(value, dict):
        return ",".join(f"{name}={_short(part)}" for name, part in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _densities(recipe: DrawRecipe) -> tuple[float, ...]:
    if recipe.densities is not None:
        return recipe.densities
    return tuple(densities(recipe, dict(_shapes(recipe.task, recipe.unpruned)), allocation_of(recipe)))


@cache
def _shapes(task: str, unpruned: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    """The shapes of what a draw prunes."""
    names = get_task(task).prunable(get_task(task).build(0))
    return {name: tuple(names[name].shape) for name in left_to_prune(names, unpruned)}
